"""Lesions: what each kind of disease paints on a posed leaf, coat by coat.

A kind is a generator of coats, each a plane and the colour that it carries; the caller cuts them
to the blade. `LESIONS` has them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from shardtool.specimens.canvas import (
    Colour,
    Plane,
    Points,
    above,
    blurred,
    cloud,
    filled,
    mixed,
    scaled,
    strokes,
)
from shardtool.specimens.leaves import RIM, Anatomy, xy

Coats = Iterator[tuple[Plane, Colour]]


@dataclass(frozen=True)
class Disease:
    """One kind of lesion with its own look."""

    kind: str  # a key of LESIONS
    tint: Colour | None  # replaces most of the kind's own colour
    size: float  # 1 is usual
    density: float  # 1 is usual

    def colour(self, usual: Colour) -> Colour:
        if not self.tint:
            return usual
        red, green, blue = (round(a + (b - a) * 0.75) for a, b in zip(usual, self.tint, strict=True))
        return red, green, blue


class Patient(NamedTuple):
    """A posed leaf about to fall ill, and the randomness that its lesions may use."""

    lines: Anatomy  # in pixels
    blade: Plane
    rng: Generator

    @property
    def size(self) -> int:
        return len(self.blade)

    def filled(self, shapes: Points) -> Plane:
        return filled(shapes, self.size)

    def strokes(self, lines: Points, width: float) -> Plane:
        return strokes(lines, self.size, width)

    def cloud(self, cells: int) -> Plane:
        return cloud(self.rng, self.size, cells)

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
        return sites[:, None] + xy(reach * np.cos(angle), reach * np.sin(angle))


def _shrunk(blots: Points, share: float) -> Points:
    centre: Points = blots.mean(1, keepdims=True)
    return centre + share * (blots - centre)


def _spot(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(16 * disease.density), 0.03 * disease.size)
    yield blurred(patient.filled(_shrunk(blots, 1.6)), 0.012), (205, 190, 70)
    yield patient.filled(blots), disease.colour((92, 52, 28))
    yield patient.filled(_shrunk(blots, 0.4)), disease.colour((176, 150, 112))


def _ring(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(6 * disease.density), 0.065 * disease.size)
    dark, light = disease.colour((88, 48, 30)), (196, 168, 118)
    yield blurred(patient.filled(_shrunk(blots, 1.25)), 0.01), (190, 175, 80)
    for share, colour in ((1.0, dark), (0.78, light), (0.55, dark), (0.3, light)):
        yield patient.filled(_shrunk(blots, share)), colour


def _rust(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(75 * disease.density), 0.011 * disease.size)
    yield scaled(blurred(patient.filled(_shrunk(blots, 2)), 0.015), 0.9), (214, 186, 60)
    yield patient.filled(blots), disease.colour((190, 88, 22))


def _mildew(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(7 * disease.density), 0.085 * disease.size)
    felt = patient.cloud(40)
    dust = mixed(blurred(patient.filled(blots), 0.03), 0.72, felt)
    yield scaled(above(dust, 60, 1.5), 0.82), disease.colour((222, 224, 218))


def _blight(disease: Disease, patient: Patient) -> Coats:
    blots = patient.blots(patient.sites(4 * disease.density, 0.85, 1.0), 0.15 * disease.size)
    ragged = patient.cloud(14)
    dead = mixed(blurred(patient.filled(blots), 0.03), 0.7, ragged)
    yield above(dead, 70, 5), (186, 176, 70)
    yield above(dead, 100, 12), disease.colour((74, 48, 30))
    yield np.minimum(above(dead, 110, 4), ragged), disease.colour((150, 112, 70))


def _mosaic(disease: Disease, patient: Patient) -> Coats:
    patches = patient.cloud(max(4, round(13 / disease.size)))
    level = 128 + 40 * (1 - disease.density)
    yield scaled(above(patches, level, 6), 0.8), disease.colour((212, 216, 96))
    yield scaled(above(255 - patches, level + 30, 6), 0.6), (20, 62, 30)


def _chlorosis(disease: Disease, patient: Patient) -> Coats:
    ribs = blurred(patient.strokes(patient.lines.ribs, 0.02), 0.01 / disease.size)
    green = np.maximum(ribs, patient.strokes(patient.lines.veins, 0.009 / disease.size))
    yellow = mixed(255 - green, 0.75, patient.cloud(5))
    share = 0.55 + 0.25 * disease.density
    yield scaled(above(yellow, 100, 2.5), share), disease.colour((232, 214, 70))


def _scorch(disease: Disease, patient: Patient) -> Coats:
    edge = 255 - blurred(patient.blade, 0.05 * disease.size)
    burn = mixed(edge, 0.7, patient.cloud(12))
    level = 115 - 22 * disease.density
    yield above(burn, level - 20, 6), (206, 180, 70)
    yield above(burn, level, 10), disease.colour((128, 76, 38))


def _streak(disease: Disease, patient: Patient) -> Coats:
    veins = np.concatenate([patient.lines.ribs, patient.lines.veins])
    chosen = patient.rng.integers(0, len(veins), max(2, round(9 * disease.density)))
    streaks = veins[chosen, 1:-1]
    yield blurred(patient.strokes(streaks, 0.035 * disease.size), 0.012), (200, 180, 80)
    yield patient.strokes(streaks, 0.02 * disease.size), disease.colour((96, 44, 30))


def _miner(disease: Disease, patient: Patient) -> Coats:
    starts = patient.sites(4 * disease.density, outer=0.7)
    heading = patient.rng.uniform(0, 2 * np.pi, (len(starts), 1))
    heading = heading + patient.rng.normal(0, 0.6, (len(starts), 14)).cumsum(1)
    steps = xy(np.cos(heading), np.sin(heading)) * 0.03 * patient.size
    trails = starts[:, None] + steps.cumsum(1)
    yield patient.strokes(trails, 0.028 * disease.size), disease.colour((206, 208, 164))
    yield patient.strokes(trails, 0.006 * disease.size), (96, 92, 58)


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
