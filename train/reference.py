"""The reference: the same augmentation by albumentations, several times slower.

`train.fused` is compared with it, transform by transform; a recipe asks for it with
`augment.engine = "albumentations"`.
"""

from __future__ import annotations

import math
import random

import albumentations as A
import cv2

from train.decode import Pixels, decode
from train.draws import CROP_RATIO, CROP_SCALE, generator

# Sides that the decoder must deliver, in units of the network's: the smallest crop is
# sqrt(0.6 x 0.75) = 0.67 of a side long and shall not have to be enlarged.
DECODE_MARGIN = 1.5


class ReferenceTransform:
    """Augments one photo to `size` x `size`: see train.augment.Transform."""

    def __init__(self, profile_name: str, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._python = random.Random()
        self._compose = A.Compose(profile(profile_name, size), strict=True)

    def __call__(self, photo: bytes, out: Pixels, epoch: int, sample: int, copy: int) -> None:
        numbers = generator(self.seed, epoch, sample, copy)
        self._python.seed(int(numbers.integers(1 << 63)))
        self._compose.set_random_state(numbers, self._python)
        pixels, _ = decode(photo, math.ceil(self.size * DECODE_MARGIN))
        out[:] = self._compose(image=pixels)["image"]


def profile(name: str, size: int) -> list[A.BasicTransform | A.BaseCompose]:
    """The transforms of a profile.

    seed:  the document's snippet: tier 1, then one of three blurs and noises on 30 % of the photos
    table: the document's tables: each degradation with its own probability, and exposure
    light: crop and flip, mild colour: for short runs from scratch
    core:  crop and flip alone: what loaders are compared with
    none:  the evaluation's resize
    """
    if name == "none":
        return [A.Resize(size, size)]
    crop = A.RandomResizedCrop(size=(size, size), scale=CROP_SCALE, ratio=CROP_RATIO)
    flip = A.HorizontalFlip(p=0.5)
    if name == "core":
        return [crop, flip]
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
