"""The events of a run put in order: what was overtaken by a resume is left out, sessions are told apart.

Pure. A session is one process: it begins with a `run` event and ends with `finished`, `stopped` or, killed,
with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.checklist import OUT_OF_MEMORY
from train.logbook import CURVES

Event = Mapping[str, Any]


@dataclass
class Session:
    """One process of the run; times in seconds since 1970, steps of the whole run."""

    start: float
    first_step: int
    end: float
    last_step: int
    ended: str = "killed, or still running"
    device: str = ""


@dataclass(frozen=True)
class StageStart:
    number: int  # from 1
    name: str
    step: int
    protocol: Sequence[str] = ()  # lines


@dataclass
class RunLog:
    """`windows` and `epochs` are the events "steps" and "epoch" in order of their step, each once."""

    run: Event = field(default_factory=dict)  # the latest
    sessions: list[Session] = field(default_factory=list)
    stages: list[StageStart] = field(default_factory=list)
    windows: list[Event] = field(default_factory=list)
    epochs: list[Event] = field(default_factory=list)
    replaced: list[Event] = field(default_factory=list)
    troubles: list[Event] = field(default_factory=list)  # of the kinds in TROUBLES, and of those only

    @property
    def seconds(self) -> float:
        """In all sessions."""
        return sum(session.end - session.start for session in self.sessions)


TROUBLES = {
    "skipped": "step skipped: loss or gradient not finite",
    OUT_OF_MEMORY: "out of memory: fewer photos at a time",
    "damped": "head diverges: its gradient is scaled down",
    "not saved": "checkpoint not saved",
    "damaged": "checkpoint damaged, an earlier one was used",
}
ENDS = {"finished": "finished", "stopped": "stopped by {signal}"}


def read_log(events: Sequence[Event]) -> RunLog:
    """Put events in order."""
    log = RunLog()
    for event in events:
        kind = event["event"]
        if kind == "run":
            _begin(log, event)
        if log.sessions:
            session = log.sessions[-1]
            session.end = max(session.end, event.get("time", session.end))
            if kind in CURVES:
                session.last_step = max(session.last_step, event.get("step", 0))
            if kind in ENDS:
                session.ended = ENDS[kind].format(signal=event.get("signal", "a signal"))
        if kind == "stage":
            _enter_stage(log, event)
        places = {"steps": log.windows, "epoch": log.epochs, "replaced": log.replaced}
        places.update(dict.fromkeys(TROUBLES, log.troubles))
        if kind in places:
            places[kind].append(event)
    return log


def _begin(log: RunLog, event: Event) -> None:
    """A process goes on at a step: what earlier ones did beyond it is done again."""
    step = event.get("step") or 0
    log.run = event
    log.windows = [window for window in log.windows if window["step"] <= step]
    log.epochs = [epoch for epoch in log.epochs if epoch.get("step", 0) <= step]
    time = event.get("time", 0.0)
    log.sessions.append(Session(time, step, time, step, device=str(event.get("device", ""))))


def _enter_stage(log: RunLog, event: Event) -> None:
    """A stage that is entered again by a resume has begun where it first did."""
    if all(stage.name != event["stage"] for stage in log.stages):
        number = event.get("number", len(log.stages) + 1)
        log.stages.append(
            StageStart(number, event["stage"], event.get("step") or 0, event.get("protocol", ()))
        )


def lost_steps(sessions: Sequence[Session]) -> list[int]:
    """Of each session the steps that the next one did again, as far as the log tells."""
    following = [*(session.first_step for session in sessions[1:]), None]
    return [
        0 if again is None else max(session.last_step - again, 0)
        for session, again in zip(sessions, following, strict=True)
    ]
