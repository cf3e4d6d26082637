"""Reading packed photos by number: columns, bytes, loud damage; local, remote, in another process."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardtool.errors import CorruptSample, DatasetError, UsageError
from shardtool.index import (
    SIDECAR,
    Manifest,
    Split,
    open_dataset,
    open_manifest,
    open_split,
    shards_folder,
    sidecar_bytes,
)


@pytest.fixture
def train(packed: Path) -> Split:
    return open_split(str(packed / "train"))


@pytest.fixture
def remote(packed: Path) -> Iterator[str]:
    """The packed specimens in fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    for path in packed.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/packed/{path.relative_to(packed)}", path.read_bytes())
    yield "memory://packed"
    files.rm("/packed", recursive=True)


def test_a_split_has_a_column_entry_for_every_sample(train: Split, packed: Path) -> None:
    assert len(train) == 36
    for name in ("shard", "offset", "size", "crc32c", "species", "row"):
        assert len(getattr(train, name)) == 36
    types = {
        name: getattr(train, name).dtype.name for name in ("shard", "offset", "size", "crc32c", "species")
    }
    assert types == {
        "shard": "int32",
        "offset": "int64",
        "size": "int32",
        "crc32c": "uint32",
        "species": "int32",
    }
    assert train.row.dtype == np.int32
    assert len(train.shards) == len(list(packed.glob("train/*.tar")))
    assert train.digest == json.loads((packed / "dataset.json").read_text())["digest"]


def test_the_labels_are_those_of_the_folders(train: Split) -> None:
    for sample in range(len(train)):
        _, species, disease, _ = train.entry(sample)["source"].decode().split("/")
        assert train.taxonomy.row_names[train.row[sample]] == (species, disease)
        assert train.taxonomy.species[train.species[sample]] == species
        assert train.taxonomy.diseases[train.species[sample]][train.disease[sample]] == disease
    assert train.class_counts.tolist() == [4] * 9


def test_reading_gives_the_photos_that_were_packed(train: Split, specimens: Path) -> None:
    order = np.random.default_rng(0).permutation(len(train))
    for sample, data in zip(order, train.read(order), strict=True):
        entry = train.entry(int(sample))
        assert data == (specimens / os.fsdecode(entry["source"])).read_bytes()
        assert len(data) == entry["size"] == train.size[sample]


def test_a_sample_may_be_read_twice_and_none_may_be_asked_for(train: Split) -> None:
    one, same = train.read([5, 5])
    assert one == same
    assert train.read([]) == []


def test_a_damaged_photo_names_shard_key_and_offset(packed_copy: Path) -> None:
    split = open_split(str(packed_copy / "train"))
    path = packed_copy / "train" / f"{split.shards[split.shard[7]]}.tar"
    data = bytearray(path.read_bytes())
    data[split.offset[7] + 20] ^= 1
    path.write_bytes(data)
    entry = split.entry(7)
    with pytest.raises(CorruptSample) as caught:
        split.read([7])
    assert caught.value.where == f"train/{path.name}, key {entry['key']}, offset {entry['offset']}"
    assert split.read([6])
    assert open_split(str(packed_copy / "train"), check=False).read([7])[0][20] == data[split.offset[7] + 20]


def test_a_shard_cut_after_opening_is_a_corrupt_sample(packed_copy: Path) -> None:
    split = open_split(str(packed_copy / "train"))
    for name in split.shards:
        os.truncate(packed_copy / "train" / f"{name}.tar", 600)
    for sample in range(len(split)):
        with pytest.raises(CorruptSample):
            split.read([sample])


def test_a_shard_that_vanished_after_opening_is_a_dataset_error(packed_copy: Path) -> None:
    split = open_split(str(packed_copy / "train"))
    (packed_copy / "train/shard-000000.tar").unlink()
    with pytest.raises(DatasetError, match="shard-000000"):
        split.read([0])


@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "no folder"])
def test_missing_and_cut_shards_are_found_at_opening(packed_copy: Path, damage: str) -> None:
    shard = packed_copy / "train/shard-000001.tar"
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        os.truncate(shard, 5120)
    elif damage == "longer":
        os.truncate(shard, shard.stat().st_size + 10_240)
    else:
        shutil.rmtree(packed_copy / "train")
    with pytest.raises(DatasetError):
        open_split(str(packed_copy / "train"))


@pytest.mark.parametrize("damage", ["missing", "empty", "noise", "exchanged"])
def test_a_wrong_sidecar_is_found_at_opening(packed_copy: Path, damage: str) -> None:
    sidecar = packed_copy / "train/shard-000001.parquet"
    if damage == "missing":
        sidecar.unlink()
    elif damage == "empty":
        sidecar.write_bytes(b"")
    elif damage == "noise":
        sidecar.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    else:  # as many rows, in another order: offsets and labels of other photos
        table = pq.read_table(sidecar)
        pq.write_table(table.take(list(reversed(range(table.num_rows)))), sidecar)
    with pytest.raises(DatasetError):
        open_split(str(packed_copy / "train"))


def test_a_split_that_is_not_there_is_named_with_those_that_are(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has train, val"):
        open_split(str(packed / "test"))
    with pytest.raises(UsageError, match=r"no dataset\.json"):
        open_split(str(tmp_path / "train"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\xff", '{"format": 2}', '{"format": 1}', '{"format": 1, "splits": []}'],
)
def test_a_damaged_dataset_json_is_a_dataset_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(DatasetError):
        open_manifest(str(tmp_path))


def test_an_unknown_key_in_dataset_json_is_a_dataset_error(packed_copy: Path) -> None:
    path = packed_copy / "dataset.json"
    value = json.loads(path.read_text())
    value["splits"]["train"]["shards"][0]["surprise"] = 1
    path.write_text(json.dumps(value))
    with pytest.raises(DatasetError):
        open_manifest(str(packed_copy))


@pytest.mark.parametrize("url", ["nosuchscheme://bucket/data", "nosuchscheme://bucket/data/train"])
def test_an_address_that_cannot_be_opened_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        open_split(url)
    with pytest.raises(UsageError):
        open_manifest(url)


def test_a_remote_dataset_reads_like_a_local_one(train: Split, remote: str) -> None:
    there = open_split(f"{remote}/train")
    for name in ("shard", "offset", "size", "crc32c", "species", "row"):
        np.testing.assert_array_equal(getattr(there, name), getattr(train, name))
    samples = [35, 0, 17]
    assert there.read(samples) == train.read(samples)
    assert there.where(17) == train.where(17)
    assert open_split(f"{remote}/val/").read([0])


def test_damage_is_found_in_a_remote_dataset_too(remote: str) -> None:
    files = fsspec.filesystem("memory")
    split = open_split(f"{remote}/train")
    path = f"/packed/train/{split.shards[split.shard[3]]}.tar"
    data = bytearray(files.cat_file(path))
    data[split.offset[3]] ^= 1
    files.pipe_file(path, bytes(data))
    with pytest.raises(CorruptSample, match="key"):
        split.read([3])
    files.pipe_file(path, bytes(data)[:-512])
    with pytest.raises(DatasetError, match="bytes, not"):
        open_split(f"{remote}/train")


# --- Shards without checksums, and shards elsewhere ---------------------------------------------


def forget_checksums(folder: Path, base: str = "") -> None:
    """Rewrite the training split as an index of foreign shards has it."""
    manifest = json.loads((folder / "dataset.json").read_text())
    for entry in manifest["splits"]["train"]["shards"]:
        path = folder / f"train/{entry['name']}.parquet"
        table = pq.read_table(path)
        place = table.schema.get_field_index("crc32c")
        data = sidecar_bytes(table.set_column(place, "crc32c", pa.nulls(table.num_rows, pa.uint32())), "")
        path.write_bytes(data)
        entry.update(sha256="", sidecar_sha256=hashlib.sha256(data).hexdigest())
    if base:
        manifest["splits"]["train"]["base"] = base
    (folder / "dataset.json").write_text(json.dumps(manifest))


def test_photos_without_checksums_are_read_unchecked_but_never_short(packed_copy: Path) -> None:
    forget_checksums(packed_copy)
    split = open_split(str(packed_copy / "train"))
    assert not split.check
    assert split.crc32c.dtype == np.uint32
    assert len(split.read(range(36))) == 36
    os.truncate(packed_copy / f"train/{split.shards[0]}.tar", int(split.offset[1]) + 10)
    assert split.read([0])
    with pytest.raises(CorruptSample, match="10 bytes came"):
        split.read([1])


@pytest.mark.parametrize("where", ["beside", "above", "absolute", "url"])
def test_shards_may_lie_elsewhere_than_their_sidecars(
    packed: Path, packed_copy: Path, remote: str, tmp_path: Path, where: str
) -> None:
    expected = open_split(str(packed / "train")).read(range(36))
    for path in packed_copy.glob("train/*.tar"):
        path.unlink()
    shutil.copytree(packed / "train", tmp_path / "tars", ignore=shutil.ignore_patterns("*.parquet"))
    base = {
        "beside": "../../tars",
        "above": str(tmp_path / "shards/../tars"),
        "absolute": str(tmp_path / "tars"),
        "url": f"{remote}/train",
    }[where]
    forget_checksums(packed_copy, base)
    split = pickle.loads(pickle.dumps(open_split(str(packed_copy / "train"))))
    assert split.read(range(36)) == expected


def test_a_remote_dataset_cannot_name_files_of_this_machine(remote: str) -> None:
    for base in ("/etc", "file:///etc"):
        with pytest.raises(DatasetError, match="of this machine"):
            shards_folder(f"{remote}/train", base)
    assert shards_folder("s3://b/x/train", "..") == "s3://b/x"
    assert shards_folder("s3://b/x/train", "gs://other/y") == "gs://other/y"
    assert shards_folder("s3://b/x/train", "") == "s3://b/x/train"
    assert shards_folder("x/train", "") == "x/train"


def test_a_manifest_counts_its_photos_and_bytes_and_follows_from_its_shards(packed: Path) -> None:
    manifest = open_manifest(str(packed))
    assert {split: manifest.samples(split) for split in manifest.splits} == {"train": 36, "val": 18}
    assert manifest.samples() == 54
    assert manifest.bytes("val") == sum(path.stat().st_size for path in packed.glob("val/*.tar"))
    assert manifest.bytes() == manifest.bytes("train") + manifest.bytes("val")
    counts = {split: np.array(rows) for split, rows in manifest.class_counts.items()}
    assert Manifest.of(manifest.taxonomy, manifest.splits, counts, manifest.options) == manifest


def test_a_dataset_knows_where_its_sidecars_and_shards_are(packed: Path) -> None:
    dataset = open_dataset(f"{packed}/")
    assert dataset.sidecar_folder("val") == dataset.shards("val") == f"{packed}/val"
    elsewhere = replace(dataset, manifest=replace(dataset.manifest, bases={"val": ".."}))
    assert elsewhere.shards("val") == str(packed)
    assert [split for split, _, _ in dataset.sidecars()] == ["train"] * 4 + ["val"] * 2
    assert sum(len(table) for _, _, table in dataset.sidecars()) == 54


def test_a_manifest_without_bases_is_written_as_before(packed: Path) -> None:
    manifest = open_manifest(str(packed))
    assert manifest.bases == {}
    assert manifest.to_json() == json.loads((packed / "dataset.json").read_text())
    moved = replace(manifest, bases={"val": ".."})
    assert Manifest.from_json(moved.to_json()) == moved


def test_a_pickled_split_reads_in_another_life(train: Split, remote: str) -> None:
    expected = train.read([4])
    for split in (train, open_split(f"{remote}/train")):
        again = pickle.loads(pickle.dumps(split))
        assert again.read([4]) == expected
        assert len(again) == len(split)


def test_a_pickled_split_carries_no_open_files(train: Split) -> None:
    train.read(range(len(train)))
    state = pickle.loads(pickle.dumps(train)).__dict__
    assert state["_files"] == {}


def test_a_folder_may_be_given_with_a_slash_or_relative(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(open_split(f"{packed}/train/")) == 36
    monkeypatch.chdir(packed)
    assert open_split("train").read([0]) == open_split("./train").read([0])
    monkeypatch.chdir(packed.parent)
    assert len(open_split(f"{packed.name}/val")) == 18


def test_the_sidecars_have_the_documented_schema(packed: Path) -> None:
    for path in packed.glob("*/*.parquet"):
        schema = pq.read_schema(path)
        assert schema.remove_metadata().equals(SIDECAR)
        assert set(schema.metadata) == {b"shardtool.format", b"shardtool.sha256", b"shardtool.labels"}
    assert [(field.name, field.type) for field in SIDECAR] == [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("species_id", pa.int32()),
        ("disease_id", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32c", pa.uint32()),
        ("source", pa.binary()),
    ]
