"""Which photo goes where: complete, exact, mixed, and stable when one photo changes."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardtool import layout, tar
from shardtool.layout import ShardPlan
from shardtool.scan import PHOTOS
from shardtool.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_labels([("Apple", "Rot"), ("Apple", "Scab"), ("Rose", "Healthy"), ("Rose", "Rust")])
groups_and_values = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=40)


def photos(count: int, size: int = 4000) -> list[dict[str, object]]:
    """Rows of the scan's table, sorted by path; labels in turn."""
    return [
        {
            "source": b"train/%05d.jpg" % number,
            "split": 0,
            "row": number % TAXONOMY.rows,
            "size": size + number % 700,
            "width": 16,
            "height": 16,
            "crc32c": number,
            "digest": number.to_bytes(16, "little"),
            "rule": "",
            "progressive": False,
            "look": b"",
        }
        for number in range(count)
    ]


def column(values: list[bytes]) -> pa.ChunkedArray:
    """16 bytes a photo, in two chunks, the second of them a slice."""
    array = pa.array(values, pa.binary(16))
    return pa.chunked_array([array[: len(values) // 2], array[len(values) // 2 :]])


def plan(rows: list[dict[str, object]], shard_size: int = 200_000, seed: int = 0) -> list[ShardPlan]:
    table = pa.Table.from_pylist(rows, schema=PHOTOS)
    return list(layout.plan(table, TAXONOMY, ("train",), seed, shard_size).get("train", ()))


def contents(plans: list[ShardPlan]) -> list[list[tuple[bytes, bytes]]]:
    """(source, digest) of each photo of each shard."""
    columns = ("source", "digest")
    return [list(zip(*(p.photos.column(name).to_pylist() for name in columns), strict=True)) for p in plans]


def dense(values: list[int]) -> NDArray[np.int64]:
    """The same groups, numbered 0, 1, ... as `same_bytes` numbers them."""
    return np.unique(np.array(values, dtype=np.int64), return_inverse=True)[1].astype(np.int64)


def make_splits(groups: NDArray[np.int64], rows: NDArray[np.int32], share: float, seed: int) -> list[int]:
    digests = column([int(group).to_bytes(16, "little") for group in groups])
    return layout.make_splits(digests, rows, share, seed).tolist()


# --- Shards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 300])
@pytest.mark.parametrize("shard_size", [10_240, 50_000, 10**9])
def test_every_photo_is_in_exactly_one_shard(count: int, shard_size: int) -> None:
    placed = [source for shard in contents(plan(photos(count), shard_size)) for source, _ in shard]
    assert sorted(placed) == [row["source"] for row in photos(count)]


def test_each_split_is_planned_as_if_it_were_alone() -> None:
    rows = [{**row, "split": number % 3} for number, row in enumerate(photos(300))]
    names = ("train", "val", "test")
    together = layout.plan(pa.Table.from_pylist(rows, schema=PHOTOS), TAXONOMY, names, 0, 50_000)
    assert list(together) == list(names)
    for number, name in enumerate(names):
        alone = plan([{**row, "split": 0} for row in rows if row["split"] == number], 50_000)
        assert contents(list(together[name])) == contents(alone)
        assert [shard.size for shard in together[name]] == [shard.size for shard in alone]
        assert together[name].counts.tolist() == [shard.photos.num_rows for shard in alone]


def test_no_photos_make_no_shards() -> None:
    assert plan([]) == []


def test_the_size_of_a_shard_is_exact() -> None:
    for shard in plan(photos(300)):
        inside = 0
        for row in shard.photos.to_pylist():
            cls, meta = layout.Annotations(TAXONOMY)(row["row"], row["source"])
            for payload in (row["size"], len(cls), len(meta)):
                inside += tar.BLOCK + -(-payload // tar.BLOCK) * tar.BLOCK
        assert shard.size == tar.file_size(inside)


def test_shards_are_named_in_a_row_and_are_of_about_the_size_asked_for() -> None:
    plans = plan(photos(3000), 1_000_000)
    assert [shard.name for shard in plans] == [f"shard-{number:06d}" for number in range(len(plans))]
    sizes = np.array([shard.size for shard in plans])
    assert 0.9e6 < sizes.mean() <= 1.02e6
    assert sizes.min() > 0.7e6
    assert sizes.max() < 1.3e6


def test_every_shard_holds_the_classes_in_proportion() -> None:
    for shard in plan(photos(4000), 2_000_000):
        counts = Counter(shard.photos.column("row").to_pylist())
        expected = shard.photos.num_rows / TAXONOMY.rows
        assert all(abs(counts[row] - expected) < 5 * expected**0.5 for row in range(TAXONOMY.rows))


def test_the_order_of_a_shard_mixes_the_classes() -> None:
    rows = np.concatenate([shard.photos.column("row").to_numpy() for shard in plan(photos(2000))])
    changes = np.count_nonzero(rows[1:] != rows[:-1]) / len(rows)
    assert 0.7 < changes < 0.8  # 3 of 4 for four equal classes in random order


def differing(before: list[ShardPlan], after: list[ShardPlan]) -> int:
    assert len(before) == len(after)
    return sum(old != new for old, new in zip(contents(before), contents(after), strict=True))


@pytest.mark.parametrize("victim", [0, 17, 299])
def test_a_photo_added_removed_or_changed_touches_one_shard(victim: int) -> None:
    rows = photos(300)
    before = plan(rows)
    assert len(before) > 5
    without = rows[:victim] + rows[victim + 1 :]
    changed = [*rows[:victim], {**rows[victim], "digest": b"\xff" * 16}, *rows[victim + 1 :]]
    assert differing(before, plan(without)) == 1
    assert differing(plan(without), before) == 1
    assert differing(before, plan(changed)) == 1


def test_a_changed_photo_keeps_its_place() -> None:
    rows = photos(50)
    changed = [*rows[:9], {**rows[9], "digest": b"\xff" * 16}, *rows[10:]]
    before, after = (contents(plan(each)) for each in (rows, changed))
    assert [[s for s, _ in shard] for shard in before] == [[s for s, _ in shard] for shard in after]


def test_a_shard_handed_to_a_worker_carries_its_own_photos_only() -> None:
    plans = plan(photos(2000))
    assert len(plans) > 30
    whole = len(pickle.dumps(pa.Table.from_pylist(photos(2000), schema=PHOTOS)))
    assert sum(len(pickle.dumps(shard)) for shard in plans) < 4 * whole


def test_another_seed_gives_another_order() -> None:
    assert contents(plan(photos(100), seed=0)) != contents(plan(photos(100), seed=1))
    assert contents(plan(photos(100), seed=1)) == contents(plan(photos(100), seed=1))


# --- Keys and annotations ----------------------------------------------------------------------


def test_keys_are_24_hex_digits_and_unique() -> None:
    keys = [key for shard in plan(photos(3000)) for key in shard.photos.column("key").to_pylist()]
    assert len(set(keys)) == 3000
    assert all(re.fullmatch(r"[0-9a-f]{24}", key) for key in keys)


def test_copies_of_a_photo_have_keys_of_their_own_and_a_changed_photo_gets_a_new_one() -> None:
    first, copy, changed = layout.keys(
        pa.chunked_array([[b"a.jpg", b"b.jpg", b"a.jpg"]]), column([bytes(16), bytes(16), b"x" * 16])
    )
    assert len({first, copy, changed}) == 3


@given(st.binary(min_size=1, max_size=60), st.integers(0, TAXONOMY.rows - 1))
def test_the_json_member_gives_the_original_path_back_byte_for_byte(source: bytes, row: int) -> None:
    cls, meta = layout.Annotations(TAXONOMY)(row, source)
    value = json.loads(meta)
    assert value["source"].encode("utf-8", "surrogateescape") == source
    assert (value["species"], value["disease"]) == TAXONOMY.row_names[row]
    assert int(cls) == value["species_id"] == TAXONOMY.row_species[row]
    assert TAXONOMY.offsets[value["species_id"]] + value["disease_id"] == row
    assert meta.isascii()


def test_the_original_path_comes_back_with_fsencode() -> None:
    value = json.loads(layout.Annotations(TAXONOMY)(0, b"Caf\xe9/\xff.jpg")[1])
    assert os.fsencode(value["source"]) == b"Caf\xe9/\xff.jpg"


# --- Copies, conflicts, leaks ------------------------------------------------------------------


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20), st.randoms())
def test_equal_digests_and_only_they_share_a_group(digests: list[bytes], random: np.random.Generator) -> None:
    digests = digests + digests[: len(digests) // 2]
    random.shuffle(digests)  # type: ignore[arg-type]
    groups = layout.same_bytes(column(digests)).tolist()
    assert len(set(zip(groups, digests, strict=True))) == len(set(digests)) == len(set(groups))
    assert sorted(set(groups)) == list(range(len(set(digests))))


def test_digests_that_differ_in_one_half_are_different() -> None:
    digests = [bytes(16), bytes(8) + b"1" * 8, b"1" * 8 + bytes(8), bytes(16)]
    groups = layout.same_bytes(column(digests))
    assert groups[0] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_all_copies_under_two_labels_conflict_and_no_other_photo() -> None:
    groups = np.array([0, 0, 1, 1, 2, 0])
    rows = np.array([3, 3, 1, 2, 1, 3], dtype=np.int32)
    assert layout.conflicting(groups, rows).tolist() == [False, False, True, True, False, False]


def test_the_earlier_split_leaks_the_later_one_does_not() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    splits = np.array([0, 1, 0, 0, 0, 1, 2, 1], dtype=np.int8)
    assert layout.leaking(groups, splits).tolist() == [True, False, False, False, True, True, False, False]


@given(groups_and_values)
def test_conflicts_and_leaks_are_what_looking_at_all_pairs_finds(pairs: list[tuple[int, int]]) -> None:
    groups = dense([group for group, _ in pairs])
    values = [value for _, value in pairs]
    twins = [[b for b in range(len(pairs)) if groups[b] == groups[a]] for a in range(len(pairs))]
    conflicts = [any(values[b] != values[a] for b in twins[a]) for a in range(len(pairs))]
    leaks = [any(values[b] > values[a] for b in twins[a]) for a in range(len(pairs))]
    assert layout.conflicting(groups, np.array(values, dtype=np.int32)).tolist() == conflicts
    assert layout.leaking(groups, np.array(values, dtype=np.int8)).tolist() == leaks


# --- Splits ------------------------------------------------------------------------------------


@given(groups_and_values, st.floats(0, 0.95), st.integers(0, 3))
def test_a_split_is_stratified_and_keeps_copies_together(
    pairs: list[tuple[int, int]], share: float, seed: int
) -> None:
    groups = dense([group for group, _ in pairs])
    label = dict(reversed([(group, value) for group, (_, value) in zip(groups.tolist(), pairs, strict=True)]))
    rows = np.array([label[group] for group in groups.tolist()], dtype=np.int32)
    splits = make_splits(groups, rows, share, seed)
    sides: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for group, row, split in zip(groups.tolist(), rows.tolist(), splits, strict=True):
        sides[row][group].add(split)
    for distinct in sides.values():
        assert all(len(side) == 1 for side in distinct.values())
        in_val = sum(side == {1} for side in distinct.values())
        if share == 0:
            assert in_val == 0
        elif len(distinct) >= 2:
            assert 1 <= in_val <= len(distinct) - 1
            assert abs(in_val - share * len(distinct)) <= 1
        else:
            assert in_val == 0  # the only photo of a class is for training


@given(groups_and_values, st.integers(0, 3))
def test_copies_stay_together_even_under_two_labels(pairs: list[tuple[int, int]], seed: int) -> None:
    groups = dense([group for group, _ in pairs])
    rows = np.array([value for _, value in pairs], dtype=np.int32)
    sides: dict[int, set[int]] = defaultdict(set)
    for group, split in zip(groups.tolist(), make_splits(groups, rows, 0.5, seed), strict=True):
        sides[group].add(split)
    assert all(len(side) == 1 for side in sides.values())


def test_a_split_depends_on_the_seed_alone() -> None:
    groups, rows = np.arange(200), np.zeros(200, dtype=np.int32)
    assert make_splits(groups, rows, 0.1, 7) == make_splits(groups, rows, 0.1, 7)
    assert make_splits(groups, rows, 0.1, 7) != make_splits(groups, rows, 0.1, 8)
    assert sum(make_splits(groups, rows, 0.1, 7)) == 20
