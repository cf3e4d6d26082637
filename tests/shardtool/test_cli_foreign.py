"""Indexes of foreign shards, and odd ends of commands, as a person meets them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from tests.kinds import Jpeg, Shardtool


@pytest.fixture
def flat(tmp_path: Path, jpeg: Jpeg) -> Path:
    """Shards of two splits side by side in one folder, as many data sets come."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, name in enumerate(("train-000", "train-001", "val-000")):
        with webdataset.TarWriter(str(folder / f"{name}.tar")) as tar:
            for photo in range(2):
                key = f"{number}{photo}"
                tar.write({"__key__": key, "jpg": jpeg(10 * number + photo), "cls": str(photo).encode()})
    return folder


def test_an_index_of_splits_that_share_a_folder_passes_verify(
    flat: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    splits = (f"train={flat}/train-{{000..001}}.tar", f"val={flat}/val-000.tar")
    assert shardtool("index", *splits, "--out", tmp_path / "index").returncode == 0
    done = shardtool("verify", tmp_path / "index", "--workers", 1)
    assert (done.returncode, "listed" in done.stderr) == (0, False)


def test_a_pack_that_is_not_finished_is_not_indexed(packed_copy: Path, shardtool: Shardtool) -> None:
    (packed_copy / "dataset.json").unlink()
    before = {path: path.read_bytes() for path in packed_copy.rglob("*.parquet")}
    done = shardtool("index", packed_copy)
    assert done.returncode == 2
    assert "run the same shardtool pack again" in done.stderr
    assert {path: path.read_bytes() for path in packed_copy.rglob("*.parquet")} == before


@pytest.mark.parametrize("braces", ["{1..99999999999}", "{1..9999999..1}", "{-9999999..1}", "{a,b}" * 40])
def test_braces_that_mean_too_many_shards_are_refused_at_once(
    braces: str, flat: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    done = shardtool("index", f"{flat}/{braces}.tar", "--out", tmp_path / "index")
    assert done.returncode == 2
    assert "shards" in done.stderr


@pytest.mark.parametrize("report", ["{", "[]", '{"refusals": [{}]}'])
def test_a_damaged_report_is_told_as_one(report: str, packed_copy: Path, shardtool: Shardtool) -> None:
    (packed_copy / "report.json").write_text(report)
    done = shardtool("explain", "nothing.jpg", "--shards", packed_copy, "--json")
    assert json.loads(done.stdout)["what"] == "report is damaged"


@pytest.mark.parametrize("end", [">/dev/full", ">&-"])
def test_a_stdout_that_takes_nothing_is_no_traceback(
    end: str, packed: Path, command: Callable[..., list[str]]
) -> None:
    line = subprocess.list2cmdline(["info", str(packed), "--json"])
    start = "from shardtool.cli import main; main()"
    python = command()[0]
    done = subprocess.run(
        ["bash", "-c", f"'{python}' -c '{start}' {line} {end}"], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
