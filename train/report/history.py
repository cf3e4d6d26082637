"""What happened: interruptions, troubles, bad photos; and what the run was: recipe, hardware, versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from shardtool.text import counted, size_text, time_text
from train.report.document import heading, paragraph, table
from train.report.runlog import TROUBLES, Event, RunLog, Session, StageStart, lost_steps

SHOWN = 200  # rows of a table


def troubles_section(log: RunLog) -> str:
    """Photos that were replaced, steps that were skipped, and what else went wrong."""
    return _replaced(log.replaced) + _troubles(log.troubles)


def _replaced(events: Sequence[Event]) -> str:
    if not events:
        return paragraph("Every photo could be read.")
    photos = {event["sample"]: event for event in events}
    rows = [(event["where"], event["reason"]) for event in list(photos.values())[:SHOWN]]
    words = (
        f"{counted(len(photos), 'photo')} could not be used; another one of the class took the place. "
        "shardtool verify --deep tells more."
    )
    return paragraph(words) + table(("photo", "reason"), rows) + _cut(len(photos))


def _troubles(events: Sequence[Event]) -> str:
    if not events:
        return paragraph("No step was skipped, nothing ran out of memory, every checkpoint was saved.")
    rows = [(event.get("step"), TROUBLES[event["event"]], _details(event)) for event in events[:SHOWN]]
    return heading("Troubles") + table(("step", "what", "details"), rows, [0]) + _cut(len(events))


def _details(event: Event) -> str:
    hidden = ("event", "time", "step")
    return ", ".join(f"{name} {_value(value)}" for name, value in event.items() if name not in hidden)


def _cut(count: int) -> str:
    return paragraph(f"The first {SHOWN} of {count:,}.", "soft") if count > SHOWN else ""


def run_section(log: RunLog) -> str:
    """Sessions, hardware and versions, recipe."""
    if not log.sessions:
        return paragraph("There is no log of this run.")
    parts = [_sessions(log.sessions), _stages(log.stages), _machine(log)]
    if recipe := log.run.get("recipe"):
        rows = list(_settings(recipe))
        parts.append(
            f"<details><summary>Recipe, {len(rows)} settings</summary>"
            f"{table(('setting', 'value'), rows)}</details>"
        )
    return "".join(parts)


def _sessions(sessions: Sequence[Session]) -> str:
    lost = lost_steps(sessions)
    rows = [
        (
            _date(session.start),
            time_text(session.end - session.start),
            session.first_step,
            session.last_step,
            session.ended,
            again or "",
        )
        for session, again in zip(sessions, lost, strict=True)
    ]
    resumes = counted(len(sessions) - 1, "resume")
    words = f"{resumes}, {counted(sum(lost), 'logged step')} done again after an interruption."
    head = ("started", "for", "from step", "to step", "ended", "done again")
    return paragraph(words) + table(head, rows, (1, 2, 3, 5))


def _stages(stages: Sequence[StageStart]) -> str:
    rows = [(stage.number, stage.name, stage.step, "; ".join(stage.protocol)) for stage in stages]
    return heading("Stages") + table(("", "stage", "from step", "protocol"), rows, (0, 2)) if rows else ""


def _machine(log: RunLog) -> str:
    known = {
        "device": log.run.get("device"),
        "precision": log.run.get("precision"),
        **log.run.get("hardware", {}),
        **log.run.get("versions", {}),
        **_peaks(log.windows),
    }
    rows = [
        (name.removesuffix("_bytes").replace("_", " "), _value(value, name))
        for name, value in known.items()
        if value is not None
    ]
    return heading("Machine and versions") + table(("", ""), rows)


def _peaks(windows: Sequence[Event]) -> dict[str, Any]:
    """The most memory that any window saw; what the vendor's library says of the device, over all windows."""
    process = [window["process_memory"] for window in windows if window.get("process_memory")]
    device = [window["device_memory"] for window in windows if window.get("device_memory")]
    busy = [window["utilisation"] for window in windows if window.get("utilisation") is not None]
    source = next(
        (window["utilisation_source"] for window in windows if window.get("utilisation_source")), ""
    )
    return {
        "peak_process_memory_bytes": max(process, default=None),
        "peak_device_memory_bytes": max(device, default=None),
        "utilisation": f"{sum(busy) / len(busy):.0f} % ({source})"
        if busy
        else f"unknown ({source})"
        if source
        else None,
    }


def _settings(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A recipe, flat: ("optimizer.batch", "256")."""
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        place = f"{prefix}{key}"
        if isinstance(item, Mapping) or (
            isinstance(item, list) and any(isinstance(one, Mapping) for one in item)
        ):
            yield from _settings(item, f"{place}.")
        else:
            yield place, _value(item)


def _value(value: Any, name: str = "") -> str:
    if name.endswith("_bytes"):
        return size_text(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
