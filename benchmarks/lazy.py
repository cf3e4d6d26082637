"""The order of an epoch without its array: the same numbers as `train.order`, one window at a time.

For an epoch in which no photo is repeated. It needs where each block of the split begins, 4 MB of photos a
number, in place of an entry a photo.
"""

from __future__ import annotations

import copy
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from train.order import WINDOW_BLOCKS

DRAWS_A_COUNT = 4  # numbers that Philox makes of one value of its counter


class LazyOrder:
    """The order of `epoch_order` over blocks that begin at the samples `firsts` (int64 [blocks + 1], the last
    is the number of samples)."""

    def __init__(self, firsts: NDArray[np.int64], seed: int, epoch: int) -> None:
        self._firsts, self._bits = firsts, np.random.Philox(key=[seed, epoch])
        shuffled = np.random.Generator(self._bits).permutation(len(firsts) - 1)
        self._blocks = np.empty(len(shuffled), dtype=np.int32)  # by their place in the epoch
        self._blocks[shuffled] = np.arange(len(shuffled), dtype=np.int32)
        self._start = copy.deepcopy(self._bits.state)  # here begins one draw a sample

    def __len__(self) -> int:
        """Windows of the epoch."""
        return -(-len(self._blocks) // WINDOW_BLOCKS)

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """Place in the epoch at which each window begins, and last the number of samples."""
        sizes = np.diff(self._firsts)[self._blocks]
        ends = np.cumsum(np.add.reduceat(sizes, range(0, len(sizes), WINDOW_BLOCKS)))
        return np.concatenate([[0], ends]).astype(np.int64)

    def window(self, number: int) -> NDArray[np.int64]:
        """Sample ids of a window, in their order."""
        mine = np.sort(self._blocks[number * WINDOW_BLOCKS : (number + 1) * WINDOW_BLOCKS])
        runs = [(int(self._firsts[block]), int(self._firsts[block + 1])) for block in mine.tolist()]
        samples = np.concatenate([np.arange(first, end) for first, end in runs])
        values = np.concatenate([self._values(first, end - first) for first, end in runs])
        found: NDArray[np.int64] = samples[np.argsort(values, kind="stable")]
        return found

    def _values(self, first: int, count: int) -> NDArray[np.float64]:
        """What the generator draws for the samples `first`, first + 1, …"""
        state = copy.deepcopy(self._start)
        counter = int.from_bytes(state["state"]["counter"].astype("<u8").tobytes(), "little")
        # the counter is raised before its numbers are made, and some of the latest may be left
        draw = DRAWS_A_COUNT * (counter - 1) + state["buffer_pos"] + first
        words = (draw // DRAWS_A_COUNT).to_bytes(32, "little")
        state["state"]["counter"] = np.frombuffer(words, "<u8").astype(np.uint64)
        state["buffer_pos"] = DRAWS_A_COUNT
        self._bits.state = state
        skipped = draw % DRAWS_A_COUNT
        return np.random.Generator(self._bits).random(skipped + count)[skipped:]
