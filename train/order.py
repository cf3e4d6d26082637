"""The order of an epoch: arrays and a seed in, an array out. No disk, no worker, no device.

Every photo occurs exactly as often as the rule says. Batch k is slice k of the order, so the batches
are the same for any number of workers, and (epoch, step) is all that a resume needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Photos are shuffled inside a window of this many blocks, blocks all over the split.
WINDOW_BLOCKS = 64
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class EpochOrder:
    """The photos of one epoch: `samples[i]` is a sample id, `copies[i]` which copy of it (0, 1, …)."""

    samples: NDArray[np.int64]
    copies: NDArray[np.int64]
    batch: int

    @property
    def steps(self) -> int:
        """Batches of an epoch: all photos, no batch above `batch`, sizes equal up to one photo."""
        return -(-len(self.samples) // self.batch)

    def step(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample ids and copies of batch `step`."""
        part = slice(self._bound(step), self._bound(step + 1))
        return self.samples[part], self.copies[part]

    def _bound(self, step: int) -> int:
        return step * len(self.samples) // self.steps


def repeats(rows: NDArray[np.int32], tiers: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """How often each photo occurs in an epoch, int64 [n].

    `tiers` are (below, repeat): a class with fewer than `below` photos; the smallest tier that fits
    counts.
    """
    counts = np.bincount(rows, minlength=1) if len(rows) else np.zeros(1, dtype=np.int64)
    factor = np.ones(len(counts), dtype=np.int64)
    for below, times in sorted(tiers, reverse=True):
        factor[counts < below] = times
    repeat: NDArray[np.int64] = factor[rows]
    return repeat


def blocks(shard: NDArray[np.int32], offset: NDArray[np.int64]) -> NDArray[np.int64]:
    """Block number of each photo: runs of BLOCK_BYTES inside the shards, int64 [n].

    Reading goes block by block, so that a cold disk sees long reads in place of scattered ones.
    """
    pair = shard.astype(np.int64) << 32 | offset // BLOCK_BYTES
    numbers: NDArray[np.int64] = np.unique(pair, return_inverse=True)[1].astype(np.int64).reshape(-1)
    return numbers


def epoch_order(
    repeat: NDArray[np.int64], block: NDArray[np.int64], seed: int, epoch: int, batch: int
) -> EpochOrder:
    """The order of an epoch: blocks shuffled, photos shuffled in a window of blocks, copies spread.

    A photo's place in the epoch is a number in [0, 1). Copy c of a photo that occurs w times stands
    c/w of an epoch after its first, around the end: copies are as far apart as they can be.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    count = len(repeat)
    window = generator.permutation(int(block.max(initial=-1)) + 1)[block] // WINDOW_BLOCKS
    place = np.empty(count)
    place[np.lexsort((generator.random(count), window))] = (np.arange(count) + 0.5) / max(count, 1)
    samples = np.repeat(np.arange(count), repeat)
    copies = np.arange(len(samples)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    spread = (place[samples] + copies / repeat[samples]) % 1.0
    order = np.argsort(spread, kind="stable")
    return EpochOrder(samples[order], copies[order], batch)
