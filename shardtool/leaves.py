"""Pure drawing of the specimens: leaf anatomy, lesions, backgrounds and light.

Nothing here touches the disk or any global setting. Every function takes its randomness as a
``numpy.random.Generator``; what is cached is constant. Points are (..., 2) arrays of x and y,
planes are (size, size) and pictures (size, size, 3) RGB arrays of uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]
Plane = NDArray[np.uint8]
Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Coats = Iterator[tuple[Plane, Colour]]

RIM = 240  # points of one outline: enough for the finest serration
LINE = 8  # points of one vein or stalk
SUBPIXEL = 4  # fractional bits of the coordinates handed to OpenCV
TILE = 512  # side of a surface, from which backgrounds are cut
MIRROR = np.array([-1.0, 1.0])


# --- Anatomy -----------------------------------------------------------------------------------


class Anatomy(NamedTuple):
    """The lines of a leaf; arrays of equal-length lines, so that a pose moves each in one step."""

    rims: Points  # (blades, RIM, 2): closed outlines, one half of the blade after the other
    spines: Points  # (blades, RIM, 2): the point of the midrib from which each rim point grew
    ribs: Points  # (n, LINE, 2): main veins
    veins: Points  # (n, LINE, 2): secondary veins
    stalks: Points  # (n, LINE, 2): petiole and rachis

    def moved(self, move: Callable[[Points], Points]) -> Anatomy:
        return Anatomy(*(move(part) for part in self))


def _joined(parts: Sequence[Anatomy]) -> Anatomy:
    return Anatomy(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _xy(x: Points, y: Points) -> Points:
    return np.stack(np.broadcast_arrays(x, y), axis=-1)


def _segment(start: Sequence[float], end: Sequence[float]) -> Points:
    return np.linspace(start, end, LINE)[None]


def _rotation(angle: float) -> Points:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _placed(part: Anatomy, at: Sequence[float], turn: float, scale: float) -> Anatomy:
    matrix = scale * _rotation(turn).T
    return part.moved(lambda points: points @ matrix + at)


def _blade(
    width: float,
    belly: float,
    fullness: float = 1.4,
    ear: float = 0.0,
    teeth: int = 0,
    depth: float = 0.0,
    pointed: bool = True,
    pairs: int = 6,
    rise: float = 0.3,
) -> Anatomy:
    """A blade of length 1 along y, `width` to either side, widest at `belly` of its length.

    Less `fullness` is boxier; an `ear` draws the base down beside the stalk (heart, arrowhead);
    `depth` is the share of the width that the `teeth` of each side, saws or waves, cut away.
    """
    t = (1 - np.cos(np.linspace(0, np.pi, RIM // 2))) / 2  # denser at the ends, which curve most
    a, b = fullness * belly, fullness * (1 - belly)
    smooth = width * t**a * (1 - t) ** b / (belly**a * (1 - belly) ** b)
    phase = t * teeth
    notch = 1 - phase % 1 if pointed else 0.5 - 0.5 * np.cos(2 * np.pi * phase)
    sag = ear * np.sin(np.pi * np.sqrt(np.clip(t / 0.4, 0, 1)))
    half = _xy(smooth * (1 - depth * notch), t - sag)
    spine = _xy(np.zeros(1), t)
    start = np.linspace(0.05, 0.82, pairs)[:, None]
    along = np.linspace(0, 1, LINE)
    climb = rise * (1 - start)
    vein = _xy(along * np.interp(start + climb, t, smooth), start + climb * along**1.5)
    return Anatomy(
        np.concatenate([half, half[::-1] * MIRROR])[None],
        np.concatenate([spine, spine[::-1]])[None],
        _segment((0, 0), (0, 0.97)),
        np.concatenate([vein, vein * MIRROR]),
        _segment((0, -0.2), (0, 0.02)),
    )


def _fan(lobes: int, depth: float, sharp: float, spread: float, droop: float) -> Anatomy:
    """A blade around the end of its stalk: `lobes` over +-`spread` radians, smaller to the sides.

    A `sharp` of 1 or less makes points, more than 1 round lobes.
    """
    angle = np.linspace(-spread, spread, RIM - 2)

    def reach(angle: Points) -> Points:
        valley = np.abs(2 * ((angle + spread) / (2 * spread) * lobes % 1) - 1) ** sharp
        return (1 - droop * (angle / spread) ** 2) * (1 - depth * valley)

    def polar(angle: Points, radius: Points) -> Points:
        return _xy(radius * np.sin(angle), radius * np.cos(angle))

    rim = np.pad(polar(angle, reach(angle)), ((1, 1), (0, 0)))  # closes at the stalk
    tip = spread * (2 * (np.arange(lobes)[:, None] + 0.5) / lobes - 1)
    along = np.linspace(0, 1, LINE)
    side = [
        polar(tip + sign * along * 0.7 * spread / lobes, reach(tip) * (start + 0.32 * along))
        for sign in (-1, 1)
        for start in (0.3, 0.55)
    ]
    return Anatomy(
        rim[None],
        np.zeros((1, RIM, 2)),
        polar(tip, reach(tip) * 0.95 * along),
        np.concatenate(side),
        _segment((0, -0.75), (0, 0)),
    )


def _bare(part: Anatomy) -> Anatomy:
    return part._replace(stalks=part.stalks[:0])


def _ovate(rng: Generator) -> Anatomy:
    return _blade(rng.uniform(0.25, 0.34), rng.uniform(0.3, 0.4), pairs=int(rng.integers(5, 9)))


def _maple(rng: Generator) -> Anatomy:
    lobes = int(rng.choice([3, 5, 7]))
    sharp = rng.uniform(0.6, 1.0)
    return _fan(lobes, rng.uniform(0.45, 0.62), sharp, rng.uniform(2.0, 2.5), rng.uniform(0.3, 0.5))


def _lanceolate(rng: Generator) -> Anatomy:
    return _blade(rng.uniform(0.1, 0.15), rng.uniform(0.3, 0.5), pairs=10, rise=0.2)


def _pinnate(rng: Generator) -> Anatomy:
    pairs = int(rng.integers(3, 6))
    leaflet = _bare(_blade(rng.uniform(0.18, 0.3), 0.4, pairs=4))
    turn, scale = rng.uniform(0.8, 1.2), rng.uniform(1.5, 1.8) / (pairs + 1.2)
    parts = [
        _placed(leaflet, (0, y), side * turn, scale)
        for y in np.linspace(0.1, 0.75, pairs)
        for side in (-1, 1)
    ]
    rachis = leaflet._replace(stalks=_segment((0, -0.25 / scale), (0, 0)))
    return _joined([*parts, _placed(rachis, (0, 0.82), 0, scale)])


def _cordate(rng: Generator) -> Anatomy:
    ear = rng.uniform(0.2, 0.34)
    return _blade(rng.uniform(0.38, 0.48), 0.25, rng.uniform(1.1, 1.35), ear, pairs=5, rise=0.45)


def _grass(rng: Generator) -> Anatomy:
    straw = _bare(_blade(rng.uniform(0.035, 0.06), 0.35, 0.9, pairs=1))
    lanes = straw.rims[:, : RIM // 2 : RIM // 2 // LINE + 1]
    veins = np.concatenate([lanes * (share, 1) for share in (-0.5, 0, 0.5)])
    straw = straw._replace(veins=veins, ribs=straw.ribs[:0])  # a rib would hide so thin a blade
    turns = np.linspace(-1, 1, int(rng.integers(3, 6))) * rng.uniform(0.25, 0.55)
    return _joined([_placed(straw, (0, 0), turn, 1 - 0.4 * abs(turn)) for turn in turns])


def _serrate(rng: Generator) -> Anatomy:
    teeth, depth = int(rng.integers(8, 15)), rng.uniform(0.16, 0.26)
    width = rng.uniform(0.22, 0.34)
    return _blade(width, 0.42, 1.3, teeth=teeth, depth=depth, pairs=int(rng.integers(7, 11)))


def _round(rng: Generator) -> Anatomy:
    lobes = int(rng.integers(7, 12))
    return _fan(lobes, rng.uniform(0.04, 0.14), 2.5, rng.uniform(2.75, 3.0), rng.uniform(0, 0.15))


def _oak(rng: Generator) -> Anatomy:
    lobes = int(rng.integers(4, 7))
    depth, belly = rng.uniform(0.4, 0.6), rng.uniform(0.5, 0.65)
    return _blade(rng.uniform(0.3, 0.38), belly, 1.1, 0, lobes, depth, False, lobes)


def _trefoil(rng: Generator) -> Anatomy:
    leaflet = _blade(rng.uniform(0.3, 0.4), rng.uniform(0.45, 0.6), 1.1, pairs=5)
    parts = [_placed(_bare(leaflet), (0, 0), turn, 0.85) for turn in (-1.7, 1.7)]
    stalk = leaflet._replace(stalks=_segment((0, -0.8), (0, 0.05)))
    return _joined([*parts, stalk])


def _spatulate(rng: Generator) -> Anatomy:
    return _blade(rng.uniform(0.2, 0.3), rng.uniform(0.68, 0.76), 1.5, pairs=7, rise=0.35)


def _digitate(rng: Generator) -> Anatomy:
    leaflet = _bare(_blade(rng.uniform(0.12, 0.2), rng.uniform(0.5, 0.65), pairs=6))
    turns = np.linspace(-1, 1, int(rng.choice([5, 7]))) * rng.uniform(1.6, 2.1)
    parts = [_placed(leaflet, (0, 0), turn, 1 - 0.12 * turn**2) for turn in turns]
    parts[0] = parts[0]._replace(stalks=_segment((0, -0.7), (0, 0.03)))
    return _joined(parts)


def _deltoid(rng: Generator) -> Anatomy:
    ear, teeth = rng.uniform(0, 0.12), int(rng.integers(5, 9))
    width, depth = rng.uniform(0.38, 0.5), rng.uniform(0.05, 0.15)
    return _blade(width, 0.12, 1.05, ear, teeth, depth, False, 5, 0.35)


# Neighbours in this cycle, hence species with neighbouring indices, differ at a glance.
FAMILIES = (
    _ovate,
    _maple,
    _lanceolate,
    _pinnate,
    _cordate,
    _grass,
    _serrate,
    _trefoil,
    _oak,
    _round,
    _spatulate,
    _digitate,
    _deltoid,
)


def _fitted(anatomy: Anatomy) -> Anatomy:
    """The anatomy moved and scaled into the unit circle."""
    points = np.concatenate([anatomy.rims.reshape(-1, 2), anatomy.stalks.reshape(-1, 2)])
    centre = (points.min(0) + points.max(0)) / 2
    radius = np.linalg.norm(points - centre, axis=1).max()
    return anatomy.moved(lambda part: (part - centre) / radius)


# --- Species -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """What all leaves of a species share."""

    anatomy: Anatomy  # in the unit circle, tip up
    skin: Picture  # (256, 1, 3): the blade's colour from deep shade to full light
    vein: Colour
    stalk: Colour
    quilting: float  # how deep the veins lie in the blade, 0 to 1


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from a hue in degrees and a saturation and value of 0 to 1."""
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    red, green, blue = (np.clip(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB), 0, 1) * 255).ravel()
    return int(red), int(green), int(blue)


def _ramp(*colours: Colour) -> Picture:
    """A (256, 1, 3) table that runs evenly through the colours."""
    places = np.linspace(0, 255, len(colours))
    channels = [np.interp(np.arange(256), places, channel) for channel in zip(*colours, strict=True)]
    return np.stack(channels, -1)[:, None].astype(np.uint8)


@lru_cache(maxsize=64)
def leaf(seed: int, species: int) -> Leaf:
    """The kind of leaf that a species has; depends on nothing but its two arguments."""
    rng = np.random.default_rng([seed, species])
    anatomy = _fitted(FAMILIES[species % len(FAMILIES)](rng))
    # The golden ratio spreads the hues of a family's members however many there are.
    spread = species // len(FAMILIES) * 0.618 + species * 0.382
    hue = 68 + 84 * (spread % 1)
    saturation, value = rng.uniform(0.5, 0.85), rng.uniform(0.42, 0.68)
    skin = _ramp(
        _hsv(hue + 12, min(1, saturation * 1.15), value * 0.3),
        _hsv(hue, saturation, value),
        _hsv(hue - 10, saturation * 0.6, min(1, value * 1.6)),
    )
    reddish = rng.random() < 0.25
    vein = _hsv(350, 0.5, 0.55) if reddish else _hsv(hue - 8, saturation * 0.45, value + 0.25)
    stalk = _hsv(355, 0.5, 0.45) if reddish else _hsv(hue - 14, saturation * 0.7, value + 0.05)
    return Leaf(anatomy, skin, vein, stalk, float(rng.uniform(0.2, 0.9)))


# --- Planes ------------------------------------------------------------------------------------


def _fixed(points: Points) -> NDArray[np.int32]:
    return np.rint(points * (1 << SUBPIXEL)).astype(np.int32)


def _filled(shapes: Points, size: int) -> Plane:
    """The union of closed outlines (n, points, 2) in pixels."""
    plane = np.zeros((size, size), np.uint8)
    for shape in _fixed(shapes):  # one by one: together, overlaps would count as holes
        cv2.fillPoly(plane, [shape], 255, cv2.LINE_AA, SUBPIXEL)
    return plane


def _lines(lines: Points, size: int, width: float) -> Plane:
    """Lines (n, points, 2) in pixels; `width` is a share of the picture's side."""
    plane = np.zeros((size, size), np.uint8)
    thickness = max(1, round(width * size))
    cv2.polylines(plane, list(_fixed(lines)), False, 255, thickness, cv2.LINE_AA, SUBPIXEL)
    return plane


def _cloud(rng: Generator, size: int, rows: int, columns: int = 0) -> Plane:
    """Smooth noise with a mean of 128, as many cells across as asked for."""
    cells = rng.integers(0, 256, (rows, columns or rows), np.uint8)
    return np.asarray(cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def _soft(plane: Plane, radius: float) -> Plane:
    """The plane blurred; `radius` is a share of its side."""
    side = 2 * round(radius * len(plane)) + 1
    return np.asarray(cv2.blur(cv2.blur(plane, (side, side)), (side, side)), np.uint8)


def _scaled(plane: Plane, share: float) -> Plane:
    return np.asarray(cv2.convertScaleAbs(plane, alpha=share), np.uint8)


def _mixed(first: Plane, share: float, second: Plane) -> Plane:
    return np.asarray(cv2.addWeighted(first, share, second, 1 - share, 0), np.uint8)


def _above(plane: Plane, level: float, steepness: float) -> Plane:
    """0 below the level and 255 above it, with a soft step between."""
    table = np.clip((np.arange(256) - level) * steepness, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(plane, table), np.uint8)


def _dimmed(picture: Picture, share: Plane) -> Picture:
    return np.asarray(cv2.multiply(picture, cv2.merge([share] * 3), scale=1 / 255), np.uint8)


def _blend(over: Picture, under: Picture, alpha: Plane) -> Picture:
    return np.asarray(cv2.add(_dimmed(over, alpha), _dimmed(under, 255 - alpha)), np.uint8)


def _paint(canvas: Picture, colour: Colour, alpha: Plane) -> Picture:
    coat = cv2.merge([_scaled(alpha, channel / 255) for channel in colour])
    return np.asarray(cv2.add(_dimmed(canvas, 255 - alpha), coat), np.uint8)


# --- Lesions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disease:
    """One kind of lesion with its own look."""

    kind: str  # a key of LESIONS
    tint: Colour | None  # replaces most of the kind's own colour
    size: float  # 1 is usual
    density: float  # 1 is usual

    def colour(self, usual: Colour) -> Colour:
        return _towards(usual, self.tint, 0.75) if self.tint else usual


def _towards(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


class Patient(NamedTuple):
    """A posed leaf about to fall ill, and the randomness that its lesions may use."""

    lines: Anatomy  # in pixels
    blade: Plane
    rng: Generator

    @property
    def size(self) -> int:
        return len(self.blade)

    def sites(self, count: float, inner: float = 0.0, outer: float = 0.95) -> Points:
        """Places (n, 2) on the blades between the shares `inner` and `outer` of midrib to rim."""
        n = max(2, round(count * self.rng.uniform(0.8, 1.25)))
        blade = self.rng.integers(0, len(self.lines.rims), n)
        point = self.rng.integers(0, RIM, n)
        share = np.sqrt(self.rng.uniform(inner**2, outer**2, n))[:, None]
        spine = self.lines.spines[blade, point]
        return spine + share * (self.lines.rims[blade, point] - spine)

    def blots(self, sites: Points, radius: float) -> Points:
        """Uneven outlines (n, 20, 2) around the sites; `radius` is a share of the picture."""
        angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        scale, *phase = self.rng.uniform((0.6, 0, 0), (1.3, 7, 7), (len(sites), 3)).T[..., None]
        wobble = 1 + 0.12 * np.sin(2 * angle + phase[0]) + 0.09 * np.sin(3 * angle + phase[1])
        reach = radius * self.size * scale * wobble
        return sites[:, None] + _xy(reach * np.cos(angle), reach * np.sin(angle))


def _shrunk(blots: Points, share: float) -> Points:
    centre: Points = blots.mean(1, keepdims=True)
    return centre + share * (blots - centre)


def _spot(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(16 * disease.density), 0.03 * disease.size)
    yield _soft(_filled(_shrunk(blots, 1.6), patient.size), 0.012), (205, 190, 70)
    yield _filled(blots, patient.size), disease.colour((92, 52, 28))
    yield _filled(_shrunk(blots, 0.4), patient.size), disease.colour((176, 150, 112))


def _ring(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(6 * disease.density), 0.065 * disease.size)
    dark, light = disease.colour((88, 48, 30)), (196, 168, 118)
    yield _soft(_filled(_shrunk(blots, 1.25), patient.size), 0.01), (190, 175, 80)
    for share, colour in ((1.0, dark), (0.78, light), (0.55, dark), (0.3, light)):
        yield _filled(_shrunk(blots, share), patient.size), colour


def _rust(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(75 * disease.density), 0.011 * disease.size)
    yield _scaled(_soft(_filled(_shrunk(blots, 2), patient.size), 0.015), 0.9), (214, 186, 60)
    yield _filled(blots, patient.size), disease.colour((190, 88, 22))


def _mildew(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(7 * disease.density), 0.085 * disease.size)
    felt = _cloud(patient.rng, patient.size, 40)
    dust = _mixed(_soft(_filled(blots, patient.size), 0.03), 0.72, felt)
    yield _scaled(_above(dust, 60, 1.5), 0.82), disease.colour((222, 224, 218))


def _blight(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(4 * disease.density, 0.85, 1.0), 0.15 * disease.size)
    ragged = _cloud(patient.rng, patient.size, 14)
    dead = _mixed(_soft(_filled(blots, patient.size), 0.03), 0.7, ragged)
    yield _above(dead, 70, 5), (186, 176, 70)
    yield _above(dead, 100, 12), disease.colour((74, 48, 30))
    yield np.minimum(_above(dead, 110, 4), ragged), disease.colour((150, 112, 70))


def _mosaic(disease: Disease, patient: Patient) -> Coats:
    cells = max(4, round(13 / disease.size))
    patches = _cloud(patient.rng, patient.size, cells)
    level = 128 + 40 * (1 - disease.density)
    yield _scaled(_above(patches, level, 6), 0.8), disease.colour((212, 216, 96))
    yield _scaled(_above(255 - patches, level + 30, 6), 0.6), (20, 62, 30)


def _chlorosis(disease: Disease, patient: Patient) -> Coats:
    ribs = _soft(_lines(patient.lines.ribs, patient.size, 0.02), 0.01 / disease.size)
    green = np.maximum(ribs, _lines(patient.lines.veins, patient.size, 0.009 / disease.size))
    yellow = _mixed(255 - green, 0.75, _cloud(patient.rng, patient.size, 5))
    share = 0.55 + 0.25 * disease.density
    yield _scaled(_above(yellow, 100, 2.5), share), disease.colour((232, 214, 70))


def _scorch(disease: Disease, patient: Patient) -> Coats:
    edge = 255 - _soft(patient.blade, 0.05 * disease.size)
    burn = _mixed(edge, 0.7, _cloud(patient.rng, patient.size, 12))
    level = 115 - 22 * disease.density
    yield _above(burn, level - 20, 6), (206, 180, 70)
    yield _above(burn, level, 10), disease.colour((128, 76, 38))


def _streak(disease: Disease, patient: Patient) -> Coats:
    veins = np.concatenate([patient.lines.ribs, patient.lines.veins])
    chosen = patient.rng.integers(0, len(veins), max(2, round(9 * disease.density)))
    streaks = veins[chosen, 1:-1]
    yield _soft(_lines(streaks, patient.size, 0.035 * disease.size), 0.012), (200, 180, 80)
    yield _lines(streaks, patient.size, 0.02 * disease.size), disease.colour((96, 44, 30))


def _miner(disease: Disease, patient: Patient) -> Coats:
    starts = patient.sites(4 * disease.density, outer=0.7)
    heading = patient.rng.uniform(0, 2 * np.pi, (len(starts), 1))
    heading = heading + patient.rng.normal(0, 0.6, (len(starts), 14)).cumsum(1)
    steps = _xy(np.cos(heading), np.sin(heading)) * 0.03 * patient.size
    trails = starts[:, None] + steps.cumsum(1)
    yield _lines(trails, patient.size, 0.028 * disease.size), disease.colour((206, 208, 164))
    yield _lines(trails, patient.size, 0.006 * disease.size), (96, 92, 58)


LESIONS: dict[str, Callable[[Disease, Patient], Coats]] = {
    "spot": _spot,
    "rust": _rust,
    "mildew": _mildew,
    "blight": _blight,
    "mosaic": _mosaic,
    "ring": _ring,
    "scorch": _scorch,
    "miner": _miner,
    "chlorosis": _chlorosis,
    "streak": _streak,
}


# --- Backgrounds -------------------------------------------------------------------------------


def _toned(plane: Plane, *colours: Colour) -> Picture:
    return np.asarray(cv2.applyColorMap(plane, _ramp(*colours)), np.uint8)


def _grain(rng: Generator, coarse: int, fine: int) -> Plane:
    return _mixed(_cloud(rng, TILE, coarse), 0.5, _cloud(rng, TILE, fine))


def _soil(rng: Generator) -> Picture:
    crumbs = _mixed(_grain(rng, 12, 60), 0.5, _cloud(rng, TILE, 200))
    return _toned(crumbs, (20, 12, 8), (92, 66, 46), (176, 146, 116))


def _sky(rng: Generator) -> Picture:
    haze = _above(_grain(rng, 4, 10), 90, 2)
    return _toned(_soft(haze, 0.02), (96, 150, 214), (168, 200, 232), (240, 244, 248))


def _foliage(rng: Generator) -> Picture:
    picture = _toned(_grain(rng, 8, 20), (10, 22, 10), (34, 62, 28), (96, 124, 60))
    for x, y, radius, hue in rng.uniform((0, 0, 12, 60), (TILE, TILE, 40, 130), (70, 4)):
        bokeh = _hsv(hue, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.7))
        cv2.circle(picture, (int(x), int(y)), int(radius), bokeh, cv2.FILLED, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 11), np.uint8)


def _paper(rng: Generator) -> Picture:
    return _toned(_grain(rng, 6, 256), (206, 204, 198), (232, 230, 224), (246, 245, 242))


def _wood(rng: Generator) -> Picture:
    flow = _cloud(rng, TILE, 3, 14).astype(np.float32)
    rings = (127 + 100 * np.sin(flow * 0.22)).astype(np.uint8)
    grain = _mixed(rings, 0.35, _cloud(rng, TILE, 8, 220))
    return _toned(grain, (84, 54, 32), (150, 106, 66), (196, 152, 104))


def _gravel(rng: Generator) -> Picture:
    picture = np.full((TILE, TILE, 3), 46, np.uint8)
    for x, y, radius, value in rng.uniform((0, 0, 6, 0.35), (TILE, TILE, 17, 0.85), (1500, 4)):
        stone = _hsv(rng.uniform(20, 50), 0.12, value)
        box = ((x + 2, y + 2), (2 * radius, 1.5 * radius), rng.uniform(0, 180))
        cv2.ellipse(picture, box, (30, 28, 26), cv2.FILLED, cv2.LINE_AA)
        box = ((x, y), (2 * radius, 1.5 * radius), box[2])
        cv2.ellipse(picture, box, stone, cv2.FILLED, cv2.LINE_AA)
    dust = _toned(_cloud(rng, TILE, 200), (60, 58, 56), (210, 206, 200))
    return np.asarray(cv2.addWeighted(dust, 0.25, picture, 0.75, 0), np.uint8)


def _linen(rng: Generator) -> Picture:
    thread = np.sin(np.arange(TILE) * 2 * np.pi / 8)
    weave = (128 + 50 * thread[:, None] * thread).astype(np.uint8)
    weave = _mixed(weave, 0.5, _grain(rng, 5, 150))
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
    bend, tilt = rng.normal(0, 0.12), _rotation(rng.uniform(0, np.pi))
    foreshortening = tilt.T @ np.diag([1, rng.uniform(0.82, 1)]) @ tilt
    turn = _rotation(rng.uniform(-1.3, 1.3))
    matrix = size * rng.uniform(0.4, 0.52) * foreshortening @ turn * (1, -1)
    centre = size * rng.uniform(0.46, 0.54, 2)
    return lambda points: (points + bend * points[..., 1:] ** 2 * (1, 0)) @ matrix + centre


def _skin(leaf: Leaf, lines: Anatomy, blade: Plane, rng: Generator) -> Picture:
    """The healthy blade, not yet cut out: light, fold, quilting, texture and veins."""
    size = len(blade)
    fine = _scaled(_lines(lines.veins, size, 0.004), 0.6)
    veins = np.maximum(fine, _lines(lines.ribs, size, 0.011))
    fold = np.concatenate([lines.rims[:, : RIM // 2], lines.spines[:, RIM // 2 :]], axis=1)
    slope = np.linspace(-1, 1, size, dtype=np.float32)
    down, right, level, side = rng.uniform((-28, -28, 108, -1), (28, 28, 140, 1)).tolist()
    tone = level + down * slope[:, None] + right * slope  # Python floats keep it at 32 bits
    tone += math.copysign(0.1, side) * _filled(fold, size).astype(np.float32)
    tone += 0.36 * _mixed(_cloud(rng, size, 7), 0.6, _cloud(rng, size, 48)).astype(np.float32)
    tone -= 0.5 * leaf.quilting * _soft(veins, 0.014).astype(np.float32)
    tone += 0.25 * _soft(blade, 0.02).astype(np.float32) - 110
    skin = cv2.applyColorMap(np.clip(tone, 0, 255).astype(np.uint8), leaf.skin)
    skin = _paint(np.asarray(skin, np.uint8), leaf.vein, _scaled(veins, 0.8))
    return _paint(skin, leaf.stalk, np.minimum(_stalks(lines, size), 255 - blade))


def _stalks(lines: Anatomy, size: int) -> Plane:
    return _lines(lines.stalks, size, 0.018)


def _shaded(scene: Picture, cutout: Plane, rng: Generator) -> Picture:
    """The scene under the soft shadow that the leaf throws on it."""
    shift = np.array([[1, 0, 0], [0, 1, 0]]) + rng.uniform(-1, 1, (2, 1)) * (0, 0, 0.05)
    shift[:, 2] *= len(cutout)
    shadow = cv2.warpAffine(cutout, shift, cutout.shape)
    soft = _soft(np.asarray(shadow, np.uint8), rng.uniform(0.006, 0.03))
    return _paint(scene, (12, 12, 18), _scaled(soft, rng.uniform(0.3, 0.6)))


@lru_cache(maxsize=4)
def _sensor(size: int) -> Picture:
    """Constant sensor noise around 128, larger than a photo so that it can be shifted."""
    noise = np.random.default_rng(size).normal(128, 24, (size + 32, size + 32, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def _exposed(photo: Picture, rng: Generator) -> Picture:
    """The photo in its light: white balance, exposure, vignetting, a shadow's edge and noise."""
    axis = np.linspace(-1, 1, 16)
    vignette = 1 - rng.uniform(0, 0.18) * (axis[:, None] ** 2 + axis**2)
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * axis[:, None] + np.sin(angle) * axis - rng.uniform(-0.3, 1.2)
    shadow = 1 - rng.uniform(0, 0.4) / (1 + np.exp(-across / rng.uniform(0.05, 0.3)))
    gains = rng.uniform(0.85, 1.2) * rng.uniform(0.93, 1.07, 3)
    field = np.clip(128 * (vignette * shadow)[..., None] * gains, 0, 255).astype(np.uint8)
    size = len(photo)
    lit = cv2.multiply(photo, cv2.resize(field, (size, size)), scale=1 / 128)
    top, left = rng.integers(0, 32, 2)
    noise = _sensor(size)[top : top + size, left : left + size]
    strength = rng.uniform(0.05, 0.3)
    return np.asarray(cv2.addWeighted(lit, 1, noise, strength, -128 * strength), np.uint8)


def photograph(leaf: Leaf, disease: Disease | None, rng: Generator, size: int) -> Picture:
    """One photo (size, size, 3) of a leaf, healthy where `disease` is None.

    Lesions draw from a stream of their own: the same `rng` shows the same leaf in the same scene
    whatever the disease.
    """
    (lesion_rng,) = rng.spawn(1)
    lines = leaf.anatomy.moved(_pose(rng, size))
    blade = _filled(lines.rims, size)
    picture = _skin(leaf, lines, blade, rng)
    if disease:
        for coat, colour in LESIONS[disease.kind](disease, Patient(lines, blade, lesion_rng)):
            picture = _paint(picture, colour, np.minimum(coat, blade))
    cutout = np.maximum(blade, _stalks(lines, size))
    scene = _shaded(_background(rng, size), cutout, rng)
    return _exposed(_blend(picture, scene, cutout), rng)
