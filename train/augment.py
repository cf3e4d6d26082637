"""JPEG bytes -> the pixels that the network sees; uint8 in, uint8 out.

Every copy of every photo has random generators of its own, keyed by (seed, epoch, sample, copy), so the
pixels do not depend on the number of workers or on what was drawn before.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from train.decode import Pixels, decode
from train.draws import COLUMNS, RAND_AUGMENT_STREAM, generator
from train.fused import FusedTransform, apply_crop
from train.randaugment import RandAugment, rand_augment
from train.recipe import AugmentSpec


class Transform(Protocol):
    """JPEG bytes -> pixels: writes uint8 [size, size, 3] into `out`; the same for the same (epoch, sample,
    copy), whatever was done before. Raises ValueError for a photo that does not decode.

    What it leaves to the device it returns, as a row of draws.COLUMNS.
    """

    size: int

    def __call__(
        self, photo: bytes, out: Pixels, epoch: int, sample: int, copy: int
    ) -> NDArray[np.float32] | None: ...


class EvalTransform:
    """Deterministic: the whole photo, resized to `size` x `size`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, photo: bytes, out: Pixels, epoch: int = 0, sample: int = 0, copy: int = 0) -> None:
        pixels, _ = decode(photo, self.size)
        cv2.resize(pixels, (self.size, self.size), dst=out, interpolation=cv2.INTER_LINEAR)


class DeviceTransform:
    """The worker's share of what train.device_augment finishes: decode, crop, JPEG round trip."""

    def __init__(self, profile: str, size: int, seed: int) -> None:
        self.size, self._fused = size, FusedTransform(profile, size, seed)

    def __call__(self, photo: bytes, out: Pixels, epoch: int, sample: int, copy: int) -> NDArray[np.float32]:
        plan = self._fused.plan(photo, epoch, sample, copy)
        pixels, box = decode(photo, self.size, plan.box)
        apply_crop(plan, pixels, box, out)
        return plan.row()


def plan_columns(transform: Transform) -> int:
    """Numbers a photo that the transform leaves to the device."""
    return len(COLUMNS) if isinstance(transform, DeviceTransform) else 0


class WithRandAugment:
    """Another transform, then RandAugment with random numbers of its own."""

    def __init__(self, first: Transform, then: RandAugment, seed: int) -> None:
        self.size, self.seed = first.size, seed
        self._first, self._then = first, then

    def __call__(self, photo: bytes, out: Pixels, epoch: int, sample: int, copy: int) -> None:
        self._first(photo, out, epoch, sample, copy)
        self._then(out, generator(self.seed, epoch, sample, copy, RAND_AUGMENT_STREAM))


def train_transform(spec: AugmentSpec, size: int, seed: int) -> Transform:
    """What a recipe does to its training photos."""
    first: Transform
    if spec.engine == "device":
        return DeviceTransform(spec.profile, size, seed)
    if spec.engine == "fused":
        first = FusedTransform(spec.profile, size, seed)
    else:
        from train.reference import ReferenceTransform  # albumentations takes seconds to import

        first = ReferenceTransform(spec.profile, size, seed)
    then = rand_augment(spec)
    return first if then is None else WithRandAugment(first, then, seed)
