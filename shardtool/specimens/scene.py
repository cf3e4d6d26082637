"""The finished photo: a leaf posed, lit and laid on a background, with its lesions if it is ill.

Nothing here touches the disk or any global setting. All randomness comes from the
``numpy.random.Generator`` that `photograph` is given; what is cached is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from shardtool.specimens.canvas import (
    Colour,
    Picture,
    Plane,
    Points,
    above,
    blend,
    blurred,
    cloud,
    filled,
    hsv,
    mixed,
    paint,
    ramp,
    scaled,
    strokes,
)
from shardtool.specimens.leaves import RIM, Anatomy, Leaf, rotation
from shardtool.specimens.lesions import LESIONS, Disease, Patient

TILE = 512  # side of a surface, from which backgrounds are cut


# --- Backgrounds -------------------------------------------------------------------------------


def _toned(plane: Plane, *colours: Colour) -> Picture:
    return np.asarray(cv2.applyColorMap(plane, ramp(*colours)), np.uint8)


def _grain(rng: Generator, coarse: int, fine: int) -> Plane:
    return mixed(cloud(rng, TILE, coarse), 0.5, cloud(rng, TILE, fine))


def _soil(rng: Generator) -> Picture:
    crumbs = mixed(_grain(rng, 12, 60), 0.5, cloud(rng, TILE, 200))
    return _toned(crumbs, (20, 12, 8), (92, 66, 46), (176, 146, 116))


def _sky(rng: Generator) -> Picture:
    haze = above(_grain(rng, 4, 10), 90, 2)
    return _toned(blurred(haze, 0.02), (96, 150, 214), (168, 200, 232), (240, 244, 248))


def _foliage(rng: Generator) -> Picture:
    picture = _toned(_grain(rng, 8, 20), (10, 22, 10), (34, 62, 28), (96, 124, 60))
    for x, y, radius, hue in rng.uniform((0, 0, 12, 60), (TILE, TILE, 40, 130), (70, 4)):
        bokeh = hsv(hue, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.7))
        cv2.circle(picture, (int(x), int(y)), int(radius), bokeh, cv2.FILLED, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 11), np.uint8)


def _paper(rng: Generator) -> Picture:
    return _toned(_grain(rng, 6, 256), (206, 204, 198), (232, 230, 224), (246, 245, 242))


def _wood(rng: Generator) -> Picture:
    flow = cloud(rng, TILE, 3, 14).astype(np.float32)
    rings = (127 + 100 * np.sin(flow * 0.22)).astype(np.uint8)
    grain = mixed(rings, 0.35, cloud(rng, TILE, 8, 220))
    return _toned(grain, (84, 54, 32), (150, 106, 66), (196, 152, 104))


def _gravel(rng: Generator) -> Picture:
    picture = np.full((TILE, TILE, 3), 46, np.uint8)
    for x, y, radius, value in rng.uniform((0, 0, 6, 0.35), (TILE, TILE, 17, 0.85), (1500, 4)):
        stone = hsv(rng.uniform(20, 50), 0.12, value)
        axes, angle = (2 * radius, 1.5 * radius), rng.uniform(0, 180)
        for shift, colour in ((2, (30, 28, 26)), (0, stone)):  # the stone over its own shadow
            box = ((x + shift, y + shift), axes, angle)
            cv2.ellipse(picture, box, colour, cv2.FILLED, cv2.LINE_AA)
    dust = _toned(cloud(rng, TILE, 200), (60, 58, 56), (210, 206, 200))
    return np.asarray(cv2.addWeighted(dust, 0.25, picture, 0.75, 0), np.uint8)


def _linen(rng: Generator) -> Picture:
    thread = np.sin(np.arange(TILE) * 2 * np.pi / 8)
    weave = (128 + 50 * thread[:, None] * thread).astype(np.uint8)
    weave = mixed(weave, 0.5, _grain(rng, 5, 150))
    return _toned(weave, (58, 66, 86), (112, 120, 140), (168, 174, 188))


SURFACES = (_soil, _sky, _foliage, _paper, _wood, _gravel, _linen)


@lru_cache(maxsize=len(SURFACES))
def _tile(surface: int) -> Picture:
    """A constant picture: too slow to draw for each photo, varied enough to be cut anywhere."""
    return SURFACES[surface](np.random.default_rng(surface))


@lru_cache(maxsize=2 * len(SURFACES))
def _shrunk_tile(surface: int, side: int) -> Picture:
    """Small photos cut from a small tile, as shrinking each window well is what takes longest."""
    tile = _tile(surface)
    return np.asarray(cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _background(rng: Generator, size: int) -> Picture:
    side = min(TILE, 2 * size)
    tile = _shrunk_tile(int(rng.integers(len(SURFACES))), side)
    width = round(side * rng.uniform(0.4, 0.8))
    top, left = rng.integers(0, side - width, 2)
    window = tile[top : top + width, left : left + width]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    return np.asarray(cv2.resize(window, (size, size)), np.uint8)


# --- Photo -------------------------------------------------------------------------------------


def _pose(rng: Generator, size: int) -> Callable[[Points], Points]:
    """A way from the unit circle to pixels: bent, tilted, turned and scaled at random."""
    bend, tilt = rng.normal(0, 0.12), rotation(rng.uniform(0, np.pi))
    foreshortening = tilt.T @ np.diag([1, rng.uniform(0.82, 1)]) @ tilt
    turn = rotation(rng.uniform(-1.3, 1.3))
    matrix = size * rng.uniform(0.4, 0.52) * foreshortening @ turn * (1, -1)
    centre = size * rng.uniform(0.46, 0.54, 2)
    return lambda points: (points + bend * points[..., 1:] ** 2 * (1, 0)) @ matrix + centre


def _skin(leaf: Leaf, lines: Anatomy, blade: Plane, stalks: Plane, rng: Generator) -> Picture:
    """The healthy leaf, not yet cut out."""
    size = len(blade)
    fine = scaled(strokes(lines.veins, size, 0.004), 0.6)
    veins = np.maximum(fine, strokes(lines.ribs, size, 0.011))
    tone = _tone(lines, blade, veins, leaf.quilting, rng)
    skin = np.asarray(cv2.applyColorMap(tone, leaf.skin), np.uint8)
    skin = paint(skin, leaf.vein, scaled(veins, 0.8))
    return paint(skin, leaf.stalk, np.minimum(stalks, 255 - blade))


def _tone(lines: Anatomy, blade: Plane, veins: Plane, quilting: float, rng: Generator) -> Plane:
    """How light the blade is: a slope of light, a fold along the midrib, texture and quilting."""
    size = len(blade)
    fold = np.concatenate([lines.rims[:, : RIM // 2], lines.spines[:, RIM // 2 :]], axis=1)
    slope = np.linspace(-1, 1, size, dtype=np.float32)
    down, right, level, side = rng.uniform((-28, -28, 108, -1), (28, 28, 140, 1)).tolist()
    # Python floats keep it at 32 bits.
    tone: NDArray[np.float32] = level + down * slope[:, None] + right * slope
    tone += math.copysign(0.1, side) * filled(fold, size).astype(np.float32)
    tone += 0.36 * mixed(cloud(rng, size, 7), 0.6, cloud(rng, size, 48)).astype(np.float32)
    tone -= 0.5 * quilting * blurred(veins, 0.014).astype(np.float32)
    tone += 0.25 * blurred(blade, 0.02).astype(np.float32) - 110
    return np.clip(tone, 0, 255).astype(np.uint8)


def _shaded(scene: Picture, cutout: Plane, rng: Generator) -> Picture:
    """The scene under the soft shadow that the leaf throws on it."""
    shift = np.array([[1, 0, 0], [0, 1, 0]]) + rng.uniform(-1, 1, (2, 1)) * (0, 0, 0.05)
    shift[:, 2] *= len(cutout)
    shadow = np.asarray(cv2.warpAffine(cutout, shift, cutout.shape), np.uint8)
    shadow = blurred(shadow, rng.uniform(0.006, 0.03))
    return paint(scene, (12, 12, 18), scaled(shadow, rng.uniform(0.3, 0.6)))


@lru_cache(maxsize=4)
def _sensor(size: int) -> Picture:
    """Constant sensor noise around 128, larger than a photo so that it can be shifted."""
    noise = np.random.default_rng(size).normal(128, 24, (size + 32, size + 32, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def _exposed(photo: Picture, rng: Generator) -> Picture:
    """The photo as a camera takes it: in its light and with noise."""
    size = len(photo)
    lit = cv2.multiply(photo, cv2.resize(_light(rng), (size, size)), scale=1 / 128)
    top, left = rng.integers(0, 32, 2)
    noise = _sensor(size)[top : top + size, left : left + size]
    strength = rng.uniform(0.05, 0.3)
    return np.asarray(cv2.addWeighted(lit, 1, noise, strength, -128 * strength), np.uint8)


def _light(rng: Generator) -> Picture:
    """A coarse field of vignetting, a shadow's edge, exposure and white balance; 128 is neutral."""
    axis = np.linspace(-1, 1, 16)
    vignette = 1 - rng.uniform(0, 0.18) * (axis[:, None] ** 2 + axis**2)
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * axis[:, None] + np.sin(angle) * axis - rng.uniform(-0.3, 1.2)
    shadow = 1 - rng.uniform(0, 0.4) / (1 + np.exp(-across / rng.uniform(0.05, 0.3)))
    gains = rng.uniform(0.85, 1.2) * rng.uniform(0.93, 1.07, 3)
    light: Picture = np.clip(128 * (vignette * shadow)[..., None] * gains, 0, 255).astype(np.uint8)
    return light


def photograph(leaf: Leaf, disease: Disease | None, rng: Generator, size: int) -> Picture:
    """One photo (size, size, 3) of a leaf, healthy where `disease` is None.

    Lesions draw from a stream of their own: the same `rng` shows the same leaf in the same scene
    whatever the disease.
    """
    (lesion_rng,) = rng.spawn(1)
    lines = leaf.anatomy.moved(_pose(rng, size))
    blade = filled(lines.rims, size)
    stalks = strokes(lines.stalks, size, 0.018)
    picture = _skin(leaf, lines, blade, stalks, rng)
    if disease:
        for coat, colour in LESIONS[disease.kind](disease, Patient(lines, blade, lesion_rng)):
            picture = paint(picture, colour, np.minimum(coat, blade))
    cutout = np.maximum(blade, stalks)
    scene = _shaded(_background(rng, size), cutout, rng)
    return _exposed(blend(picture, scene, cutout), rng)
