"""A photo is found by its key and by whatever end of its path a person has at hand."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardtool.errors import CorruptSample, UsageError
from shardtool.index import open_split
from shardtool.indexing import find_shards, index_shards
from shardtool.lookup import common_ending, explain, find_key, photo_bytes
from shardtool.pack import PackOptions, pack
from tests.kinds import Grow, Jpeg


@pytest.fixture
def dataset(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> Path:
    """Two classes with photos of the same name, one leak, one file that is no photo."""
    tree = grow(
        tmp_path / "organized",
        {
            "train/Oak/rust/x.jpg": jpeg(1),
            "train/Elm/rust/x.jpg": jpeg(2),
            "train/Elm/rust/leak.jpg": jpeg(3),
            "val/Elm/rust/y.jpg": jpeg(3),
            "val/Oak/rust/page.jpg": b"<html>",
            os.fsdecode(b"train/Oak/rust/caf\xe9.jpg"): jpeg(4),
        },
    )
    pack(tree, tmp_path / "shards", PackOptions())
    return tmp_path / "shards"


def test_every_key_finds_its_photo(packed: Path, specimens: Path) -> None:
    split = open_split(str(packed / "val"))
    for sample in range(len(split)):
        entry = split.entry(sample)
        photo = find_key(str(packed), entry["key"])
        assert photo_bytes(str(packed), photo) == (specimens / os.fsdecode(entry["source"])).read_bytes()
        assert photo.where == split.where(sample)
        assert (photo.species, photo.disease) == split.taxonomy.row_names[split.row[sample]]


def test_the_beginning_of_a_key_is_enough_when_no_other_starts_so(packed: Path) -> None:
    keys = sorted(
        split.entry(sample)["key"]
        for split in (open_split(str(packed / name)) for name in ("train", "val"))
        for sample in range(len(split))
    )
    for before, key, after in zip(["", *keys], keys, [*keys[1:], ""], strict=False):
        alone = next(n for n in range(1, 25) if key[:n] not in (before[:n], after[:n]))
        assert find_key(str(packed), key[:alone]).key == key
        if alone > 1:
            with pytest.raises(UsageError, match="photos have such a key"):
                find_key(str(packed), key[: alone - 1])


@pytest.mark.parametrize("key", ["zz", "train/shard-000000/zz", "train/shard-000099/0", ".*"])
def test_a_key_that_no_photo_has_is_a_usage_error(packed: Path, key: str) -> None:
    with pytest.raises(UsageError, match="no photo has a key"):
        find_key(str(packed), key)


def test_a_damaged_photo_is_no_answer(packed_copy: Path) -> None:
    split = open_split(str(packed_copy / "train"))
    path = packed_copy / "train" / f"{split.shards[0]}.tar"
    data = bytearray(path.read_bytes())
    data[split.offset[0] + 9] ^= 1
    path.write_bytes(data)
    folder, key = str(packed_copy), split.entry(0)["key"]
    with pytest.raises(CorruptSample, match=key):
        photo_bytes(folder, find_key(folder, key))


@pytest.mark.parametrize(
    "path",
    [
        "train/Oak/rust/x.jpg",
        "Oak/rust/x.jpg",
        "./Oak//rust/x.jpg",
        "data/organized/train/Oak/rust/x.jpg",
        "/home/me/organized/train/Oak/rust/x.jpg",
        "../organized/train/Oak/rust/x.jpg",
    ],
)
def test_a_photo_is_found_by_its_path_however_much_of_it_is_given(dataset: Path, path: str) -> None:
    found = explain(str(dataset), path)
    assert [photo.source for photo in found.photos] == [b"train/Oak/rust/x.jpg"]
    assert found.refused == ()


def test_an_ending_of_many_paths_gives_all_of_them(dataset: Path) -> None:
    found = explain(str(dataset), "x.jpg")
    assert sorted(photo.source for photo in found.photos) == [
        b"train/Elm/rust/x.jpg",
        b"train/Oak/rust/x.jpg",
    ]


def test_a_name_that_is_not_utf8_is_found(dataset: Path) -> None:
    found = explain(str(dataset), os.fsdecode(b"caf\xe9.jpg"))
    assert [photo.source for photo in found.photos] == [b"train/Oak/rust/caf\xe9.jpg"]


def test_a_refused_photo_is_explained_by_its_reason(dataset: Path) -> None:
    (page,) = explain(str(dataset), "organized/val/Oak/rust/page.jpg").refused
    assert (page.source, page.reason) == ("val/Oak/rust/page.jpg", "not an image")
    (leak,) = explain(str(dataset), "leak.jpg").refused
    assert leak.reason == "leak"
    assert "val/Elm/rust/y.jpg" in leak.detail


@pytest.mark.parametrize("what", ["nowhere.jpg", "t/Oak/rust/x.jpg", "train/Oak", "jpg", ".", "/"])
def test_what_is_no_end_of_a_path_explains_nothing(dataset: Path, what: str) -> None:
    found = explain(str(dataset), what)
    assert (found.photos, found.refused) == ((), ())


def test_a_dataset_without_a_report_still_explains_its_photos(dataset: Path) -> None:
    (dataset / "report.json").unlink()
    assert explain(str(dataset), "Oak/rust/x.jpg").photos
    assert not explain(str(dataset), "page.jpg").refused


def test_keys_that_start_again_in_every_shard_are_told_apart_by_shard(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    for number in range(2):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as file:
            for name, data in (("0.jpg", jpeg(number)), ("0.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        grow(tmp_path, {f"train/s{number}.tar": out.getvalue()})
    index_shards(find_shards(str(tmp_path)), str(tmp_path))
    with pytest.raises(UsageError, match="train/s0/0, train/s1/0"):
        find_key(str(tmp_path), "0")
    photo = find_key(str(tmp_path), "train/s1/0")
    assert photo_bytes(str(tmp_path), photo) == jpeg(1)
    assert len(explain(str(tmp_path), "pictures/0.jpg").photos) == 2


@given(st.lists(st.sampled_from(["a", "b"]), max_size=4), st.lists(st.sampled_from(["a", "b"]), max_size=4))
def test_two_paths_have_an_ending_in_common_when_one_is_the_end_of_the_other(
    one: list[str], other: list[str]
) -> None:
    short, long = sorted((one, other), key=len)
    alike = bool(short) and long[len(long) - len(short) :] == short
    paths = "/".join(one).encode(), "/".join(other).encode()
    assert common_ending(*paths) == common_ending(*reversed(paths))
    assert bool(common_ending(*paths)) == alike
