"""Augmentation on the CPU in as few passes over the pixels as the result allows; uint8 in, uint8 out.

The same distribution as `train.reference.profile`, whose albumentations stay the reference that the tests
compare with. What makes it faster: crop, flip and rotation are one warp; colours change in place, in one
or two passes where `train/_pixels.c` was built; noise is read from a table of normal numbers; ISO noise
touches only the pixels that it changes; no step allocates an image, since page faults of fresh memory cost as
much as the work.
"""

from __future__ import annotations

import math
import threading
from functools import cache
from math import prod
from typing import cast

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from train.decode import Box, Pixels, decode, dimensions
from train.draws import ORDERS, PROFILES, Plan, Shadow, draw, generator

try:
    from train import _pixels
except ImportError:
    HAS_RECOLOUR = False
else:
    HAS_RECOLOUR = True

# albumentations cuts fractions off where OpenCV rounds: cutting off x is rounding x - 0.5. A little more
# than that, lest whole numbers be rounded down.
CUT = 2**-10 - 0.5
LUMA = (0.299, 0.587, 0.114)
_AS_IT_IS, _TO_GREY = np.eye(3), np.array([LUMA] * 3)
HUE_CIRCLE = 180  # steps
FIELD, FIELD_SEED = 1 << 22, 20
NORMAL_UNIT = 56  # parts that make 1 in bytes: up to 4.55, which 1 in 190,000 normal numbers exceeds


class FusedTransform:
    """Decodes and augments the photos of a profile; callable from any number of threads at once."""

    def __init__(self, profile: str, size: int, seed: int) -> None:
        self.profile, self.size, self.seed = PROFILES[profile], size, seed

    def __call__(self, photo: bytes, out: Pixels, epoch: int, sample: int, copy: int) -> None:
        """Write the copy of a photo, given as a JPEG, into `out`: uint8 [size, size, 3], contiguous.

        Raises ValueError for data that does not decode.
        """
        plan = self.plan(photo, epoch, sample, copy)
        pixels, box = decode(photo, self.size, plan.box)
        apply(plan, pixels, box, out)

    def plan(self, photo: bytes, epoch: int, sample: int, copy: int) -> Plan:
        """What the call does to this copy of the photo."""
        width, height = dimensions(photo)
        return draw(self.profile, self.size, width, height, generator(self.seed, epoch, sample, copy))


def apply(plan: Plan, pixels: Pixels, box: Box, out: Pixels) -> None:
    """Carry out `plan` on the crop, which is `box` of `pixels`; the result fills `out`."""
    assert out.flags.c_contiguous, "the steps write through flat views"
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    if plan.angle:
        _turn(crop, plan.angle, plan.flip, out)
    else:
        _resize(crop, plan.flip, out)
    recolour(plan, out)
    if plan.blur_size:
        _blur(out, plan.blur_size, plan.blur_sigma)
    if plan.noise_std:
        _noise(out, plan.noise_std, plan.seed)
    if plan.iso_intensity:
        _iso_noise(out, plan.iso_intensity, plan.seed)
    if plan.quality:
        _jpeg(out, plan.quality)
    for shadow in plan.shadows:
        _shade(out, shadow)
    if plan.grey:
        cv2.cvtColor(_grey(out), cv2.COLOR_GRAY2RGB, dst=out)


def apply_crop(plan: Plan, pixels: Pixels, box: Box, out: Pixels) -> None:
    """Only what `train.device_augment` leaves to the worker: crop, resize, JPEG round trip."""
    assert out.flags.c_contiguous, "the codec writes to a flat view"
    _resize(pixels[box.top : box.top + box.height, box.left : box.left + box.width], False, out)
    if plan.quality:
        _jpeg(out, plan.quality)


_local = threading.local()


def _scratch(name: str, *shape: int) -> Pixels:
    """Bytes of this thread, whatever they hold; the same memory for the same name."""
    kept: dict[str, Pixels] = _local.__dict__
    if name not in kept or kept[name].size < prod(shape):
        kept[name] = np.empty(prod(shape), dtype=np.uint8)
    return kept[name][: prod(shape)].reshape(shape)


def _resize(crop: Pixels, flip: bool, out: Pixels) -> None:
    size = out.shape[0]
    if not flip:
        cv2.resize(crop, (size, size), dst=out)
        return
    straight = cv2.resize(crop, (size, size), dst=_scratch("straight", *out.shape))
    cv2.flip(straight, 1, dst=out)


def _turn(crop: Pixels, angle: float, flip: bool, out: Pixels) -> None:
    """Resize, flip, then rotate about the centre, with one interpolation; corners mirror the crop.

    With four channels, since OpenCV warps them twice as fast as three, and with the mirror images drawn
    beforehand, since it slows down outside the crop.
    """
    (height, width), size = crop.shape[:2], out.shape[0]
    four = cv2.cvtColor(crop, cv2.COLOR_RGB2RGBA, dst=_scratch("four", height, width, 4))
    x, y = (math.ceil(_overhang(angle) * side) + 2 for side in (width, height))
    wide = _scratch("wide", height + 2 * y, width + 2 * x, 4)
    cv2.copyMakeBorder(four, y, y, x, x, cv2.BORDER_REFLECT_101, dst=wide)
    matrix = turn_matrix(width, height, size, angle, flip)
    matrix[:, 2] += x, y
    turned = cv2.warpAffine(
        wide,
        matrix,
        (size, size),
        dst=_scratch("turned", size, size, 4),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    cv2.cvtColor(turned, cv2.COLOR_RGBA2RGB, dst=out)


def _overhang(angle: float) -> float:
    """How far the corners of a turned square reach beyond its sides, in sides."""
    radians = math.radians(angle)
    return (abs(math.cos(radians)) + abs(math.sin(radians)) - 1) / 2


def turn_matrix(width: int, height: int, size: int, angle: float, flip: bool) -> NDArray[np.float64]:
    """Where in a crop of `width` x `height` a pixel of the output comes from, [2, 3].

    Centres of pixels are at whole numbers, as everywhere in OpenCV.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    wide, high = width / size, height / size
    mirrored = -wide if flip else wide
    matrix = np.array([[mirrored * cos, -mirrored * sin, 0], [high * sin, high * cos, 0]])
    centre = (size - 1) / 2
    matrix[:, 2] = (width - 1) / 2, (height - 1) / 2
    matrix[:, 2] -= centre * matrix[:, :2].sum(axis=1)
    return matrix


def recolour(plan: Plan, out: Pixels) -> None:
    """Colour jitter, then exposure."""
    if HAS_RECOLOUR:
        _pixels.recolour(
            out,
            ORDERS[plan.order],
            plan.brightness,
            plan.contrast,
            plan.saturation,
            hue_steps(plan.hue),
            plan.gain,
            plan.offset,
        )
    else:
        recolour_in_passes(plan, out)


def recolour_in_passes(plan: Plan, out: Pixels) -> None:
    """The same to a grey level or two, a pass or more for each step."""
    for step in ORDERS[plan.order]:
        if step == 0 and plan.brightness != 1:
            _linear(out, plan.brightness, 0)
        elif step == 1 and plan.contrast != 1:
            _linear(out, plan.contrast, (1 - plan.contrast) * _mean_luma(out))
        elif step == 2 and plan.saturation != 1:
            cv2.transform(out, plan.saturation * _AS_IT_IS + (1 - plan.saturation) * _TO_GREY, dst=out)
        elif step == 3 and plan.hue:
            _shift_hue(out, plan.hue)
    if (plan.gain, plan.offset) != (1, 0):
        _linear(out, plan.gain, plan.offset)


def _linear(out: Pixels, gain: float, offset: float) -> None:
    flat = out.reshape(len(out), -1)
    cv2.transform(flat, np.array([[gain, offset + CUT]]), dst=flat)


def _mean_luma(out: Pixels) -> float:
    return sum(weight * mean for weight, mean in zip(LUMA, cv2.mean(out), strict=False))


def _grey(out: Pixels) -> Pixels:
    return cast(Pixels, cv2.cvtColor(out, cv2.COLOR_RGB2GRAY, dst=_scratch("grey", *out.shape[:2])))


def _shift_hue(out: Pixels, hue: float) -> None:
    """Turn the hue of HSV, chroma and value as they are.

    Along HSV's hexagon one channel moves at a time, by the chroma for 60 degrees. So, past corners too, a
    channel v that moves up by d becomes min(max(v, v + d - (middle - v)), most), and downwards the mirror
    image of it. It moves up where the channel before it on the circle exceeds the one after it.
    """
    red, green, blue, low, high, most, middle, least, far = _scratch("planes", 9, *out.shape[:2])
    cv2.split(out, [red, green, blue])
    cv2.min(red, green, dst=low)
    cv2.max(red, green, dst=high)
    cv2.max(high, blue, dst=most)
    cv2.min(low, blue, dst=least)
    cv2.max(low, cv2.min(high, blue, dst=high), dst=middle)
    steps = hue_steps(hue)
    cv2.convertScaleAbs(cv2.subtract(most, least, dst=far), alpha=abs(steps) / (HUE_CIRCLE / 6), dst=far)
    moved = _scratch("moved", 3, *out.shape[:2])
    exceeds = cv2.CMP_GT if steps > 0 else cv2.CMP_LT
    up, down, gap = low, high, _scratch("gap", *out.shape[:2])
    circle = (red, blue, green), (green, red, blue), (blue, green, red)
    for place, (channel, before, after) in enumerate(circle):
        cv2.bitwise_and(cv2.compare(before, after, exceeds, dst=up), far, dst=up)
        cv2.subtract(far, up, dst=down)
        cv2.subtract(up, cv2.subtract(middle, channel, dst=gap), dst=up)
        cv2.subtract(down, cv2.subtract(channel, middle, dst=gap), dst=down)
        cv2.min(cv2.add(channel, up, dst=up), most, dst=up)
        cv2.max(cv2.subtract(up, down, dst=up), least, dst=moved[place])
    cv2.merge(list(moved), dst=out)


def hue_steps(hue: float) -> int:
    """albumentations turns by whole steps of OpenCV's hue circle, the fraction cut off."""
    return math.floor(HUE_CIRCLE * hue)


def _blur(out: Pixels, size: int, sigma: float) -> None:
    kernel = blur_kernel(size, sigma)
    cv2.sepFilter2D(out, -1, kernel, kernel, dst=out)


def blur_kernel(size: int, sigma: float) -> NDArray[np.float64]:
    """A sampled Gaussian of sum 1, [size]."""
    weights = np.exp(-0.5 * (np.arange(-(size // 2), size // 2 + 1) / sigma) ** 2)
    kernel: NDArray[np.float64] = weights / weights.sum()
    return kernel


def _noise(out: Pixels, std: float, seed: int) -> None:
    """Add normal numbers, their fractions cut off towards zero, as albumentations does it."""
    start, swapped = divmod(seed, 2)
    field = _normal_field(max(FIELD, 2 * out.size))
    start %= field.shape[1] - out.size + 1
    flat = out.reshape(len(out), -1)
    step = _scratch("noise", *flat.shape)
    ways = (cv2.subtract, cv2.add) if swapped else (cv2.add, cv2.subtract)
    for part, change in zip(field, ways, strict=True):
        part = part[start : start + out.size].reshape(flat.shape)
        change(flat, cv2.convertScaleAbs(part, alpha=std / NORMAL_UNIT, beta=CUT, dst=step), dst=flat)


@cache
def _normal_field(length: int) -> Pixels:
    """`length` normal numbers in units of 1 / NORMAL_UNIT, apart by sign: [2, length].

    Made once for a process: drawing new ones for each photo would cost more than all else.
    """
    normal = np.random.Generator(np.random.Philox(FIELD_SEED)).standard_normal(length, dtype=np.float32)
    normal *= NORMAL_UNIT
    field = np.empty((2, length), dtype=np.uint8)
    for part, sign in zip(field, (1, -1), strict=True):
        part[:] = np.rint(sign * normal).clip(0, 255)
    return field


def _iso_noise(out: Pixels, intensity: float, seed: int) -> None:
    """Specks: n ~ Poisson(intensity x standard deviation of the lightness) in each pixel take away the share
    n x intensity of what its lightness (of HLS) lacks to white.

    albumentations also turns each hue by normal numbers, but by at most a twentieth of a degree, of which
    rounding to bytes leaves nothing.
    """
    random = np.random.Generator(np.random.SFC64(seed))
    pixels = out.reshape(-1, 3)
    specks = random.poisson(intensity * _lightness_std(out) * len(pixels))
    places, counts = np.unique(random.integers(0, len(pixels), specks, dtype=np.int32), return_counts=True)
    colours = np.ascontiguousarray(pixels.take(places, axis=0).T, dtype=np.float32)
    pixels[places] = _lighten(colours, (intensity * counts).astype(np.float32)).T


def _lightness_std(out: Pixels) -> float:
    """Of (max + min) / 2 over the channels, 1 being white."""
    red, green, blue, most, least = _scratch("planes", 5, *out.shape[:2])
    cv2.split(out, [red, green, blue])
    cv2.max(cv2.max(red, green, dst=most), blue, dst=most)
    cv2.min(cv2.min(red, green, dst=least), blue, dst=least)
    _, std = cv2.meanStdDev(cv2.addWeighted(most, 0.5, least, 0.5, 0, dst=most))
    return float(std[0, 0]) / 255


def _lighten(colours: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours [3, n] in grey levels whose lightness goes the share [n] of the way to white, hue and (HLS)
    saturation as they were."""
    lightness = (colours.max(axis=0) + colours.min(axis=0)) / 510
    lighter = lightness + share * (1 - lightness)
    room = 1 - np.abs(2 * lightness - 1)  # the greatest chroma at this lightness
    scale = np.divide(1 - np.abs(2 * lighter - 1), room, out=np.zeros_like(room), where=room > 0)
    moved = 255 * lighter + (colours - 255 * lightness) * scale
    rounded: NDArray[np.float32] = np.rint(moved).clip(0, 255)
    return rounded


def _jpeg(out: Pixels, quality: int) -> None:
    """There and back, blue taken for red as in albumentations. OpenCV, for its encoder is the reference's;
    simplejpeg, for it decodes to the same bits into a place that is there."""
    _, data = cv2.imencode(".jpg", out, (cv2.IMWRITE_JPEG_QUALITY, quality))
    simplejpeg.decode_jpeg(data, colorspace="BGR", buffer=out)


def _shade(out: Pixels, shadow: Shadow) -> None:
    corners = np.array([shadow.x, shadow.y], dtype=np.int32).T
    mask = _scratch("mask", *out.shape[:2])
    mask[:] = 0
    cv2.fillPoly(mask, [corners], 255)
    dark = _scratch("dark", *out.shape)
    flat = out.reshape(len(out), -1)
    cv2.transform(flat, np.array([[1 - shadow.intensity, CUT]]), dst=dark.reshape(flat.shape))
    cv2.copyTo(dark, mask, out)
