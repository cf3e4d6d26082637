"""The order of an epoch over grids of sizes, shards, ranks, batches and rules: exact, spread, repeatable."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.order import (
    BLOCK_BYTES,
    WINDOW_BLOCKS,
    EpochOrder,
    _sort_in_groups,
    blocks,
    changes,
    epoch_order,
    fingerprint,
    order_quality,
    repeats,
)

SIZES = [0, 1, 2, 7, 63, 256, 257, 1000, 5000]
SHARDS = [1, 3, 70]
BATCHES = [1, 7, 64, 256]
RULES: list[list[tuple[int, int]]] = [[], [(80, 3), (50, 5)], [(10_000, 2)]]
GRID = [*product(SIZES, SHARDS, RULES)]


def rows_of(count: int) -> NDArray[np.int32]:
    """Labels of classes that grow from 1 photo on, so that every tier has some."""
    return np.sort(np.random.default_rng(count).permutation(np.sqrt(np.arange(count) * 2).astype(np.int32)))


def places(count: int, shards: int, photo: int = 300_000) -> NDArray[np.int32]:
    """Blocks of photos of `photo` bytes that lie in so many shards one after another."""
    number = np.arange(count)
    shard = number * shards // max(count, 1)
    return blocks(shard, number * photo)


def order_of(
    repeat: NDArray[np.integer] | list[int], seed: int = 0, epoch: int = 0, batch: int = 8, shards: int = 3
) -> EpochOrder:
    return epoch_order(np.asarray(repeat), places(len(repeat), shards), seed, epoch, batch)


def same(one: EpochOrder, other: EpochOrder) -> bool:
    return one.samples.tolist() == other.samples.tolist() and one.copies.tolist() == other.copies.tolist()


# --- Every photo as often as the rule says --------------------------------------------------------


@pytest.mark.parametrize(("count", "shards", "rule"), GRID)
def test_every_photo_occurs_exactly_as_often_as_the_rule_says(
    count: int, shards: int, rule: list[tuple[int, int]]
) -> None:
    repeat = repeats(rows_of(count), rule)
    order = order_of(repeat, seed=count, epoch=shards, shards=shards)
    wanted = {(photo, copy) for photo, times in enumerate(repeat.tolist()) for copy in range(times)}
    assert len(order.samples) == len(order.copies) == int(repeat.sum()) == len(wanted)
    assert set(zip(order.samples.tolist(), order.copies.tolist(), strict=True)) == wanted


def test_small_classes_are_repeated_by_the_smallest_tier_that_fits() -> None:
    rows = np.repeat([0, 1, 2], [49, 79, 80]).astype(np.int32)
    repeat = repeats(rows, [(80, 3), (50, 5)])
    assert [int(repeat[rows == row][0]) for row in range(3)] == [5, 3, 1]
    assert repeats(rows, []).tolist() == [1] * len(rows)


def test_a_repeat_of_many_hundred_is_no_narrow_number() -> None:
    repeat = repeats(np.zeros(3, np.uint16), [(4, 700)])
    assert repeat.tolist() == [700] * 3
    order = order_of(repeat)
    assert Counter(order.samples.tolist()) == {0: 700, 1: 700, 2: 700}
    assert sorted(order.copies[order.samples == 1].tolist()) == list(range(700))


@pytest.mark.parametrize("times", [2, 3, 5])
@pytest.mark.parametrize("count", [300, 1000, 5000])
def test_copies_of_a_photo_are_as_far_apart_as_they_can_be(count: int, times: int) -> None:
    """Around the end too: an epoch follows the other. The rest is mixed, so distances have some luck."""
    repeat = np.where(np.arange(count) % 10 == 0, times, 1)
    order = order_of(repeat, epoch=times)
    total = len(order.samples)
    for photo in range(0, count, 10):
        found = np.flatnonzero(order.samples == photo)
        gaps = np.diff([*found, found[0] + total])
        assert len(gaps) == times
        assert abs(gaps - total / times).max() < 2.5 * np.sqrt(total)


# --- Batches and ranks -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", SIZES)
def test_batches_cover_the_epoch_and_differ_by_one_photo_at_most(
    count: int, rule: list[tuple[int, int]], batch: int
) -> None:
    order = order_of(repeats(rows_of(count), rule), batch=batch)
    steps = [order.step(step) for step in range(order.steps)]
    assert [photo for samples, _ in steps for photo in samples] == order.samples.tolist()
    assert [copy for _, copies in steps for copy in copies] == order.copies.tolist()
    lengths = [len(samples) for samples, _ in steps]
    assert max(lengths, default=0) <= batch
    assert max(lengths, default=0) - min(lengths, default=0) <= 1
    assert len(lengths) == -(-len(order.samples) // batch)


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("count", SIZES)
def test_the_parts_of_all_ranks_are_the_batch_whatever_the_number_of_ranks(count: int, ranks: int) -> None:
    for batch in (*BATCHES, 96):
        order = order_of(repeats(rows_of(count), RULES[1]), batch=batch)
        for step in range(0, order.steps, 1 + order.steps // 20):
            samples, copies = order.step(step)
            parts = [order.step(step, rank, ranks) for rank in range(ranks)]
            assert np.concatenate([part[0] for part in parts]).tolist() == samples.tolist()
            assert np.concatenate([part[1] for part in parts]).tolist() == copies.tolist()
            lengths = {len(part[0]) for part in parts}
            assert max(lengths) - min(lengths) <= (len(samples) % ranks > 0)


def test_all_ranks_have_photos_in_every_batch_of_two_photos_a_rank_or_more() -> None:
    for count, ranks in product(range(1, 200, 7), range(1, 9)):
        order = order_of([1] * count, batch=2 * ranks)
        if count >= ranks:
            lengths = [
                len(order.step(step, r, ranks)[0]) for step in range(order.steps) for r in range(ranks)
            ]
            assert min(lengths) >= 1


def test_batches_are_of_the_type_that_tensors_of_ids_have() -> None:
    for part in order_of([1, 3] * 30).step(0, 1, 2):
        assert part.dtype == np.int64


# --- The same again, and something else -------------------------------------------------------------


@pytest.mark.parametrize(("count", "shards", "rule"), GRID)
def test_a_repeat_is_identical_and_every_epoch_and_seed_differs(
    count: int, shards: int, rule: list[tuple[int, int]]
) -> None:
    repeat = repeats(rows_of(count), rule)
    first = order_of(repeat, 5, 2, shards=shards)
    assert same(first, order_of(repeat, 5, 2, shards=shards))
    assert same(first, order_of(repeat.astype(np.int64), 5, 2, shards=shards))
    if count > 60:
        assert not same(first, order_of(repeat, 5, 3, shards=shards))
        assert not same(first, order_of(repeat, 6, 2, shards=shards))


def test_an_order_takes_five_bytes_a_photo() -> None:
    order = order_of([1, 5] * 50)
    assert (order.samples.itemsize, order.copies.itemsize) == (4, 1)


groups_and_values = st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0.0, 0.25, 0.5, 0.75])))


@given(groups_and_values, st.sampled_from([np.uint8, np.uint16, np.int32]))
def test_sorting_in_groups_is_a_stable_sort_by_group_and_value(
    pairs: list[tuple[int, float]], kind: type[np.integer]
) -> None:
    group = np.array([group % 250 for group, _ in pairs], dtype=kind)
    values = np.array([value for _, value in pairs], dtype=float)
    assert _sort_in_groups(group, values).tolist() == np.lexsort((values, group)).tolist()


# --- Blocks and windows ----------------------------------------------------------------------------


def test_blocks_are_runs_inside_one_shard() -> None:
    shard = np.array([0, 0, 0, 1], dtype=np.int32)
    offset = np.array([512, 4 << 20, (4 << 20) + 512, 512])
    assert blocks(shard, offset).tolist() == [0, 1, 1, 2]
    assert blocks(shard[:0], offset[:0]).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20 << 20)), max_size=60))
def test_two_photos_share_a_block_if_they_share_four_megabytes_of_a_shard(
    found: list[tuple[int, int]],
) -> None:
    found.sort()
    block = blocks(np.array([s for s, _ in found], int), np.array([o for _, o in found], int)).tolist()
    there = sorted({(shard, offset // BLOCK_BYTES) for shard, offset in found})
    assert block == [there.index((shard, offset // BLOCK_BYTES)) for shard, offset in found]


def test_photos_stay_in_a_window_of_blocks_so_that_a_disk_reads_long_runs() -> None:
    block = np.arange(50_000) // 10
    order = epoch_order(np.ones(50_000, int), block, 0, 0, 256)
    window = 10 * WINDOW_BLOCKS
    for first in range(0, 50_000, window):
        assert len(set(block[order.samples[first : first + window]])) <= WINDOW_BLOCKS
    heads = block[order.samples[:window]]
    assert np.ptp(heads) > 3000  # blocks from all over the split


def test_an_order_is_mixed_as_well_as_a_random_one() -> None:
    """Of photos that lie as a packed dataset has them, at random; sorted by class they would clump."""
    species = np.random.default_rng(0).integers(0, 320, 20_000)
    repeat, place = 1 + (species < 20), places(20_000, 3)
    order = epoch_order(repeat, place, 0, 0, 256)
    quality = order_quality(order, species)
    assert 0.98 < quality.distinct / quality.expected < 1.02
    assert abs(quality.batch - len(order.step(0)[0])) <= 1
    whole = epoch_order(repeat, place, 0, 0, 1 << 20)
    assert order_quality(whole, species).batch == len(whole.samples)


# --- What a resume must not change -------------------------------------------------------------------

ARGUMENTS = {"index": "a" * 32, "tiers": [(80, 3), (50, 5)], "seed": 1, "batch": 256}


def test_the_same_arguments_have_the_same_fingerprint() -> None:
    one = fingerprint(**ARGUMENTS)  # type: ignore[arg-type]
    other = fingerprint("a" * 32, ((50, 5), (80, 3)), 1, 256)
    assert changes(one, other) == []
    assert json.loads(json.dumps(one)) == one


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("index", "b" * 32, "index aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        ("tiers", [(80, 3)], "rule [[50, 5], [80, 3]] -> [[80, 3]]"),
        ("seed", 2, "seed 1 -> 2"),
        ("batch", 512, "batch 256 -> 512"),
    ],
)
def test_a_fingerprint_tells_what_has_changed(name: str, value: object, told: str) -> None:
    old = fingerprint(**ARGUMENTS)  # type: ignore[arg-type]
    assert changes(old, fingerprint(**{**ARGUMENTS, name: value})) == [told]  # type: ignore[arg-type]


def test_another_way_to_make_orders_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    old = fingerprint(**ARGUMENTS)  # type: ignore[arg-type]
    for name, value in (("WINDOW_BLOCKS", 32), ("BLOCK_BYTES", 1 << 20)):
        with monkeypatch.context() as changed:
            changed.setattr(f"train.order.{name}", value)
            (told,) = changes(old, fingerprint(**ARGUMENTS))  # type: ignore[arg-type]
        assert told.startswith("method ")


def test_a_checkpoint_that_does_not_know_a_part_is_told_from_one_that_does() -> None:
    new = fingerprint(**ARGUMENTS)  # type: ignore[arg-type]
    assert changes({**new, "seed": None}, new) == ["seed unknown -> 1"]
    assert len(changes({}, new)) == len(new)
