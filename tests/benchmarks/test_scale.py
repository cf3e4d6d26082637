"""The simulation at scale: figures of every part, and ranks that are cut as training cuts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scale
from shardtool.index import open_split
from train.order import BLOCK_BYTES, EpochOrder, blocks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The results and what people see of a tiny run, as a process of its own."""
    file = tmp_path_factory.mktemp("scale") / "scale.json"
    sizes = ["--photos", "300", "--orders", "5000", "--lazy", "200000", "--shards", "8", "--ranks", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--json", str(file), *sizes],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in file.parent.iterdir()] == ["scale.json"]
    return json.loads(file.read_text()), done.stdout + done.stderr


def test_every_part_is_measured(measured: tuple[dict[str, Any], str]) -> None:
    found, _ = measured
    for name in ("first", "second"):
        begun = found["starts"][0][name]
        assert {"open", "order", "read", "order_with_copies", "look_up_1000_batches"} < begun.keys()
        assert begun["epoch_with_copies"] >= 300
    order = found["orders"][0]
    assert order["order_bytes"] == 5 * 5000
    assert order["photos_a_rank"] == {"min": 1250, "mean": 1250.0, "max": 1250, "skew": 0.0}
    assert order["bytes_a_rank"]["mean"] == pytest.approx(1250 * scale.MEAN_BYTES, rel=0.02)
    assert all(factor > 1 for factor in order["block_bytes_over_photo_bytes"].values())
    assert {"hardware", "versions"} < found.keys()


def test_what_lies_beyond_arrays_is_measured(measured: tuple[dict[str, Any], str]) -> None:
    beyond = measured[0]["beyond"]
    assert beyond["photos_a_rank"]["mean"] == 50_000
    assert beyond["windows_an_epoch"] == -(-(200_000 * scale.MEAN_BYTES // BLOCK_BYTES) // 64)
    assert (beyond["array_bytes"], beyond["index_file_bytes"]) == (1_000_000, 2_800_000)


def test_people_see_the_figures(measured: tuple[dict[str, Any], str]) -> None:
    told = measured[1]
    for text in ("300 photos, first start", "order of 5,000 photos", "4 ranks of it", "by windows"):
        assert text in told


def test_a_simulated_split_is_one_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "SHARD_PHOTOS", 100)
    split = open_split(scale.simulate_split(tmp_path, 350), check=False)
    assert (len(split), len(split.shards)) == (350, 3)
    assert split.size.mean() == pytest.approx(scale.MEAN_BYTES, rel=0.1)
    ends = split.offset + split.size
    inside = np.diff(split.shard) == 0
    assert (split.offset[1:] > ends[:-1])[inside].all()
    assert len(split.read([0, 349])[1]) == split.size[349]


@pytest.mark.parametrize(
    ("photos", "batch", "ranks"), [(1000, 96, 5), (7, 64, 8), (513, 256, 1), (640, 64, 4)]
)
def test_ranks_are_cut_as_training_cuts_them(photos: int, batch: int, ranks: int) -> None:
    random = np.random.default_rng(photos)
    order = EpochOrder(random.permutation(photos), np.zeros(photos, int), batch)
    size = random.integers(1, 100, photos).astype(np.int32)
    bounds = scale.rank_bounds(photos, order.steps, ranks)
    for step in range(order.steps):
        parts = [order.step(step, rank, ranks)[0] for rank in range(ranks)]
        assert np.diff(bounds[step]).tolist() == [len(part) for part in parts]
        assert scale._sums(size, order, bounds)[step].tolist() == [int(size[part].sum()) for part in parts]


def test_whole_blocks_read_along_are_counted_once_for_ranks_that_share_them() -> None:
    size = np.full(1024, BLOCK_BYTES // 4, np.int32)
    block = blocks(np.zeros(1024, int), np.arange(1024) * (BLOCK_BYTES // 4))
    order = EpochOrder(np.arange(1024).reshape(256, 4).T.ravel(), np.zeros(1024, int), 1024)
    # a rank takes a photo of each block, four ranks take them all
    assert scale._read_along(size, block, order, 1) == 4.0
    assert scale._read_along(size, block, order, 4) == 1.0
