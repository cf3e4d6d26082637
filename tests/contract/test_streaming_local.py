"""Damaged shards on this machine: every photo is exactly right, or an error names shard, key and offset.

Never fewer photos than the index lists: a cut or flipped shard must not shorten an epoch.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardtool import tar
from shardtool.errors import CorruptSample, DatasetError
from shardtool.index import Split, open_split
from shardtool.pack import PackOptions, pack
from shardtool.verify import verify
from tests.kinds import Grow, Jpeg

SEEDS = range(4)


@pytest.fixture
def train(packed_copy: Path) -> Path:
    return packed_copy / "train"


@pytest.fixture(scope="module")
def intact(packed: Path) -> list[bytes]:
    """The photos that were packed, in the order of the index."""
    split = open_split(str(packed / "train"))
    return split.read(range(len(split)))


def first_shard(train: Path) -> Path:
    return train / "shard-000000.tar"


def names(split: Split, sample: int, error: DatasetError) -> bool:
    """Whether an error names the sample's shard, key and offset."""
    facts = (split.shards[split.shard[sample]], split.entry(sample)["key"], str(split.offset[sample]))
    return all(re.search(rf"\b{fact}\b", str(error)) for fact in facts)


def faults(split: Split, intact: list[bytes]) -> dict[int, CorruptSample]:
    """The errors of the samples that cannot be read. All others are exactly right."""
    found = {}
    assert len(split) == len(intact)
    for sample, expected in enumerate(intact):
        try:
            assert split.read([sample]) == [expected]
        except CorruptSample as error:
            found[sample] = error
    return found


def cuts(size: int) -> Iterator[int]:
    """Every boundary of a tar's blocks, and an odd place in each block."""
    rng = random.Random(0)
    for start in range(0, size, 512):
        yield start
        yield min(start + rng.randrange(1, 512, 2), size - 1)


def test_a_shard_that_is_cut_anywhere_is_found_before_training(train: Path) -> None:
    path = first_shard(train)
    data = path.read_bytes()
    for length in cuts(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(
            DatasetError, match=rf"shard-000000\.tar has {length} bytes, not {len(data)} \({train}\)"
        ):
            open_split(str(train))


def test_a_shard_that_is_cut_while_it_is_read_gives_right_photos_or_errors(
    train: Path, intact: list[bytes]
) -> None:
    split, path = open_split(str(train)), first_shard(train)
    data = path.read_bytes()
    mine = [sample for sample in range(len(split)) if split.shard[sample] == 0]
    for length in cuts(len(data)):
        path.write_bytes(data[:length])
        found = faults(split, intact)
        assert list(found) == [
            sample for sample in mine if split.offset[sample] + split.size[sample] > length
        ]
        assert all(names(split, sample, error) for sample, error in itertools.islice(found.items(), 1))


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, position)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flipped_bit_gives_the_right_photo_or_an_error(seed: int, train: Path, intact: list[bytes]) -> None:
    """Headers and padding, which the index does not need, and the payload, which it checks."""
    split, path, rng = open_split(str(train)), first_shard(train), random.Random(seed)
    spans = [
        range(split.offset[sample], split.offset[sample] + split.size[sample])
        for sample in range(len(split))
        if split.shard[sample] == 0
    ]
    for start in range(0, path.stat().st_size, 512):
        position, bit = start + rng.randrange(512), rng.randrange(8)
        flip(path, position, bit)
        found = faults(split, intact)
        assert list(found) == [sample for sample, span in enumerate(spans) if position in span]
        assert all(names(split, sample, error) for sample, error in found.items())
        flip(path, position, bit)
    assert faults(split, intact) == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_sidecar_is_found_before_training(seed: int, train: Path) -> None:
    path, rng = train / "shard-000000.parquet", random.Random(seed)
    data = path.read_bytes()
    for _ in range(20):
        flip(path, rng.randrange(len(data)), rng.randrange(8))
        with pytest.raises(DatasetError, match=r"sidecar is not the one that .*shard-000000\.parquet"):
            open_split(str(train))
        path.write_bytes(data[: rng.randrange(len(data))])
        with pytest.raises(DatasetError, match=r"sidecar is not the one that .*shard-000000\.parquet"):
            open_split(str(train))
        path.write_bytes(data)


# --- The wrong files ---------------------------------------------------------------------------

Damage = Callable[[Path], object]
MISSING: dict[str, Damage] = {
    "a shard is missing": lambda train: first_shard(train).unlink(),
    "a shard is renamed": lambda train: first_shard(train).rename(train / "shard-000009.tar"),
    "a sidecar is missing": lambda train: (train / "shard-000000.parquet").unlink(),
    "a sidecar is another shard's": lambda train: shutil.copy(
        train / "shard-000001.parquet", train / "shard-000000.parquet"
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_file_that_is_not_there_is_found_before_training(name: str, train: Path) -> None:
    MISSING[name](train)
    with pytest.raises(DatasetError, match=r"shard-000000\.(tar|parquet)"):
        open_split(str(train))


def test_a_shard_that_vanishes_while_it_is_read_is_named(train: Path) -> None:
    split = pickle.loads(pickle.dumps(open_split(str(train))))  # in another process nothing is open yet
    first_shard(train).unlink()
    with pytest.raises(DatasetError, match=r"missing .*shard-000000\.tar"):
        split.read([0])


def test_an_extra_shard_is_not_read_and_verify_names_it(train: Path, intact: list[bytes]) -> None:
    shutil.copy(first_shard(train), train / "shard-000009.tar")
    assert faults(open_split(str(train)), intact) == {}
    assert any("shard-000009" in finding.where for finding in verify(train.parent).findings)


@pytest.fixture
def twins(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> Callable[[int], Path]:
    """Generations of a dataset: other photos, and shards that all have the same size: whole records."""

    def make(generation: int) -> Path:
        tree = tmp_path / f"tree-{generation}"
        for number in range(12):
            grow(tree, {f"train/Tomato/Blight/{number}.jpg": jpeg(10 * generation + number)})
        out = tmp_path / f"shards-{generation}"
        pack(tree, out, PackOptions(shard_size=2 * tar.RECORD))
        return out / "train"

    return make


def test_the_twins_are_as_they_are_said_to_be(twins: Callable[[int], Path]) -> None:
    shards = [path for generation in (0, 1) for path in twins(generation).glob("*.tar")]
    assert len(shards) >= 4
    assert len({path.stat().st_size for path in shards}) == 1
    assert len({path.read_bytes() for path in shards}) == len(shards)


def test_a_shard_of_another_generation_and_the_same_size_is_found_before_training(
    twins: Callable[[int], Path],
) -> None:
    """The worst case: it has the same name and size."""
    old, new = twins(0), twins(1)
    shutil.copy(first_shard(old), first_shard(new))
    with pytest.raises(DatasetError, match=r"not those that were packed.*shard-000000"):
        open_split(str(new))


def test_swapped_shards_are_found_before_training(twins: Callable[[int], Path]) -> None:
    train = twins(0)
    os.rename(first_shard(train), train / "aside")
    os.rename(train / "shard-000001.tar", first_shard(train))
    os.rename(train / "aside", train / "shard-000001.tar")
    with pytest.raises(DatasetError, match=r"not those that were packed.*shard-00000[01]"):
        open_split(str(train))


def test_a_shard_of_another_generation_with_another_size_is_found_before_training(
    packed_copy: Path, twins: Callable[[int], Path]
) -> None:
    shutil.copy(first_shard(twins(0)), first_shard(packed_copy / "train"))
    with pytest.raises(DatasetError, match=r"shard-000000\.tar has \d+ bytes, not \d+"):
        open_split(str(packed_copy / "train"))
