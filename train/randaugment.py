"""RandAugment: some of 14 operations, each at one common magnitude, on uint8 pixels in place.

The operations, their choice and their strengths are those of torchvision's v2.RandAugment with
`num_magnitude_bins=11`, the paper's scale of 0-10, on Pillow images; here without Pillow and without copies.
Source: Cubuk et al., RandAugment, https://arxiv.org/abs/1909.13719.
Legend: S pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from train.decode import Pixels
from train.recipe import AugmentSpec

MEAN_COLOUR = (124, 116, 104)  # ImageNet's: what uncovered corners are filled with
STRONGEST = 10  # the top of the magnitude scale
LESIONS_SUFFER = ("Solarize", "Posterize", "Equalize")
LEVELS = np.arange(256)
# Added where OpenCV rounds and Pillow cuts off: not quite a half, so that a whole number stays itself.
CUT_OFF = -0.5 + 1 / 256
Table = NDArray[np.uint8]  # new level of each of the 256


class RandAugment:
    """Applies `ops` operations, drawn with replacement, all at `magnitude` of 10.

    `lesion_safe` leaves out what destroys the colour of lesions. An instance belongs to one thread.
    """

    def __init__(self, ops: int, magnitude: int, lesion_safe: bool) -> None:
        self.ops, self.magnitude = ops, magnitude
        self.names = [name for name in OPERATIONS if not (lesion_safe and name in LESIONS_SUFFER)]
        self._scratch = Scratch(0)

    def __call__(self, pixels: Pixels, generator: np.random.Generator) -> None:
        """Change `pixels`, uint8 [S, S, 3] and contiguous, by what is drawn from `generator`: always
        2 x `ops` numbers."""
        for _ in range(self.ops):
            name = self.names[int(generator.random() * len(self.names))]
            negative = generator.random() < 0.5
            self.apply(name, pixels, OPERATIONS[name].signed_amount(self.magnitude, len(pixels), negative))

    def apply(self, name: str, pixels: Pixels, amount: float) -> None:
        """One operation with an amount in its own unit."""
        if self._scratch.side != len(pixels):
            self._scratch = Scratch(len(pixels))
        OPERATIONS[name].change(pixels, amount, self._scratch)


def rand_augment(spec: AugmentSpec) -> RandAugment | None:
    """What the recipe asks for; None where it is off."""
    if spec.rand_augment == "off":
        return None
    lesion_safe = spec.rand_augment == "lesion-safe"
    return RandAugment(spec.rand_augment_ops, spec.rand_augment_magnitude, lesion_safe)


class Scratch:
    """Memory for what cannot be computed in place: fresh memory costs page faults."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = np.empty((side, side, 3), dtype=np.uint8)
        self.planes = [np.empty((side, side), dtype=np.uint8) for _ in range(3)]


@dataclass(frozen=True)
class Operation:
    """`amount` is a function of (magnitude / 10, S); half of the `signed` ones get the opposite sign."""

    change: Callable[[Pixels, float, Scratch], None]
    amount: Callable[[float, int], float]
    signed: bool = False

    def signed_amount(self, magnitude: int, side: int, negative: bool) -> float:
        """The amount at a magnitude of 0 to 10, in the operation's own unit."""
        amount = self.amount(magnitude / STRONGEST, side)
        return -amount if self.signed and negative else amount


def _leave(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    pass


def _shear_x(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    _warp(pixels, [[1, amount, 0], [0, 1, 0]], scratch)


def _shear_y(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    _warp(pixels, [[1, 0, 0], [amount, 1, 0]], scratch)


def _translate_x(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    _warp(pixels, [[1, 0, -int(amount)], [0, 1, 0]], scratch)


def _translate_y(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    _warp(pixels, [[1, 0, 0], [0, 1, -int(amount)]], scratch)


def _rotate(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    """Counter-clockwise by `amount` degrees around the centre."""
    cos, sin, middle = math.cos(math.radians(amount)), math.sin(math.radians(amount)), len(pixels) / 2
    right, down = middle - middle * cos + middle * sin, middle - middle * sin - middle * cos
    _warp(pixels, [[cos, -sin, right], [sin, cos, down]], scratch)


def _warp(pixels: Pixels, inverse: list[list[float]], scratch: Scratch) -> None:
    """Each pixel becomes the one in which `inverse`, from new to old places, puts its centre."""
    matrix = np.array(inverse, dtype=np.float64)
    matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the centre of the first pixel
    cv2.warpAffine(
        pixels,
        matrix,
        (scratch.side, scratch.side),
        dst=scratch.image,
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=MEAN_COLOUR,
    )
    pixels[:] = scratch.image


def _brightness(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    cv2.LUT(pixels, away_from(0, 1 + amount), dst=pixels)


def _contrast(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY, dst=scratch.planes[0])
    cv2.LUT(pixels, away_from(int(cv2.mean(grey)[0] + 0.5), 1 + amount), dst=pixels)


def away_from(level: int, factor: float) -> Table:
    """Distances from a grey level multiplied; in float32 and cut off, not rounded, as Pillow does it."""
    moved = np.float32(level) + np.float32(factor) * (LEVELS - level).astype(np.float32)
    return moved.clip(0, 255).astype(np.uint8)


def _color(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY, dst=scratch.planes[0])
    cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB, dst=scratch.image)
    cv2.addWeighted(pixels, 1 + amount, scratch.image, -amount, CUT_OFF, dst=pixels)


def _sharpness(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    """Away from Pillow's smooth picture, whose 3 x 3 weights are 1/13 and 5/13 in the middle; it leaves the
    border as it is."""
    cv2.blur(pixels, (3, 3), dst=scratch.image)  # ninths: smooth is 9/13 of it and 4/13 of the pixels
    inside = (slice(1, -1), slice(1, -1))
    cv2.addWeighted(
        pixels, 1 + amount - amount * 4 / 13, scratch.image, -amount * 9 / 13, CUT_OFF, dst=scratch.image
    )
    pixels[inside] = scratch.image[inside]


def _posterize(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    """Keep the `amount` highest bits."""
    np.bitwise_and(pixels, np.uint8(256 - (1 << (8 - int(amount)))), out=pixels)


def _solarize(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    """Invert the levels from `amount` of 255 on."""
    kept = 255 * amount > LEVELS
    cv2.LUT(pixels, np.where(kept, LEVELS, 255 - LEVELS).astype(np.uint8), dst=pixels)


def _autocontrast(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    _each_channel(pixels, stretched, scratch)


def _equalize(pixels: Pixels, amount: float, scratch: Scratch) -> None:
    _each_channel(pixels, equalized, scratch)


def _each_channel(pixels: Pixels, table: Callable[[Pixels], Table], scratch: Scratch) -> None:
    cv2.split(pixels, scratch.planes)
    for plane in scratch.planes:
        cv2.LUT(plane, table(plane), dst=plane)
    cv2.merge(scratch.planes, dst=pixels)


def stretched(plane: Pixels) -> Table:
    """The darkest level becomes 0, the lightest 255."""
    darkest, lightest, _, _ = cv2.minMaxLoc(plane)
    if darkest == lightest:
        return LEVELS.astype(np.uint8)
    scale = 255 / (lightest - darkest)
    return (LEVELS * scale - darkest * scale).clip(0, 255).astype(np.uint8)


def equalized(plane: Pixels) -> Table:
    """Every level becomes about as frequent as any other. Pillow's rule: the lightest level does not count
    towards the step, and each level goes by the pixels darker than itself."""
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    step = int(counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if not step:
        return LEVELS.astype(np.uint8)
    darker = np.cumsum(counts) - counts
    return ((darker + step // 2) // step).clip(0, 255).astype(np.uint8)


def _up_to(strongest: float) -> Callable[[float, int], float]:
    return lambda share, side: strongest * share


def _up_to_sides(strongest: float) -> Callable[[float, int], float]:
    return lambda share, side: strongest * share * side


# float32 as torchvision's table: level 204 is not inverted at magnitude 2, whose 0.8 is a little more
def _threshold(share: float, side: int) -> float:
    return float(np.float32(1 - share))


OPERATIONS = {
    "Identity": Operation(_leave, _up_to(0)),
    "ShearX": Operation(_shear_x, _up_to(0.3), signed=True),  # pixels a pixel
    "ShearY": Operation(_shear_y, _up_to(0.3), signed=True),
    "TranslateX": Operation(_translate_x, _up_to_sides(150 / 331), signed=True),  # pixels
    "TranslateY": Operation(_translate_y, _up_to_sides(150 / 331), signed=True),
    "Rotate": Operation(_rotate, _up_to(30), signed=True),  # degrees
    "Brightness": Operation(_brightness, _up_to(0.9), signed=True),  # share of the level
    "Color": Operation(_color, _up_to(0.9), signed=True),
    "Contrast": Operation(_contrast, _up_to(0.9), signed=True),
    "Sharpness": Operation(_sharpness, _up_to(0.9), signed=True),
    "Posterize": Operation(_posterize, lambda share, side: round(8 - 4 * share)),  # bits
    "Solarize": Operation(_solarize, _threshold),  # share of 255
    "AutoContrast": Operation(_autocontrast, _up_to(0)),
    "Equalize": Operation(_equalize, _up_to(0)),
}
