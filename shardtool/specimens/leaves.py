"""Leaf anatomy: the outline and veins of every family of species, and the skin of each species.

A species' leaf follows from the seed and its number alone, and lies in the unit circle, tip up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from shardtool.specimens.canvas import Colour, Picture, Points, hsv, ramp

RIM = 240  # points of one outline: enough for the finest serration
LINE = 8  # points of one vein or stalk
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


def xy(x: Points, y: Points) -> Points:
    return np.stack(np.broadcast_arrays(x, y), axis=-1)


def _segment(start: Sequence[float], end: Sequence[float]) -> Points:
    return np.linspace(start, end, LINE)[None]


def rotation(angle: float) -> Points:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _placed(part: Anatomy, at: Sequence[float], turn: float, scale: float) -> Anatomy:
    matrix = scale * rotation(turn).T
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
    half = xy(smooth * (1 - depth * notch), t - sag)
    spine = xy(np.zeros(1), t)
    start = np.linspace(0.05, 0.82, pairs)[:, None]
    along = np.linspace(0, 1, LINE)
    climb = rise * (1 - start)
    vein = xy(along * np.interp(start + climb, t, smooth), start + climb * along**1.5)
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
        return xy(radius * np.sin(angle), radius * np.cos(angle))

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


@lru_cache(maxsize=64)
def leaf(seed: int, species: int) -> Leaf:
    """The kind of leaf that a species has; depends on nothing but its two arguments."""
    rng = np.random.default_rng([seed, species])
    anatomy = _fitted(FAMILIES[species % len(FAMILIES)](rng))
    # The golden ratio spreads the hues of a family's members however many there are.
    spread = species // len(FAMILIES) * 0.618 + species * 0.382
    hue = 68 + 84 * (spread % 1)
    saturation, value = rng.uniform(0.5, 0.85), rng.uniform(0.42, 0.68)
    skin = ramp(
        hsv(hue + 12, min(1, saturation * 1.15), value * 0.3),
        hsv(hue, saturation, value),
        hsv(hue - 10, saturation * 0.6, min(1, value * 1.6)),
    )
    reddish = rng.random() < 0.25
    vein = hsv(350, 0.5, 0.55) if reddish else hsv(hue - 8, saturation * 0.45, value + 0.25)
    stalk = hsv(355, 0.5, 0.45) if reddish else hsv(hue - 14, saturation * 0.7, value + 0.05)
    return Leaf(anatomy, skin, vein, stalk, float(rng.uniform(0.2, 0.9)))
