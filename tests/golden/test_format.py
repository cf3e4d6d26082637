"""The format is final: these photos give these bytes, on every machine and with every later version.

A test that fails here means that all packed datasets, keys and order change: a decision, with another
format number, never a side effect. The logical sidecars are pinned, not the Parquet bytes, which
change with pyarrow.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shardtool.pack import PackOptions, pack

PHOTOS = [
    (  # 8 x 8
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
        "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT0//wAARCAAIAAgDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAX/xAAgEAAB"
        "AgUFAAAAAAAAAAAAAAAAEhQCBBETITFRUmFx/8QAFQEBAQAAAAAAAAAAAAAAAAAABQb/xAAcEQACAgIDAAAAAAAAAAAA"
        "AAABEQADAiFRYZH/2gAMAwEAAhEDEQA/AJ65Nii1G551xr7t0AA7LJqVVdQraJLL2X5wOp//2Q=="
    ),
    (  # 10 x 8
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
        "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT0//wAARCAAIAAoDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAP/xAAbEAAB"
        "BAMAAAAAAAAAAAAAAAAAAQMRExJBUf/EABUBAQEAAAAAAAAAAAAAAAAAAAQF/8QAGxEAAgMAAwAAAAAAAAAAAAAAAREA"
        "AiESMfD/2gAMAwEAAhEDEQA/AIS1TGK2d0TAAGzkG9+awBBZ7uf/2Q=="
    ),
    (  # 12 x 8
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
        "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT0//wAARCAAIAAwDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAQF/8QAIBAA"
        "AQEIAwAAAAAAAAAAAAAAABMDBREUFSIyUVNhcf/EABUBAQEAAAAAAAAAAAAAAAAAAAQG/8QAGxEAAgIDAQAAAAAAAAAA"
        "AAAAAREAAxIhYZH/2gAMAwEAAhEDEQA/AMhV3UtNBpO8kbcvddEQBR114PZLL2X5zkIS5//Z"
    ),
    (  # 14 x 8
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
        "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT0//wAARCAAIAA4DASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAQF/8QAIRAA"
        "AQIEBwAAAAAAAAAAAAAAABMUAwURFSEiMTJRU3H/xAAVAQEBAAAAAAAAAAAAAAAAAAAEBv/EABsRAQEAAgMBAAAAAAAA"
        "AAAAAAERAAMhUWGB/9oADAMBAAIRAxEAPwDXSmN1UcQ2PXTNt85x1LgCU2bXZKBCcE+vb7jAmf/Z"
    ),
    (  # 16 x 8
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
        "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT0//wAARCAAIABADASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAQF/8QAIBAA"
        "AQIFBQAAAAAAAAAAAAAAABIUAgQREyExUVJhcf/EABUBAQEAAAAAAAAAAAAAAAAAAAQF/8QAFxEAAwEAAAAAAAAAAAAA"
        "AAAAAAECEf/aAAwDAQACEQMRAD8Az1ybFFqNzzrjX3bomAKEzgxLD//Z"
    ),
    (  # 18 x 8
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
        "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT09PT09PT09PT09PT0//wAARCAAIABIDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAUG/8QAIxAA"
        "AQEFCQAAAAAAAAAAAAAAABIBBBQxMgYRExUWIVJUkf/EABQBAQAAAAAAAAAAAAAAAAAAAAD/xAAUEQEAAAAAAAAAAAAA"
        "AAAAAAAA/9oADAMBAAIRAxEAPwDVw1oNT48c75N10sXRdNPLeqXhaAAAAD//2Q=="
    ),
]
NAMES = [
    "train/Apfel b\u00e4ume/Schorf [1]/IMG.0001.JPG",
    "train/Apfel b\u00e4ume/gesund/-1.jpg",
    "train/Rose/Rost/a b.jpeg",
    "train/Rose/Rost/copy of a b.jpeg",
    "val/Rose/Rost/1.jpg",
    "val/Apfel b\u00e4ume/gesund/2.jpg",
]
DIGEST = "63a431fbb1263a0c8b098924bbfb04d46b37383daa7b8abbfe06fbe50ef2bd91"
SHA256 = {
    "train/shard-000000.tar": "127a59842448fd329cf99f4164249c9d072ad72526637da344a01f3e5df52745",
    "val/shard-000000.tar": "f8e35fef3066fd5d1a58b9ae1d4900952f4ced3054b871e06753d60f95334e12",
}
# key, offset, size, species_id, disease_id, width, height, crc32c, source
SIDECARS: dict[str, list[tuple[object, ...]]] = {
    "train": [
        (
            "68355d246c5bba9bb741e845",
            512,
            331,
            0,
            0,
            8,
            8,
            599414751,
            b"train/Apfel b\xc3\xa4ume/Schorf [1]/IMG.0001.JPG",
        ),
        ("367d47357d5bb5405faba698", 3584, 333, 1, 0, 14, 8, 4077016985, b"train/Rose/Rost/copy of a b.jpeg"),
        (
            "e422af4f030de1983985ab24",
            6656,
            316,
            0,
            1,
            10,
            8,
            231365059,
            b"train/Apfel b\xc3\xa4ume/gesund/-1.jpg",
        ),
        ("34ed3cb9a68a1547be4dc949", 9728, 330, 1, 0, 12, 8, 3344278023, b"train/Rose/Rost/a b.jpeg"),
    ],
    "val": [
        (
            "026b00a5d445d4d65a526ddf",
            512,
            322,
            0,
            1,
            18,
            8,
            1854243462,
            b"val/Apfel b\xc3\xa4ume/gesund/2.jpg",
        ),
        ("1f7756bbd0de1b2e43bf4ddd", 3584, 318, 1, 0, 16, 8, 3632607105, b"val/Rose/Rost/1.jpg"),
    ],
}
FIRST_JSON = (
    r'{"species":"Apfel b\u00e4ume","disease":"Schorf [1]",'
    r'"species_id":0,"disease_id":0,"source":"train/Apfel b\u00e4ume/Schorf [1]/IMG.0001.JPG"}'
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, grow: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("golden")
    photos = [base64.b64decode(text) for text in PHOTOS]
    tree = grow(root / "tree", dict(zip(NAMES, photos, strict=True)))
    done = pack(tree, root / "out", PackOptions(seed=1))
    assert done.scan.refused == ()
    assert not done.scan.converted
    return root / "out"


def test_the_shards_have_the_pinned_bytes(dataset: Path) -> None:
    found = {
        str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dataset.rglob("*.tar")
    }
    assert found == SHA256


def test_the_sidecars_have_the_pinned_rows(dataset: Path) -> None:
    found = {
        path.parent.name: [tuple(row.values()) for row in pq.read_table(path).to_pylist()]
        for path in dataset.rglob("*.parquet")
    }
    assert found == SIDECARS


def test_the_dataset_has_the_pinned_digest(dataset: Path) -> None:
    value = json.loads((dataset / "dataset.json").read_text())
    assert value["digest"] == DIGEST
    assert value["format"] == 1


def test_the_json_member_has_the_pinned_text(dataset: Path) -> None:
    assert FIRST_JSON.encode() in (dataset / "train/shard-000000.tar").read_bytes()


def test_a_tree_without_splits_is_split_as_pinned(tmp_path: Path, grow: Callable[..., Path]) -> None:
    photos = [base64.b64decode(text) for text in PHOTOS]
    tree = grow(tmp_path / "tree", {f"S/d/{number}.jpg": data for number, data in enumerate(photos)})
    pack(tree, tmp_path / "out", PackOptions(val_share=0.34, seed=1))
    sources = pq.read_table(tmp_path / "out/val/shard-000000.parquet").column("source").to_pylist()
    assert sources == [b"S/d/3.jpg", b"S/d/4.jpg"]
