"""cat, explain, verify --sample and index as a person runs them."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shardtool.cli.inspect import parse_share
from shardtool.errors import UsageError
from shardtool.index import open_split
from tests.kinds import Shardtool

Command = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]


def test_cat_writes_the_photo_and_nothing_else(packed: Path, specimens: Path, command: Command) -> None:
    entry = open_split(str(packed / "val")).entry(3)
    done = subprocess.run(
        command("cat", entry["key"][:12], "--shards", packed), cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (specimens / os.fsdecode(entry["source"])).read_bytes()


def test_cat_to_a_terminal_is_status_2_with_the_cure(packed: Path, command: Command) -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            command("cat", "0", "--shards", packed),
            cwd=ROOT,
            stdout=follower,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 2
    assert "shardtool cat 0 --shards " in done.stderr


def test_cat_of_an_unknown_key_is_status_2_and_of_a_damaged_photo_status_1(
    packed_copy: Path, shardtool: Shardtool
) -> None:
    unknown = shardtool("cat", "zz", "--shards", packed_copy)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    key = open_split(str(packed_copy / "val")).entry(0)["key"]
    path = packed_copy / "val/shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    damaged = shardtool("cat", key, "--shards", packed_copy)
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert key in damaged.stderr


def test_explain_says_where_a_photo_went(packed: Path, shardtool: Shardtool) -> None:
    split = open_split(str(packed / "train"))
    entry = split.entry(5)
    source = os.fsdecode(entry["source"])
    done = shardtool("explain", f"data/organized/{source}", "--shards", packed)
    assert done.returncode == 0
    assert source in done.stderr
    assert split.where(5) in done.stderr
    value = json.loads(shardtool("explain", entry["key"], "--shards", packed, "--json").stdout)
    (photo,) = value["photos"]
    assert photo == {
        **{name: value for name, value in entry.items() if name != "source"},
        "source": source,
        "split": "train",
        "shard": split.shards[split.shard[5]],
        "species": source.split("/")[1],
        "disease": source.split("/")[2],
    }


def test_explain_of_what_is_not_there_is_status_1_with_one_line(packed: Path, shardtool: Shardtool) -> None:
    done = shardtool("explain", "nowhere.jpg", "--shards", packed, "--json")
    assert done.returncode == 1
    assert "not in this dataset" in json.loads(done.stdout)["what"]


def test_explain_lists_twenty_and_counts_the_rest(packed: Path, shardtool: Shardtool) -> None:
    done = shardtool("explain", "", "--shards", packed)  # every key starts so
    assert done.stderr.count("bytes") == 20
    assert "and 34 more" in done.stderr


@pytest.mark.parametrize("name", ["cat", "explain"])
def test_a_folder_that_is_no_dataset_is_status_2(tmp_path: Path, shardtool: Shardtool, name: str) -> None:
    done = shardtool(name, "0", "--shards", tmp_path)
    assert done.returncode == 2
    assert "no dataset.json" in done.stderr


def test_a_sample_says_what_it_left_out(packed: Path, shardtool: Shardtool) -> None:
    done = shardtool("verify", packed, "--sample", "10%", "--deep", "--workers", 1)
    assert done.returncode == 0
    assert "good: 6 photos" in done.stderr
    assert "not checked: SHA-256 of shards" in done.stderr
    assert "not checked: 48 of 54 photos" in done.stderr
    value = json.loads(shardtool("verify", packed, "--sample", "0.5", "--workers", 2, "--json").stdout)
    assert value["samples"] == 27
    assert "27 of 54 photos" in value["not_checked"]


def test_a_sample_finds_a_missing_shard(packed_copy: Path, shardtool: Shardtool) -> None:
    (packed_copy / "train/shard-000001.tar").unlink()
    done = shardtool("verify", packed_copy, "--sample", "10%", "--workers", 1)
    assert done.returncode == 4
    assert "shard-000001.tar is missing" in done.stderr


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("100%", 1), ("0.5", 0.5), ("1", 1), ("0.1%", 0.001)]
)
def test_a_share_is_read_as_people_write_it(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "0", "-5%", "101%", "5 percent", "nan", "inf", "5"])
def test_what_is_no_share_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_share(text)


def test_an_index_of_tars_elsewhere_serves_all_commands(
    packed: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    tars = tmp_path / "tars"
    for split in ("train", "val"):
        shutil.copytree(packed / split, tars / split, ignore=shutil.ignore_patterns("*.parquet"))
    out = tmp_path / "index"
    assert shardtool("index", tars, "--out", out, "--checksums", "--workers", 1).returncode == 0
    info = shardtool("info", out)
    assert "with checksums" in info.stderr
    assert str(tars / "val") in info.stderr
    value = json.loads(shardtool("info", out, "--json").stdout)
    assert value["bases"] == {split: str(tars / split) for split in ("train", "val")}
    assert shardtool("verify", out, "--deep", "--workers", 1).returncode == 0
    key = open_split(str(packed / "val")).entry(3)["key"]
    assert shardtool("explain", key, "--shards", out).returncode == 0
    assert shardtool("export", "--shards", out, "--to", tmp_path / "folders", "--workers", 1).returncode == 0
    assert len(list((tmp_path / "folders").glob("*/*/*/*.jpg"))) == 54


@pytest.mark.parametrize(
    "arguments",
    [
        ("nowhere",),
        ("x-{0..1}.tar",),
        ("https://host/folder",),
        (".", "--split", "a/b"),
        ("a=x.tar", "b=y.tar"),
    ],
)
def test_an_index_that_cannot_be_meant_is_status_2(
    arguments: tuple[str, ...], shardtool: Shardtool, tmp_path: Path
) -> None:
    done = shardtool("index", *arguments, "--workers", 1)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
