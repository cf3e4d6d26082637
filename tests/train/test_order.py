from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import EpochOrder, blocks, epoch_order, repeats

sizes = st.integers(1, 400)


def order_of(repeat: list[int], seed: int = 0, epoch: int = 0, batch: int = 8) -> EpochOrder:
    return epoch_order(np.array(repeat), np.arange(len(repeat)) // 5, seed, epoch, batch)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=300), st.integers(0, 99), st.integers(1, 64))
def test_every_photo_occurs_exactly_as_often_as_the_rule_says(
    repeat: list[int], seed: int, batch: int
) -> None:
    order = order_of(repeat, seed, batch=batch)
    pairs = set(zip(order.samples.tolist(), order.copies.tolist(), strict=True))
    assert pairs == {(photo, copy) for photo, times in enumerate(repeat) for copy in range(times)}
    assert len(order.samples) == sum(repeat)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 64))
def test_batches_cover_the_epoch_and_differ_by_one_photo_at_most(count: int, batch: int) -> None:
    order = order_of([1] * count, batch=batch)
    parts = [order.step(step)[0] for step in range(order.steps)]
    assert np.concatenate(parts).tolist() == order.samples.tolist()
    lengths = {len(part) for part in parts}
    assert max(lengths) <= batch
    assert max(lengths) - min(lengths) <= 1


def test_copies_of_a_photo_are_spread_over_the_epoch() -> None:
    order = order_of([5] + [1] * 995)
    places = np.sort(np.flatnonzero(order.samples == 0))
    gaps = np.diff([*places, places[0] + len(order.samples)])
    assert gaps.min() > 180
    assert gaps.max() < 220


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    first = order_of([1] * 200).samples.tolist()
    assert first == order_of([1] * 200).samples.tolist()
    assert first != order_of([1] * 200, epoch=1).samples.tolist()
    assert first != order_of([1] * 200, seed=1).samples.tolist()


def test_the_order_is_pinned() -> None:
    order = order_of([1, 1, 3, 1, 1, 1, 1, 1], seed=7, epoch=2)
    assert order.samples.tolist() == PINNED_SAMPLES
    assert order.copies.tolist() == PINNED_COPIES


def test_small_classes_are_repeated_by_the_smallest_tier_that_fits() -> None:
    rows = np.repeat([0, 1, 2], [49, 79, 80]).astype(np.int32)
    repeat = repeats(rows, [(80, 3), (50, 5)])
    assert [int(repeat[rows == row][0]) for row in range(3)] == [5, 3, 1]
    assert repeats(rows, []).tolist() == [1] * len(rows)


def test_blocks_are_runs_inside_one_shard() -> None:
    shard = np.array([0, 0, 0, 1], dtype=np.int32)
    offset = np.array([512, 4 << 20, (4 << 20) + 512, 512])
    assert blocks(shard, offset).tolist() == [0, 1, 1, 2]


# ORDER is part of what a checkpoint resumes: change these numbers only on purpose
PINNED_SAMPLES = [5, 2, 6, 7, 3, 2, 0, 4, 2, 1]
PINNED_COPIES = [0, 1, 0, 0, 0, 2, 0, 0, 0, 0]
