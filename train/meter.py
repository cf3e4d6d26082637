"""How fast training goes, what it loses time on, its mean losses, and how long it will take.

Wall time of an epoch is waiting for data, or steps, or the rest: saving and logging. The device is busy from
the first kernel of a step to the last; what its vendor says of it stands in utilisation.py.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from shardtool.text import size_text
from train.data import Batch
from train.recipe import StageSpec
from train.stages import PARTS

WINDOW_STEPS = 50  # between two readings


# ---- an epoch ---------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Sums over some steps; `busy` is None where the device cannot be timed."""

    photos: int = 0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    busy: float | None = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # of loss x photos
    weights: dict[str, int] = field(default_factory=dict)  # photos: a skipped step has fewer numbers

    def count(self, photos: int, losses: Mapping[str, float]) -> None:
        self.steps += 1
        self.photos += photos
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * photos
            self.weights[name] = self.weights.get(name, 0) + photos

    def as_json(self) -> dict[str, Any]:
        """Rates, shares and mean losses, for the log."""
        seconds = max(self.seconds, 1e-9)
        busy = None if self.busy is None else round(min(self.busy / seconds, 1.0), 4)
        return {
            "photos": self.photos,
            "seconds": round(self.seconds, 3),
            "photos_a_second": round(self.photos / seconds, 1),
            "data_wait_share": round(min(self.waited / seconds, 1.0), 4),
            "device_busy_share": busy,
            "train": self.losses(),
        }

    def losses(self) -> dict[str, float]:
        """Means over the photos."""
        return {name: total / max(self.weights[name], 1) for name, total in self.sums.items()}

    def rates(self) -> str:
        """Speed, data wait and device, for people."""
        seconds = max(self.seconds, 1e-9)
        busy = "unknown" if self.busy is None else f"{min(self.busy / seconds, 1):.0%}"
        return (
            f"{self.photos / seconds:,.0f} img/s  data wait {self.waited / seconds:.0%}  device busy {busy}"
        )

    def losses_text(self) -> str:
        """Mean losses, for people."""
        return "loss: " + "  ".join(f"{name} {value:.3f}" for name, value in self.losses().items())


class Meter:
    """The steps of an epoch: `epoch` sums all of them, `window` those since `close_window`.

    The epoch has `steps` and `epoch_photos`; `first_step` is more than 0 where a run goes on inside it.
    Without a `device` its share is unknown.
    """

    def __init__(
        self, steps: int, epoch_photos: int, first_step: int = 0, device: torch.device | None = None
    ) -> None:
        self.steps, self.epoch_photos, self.first_step = steps, epoch_photos, first_step
        self.start = time.monotonic()
        self._clock = device_clock(device)
        self.epoch, self.window = self._tally(), self._tally()
        self._before = self._tally()  # totals at the start of the window
        self._waited = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time spent waiting for them counted."""
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - before
            if batch is None:
                return
            yield batch

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Around a step: what the device does in it is counted."""
        return self._clock.step()

    def count(self, photos: int, losses: dict[str, float]) -> None:
        """After a step: its photos and mean losses."""
        for tally in (self.epoch, self.window):
            tally.count(photos, losses)
        self._read_clocks()

    def close_window(self) -> dict[str, Any]:
        """What the steps since the last call were like; the next window begins."""
        self._read_clocks()
        closed = self.window
        self._before = replace(self.epoch)
        self.window = self._tally()
        return {"steps": closed.steps, **closed.as_json()}

    def summary(self) -> dict[str, Any]:
        """What the epoch was like, up to its last step: what followed is not training."""
        self.epoch.busy = self._clock.read()
        return {"first_step": self.first_step, **self.epoch.as_json()}

    @property
    def window_is_full(self) -> bool:
        """After WINDOW_STEPS, and after the last step of the epoch."""
        return self.window.steps >= WINDOW_STEPS or self.first_step + self.epoch.steps >= self.steps

    def recent(self) -> Tally:
        """The window if it has steps, else the epoch."""
        return self.window if self.window.steps else self.epoch

    def rates(self) -> str:
        return self.recent().rates()

    def losses(self) -> str:
        return self.recent().losses_text()

    def _tally(self) -> Tally:
        return Tally(busy=None if self._clock.read() is None else 0.0)

    def _read_clocks(self) -> None:
        self.epoch.seconds = time.monotonic() - self.start
        self.epoch.waited, self.epoch.busy = self._waited, self._clock.read()
        self.window.seconds = self.epoch.seconds - self._before.seconds
        self.window.waited = self._waited - self._before.waited
        if self.epoch.busy is not None:
            self.window.busy = self.epoch.busy - (self._before.busy or 0.0)


# ---- how busy the device is ---------------------------------------------------------------------------


class Clock:
    """Takes the time that a device works on steps; this one cannot."""

    def step(self) -> contextlib.AbstractContextManager[None]:
        """Around a step."""
        return contextlib.nullcontext()

    def read(self) -> float | None:
        """Seconds so far; None where that cannot be measured."""
        return None


class HostClock(Clock):
    """A CPU is both: what the program spends in a step is the device's work."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - start

    def read(self) -> float:
        return self._seconds


class EventClock(Clock):
    """CUDA and ROCm run behind the program: events in their stream take the time, and nothing waits for them.

    A step is counted once its last kernel has ended, so the sum lags by a step.
    """

    def __init__(self, device: torch.device) -> None:
        self._seconds, self._device = 0.0, device
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self._device)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record(stream)
        try:
            yield
        finally:
            last.record(stream)
            self._running.append((first, last))

    def read(self) -> float:
        while self._running and self._running[0][1].query():
            first, last = self._running.popleft()
            self._seconds += first.elapsed_time(last) / 1000  # from ms
        return self._seconds


def device_clock(device: torch.device | None) -> Clock:
    """The clock of a device."""
    if device is not None and device.type == "cpu":
        return HostClock()
    return EventClock(device) if device is not None and device.type == "cuda" else Clock()


# ---- how long it will take -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The stages of a run; `photos` (repeats counted) and `steps` of an epoch of each."""

    stages: Sequence[StageSpec]
    photos: Sequence[int]
    steps: Sequence[int]

    def done(self, stage: int, epoch: int, step: int) -> int:
        """Steps of the run before this place of it: what curves are drawn over."""
        before = sum(
            spec.epochs * steps for spec, steps in zip(self.stages[:stage], self.steps[:stage], strict=True)
        )
        return before + (epoch * self.steps[stage] + step if stage < len(self.steps) else 0)


@dataclass(frozen=True)
class TimeLeft:
    """Seconds to the end of the stage and of the run; None where nothing was measured yet."""

    stage: float | None
    run: float | None

    def text(self) -> str:
        stage, run = map(_clock_text, (self.stage, self.run))
        return f"stage done in {stage}, run in {run}"


class Pace:
    """What this run has measured: seconds a photo with a backbone that learns and with a frozen one, and
    seconds of a validation."""

    def __init__(self, schedule: Schedule) -> None:
        self._stages, self._photos = schedule.stages, schedule.photos
        self._measured: dict[bool, tuple[int, float]] = {}
        self._validation = 0.0

    def trained(self, stage: StageSpec, photos: int, seconds: float) -> None:
        """Count an epoch, or the part of it that this process saw."""
        before = self._measured.get(_learns(stage), (0, 0.0))
        self._measured[_learns(stage)] = (before[0] + photos, before[1] + seconds)

    def validated(self, seconds: float) -> None:
        """The latest validation stands for those to come."""
        self._validation = seconds

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Count the epochs that earlier processes of the same run have logged."""
        by_name = {stage.name: stage for stage in self._stages}
        for event in events:
            if event.get("event") == "epoch" and (stage := by_name.get(event["stage"])):
                self.trained(stage, event["photos"], event["seconds"])
                self.validated(event.get("validation_seconds", 0.0))

    def left(self, number: int, epoch: int, done: float, now: Tally) -> TimeLeft:
        """From epoch `epoch` of stage `number`, of which the share `done` is trained at the speed of `now`.

        Other stages go at the measured speed of their kind, else at this one's.
        """
        if not now.photos or not now.seconds:
            return TimeLeft(None, None)
        epochs = self._stages[number].epochs - epoch - done
        here = now.seconds / now.photos
        stage = epochs * self._photos[number] * here + (epochs + done) * self._validation
        later = sum(
            spec.epochs * (photos * self._speed(spec, here) + self._validation)
            for spec, photos in zip(self._stages[number + 1 :], self._photos[number + 1 :], strict=True)
        )
        return TimeLeft(stage, stage + later)

    def _speed(self, stage: StageSpec, otherwise: float) -> float:
        """Seconds a photo."""
        photos, seconds = self._measured.get(_learns(stage), (0, 0.0))
        return seconds / photos if photos else otherwise


def _learns(stage: StageSpec) -> bool:
    """Whether the backbone does: its backward pass is most of the work."""
    return "backbone" in PARTS[stage.trains]


def _clock_text(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# ---- for people ---------------------------------------------------------------------------------------


def status_lines(place: str, meter: Meter, left: TimeLeft, machine: Sequence[str] = ()) -> list[str]:
    """The live block: where the run is (`place`), how fast it goes, what the machine says, what it learns."""
    return [place, meter.rates(), *machine, meter.losses(), left.text()]


def memory_text(process: int | None, device: tuple[int, int] | None) -> str:
    """Bytes of the processes; bytes taken of a device and those that it has."""
    here = "unknown" if process is None else size_text(process)
    there = f", device {size_text(device[0])} of {size_text(device[1])}" if device else ""
    return f"memory {here}{there}"
