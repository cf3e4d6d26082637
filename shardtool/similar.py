"""Photos that look alike though their bytes differ: a perceptual hash, and the search for near hashes.

The hash, a photo's `look`, is 128 signs of its lowest spatial frequencies: a cosine transform of 32 x 32
cell means, under a window that fades the borders out, so that a small crop or turn changes few signs.
Sums of pixels are integers and the transform of them is exact, so every machine finds the same look.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Rows = NDArray[np.int64]
Waves = NDArray[np.float64]

LOOK_BYTES = 16
# Pixels that a side should have. Among the sizes that a codec decodes to (eighths), 96 and more find changed
# photos as well as all pixels do (98-99.9 %); with 64, 95 % of those cropped by 2 %, with 48, 90 %.
LOOK_SIDE = 96
NO_LOOK = b""  # of a photo with too little texture: everything plain looks alike

# How many of the 128 signs may differ. Of 1,000 real photos, changed and saved again at quality 75, this
# finds: quality 60 99.8 %, half the size 99.3, brightness +-25 99.3, contrast x1.2 99.6, crop by 1 / 2 / 3 %
# around the centre 99.8 / 98.6 / 93.8, at one corner by 2 / 3 % 68 / 14, turned by 1 / 3 degrees 99.5 / 63,
# mirrored 0. Among 11,259 different photos (63 million pairs) it names 26 pairs: 25 show one leaf or
# scene, one (at 10) two leaves on the same table in the same light; from 13 on such pairs are common.
NEAR = 11

_CELLS = 32
_WAVES = 8 * LOOK_BYTES
_SAMPLES = 128  # a side is thinned out to this many pixels, or less than twice as many
_FADE = 0.25  # of a side, over which the window rises
_STEPS = 64  # of a grey level, in a cell's mean
# A wave under 0.05 grey levels of amplitude is noise of JPEG. Photos of uniform, ramped or vignetted planes
# have up to 79 waves above that, 11,453 real photos at least 94.
_FAINT = 0.05
_TEXTURED = 84

# Bounds of the search, for crowds: neighbours that a look is compared with in one of 112 sorts, and
# partners that are enough for both sides of a pair.
_NEIGHBOURS = 16
_PLENTY = 32


@dataclass(frozen=True)
class NearPair:
    """Source paths of two photos that look alike; `distance` of their 128 signs differ.

    `first` is in the earlier split (train < val < test); inside one split, it comes first in the scan.
    """

    first: bytes
    second: bytes
    distance: int


def look(pixels: Bytes) -> bytes:
    """The perceptual hash, 16 bytes, of a grey image (H, W) with sides of at least 8; or NO_LOOK."""
    waves = _waves(_cell_means(pixels))
    if np.count_nonzero(np.abs(waves) > _FAINT_WAVE) < _TEXTURED:
        return NO_LOOK
    return np.packbits(waves > 0).tobytes()


def near_pairs(looks: Bytes, splits: NDArray[np.int8], groups: Rows, within: bool) -> tuple[Rows, Bytes]:
    """Pairs of rows (m, 2) whose looks differ in at most NEAR signs, and their distances (m,).

    `looks` is (n, 16), of photos that have one; `splits` and `groups` are (n,): photos of one group are
    exact copies and never a pair. Pairs lie across splits, or anywhere if `within`. In a pair the earlier
    split comes first, inside a split the lower row; pairs are sorted by distance, then by rows.

    Thousands that look the same do not make millions of pairs. Of the photos with one look in one split
    the first stands for all: a pair has at least one such first. Two looks with 32 near ones each are not
    paired any more, and the search compares a look with 16 of those that share bytes with it.
    """
    units = _Units.of(looks, splits)
    pairs = units.photos(*_near_units(units, within))
    if within:
        pairs = np.concatenate([pairs, units.insides()])
    pairs = pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]
    pairs = np.where(_is_behind(pairs, splits)[:, None], pairs[:, ::-1], pairs)
    distances = _distances(_words(looks), pairs[:, 0], pairs[:, 1])
    order = np.lexsort((pairs[:, 1], pairs[:, 0], distances))
    return pairs[order], distances[order]


def _cell_means(pixels: Bytes) -> Waves:
    """Means of 32 x 32 cells, in 1/64 grey levels: whole numbers. Cells of small images overlap."""
    height, width = pixels.shape
    thinned = pixels[:: max(1, height // _SAMPLES), :: max(1, width // _SAMPLES)]
    sums = cv2.integral(np.ascontiguousarray(thinned))
    top, bottom, left, right, area = _cells(*thinned.shape)
    rows = sums.take(bottom, 0) - sums.take(top, 0)
    cells = rows.take(right, 1) - rows.take(left, 1)
    means: Waves = np.floor(cells * _STEPS / area)
    return means


@lru_cache(maxsize=64)  # photos of a dataset have few sizes
def _cells(height: int, width: int) -> tuple[Rows, Rows, Rows, Rows, Rows]:
    """Top, bottom, left and right edges of the cells, and their areas (32, 32)."""
    top, bottom = _edges(height)
    left, right = _edges(width)
    return top, bottom, left, right, np.outer(bottom - top, right - left)


def _edges(side: int) -> tuple[Rows, Rows]:
    """First pixel of each cell along a side, and the first behind it."""
    cells = np.arange(_CELLS)
    return cells * side // _CELLS, -(-(cells + 1) * side // _CELLS)


def _window() -> Waves:
    centres = (np.arange(_CELLS) + 0.5) / _CELLS
    rise = np.minimum(1.0, np.minimum(centres, 1 - centres) / _FADE)
    window: Waves = 0.5 - 0.5 * np.cos(np.pi * rise)
    return window


def _basis() -> Waves:
    """Windowed cosines (16, 32), rounded to whole numbers: products of these are exact in a float64."""
    angles = np.pi * np.outer(np.arange(_CELLS // 2), np.arange(_CELLS) + 0.5) / _CELLS
    basis: Waves = np.rint(1024 * np.cos(angles) * _window())
    return basis


def _lowest() -> Rows:
    """Positions in the (16, 16) waves of the 128 lowest frequencies, each byte a mixture of all."""
    down, across = np.mgrid[: _CELLS // 2, : _CELLS // 2]
    order = np.lexsort((down.ravel(), (down**2 + across**2).ravel()))[1 : 1 + _WAVES]
    spread: Rows = order.reshape(8, LOOK_BYTES).T.ravel()
    return spread


_BASIS = _basis()
_LOWEST = _lowest()
_SHARE = np.outer(_BASIS.sum(1), _BASIS.sum(1)).ravel()  # what a uniform grey gives to each wave
_SHARE_OF_MEAN = _SHARE[_LOWEST] / _SHARE[0]
# a cosine wave of amplitude 1 in the image, times the same wave and the window
_FAINT_WAVE = _FAINT * _STEPS * (1024 * _window().sum() / 2) ** 2


def _waves(cells: Waves) -> Waves:
    """The 128 lowest waves (128,) of the cells around their mean."""
    waves = (_BASIS @ cells @ _BASIS.T).ravel()
    around_mean: Waves = waves.take(_LOWEST) - waves[0] * _SHARE_OF_MEAN
    return around_mean


@dataclass(frozen=True)
class _Units:
    """Photos with one look in one split are one unit: its look, split, and its photos' rows in order.

    The unit u has the rows `rows[starts[u] : starts[u] + sizes[u]]`; units are sorted by look, then split.
    """

    words: Words
    splits: NDArray[np.int8]
    rows: Rows
    starts: Rows
    sizes: Rows

    @classmethod
    def of(cls, looks: Bytes, splits: NDArray[np.int8]) -> _Units:
        words = _words(looks)
        rows = np.lexsort((splits, words[:, 1], words[:, 0]))
        words, sides = words[rows], splits[rows]
        new = np.ones(len(rows), dtype=bool)
        new[1:] = (words[1:] != words[:-1]).any(axis=1) | (sides[1:] != sides[:-1])
        starts = np.flatnonzero(new)
        return cls(words[starts], sides[starts], rows, starts, np.diff(starts, append=len(rows)))

    def photos(self, first: Rows, second: Rows) -> Rows:
        """Pairs of rows (m, 2) for pairs of units: the first of each with all of the other."""
        forth = self._fan(first, second, 0)
        back = self._fan(second, first, 1)
        return np.concatenate([forth, back[:, ::-1]])

    def insides(self) -> Rows:
        """Pairs of rows (m, 2) inside each unit: its first photo with the others."""
        units = np.arange(len(self.starts))
        return self._fan(units, units, 1)

    def _fan(self, heads: Rows, others: Rows, skip: int) -> Rows:
        """The first photo of each head with each photo of the other unit, but for `skip` at its start."""
        counts = self.sizes[others] - skip
        begins = self.starts[others] + skip - (np.cumsum(counts) - counts)
        places = np.arange(counts.sum()) + np.repeat(begins, counts)
        return np.stack([np.repeat(self.rows[self.starts[heads]], counts), self.rows[places]], axis=1)


class _Found:
    """Pairs of units, each once, and how many partners each unit has."""

    def __init__(self, units: int) -> None:
        self._units = max(1, units)
        self._codes = np.empty(0, dtype=np.int64)  # first * units + second, sorted
        self._partners = np.zeros(units, dtype=np.int64)

    def wanting(self, first: Rows, second: Rows) -> NDArray[np.bool_]:
        """Which pairs have a unit that lacks partners; the others would add nothing but numbers."""
        fewer = np.minimum(self._partners[first], self._partners[second])
        return fewer < _PLENTY

    def add(self, first: Rows, second: Rows) -> None:
        """Take over distinct pairs (first < second), known or not."""
        codes = np.sort(first * self._units + second)
        places = np.searchsorted(self._codes, codes)
        new = places == np.searchsorted(self._codes, codes, side="right")
        self._codes = np.insert(self._codes, places[new], codes[new])
        np.add.at(self._partners, np.concatenate(np.divmod(codes[new], self._units)), 1)

    def pairs(self) -> tuple[Rows, Rows]:
        return np.divmod(self._codes, self._units)


def _near_units(units: _Units, within: bool) -> tuple[Rows, Rows]:
    """Pairs of units that are near, the lower first."""
    found = _Found(len(units.words))
    for first, second in _candidates(units.words):
        if not within:
            across = units.splits[first] != units.splits[second]
            first, second = first[across], second[across]
        kept = found.wanting(first, second)
        first, second = first[kept], second[kept]
        near = _distances(units.words, first, second) <= NEAR
        found.add(first[near], second[near])
    return found.pairs()


def _candidates(words: Words) -> Iterator[tuple[Rows, Rows]]:
    """Distinct pairs of rows (first < second) that agree in three bytes of one half, triple by triple.

    No near pair is missed: of 11 differing signs one half has at most 5, so three of its eight bytes are
    equal. Stable sorts of one or two bytes are radix sorts, and triples share the sort of two.
    """
    columns = words.view(np.uint8).reshape(-1, LOOK_BYTES).T.copy()
    for half in np.arange(LOOK_BYTES).reshape(2, -1).tolist():
        for second, third in itertools.combinations(half[1:], 2):
            pair = columns[second].astype(np.uint16) << 8 | columns[third]
            by_pair = np.argsort(pair, kind="stable")
            pair = pair[by_pair]
            for first in range(half[0], second):
                byte = columns[first][by_pair]
                by_byte = np.argsort(byte, kind="stable")
                alike = _like_next(byte[by_byte]) & _like_next(pair[by_byte])
                for here, there in _neighbours(alike):
                    yield by_pair[by_byte[here]], by_pair[by_byte[there]]


def _like_next(values: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    like = np.zeros(len(values), dtype=bool)
    np.equal(values[1:], values[:-1], out=like[:-1])
    return like


def _neighbours(alike: NDArray[np.bool_]) -> Iterator[tuple[Rows, Rows]]:
    """Places in a sort where one is like the next, and the next; then like the second next, and so on."""
    here = np.flatnonzero(alike)
    for step in range(1, _NEIGHBOURS + 1):
        if not len(here):
            return
        yield here, here + step
        here = here[alike[here + step]]


def _words(looks: Bytes) -> Words:
    return np.ascontiguousarray(looks).view(np.uint64)


def _distances(words: Words, first: Rows, second: Rows) -> Bytes:
    differing = np.bitwise_count(words.take(first, 0) ^ words.take(second, 0))
    total: Bytes = differing[:, 0] + differing[:, 1]
    return total


def _is_behind(pairs: Rows, splits: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether the second of a pair belongs before the first."""
    first, second = pairs[:, 0], pairs[:, 1]
    same = splits[first] == splits[second]
    behind: NDArray[np.bool_] = (splits[first] > splits[second]) | (same & (first > second))
    return behind
