"""The log is whole after kills and resumes, its curves too, and nothing of it ends a training."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from train.boards import TensorBoard
from train.logbook import BOARDS, EVENTS, Logbook, read_events


def kinds(folder: Path) -> list[str]:
    return [event["event"] for event in read_events(folder) or ()]


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard itself shows of a run."""
    shown = EventAccumulator(str(folder / BOARDS))
    shown.Reload()
    return [(point.step, point.value) for point in shown.Scalars(name)]


def train(folder: Path, first: int, last: int, loss: float) -> None:
    """Log steps `first` + 1 to `last`, as a process that goes on after `first` steps."""
    with Logbook(folder) as log:
        log.open_boards(first)
        for step in range(first + 1, last + 1):
            log.event("steps", step=step, train={"species": loss}, photos_a_second=7)


# ---- events -------------------------------------------------------------------------------------------


def test_events_of_a_second_process_follow_those_of_the_first(tmp_path: Path) -> None:
    for kind in ("one", "two"):
        with Logbook(tmp_path) as log:
            log.event(kind)
    assert kinds(tmp_path) == ["one", "two"]


def test_a_line_that_a_kill_has_torn_costs_no_other(tmp_path: Path) -> None:
    for kind in ("one", "two"):
        with Logbook(tmp_path) as log:
            log.event(kind)
        with (tmp_path / EVENTS).open("a") as file:
            file.write('{"event": "to')
    assert kinds(tmp_path) == ["one", "two"]


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    with Logbook(tmp_path) as log:
        log.event("epoch", val_loss=float("nan"), train={"species": [float("inf"), 1.5]})
    events = read_events(tmp_path)
    assert events
    (event,) = events
    assert event["val_loss"] is None
    assert event["train"] == {"species": [None, 1.5]}


def test_events_are_found_from_the_run_and_from_its_checkpoints(tmp_path: Path) -> None:
    with Logbook(tmp_path / "run") as log:
        log.event("one")
    for place in ("run", "run/last.pt", "run/species_only/epoch=01-best.pt"):
        assert kinds(tmp_path / place) == ["one"], place
    assert read_events(tmp_path / "elsewhere" / "deep" / "x.pt") is None


def test_a_quiet_log_keeps_and_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Logbook(tmp_path / "run", quiet=True) as log:
        log.open_boards(0)
        log.event("steps", step=1, photos_a_second=7)
        log.say("a line")
        log.progress(["a line"])
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_a_pipe_gets_one_plain_line_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def lines() -> list[str]:
        nonlocal asked
        asked += 1
        return ["stage 1/6 [bold]x[/]", "5 img/s"]

    with Logbook(tmp_path) as log:
        for _ in range(100):
            log.progress(lines)
    assert capsys.readouterr().err == "stage 1/6 [bold]x[/]  5 img/s\n"
    assert asked == 1


# ---- TensorBoard --------------------------------------------------------------------------------------


def test_tensorboard_shows_every_number_of_a_window_by_its_group(tmp_path: Path) -> None:
    with Logbook(tmp_path) as log:
        log.open_boards(0)
        log.event("steps", step=50, stage="head", train={"species": 0.5}, lr={"backbone": 1e-4}, busy=None)
        log.event(
            "epoch",
            step=60,
            metrics={"cascade": 0.25, "macro_f1": None},
            val_loss=2.0,
            train={"species": 9.0},
        )
        log.event("skipped", step=55, losses={"species": float("nan")})
    shown = EventAccumulator(str(tmp_path / BOARDS))
    shown.Reload()
    assert set(shown.Tags()["scalars"]) == {
        *("train/species", "lr/backbone", "metrics/cascade", "epoch/val_loss"),
    }
    assert curve(tmp_path, "train/species") == [(50, 0.5)]
    assert curve(tmp_path, "metrics/cascade") == [(60, 0.25)]


def test_a_resumed_run_has_every_step_once_in_tensorboard(tmp_path: Path) -> None:
    train(tmp_path, 0, 6, loss=1.0)
    train(tmp_path, 4, 8, loss=2.0)
    train(tmp_path, 8, 9, loss=3.0)
    values = [1.0] * 4 + [2.0] * 4 + [3.0]
    assert curve(tmp_path, "train/species") == list(zip(range(1, 10), values, strict=True))


def test_a_killed_run_has_shown_all_that_it_logged(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; from train.logbook import Logbook\n"
        f"log = Logbook(pathlib.Path({str(tmp_path)!r})).__enter__(); log.open_boards(0)\n"
        "log.event('steps', step=1, speed=7.0); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert kinds(tmp_path) == ["steps"]
    assert curve(tmp_path, "steps/speed") == [(1, 7.0)]


def test_two_processes_in_one_second_write_two_files(tmp_path: Path) -> None:
    for _ in range(3):
        TensorBoard(tmp_path, 0).close()
    assert len(list(tmp_path.iterdir())) == 3


# ---- what fails -----------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_opened_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / BOARDS).write_text("in the way")
    train(tmp_path, 0, 5, loss=1.0)
    said = capsys.readouterr().err
    assert said.startswith("TensorBoard is off, training goes on: ")
    assert said.count("\n") == 1
    assert kinds(tmp_path) == ["steps"] * 5


def test_a_disk_that_fills_up_is_one_line_a_file_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Logbook(tmp_path) as log:
        log.open_boards(0)
        log.event("steps", step=1, speed=1.0)
        with files_of_at_most(1):
            log.event("steps", step=2, speed=2.0)
            log.event("other")
        log.event("room again")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", training goes on: ")[0] for line in lines] == [
        "not logged",
        "TensorBoard is off from now on",
    ]
    assert kinds(tmp_path) == ["steps", "steps", "other", "room again"]
    assert curve(tmp_path, "steps/speed") == [(1, 1.0)]


def test_weights_and_biases_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with Logbook(tmp_path) as log:
        log.open_boards(0, wandb="leaves")
        log.event("steps", step=1, speed=1.0)
    said = capsys.readouterr().err
    assert said.startswith("Weights & Biases is off, training goes on: it is not installed (pip install")
    assert said.count("\n") == 1
    assert curve(tmp_path, "steps/speed") == [(1, 1.0)]


def test_weights_and_biases_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is optional")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (0, 1):
        with Logbook(tmp_path) as log:
            log.open_boards(first, wandb="leaves", settings={"seed": 0})
            log.event("steps", step=first + 1, speed=1.0)
    runs = sorted(path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert runs == [(tmp_path / "wandb-id").read_text()] * 2


def test_nobody_who_only_reads_a_log_loads_a_board(tmp_path: Path) -> None:
    code = "import json, sys, train.logbook; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    roots = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not roots & {"tensorboard", "wandb", "torch"}
