"""Reading packed photos by number: columns, bytes, loud damage; local, remote, in another process."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardtool import columns
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
from shardtool.quality import shuffle_quality


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


COLUMNS = {
    "shard": "int32",
    "offset": "int64",
    "size": "int32",
    "crc32c": "uint32",
    "species": "int32",
    "disease": "int64",
    "start": "uint32",
    "row": "uint16",
}


def test_a_split_has_a_column_entry_for_every_sample(train: Split, packed: Path) -> None:
    assert len(train) == 36
    assert {name: getattr(train, name).dtype.name for name in COLUMNS} == COLUMNS
    assert {len(getattr(train, name)) for name in COLUMNS} == {36}
    assert len(train.shards) == len(list(packed.glob("train/*.tar")))
    assert train.digest == json.loads((packed / "dataset.json").read_text())["digest"]


def test_the_columns_are_those_of_the_sidecars(train: Split, packed: Path) -> None:
    tables = [pq.read_table(packed / f"train/{name}.parquet") for name in train.shards]
    table = pa.concat_tables(tables)
    for name, column in {"offset": "offset", "size": "size", "crc32c": "crc32c"}.items():
        assert getattr(train, name).tolist() == table.column(column).to_pylist()
    species, disease = train.labels(range(36))
    assert species.tolist() == train.species.tolist() == table.column("species_id").to_pylist()
    assert disease.tolist() == train.disease.tolist() == table.column("disease_id").to_pylist()
    assert train.firsts.tolist() == np.cumsum([0, *map(len, tables)]).tolist()
    assert train.shard.tolist() == [number for number, part in enumerate(tables) for _ in range(len(part))]


def test_the_digest_of_the_index_is_that_of_its_columns(
    train: Split, packed: Path, packed_copy: Path
) -> None:
    assert open_split(str(packed_copy / "train")).index_digest == train.index_digest
    assert open_split(str(packed / "val")).index_digest != train.index_digest
    forget_checksums(packed_copy)
    assert open_split(str(packed_copy / "train")).index_digest != train.index_digest


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
    split = pickle.loads(pickle.dumps(open_split(str(packed_copy / "train"))))  # nothing is open here yet
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
    again = Manifest.of(
        manifest.taxonomy, manifest.splits, counts, manifest.options, shuffle=manifest.shuffle
    )
    assert again == manifest


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


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("offset", [513] * 4),
        ("offset", [-512] * 4),
        ("size", [1 << 31] * 4),
        ("size", [1, 2, None, 3]),
        ("species_id", [3] * 4),
        ("species_id", [-1] * 4),
        ("disease_id", [3] * 4),
        ("disease_id", [-1] * 4),
        ("", []),
    ],
)
def test_a_sidecar_that_points_to_nothing_is_found_at_opening(
    packed_copy: Path, column: str, values: list[int | None]
) -> None:
    """Whoever made the dataset has listed it in dataset.json: its digest is right."""
    manifest = json.loads((packed_copy / "dataset.json").read_text())
    entry = manifest["splits"]["train"]["shards"][1]
    table = pq.read_table(packed_copy / f"train/{entry['name']}.parquet").slice(0, 4)
    entry["samples"] = 4 if column else 5
    if column:
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(values, SIDECAR.field(column).type))
    data = sidecar_bytes(table, "")
    entry["sidecar_sha256"] = hashlib.sha256(data).hexdigest()
    (packed_copy / f"train/{entry['name']}.parquet").write_bytes(data)
    (packed_copy / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="wrong sidecar"):
        open_split(str(packed_copy / "train"))


def test_the_shuffle_of_each_split_is_in_dataset_json(packed: Path) -> None:
    splits = json.loads((packed / "dataset.json").read_text())["splits"]
    assert {name: value["shuffle"]["batch"] for name, value in splits.items()} == {"train": 36, "val": 18}
    for name, value in splits.items():
        species = open_split(str(packed / name)).species
        quality = shuffle_quality(species)
        assert value["shuffle"]["distinct"] == round(quality.distinct, 2)
        assert value["shuffle"]["expected"] == round(quality.expected, 2)


def test_opening_a_split_does_not_import_pandas(packed: Path) -> None:
    """pyarrow does so at the first chance: 0.2 s and 30 MB, in every worker too."""
    script = f"import sys; from shardtool.index import open_split; open_split({str(packed / 'train')!r})"
    subprocess.run([sys.executable, "-c", f"{script}; assert 'pandas' not in sys.modules"], check=True)


def test_a_dataset_that_does_not_say_how_it_is_mixed_is_read_too(packed_copy: Path) -> None:
    path = packed_copy / "dataset.json"
    value = json.loads(path.read_text())
    for split in value["splits"].values():
        del split["shuffle"]
    path.write_text(json.dumps(value))
    assert open_manifest(str(packed_copy)).to_json() == value
    assert len(open_split(str(packed_copy / "train"))) == 36


# --- The columns of a large split, kept in a file -------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for the columns of splits of any size."""
    monkeypatch.setattr(columns, "KEPT_PHOTOS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/shardtool"


def is_mapped(split: Split) -> bool:
    mapped = {isinstance(getattr(split, name), np.memmap) for name in ("start", "size", "crc32c", "row")}
    assert len(mapped) == 1
    return mapped.pop()


def assert_same(split: Split, expected: Split) -> None:
    for name in COLUMNS:
        assert getattr(split, name).tolist() == getattr(expected, name).tolist(), name
    assert (split.index_digest, split.check) == (expected.index_digest, expected.check)
    assert split.read(range(36)) == expected.read(range(36))


def test_a_large_split_is_mapped_from_a_file_of_its_columns(train: Split, packed: Path, kept: Path) -> None:
    for _ in range(2):  # the first one writes it
        split = open_split(str(packed / "train"))
        assert is_mapped(split)
        assert_same(split, train)
    (file,) = kept.iterdir()
    assert file.stat().st_size == 36 * 14 + 17
    assert kept.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match="read-only"):
        split.row[0] = 0


def test_a_small_split_leaves_no_file(packed: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "KEPT_PHOTOS", 37)
    assert not is_mapped(open_split(str(packed / "train")))
    assert not kept.exists()


def test_a_damaged_file_of_columns_is_never_believed(train: Split, packed: Path, kept: Path) -> None:
    open_split(str(packed / "train"))
    (file,) = kept.iterdir()
    good = file.read_bytes()
    flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 13)]
    flipped.append(good[:-1] + bytes([good[-1] ^ 128]))  # of the digest
    for bad in (*flipped, b"", good[:-1], good + b"\0", bytes(len(good))):
        file.write_bytes(bad)
        assert_same(open_split(str(packed / "train")), train)
        assert file.read_bytes() == good


def test_a_file_of_columns_of_another_person_is_never_believed(
    train: Split, packed: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_split(str(packed / "train"))
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    split = open_split(str(packed / "train"))
    assert not is_mapped(split)
    assert_same(split, train)


def test_without_a_place_for_the_file_the_columns_are_in_memory(
    train: Split, packed: Path, kept: Path
) -> None:
    kept.parent.write_text("no folder")
    split = open_split(str(packed / "train"))
    assert not is_mapped(split)
    assert_same(split, train)


def test_columns_without_checksums_stay_so_in_the_file(packed_copy: Path, kept: Path) -> None:
    forget_checksums(packed_copy)
    for _ in range(2):
        split = open_split(str(packed_copy / "train"))
        assert is_mapped(split)
        assert not split.check
        assert len(split.read(range(36))) == 36


def test_a_wrong_sidecar_is_found_beside_a_file_of_its_columns(packed_copy: Path, kept: Path) -> None:
    open_split(str(packed_copy / "train"))
    path = packed_copy / "train/shard-000001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="not the one that"):
        open_split(str(packed_copy / "train"))


def test_other_sidecars_have_another_file(packed: Path, packed_copy: Path, kept: Path) -> None:
    open_split(str(packed / "train"))
    open_split(str(packed / "val"))
    forget_checksums(packed_copy)
    open_split(str(packed_copy / "train"))
    assert len(list(kept.iterdir())) == 3


def test_files_of_columns_that_nobody_uses_are_removed(packed: Path, kept: Path) -> None:
    open_split(str(packed / "train"))
    (used,) = kept.iterdir()
    old, young, other = kept / "old.columns", kept / "young.columns", kept / "old.txt"
    now = time.time()
    for path, age in ((old, 91), (young, 89), (other, 91), (used, 91)):
        path.touch()
        os.utime(path, (now, now - age * 86400))
    open_split(str(packed / "train"))  # uses its file
    open_split(str(packed / "val"))  # writes one
    assert [path.exists() for path in (old, young, other, used)] == [False, True, True, True]


def test_a_mapped_split_is_sent_without_its_columns(train: Split, packed: Path, kept: Path) -> None:
    split = open_split(str(packed / "train"))
    assert all(getattr(split, name).tobytes() not in pickle.dumps(split) for name in ("crc32c", "row"))
    again = pickle.loads(pickle.dumps(split))
    assert is_mapped(again)
    assert_same(again, train)
    changed = replace(split, crc32c=split.crc32c ^ np.uint32(1))
    with pytest.raises(CorruptSample):
        pickle.loads(pickle.dumps(changed)).read([0])
    sent = pickle.dumps(split)
    next(kept.iterdir()).unlink()
    with pytest.raises(DatasetError, match="removed"):
        pickle.loads(sent)


def test_a_process_of_its_own_reads_from_a_mapped_split(train: Split, packed: Path, kept: Path) -> None:
    split = open_split(str(packed / "train"))
    split.read([0])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(split.read, [4, 35]).result() == train.read([4, 35])


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
