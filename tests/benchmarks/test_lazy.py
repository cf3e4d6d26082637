"""The order made window by window is the order that training has."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.lazy import LazyOrder
from train.order import epoch_order


@pytest.mark.parametrize("blocks", [1, 2, 63, 64, 65, 500])
@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_the_windows_are_the_order_of_the_epoch(blocks: int, epoch: int) -> None:
    sizes = np.random.default_rng(blocks).integers(1, 60, blocks)
    firsts = np.concatenate([[0], np.cumsum(sizes)])
    block = np.repeat(np.arange(blocks), sizes)
    expected = epoch_order(np.ones(len(block), int), block, 7, epoch, 256).samples.tolist()
    lazy = LazyOrder(firsts, 7, epoch)
    backwards = [lazy.window(number) for number in reversed(range(len(lazy)))]
    assert np.concatenate(backwards[::-1]).tolist() == expected
    assert np.diff(lazy.bounds).tolist() == [len(window) for window in backwards[::-1]]
