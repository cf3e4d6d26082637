"""One stream of events: events.jsonl for programs, boards for curves, a live block on a terminal, plain lines
in a pipe.

Nothing of it may end a training: what cannot be written is said in one line.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.text import Text

from shardtool.terminal import clean, console, say
from train.boards import Board, TensorBoard, WeightsAndBiases

EVENTS = "events.jsonl"
BOARDS = "tensorboard"  # folder inside the run folder
PLAIN_SECONDS = 10.0
LIVE_SECONDS = 0.25
# kinds of events whose numbers the boards show, and what of them is no curve or already another event's
CURVES = {"steps": {"step", "steps", "epoch"}, "epoch": {"step", "epoch", "first_step", "train"}}


class Logbook:
    """Use as a context manager; events go on in the file that is already there.

    A quiet one keeps and shows nothing: that is the log of all ranks but the first.
    """

    def __init__(self, folder: Path, quiet: bool = False) -> None:
        self._folder, self._quiet = folder, quiet
        self._file: Any = None if quiet else _continued(folder / EVENTS)
        self._boards: list[Board] = []
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._shown, self._complete = 0.0, True

    def __enter__(self) -> Logbook:
        if not self._quiet and console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        for board in self._boards:
            with _or_said(f"{board.name} is not complete"):
                board.close()
        if self._file:
            with _or_said("not logged", OSError):
                self._file.close()

    def open_boards(self, step: int, wandb: str = "", settings: Mapping[str, Any] | None = None) -> None:
        """Show curves in TensorBoard, and in the Weights & Biases project `wandb` if there is one.

        The run goes on after `step` steps: what an earlier process has shown beyond is taken back.
        """
        if self._quiet:
            return
        self._open("TensorBoard", lambda: TensorBoard(self._folder / BOARDS, step))
        if wandb:
            self._open("Weights & Biases", lambda: WeightsAndBiases(self._folder, wandb, settings or {}))

    def event(self, kind: str, **values: Any) -> None:
        """Append one event; `time` is seconds since 1970. Numbers of an event with a `step` (steps of the run
        that are done) are points of curves, if its kind is one of CURVES."""
        if not self._file:
            return
        line = {"event": kind, "time": round(time.time(), 3), **values}
        self._write(json.dumps(_finite(line), allow_nan=False) + "\n")
        if kind in CURVES and "step" in values:
            shown = {name: value for name, value in values.items() if name not in CURVES[kind]}
            self._show(values["step"], dict(_numbers(shown, kind)))

    def say(self, text: str) -> None:
        """A line that stays on the screen."""
        if not self._quiet:
            say(text)

    def progress(self, lines: Sequence[str] | Callable[[], Sequence[str]]) -> None:
        """The current state: redrawn in place on a terminal, now and then one line elsewhere."""
        now = time.monotonic()
        wait = LIVE_SECONDS if console.is_terminal else PLAIN_SECONDS
        if self._quiet or now - self._shown < wait:
            return
        self._shown = now
        lines = lines() if callable(lines) else lines
        if console.is_terminal:
            self._live.update(Text("\n".join(lines), style="cyan"))
        else:
            say(clean("  ".join(lines)))

    def _write(self, text: str) -> None:
        """A disk that is full is said once, until there is room again."""
        try:
            self._file.write(text)
            self._file.flush()
            self._complete = True
        except OSError as error:
            if self._complete:
                say(f"[bold red]not logged[/], training goes on: {clean(error)}")
            self._complete = False

    def _open(self, name: str, make: Callable[[], Board]) -> None:
        with _or_said(f"{name} is off"):
            self._boards.append(make())

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        shown = []
        for board in self._boards:
            with _or_said(f"{board.name} is off from now on"):
                board.show(step, numbers)
                shown.append(board)
        self._boards = shown


@contextlib.contextmanager
def _or_said(what: str, errors: type[Exception] = Exception) -> Iterator[None]:
    """An error becomes a line; the libraries behind the boards raise what they like."""
    try:
        yield
    except errors as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        say(f"[bold red]{clean(what)}[/], training goes on: {clean(reason)}")


def read_events(path: Path) -> list[dict[str, Any]] | None:
    """What a run has logged, from its folder or a checkpoint inside it; None where there is no log."""
    folders = [path, path.parent, path.parent.parent]
    file = next((folder / EVENTS for folder in folders if (folder / EVENTS).is_file()), None)
    if file is None:
        return None
    events = []
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # a line that a kill or a full disk has torn
            value = json.loads(line)
            if isinstance(value, dict) and "event" in value:
                events.append(value)
    return events


def _continued(path: Path) -> Any:
    """The file, opened to append whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    file = path.open("a", encoding="utf-8")
    if torn:
        file.write("\n")
    return file


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """The numbers inside, by their path; `name` holds those that are not in a group of their own."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, key)
        elif isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item):
            yield f"{name}/{key}", item


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null says that there is no number."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
