"""Tier 1 and 2 augmentation, RandAugment, and the evaluation transform; uint8 in, uint8 out.

Every copy of every photo has a random generator of its own, keyed by (seed, epoch, sample, copy), so
the pixels do not depend on the number of workers or on what was drawn before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from train.compat import import_torchvision
from train.recipe import AugmentSpec

Pixels = NDArray[np.uint8]  # H, W, 3

CROP_SCALE, CROP_RATIO = (0.6, 1.0), (0.75, 1.33)
# Sides that the decoder must deliver, in units of the network's: the smallest crop is
# sqrt(0.6 x 0.75) = 0.67 of a side long and shall not have to be enlarged.
DECODE_MARGIN = 1.5
AUGMENT_STREAM = 2  # the order of an epoch draws from stream 0 of the same key, its steps from 1
MEAN_COLOUR = (124, 116, 104)  # ImageNet's: what RandAugment fills uncovered corners with
_LESIONS_SUFFER = ("Solarize", "Posterize", "Equalize", "Invert")


class TrainTransform:
    """Augments one decoded photo to `size` x `size`."""

    def __init__(self, spec: AugmentSpec, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._bits = np.random.Philox(key=[0, 0])
        self._numpy = np.random.Generator(self._bits)
        self._python = random.Random()
        self._compose = A.Compose(profile(spec.profile, size), strict=True)
        self._compose.set_random_state(self._numpy, self._python)
        self._rand_augment = _rand_augment(spec)

    def __call__(self, photo: Pixels, epoch: int, sample: int, copy: int) -> Pixels:
        self._reseed(epoch, sample, copy)
        pixels: Pixels = self._compose(image=photo)["image"]
        if self._rand_augment is None:
            return pixels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(self._python.getrandbits(63))
            return np.asarray(self._rand_augment(Image.fromarray(pixels)))

    def _reseed(self, epoch: int, sample: int, copy: int) -> None:
        self._bits.state = cast(Any, self.state(epoch, sample, copy))
        self._python.seed(int(self._numpy.integers(1 << 63)))

    def state(self, epoch: int, sample: int, copy: int) -> dict[str, Any]:
        """Philox is keyed: a state for each copy costs an assignment, no mixing of seeds."""
        words = np.array([0, AUGMENT_STREAM, copy, sample], dtype=np.uint64)
        return {
            "bit_generator": "Philox",
            "state": {"counter": words, "key": np.array([self.seed, epoch], dtype=np.uint64)},
            "buffer": np.zeros(4, dtype=np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }


class EvalTransform:
    """Deterministic: the whole photo, resized to `size` x `size`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, photo: Pixels, epoch: int, sample: int, copy: int) -> Pixels:
        resized = cv2.resize(photo, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, dtype=np.uint8)


Transform = TrainTransform | EvalTransform


def profile(name: str, size: int) -> list[A.BasicTransform | A.BaseCompose]:
    """The transforms of a profile.

    seed:  the document's snippet: tier 1, then one of three blurs and noises on 30 % of the photos
    table: the document's tables: each degradation with its own probability, and exposure
    light: crop and flip, mild colour: for short runs from scratch
    none:  the evaluation's resize
    """
    if name == "none":
        return [A.Resize(size, size)]
    crop = A.RandomResizedCrop(size=(size, size), scale=CROP_SCALE, ratio=CROP_RATIO)
    flip = A.HorizontalFlip(p=0.5)
    if name == "light":
        return [crop, flip, A.ColorJitter(0.15, 0.15, 0.15, 0.03, p=0.5)]
    # without a border mode, rotated photos get black corners: a cue that no real photo has
    rotate = A.Rotate(limit=45, border_mode=cv2.BORDER_REFLECT_101, p=0.5)
    jitter = A.ColorJitter(0.3, 0.3, 0.3, 0.1, p=0.8)
    core = [crop, flip, rotate, jitter]
    jpeg = A.ImageCompression(quality_range=(60, 95), p=0.2)
    shadow = A.RandomShadow(shadow_roi=(0, 0, 1, 1), num_shadows_limit=(1, 2), p=0.15)
    grey = A.ToGray(p=0.05)
    if name == "seed":
        iso = A.ISONoise(color_shift=(0.01, 0.05), intensity=(0.1, 0.3), p=1.0)
        spoiled = A.OneOf([_blur(1.0), _noise(1.0), iso], p=0.3)
        return [*core, spoiled, jpeg, shadow, grey]
    exposure = A.RandomBrightnessContrast(0.2, 0.2, p=0.5)
    return [*core, exposure, _blur(0.2), _noise(0.15), jpeg, grey, shadow]


def _blur(p: float) -> A.GaussianBlur:
    return A.GaussianBlur(blur_limit=(3, 7), sigma_limit=(0.8, 1.4), p=p)


def _noise(p: float) -> A.GaussNoise:
    # variances of 10 to 50 squared grey levels, as a share of 255
    return A.GaussNoise(std_range=(10**0.5 / 255, 50**0.5 / 255), p=p)


def _rand_augment(spec: AugmentSpec) -> Callable[[Image.Image], Image.Image] | None:
    if spec.rand_augment == "off":
        return None
    import_torchvision()
    from torchvision.transforms import v2

    operation = v2.RandAugment(
        num_ops=spec.rand_augment_ops,
        magnitude=spec.rand_augment_magnitude,
        num_magnitude_bins=11,  # the paper's scale 0-10; the default of 31 makes 9 a third of it
        fill=list(MEAN_COLOUR),
    )
    if spec.rand_augment == "lesion-safe":
        space = type(operation)._AUGMENTATION_SPACE
        operation._AUGMENTATION_SPACE = {name: space[name] for name in space if name not in _LESIONS_SUFFER}
    apply: Callable[[Image.Image], Image.Image] = operation
    return apply
