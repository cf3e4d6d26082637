"""Two processes that torchrun starts train as one does; on CPUs, through gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.checkpoint import Checkpoint
from train.ranks import Ranks

TINY = Path(__file__).parent / "tiny.toml"
Train = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(shards: Path, tmp_path: Path) -> Train:
    """Starts a training of `ranks` processes into a folder; stochastic depth off, since its draws differ."""

    def start(out: str, ranks: int, *arguments: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return subprocess.Popen(
            [
                *(*program, "-m", "train.cli", "--shards", str(shards / "train"), "--recipe", str(TINY)),
                *("--out", str(tmp_path / out), "--workers", "1", "--set", "model.drop_path=0"),
                *("--set", "optimizer.precision=fp32", *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return start


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_two_ranks_give_the_losses_and_scores_of_one(start: Train, tmp_path: Path) -> None:
    for out, ranks in (("one", 1), ("two", 2)):
        process = start(out, ranks)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert said.count("stage 1 of 4") == 1  # one rank tells
    one, two = (events(tmp_path / out, "epoch") for out in ("one", "two"))
    assert len(one) == len(two) == 6
    for alone, together in zip(one, two, strict=True):
        assert together["train"] == pytest.approx(alone["train"], rel=2e-4, abs=1e-6)
        assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-3)
        assert together["photos"] == alone["photos"]
    weights = [Checkpoint.load(tmp_path / out / "last.pt").model for out in ("one", "two")]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-2, atol=2e-4), name


def test_when_one_rank_is_killed_the_other_stops_and_the_same_command_goes_on(
    start: Train, tmp_path: Path
) -> None:
    process = start("run", 2, "--save-steps", "2")
    log = tmp_path / "run" / "events.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and '"stage": "full", "number' in log.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    children = [
        int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    os.kill(children[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0, said
    process = start("run", 2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "going on from last.pt" in said
    assert len(events(tmp_path / "run", "finished")) == 1


def test_one_rank_needs_no_process_group() -> None:
    ranks, tensor = Ranks(), torch.arange(3.0)
    ranks.sum_([tensor])
    ranks.barrier()
    assert torch.equal(ranks.concatenate(tensor), torch.arange(3.0))
    assert ranks.gather("x") == ["x"]
