"""Other people's readers open our shards as they are: webdataset, tarfile, GNU tar."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shardtool.index import Split, open_split

SPLITS = ("train", "val")


def addresses(split: Split) -> list[str]:
    return [f"{split.folder}/{name}.tar" for name in split.shards]


def webdataset_samples(split: Split) -> list[dict[str, Any]]:
    wds = pytest.importorskip("webdataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(wds.WebDataset(addresses(split), shardshuffle=False))


@pytest.mark.parametrize("name", SPLITS)
def test_webdataset_reads_every_sample_with_photo_label_and_names(packed: Path, name: str) -> None:
    split = open_split(str(packed / name))
    samples = webdataset_samples(split)
    assert len(samples) == len(split)
    assert len({sample["__key__"] for sample in samples}) == len(split)
    for number, (sample, data) in enumerate(zip(samples, split.read(range(len(split))), strict=True)):
        assert {key for key in sample if not key.startswith("__")} == {"jpg", "cls", "json"}
        assert sample["jpg"] == data
        assert int(sample["cls"]) == split.species[number]
        names = json.loads(sample["json"])
        row = split.row[number]
        assert (names["species"], names["disease"]) == split.taxonomy.row_names[row]
        assert names["species_id"] == split.species[number]
        assert names["disease_id"] == split.disease[number]
        assert names["source"].encode() == split.entry(number)["source"]
        assert sample["__key__"] == split.entry(number)["key"]


def test_webdataset_decodes_what_was_packed(packed: Path) -> None:
    wds = pytest.importorskip("webdataset")
    split = open_split(str(packed / "val"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoded = list(wds.WebDataset(addresses(split), shardshuffle=False).decode("pil"))
    for sample, data in zip(decoded, split.read(range(len(split))), strict=True):
        assert sample["jpg"].tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
        assert sample["json"]["species_id"] == sample["cls"]


@pytest.mark.parametrize("name", SPLITS)
def test_tarfile_finds_every_photo_at_its_offset(packed: Path, name: str) -> None:
    split = open_split(str(packed / name))
    photos = []
    for address in addresses(split):
        with tarfile.open(address, "r:") as file:
            members = file.getmembers()
            assert [Path(m.name).suffix for m in members] == [".jpg", ".cls", ".json"] * (len(members) // 3)
            assert all(m.isreg() and m.mtime == m.uid == m.gid == 0 and m.mode == 0o644 for m in members)
            assert all(re.fullmatch(r"[0-9a-f]{24}\.(jpg|cls|json)", m.name) for m in members)
            assert not any(m.pax_headers for m in members)
            photos += [(m.offset_data, m.size) for m in members if m.name.endswith(".jpg")]
    assert photos == list(zip(split.offset.tolist(), split.size.tolist(), strict=True))


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_gnu_tar_lists_and_extracts_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    split = open_split(str(packed / "train"))
    for address in addresses(split):
        listed = subprocess.run(["tar", "-tvf", address], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        subprocess.run(["tar", "-xf", address, "-C", tmp_path], check=True)
    assert len(list(tmp_path.iterdir())) == 3 * len(split)
    for number, data in enumerate(split.read(range(len(split)))):
        entry = split.entry(number)
        assert (tmp_path / f"{entry['key']}.jpg").read_bytes() == data
        assert (tmp_path / f"{entry['key']}.cls").read_text() == str(split.species[number])
        names = json.loads((tmp_path / f"{entry['key']}.json").read_text())
        assert os.fsencode(names["source"]) == entry["source"]


def test_pyarrow_reads_the_sidecars_as_one_table(packed: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    table = dataset.dataset([str(path) for path in sorted(packed.glob("*/*.parquet"))])
    assert table.count_rows() == 54
