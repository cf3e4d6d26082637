"""What augmentation does to one copy of one photo, decided before a pixel is touched.

`draw` gives a `Plan` of plain numbers, distributed as albumentations 2.0.8 draws them for the transforms of
`train.reference.profile`; `train.fused` carries it out. As rows, the plans of a batch travel as one array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.decode import Box

# The order of an epoch draws from stream 0 of the same key, its steps from 1.
AUGMENT_STREAM, RAND_AUGMENT_STREAM = 2, 5
CROP_SCALE, CROP_RATIO, CROP_TRIES = (0.6, 1.0), (0.75, 1.33), 10
ANGLE = 45.0  # degrees, either way
BLUR_SIZE, BLUR_SIGMA = (3, 7), (0.8, 1.4)
NOISE_STD = (10**0.5, 50**0.5)  # grey levels
ISO_INTENSITY = (0.1, 0.3)
QUALITY = (60, 95)
SHADOWS, CORNERS, SHADOW_INTENSITY = (1, 2), 5, 0.5
EXPOSURE = 0.2  # of the contrast, and of 255 grey levels
ORDERS = tuple(permutations(range(4)))  # of brightness, contrast, saturation, hue
SEEDS = 1 << 24  # the integers that a float32 holds exactly
_UNIFORMS = 96  # more than the longest plan takes


@dataclass(frozen=True)
class Profile:
    """How often each transform fires.

    `jitter_range` is how far brightness, contrast, saturation (around 1) and hue (share of the circle, around
    0) may go. `spoil` photos get one of blur, noise and ISO noise; `blur` and `noise` fire independently.
    """

    crop: bool = True
    flip: float = 0.5
    rotate: float = 0.5
    jitter: float = 0.8
    jitter_range: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    exposure: float = 0.0
    spoil: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    quality: float = 0.2
    shadow: float = 0.15
    grey: float = 0.05


_STILL = Profile(crop=False, flip=0, rotate=0, jitter=0, quality=0, shadow=0, grey=0)
_LIGHT = Profile(rotate=0, jitter=0.5, jitter_range=(0.15, 0.15, 0.15, 0.03), quality=0, shadow=0, grey=0)
PROFILES = {
    "seed": Profile(spoil=0.3),
    "table": Profile(exposure=0.5, blur=0.2, noise=0.15),
    "light": _LIGHT,
    "core": Profile(rotate=0, jitter=0, quality=0, shadow=0, grey=0),
    "none": _STILL,
}


class Shadow(NamedTuple):
    """A polygon, its sides crossing as they may, that keeps `1 - intensity` of the light; output pixels."""

    intensity: float
    x: tuple[int, ...]
    y: tuple[int, ...]


class Plan(NamedTuple):
    """One augmentation. Every number is a float32's, so `from_row(row())` gives it back exactly.

    A row holds the fields in this order (`shadows` as two times intensity, 5 x, 5 y; intensity 0: none).
    """

    left: int  # the crop, in pixels of the photo
    top: int
    width: int
    height: int
    flip: bool
    angle: float  # degrees, counter-clockwise
    order: int  # of the colour jitter: ORDERS[order]
    brightness: float  # factors; 1 changes nothing
    contrast: float
    saturation: float
    hue: float  # share of the circle
    gain: float  # exposure: gain x grey level + offset
    offset: float
    blur_size: int  # pixels, odd; 0: no blur
    blur_sigma: float
    noise_std: float  # grey levels; 0: no noise
    iso_intensity: float  # 0: no ISO noise
    seed: int  # of whatever noise there is
    quality: int  # of the JPEG round trip; 0: none
    grey: bool
    shadows: tuple[Shadow, ...]

    @property
    def box(self) -> Box:
        return Box(self.left, self.top, self.width, self.height)

    def row(self) -> NDArray[np.float32]:
        """float32 [len(COLUMNS)]."""
        row = np.zeros(len(COLUMNS), dtype=np.float32)
        values = [*self[:-1], *(number for one in self.shadows for number in (one.intensity, *one.x, *one.y))]
        row[: len(values)] = values
        return row

    @classmethod
    def from_row(cls, row: NDArray[np.float32]) -> Plan:
        return _plan(row.tolist())


_SCALARS = len(Plan._fields) - 1
_SHADOW = 1 + 2 * CORNERS
COLUMNS = (
    *Plan._fields[:-1],
    *(
        f"shadow{number}_{name}"
        for number in range(SHADOWS[1])
        for name in ("intensity", *(f"{axis}{corner}" for axis in "xy" for corner in range(CORNERS)))
    ),
)
_WHOLE = frozenset(
    Plan._fields.index(name)
    for name in ("left", "top", "width", "height", "order", "blur_size", "seed", "quality")
)
_TRUTH = frozenset(Plan._fields.index(name) for name in ("flip", "grey"))


def generator(
    seed: int, epoch: int, sample: int, copy: int, stream: int = AUGMENT_STREAM
) -> np.random.Generator:
    """The random numbers of one copy of one photo, the same wherever and whenever they are asked for."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, stream, copy, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw(profile: Profile, size: int, width: int, height: int, generator: np.random.Generator) -> Plan:
    """How to augment a photo of `width` x `height` pixels to `size` x `size`."""
    uniforms = iter(generator.random(_UNIFORMS).tolist())
    numbers: list[float] = [
        *(_crop(uniforms, width, height) if profile.crop else (0, 0, width, height)),
        _fires(uniforms, profile.flip),
        _between(uniforms, -ANGLE, ANGLE) if _fires(uniforms, profile.rotate) else 0,
        *_jitter(uniforms, profile),
        *_exposure(uniforms, profile.exposure),
        *_spoil(uniforms, profile),
        _whole(uniforms, 0, SEEDS - 1),
        _whole(uniforms, *QUALITY) if _fires(uniforms, profile.quality) else 0,
        _fires(uniforms, profile.grey),
        *_shadows(uniforms, profile.shadow, size),
    ]
    return Plan.from_row(np.array(numbers, dtype=np.float32))


def _plan(numbers: list[float]) -> Plan:
    fields: list[float] = [
        int(number) if place in _WHOLE else bool(number) if place in _TRUTH else number
        for place, number in enumerate(numbers[:_SCALARS])
    ]
    shadows = tuple(
        _shadow(numbers[start : start + _SHADOW])
        for start in range(_SCALARS, len(numbers), _SHADOW)
        if numbers[start]
    )
    return Plan._make([*fields, shadows])


def _shadow(numbers: list[float]) -> Shadow:
    corners = tuple(map(int, numbers[1:]))
    return Shadow(numbers[0], corners[:CORNERS], corners[CORNERS:])


def _fires(uniforms: Iterator[float], probability: float) -> bool:
    return next(uniforms) < probability


def _between(uniforms: Iterator[float], low: float, high: float) -> float:
    return low + (high - low) * next(uniforms)


def _whole(uniforms: Iterator[float], low: int, high: int) -> int:
    """Both ends may come out."""
    return low + int((high - low + 1) * next(uniforms))


def _crop(uniforms: Iterator[float], width: int, height: int) -> Box:
    """RandomResizedCrop: an area, then a shape; another try where it does not fit, the centre after ten."""
    ratios = (math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]))
    for _ in range(CROP_TRIES):
        area = width * height * _between(uniforms, *CROP_SCALE)
        ratio = math.exp(_between(uniforms, *ratios))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = next(uniforms), next(uniforms)
            return Box(int((width - columns + 1) * left), int((height - rows + 1) * top), columns, rows)
    return _central_crop(width, height)


def _central_crop(width: int, height: int) -> Box:
    columns, rows = width, height
    if width < CROP_RATIO[0] * height:
        rows = min(round(width / CROP_RATIO[0]), height)
    elif width > CROP_RATIO[1] * height:
        columns = min(round(height * CROP_RATIO[1]), width)
    return Box((width - columns) // 2, (height - rows) // 2, columns, rows)


def _jitter(uniforms: Iterator[float], profile: Profile) -> tuple[float, ...]:
    """Order, brightness, contrast, saturation, hue."""
    if not _fires(uniforms, profile.jitter):
        return (0, 1, 1, 1, 0)
    order = _whole(uniforms, 0, len(ORDERS) - 1)
    *factors, hue = profile.jitter_range
    return (order, *(_between(uniforms, 1 - far, 1 + far) for far in factors), _between(uniforms, -hue, hue))


def _exposure(uniforms: Iterator[float], probability: float) -> tuple[float, float]:
    """RandomBrightnessContrast: gain and offset."""
    if not _fires(uniforms, probability):
        return 1, 0
    return 1 + _between(uniforms, -EXPOSURE, EXPOSURE), 255 * _between(uniforms, -EXPOSURE, EXPOSURE)


def _spoil(uniforms: Iterator[float], profile: Profile) -> tuple[float, float, float, float]:
    """Size and sigma of the blur, standard deviation of the noise, intensity of the ISO noise."""
    one = _whole(uniforms, 0, 2) if _fires(uniforms, profile.spoil) else None
    blur, noise = _fires(uniforms, profile.blur), _fires(uniforms, profile.noise)
    size, sigma = (0, 0.0)
    if blur or one == 0:
        # even sizes are rounded up, so 3 is half as likely as 5 and 7
        size, sigma = _whole(uniforms, *BLUR_SIZE) | 1, _between(uniforms, *BLUR_SIGMA)
    std = _between(uniforms, *NOISE_STD) if noise or one == 1 else 0
    return size, sigma, std, _between(uniforms, *ISO_INTENSITY) if one == 2 else 0


def _shadows(uniforms: Iterator[float], probability: float, size: int) -> tuple[float, ...]:
    if not _fires(uniforms, probability):
        return (0,) * (SHADOWS[1] * _SHADOW)
    count = _whole(uniforms, *SHADOWS)
    drawn = [
        (SHADOW_INTENSITY, *(_whole(uniforms, 0, size - 1) for _ in range(2 * CORNERS))) for _ in range(count)
    ]
    return (*(number for shadow in drawn for number in shadow), *(0,) * ((SHADOWS[1] - count) * _SHADOW))
