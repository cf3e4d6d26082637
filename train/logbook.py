"""One stream of events: events.jsonl for programs, a live line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.text import Text

from shardtool.terminal import clean, console, say

PLAIN_SECONDS = 10.0
LIVE_SECONDS = 0.25


class Logbook:
    """Use as a context manager; events go on in the file that is already there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "events.jsonl").open("a", encoding="utf-8")
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._shown = 0.0

    def __enter__(self) -> Logbook:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        self._file.close()

    def event(self, kind: str, **values: Any) -> None:
        """Append one event; `time` is seconds since 1970."""
        line = {"event": kind, "time": round(time.time(), 3), **values}
        try:
            self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:  # a full disk: the log has a gap, training goes on
            say(f"[bold red]not logged:[/] {clean(error)}")

    def say(self, text: str) -> None:
        """A line that stays on the screen."""
        say(text)

    def progress(self, lines: Sequence[str]) -> None:
        """The current state: redrawn in place on a terminal, now and then one line elsewhere."""
        now = time.monotonic()
        if now - self._shown < (LIVE_SECONDS if console.is_terminal else PLAIN_SECONDS):
            return
        self._shown = now
        if console.is_terminal:
            self._live.update(Text("\n".join(lines), style="cyan"))
        else:
            say(clean("  ".join(lines)))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null says that there is no number."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
