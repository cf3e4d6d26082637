"""The order of an epoch: arrays and a seed in, an array out. No disk, no worker, no device.

Every photo occurs exactly as often as the rule says. Batch k is slice k of the order, and a rank takes a
slice of that, so the batches are the same for any number of workers and ranks, and (fingerprint, epoch,
step) is all that a resume needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardtool.quality import ShuffleQuality, shuffle_quality

Integers = NDArray[np.integer[Any]]

# Photos are shuffled inside a window of this many blocks, blocks all over the split.
WINDOW_BLOCKS = 64
BLOCK_BYTES = 4 << 20
GROUP_PHOTOS = 4096  # are sorted at a time: their keys stay in the processor's cache


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class EpochOrder:
    """The photos of one epoch: `samples[i]` is a sample id, `copies[i]` which copy of it (0, 1, …).

    Both are of the narrowest type that holds them: 5 bytes a photo where none occurs over 256 times.
    """

    samples: Integers
    copies: Integers
    batch: int

    @property
    def steps(self) -> int:
        """Batches of an epoch: all photos, no batch above `batch`, sizes equal up to one photo."""
        return -(-len(self.samples) // self.batch)

    def step(self, step: int, rank: int = 0, ranks: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample ids and copies of rank `rank`'s part of batch `step`, int64 both.

        The parts of all ranks, one after another, are the batch; their sizes are equal up to one photo. One
        may be empty if `batch` is less than two photos a rank.
        """
        first, end = self._bound(step), self._bound(step + 1)
        part = slice(first + rank * (end - first) // ranks, first + (rank + 1) * (end - first) // ranks)
        return self.samples[part].astype(np.int64), self.copies[part].astype(np.int64)

    def _bound(self, step: int) -> int:
        return step * len(self.samples) // self.steps


def repeats(rows: Integers, tiers: Sequence[tuple[int, int]]) -> Integers:
    """How often each photo occurs in an epoch, [n], of the narrowest type.

    `tiers` are (below, repeat): a class with fewer than `below` photos; the smallest tier that fits
    counts.
    """
    counts = np.bincount(rows, minlength=1) if len(rows) else np.zeros(1, dtype=np.int64)
    factor = np.ones(len(counts), dtype=np.int64)
    for below, times in sorted(tiers, reverse=True):
        factor[counts < below] = times
    repeat: Integers = factor.astype(np.min_scalar_type(int(factor.max())))[rows]
    return repeat


def blocks(shard: Integers, offset: Integers) -> NDArray[np.int32]:
    """Block number of each photo: runs of BLOCK_BYTES inside the shards, int32 [n].

    Reading goes block by block, so that a cold disk sees long reads in place of scattered ones. The photos
    come as they lie: `shard` and, inside a shard, `offset` ascend.
    """
    begins = np.zeros(len(shard), dtype=bool)
    place = offset // BLOCK_BYTES
    begins[1:] = (place[1:] != place[:-1]) | (shard[1:] != shard[:-1])
    return np.cumsum(begins, dtype=np.int32)


def epoch_order(repeat: Integers, block: Integers, seed: int, epoch: int, batch: int) -> EpochOrder:
    """The order of an epoch: blocks shuffled, photos shuffled in a window of blocks, copies spread.

    A photo's place in the epoch is a number in [0, 1). Copy c of a photo that occurs w times stands
    c/w of an epoch after its first, around the end: copies are as far apart as they can be.
    """
    count = len(repeat)
    mixed = _mix(block, np.random.Generator(np.random.Philox(key=[seed, epoch])))
    if repeat.max(initial=1) == repeat.min(initial=1) == 1:
        return EpochOrder(mixed, np.zeros(count, dtype=np.uint8), batch)
    place = np.empty(count)
    place[mixed] = (np.arange(count) + 0.5) / max(count, 1)
    samples = np.repeat(np.arange(count, dtype=_ids(count)), repeat)
    first = np.repeat(np.cumsum(repeat, dtype=np.int64) - repeat, repeat)
    copies = (np.arange(len(samples)) - first).astype(np.min_scalar_type(int(repeat.max()) - 1))
    spread = place[samples] + copies / repeat[samples].astype(np.float64)
    spread -= spread >= 1.0
    groups = min(-(-len(samples) // GROUP_PHOTOS), 1 << 16)
    order = _sort_in_groups((spread * groups).astype(np.uint16), spread)
    return EpochOrder(samples[order], copies[order], batch)


def _mix(block: Integers, generator: np.random.Generator) -> Integers:
    """Every sample id once: windows of blocks one after another, each shuffled inside."""
    count, number = len(block), int(block.max(initial=-1)) + 1
    windows = generator.permutation(number) // WINDOW_BLOCKS
    window = windows.astype(np.min_scalar_type(number // WINDOW_BLOCKS))[block]
    return _sort_in_groups(window, generator.random(count)).astype(_ids(count))


def _sort_in_groups(group: Integers, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """`np.lexsort((values, group))`, in a third of the time: the first sort is a radix sort where `group`
    has 16 bits, and each of the others fits the processor's cache."""
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=1)).tolist()
    for first, end in pairwise([0, *ends]):
        part = order[first:end]
        part[:] = part[np.argsort(values[part], kind="stable")]
    return order


def _ids(count: int) -> type[np.signedinteger[Any]]:
    """The type of sample ids below `count`."""
    return np.int32 if count <= 1 << 31 else np.int64


# ---- what an order depends on, and how good it is -------------------------------------------------


def fingerprint(index: str, tiers: Sequence[tuple[int, int]], seed: int, batch: int) -> dict[str, Any]:
    """All that decides the orders of a run, by name, as plain data for a checkpoint.

    `index` is the digest of the split's columns (Split.index_digest), `tiers` the rule of `repeats`.
    """
    return {
        "index": index,
        "rule": [list(tier) for tier in sorted(tiers)],
        "seed": seed,
        "batch": batch,
        "method": _method(),
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, for people; [] if they give the same orders."""
    return [
        f"{name} {_short(old.get(name))} -> {_short(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _short(value: object) -> str:
    if value is None:
        return "unknown"
    return value[:12] if isinstance(value, str) else str(value)


def _method() -> str:
    """Digest of one small order: another version of this file, or of NumPy, may make another one of the
    same arguments, and this is how it shows."""
    photos = np.arange(1000)
    order = epoch_order(1 + photos % 3, blocks(photos // 100, photos % 100 << 21), 0, 0, 1)
    pairs = np.stack([order.samples, order.copies]).astype("<i8")
    return hashlib.sha256(pairs.tobytes()).hexdigest()


def order_quality(order: EpochOrder, species: Integers) -> ShuffleQuality:
    """Mean number of species in a batch of the epoch, and what a random order of the same photos, copies
    included, would give; `species` [n] is of the split's samples. The epoch is not empty."""
    return shuffle_quality(species[order.samples], -(-len(order.samples) // order.steps))
