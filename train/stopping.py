"""Stopping without losing anything: signals are looked at between two steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Set by a signal, looked at between two steps."""

    signal = ""


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGUSR1 ask to stop after the current step; a second one stops at once."""
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
