"""Lines over the steps or the hours of a run, as inline SVG without scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np

from shardtool.report.markup import text
from shardtool.report.plot import Plot
from train.report.document import Html, heading, paragraph, share, table
from train.report.runlog import Event, RunLog, StageStart

Point = tuple[float, float]

POINTS = 400  # of a line; of more, neighbours are averaged
DOTTED = 40  # points of a line; of more, each needs no mark
SHOWN_METRICS = {
    "species_top1": "species top-1",
    "disease_top1": "disease top-1",
    "disease_top3": "disease top-3",
    "tail_macro_f1": "tail F1",
    "cascade": "cascade",
}
LOSSES = ("species", "disease")
NORM = "gradient norm"
MOST_EPOCHS = 200  # rows of the table of epochs


@dataclass(frozen=True)
class Line:
    """Runs of points in order of x: between two of them there are no values."""

    name: str
    runs: Sequence[Sequence[Point]]


@dataclass(frozen=True)
class Axis:
    """The vertical axis: `scale` maps a value to a height, `ticks` are (value, label)."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    scale: Callable[[float], float] = float


def curves_section(log: RunLog) -> str:
    """All charts, and the epochs as a table."""
    if not log.windows and not log.epochs:
        return ""
    by_step = _steps(log.windows)
    charts = [
        _chart("Loss", _losses(log, by_step), log, "loss"),
        _chart("Validation metrics", _metrics(log.epochs), log, "share", _share_axis),
        _chart("Learning rate", _rates(log.windows, by_step), log, "rate, logarithmic", _log_axis),
        _chart(
            "Gradient norm before clipping", _of(log.windows, by_step, NORM, "train"), log, "norm", _log_axis
        ),
        _chart(
            "Speed", _over_time(log.windows, "photos_a_second", "photos/s"), log, "photos/s", over_time=True
        ),
        _chart(
            "Where the time goes",
            _time_shares(log.windows),
            log,
            "share of the wall time",
            _share_axis,
            over_time=True,
        ),
    ]
    names = ", ".join(f"{stage.number} {stage.name}" for stage in log.stages)
    note = paragraph(
        f"Stages: {names}. Losses of mixed and augmented photos are above those of plain ones.", "soft"
    )
    return f'{note}<div class="charts">{"".join(charts)}</div>{_epoch_table(log)}'


# ---- lines --------------------------------------------------------------------------------------------


def _steps(windows: Sequence[Event]) -> list[float]:
    return [float(window["step"]) for window in windows]


def _of(events: Sequence[Event], x: Sequence[float], name: str, group: str, title: str = "") -> list[Line]:
    """One line of `name`, [] if no event has it. Numbers of `group` in the event, or of the event itself."""
    values: list[Any] = [(event.get(group) or {} if group else event).get(name) for event in events]
    points = groupby(zip(x, values, strict=True), key=lambda point: point[1] is not None)
    runs = [[(place, float(value)) for place, value in run] for known, run in points if known]
    few = -(-sum(map(len, runs)) // POINTS)
    return [Line(title or name, [_thinned(run, few) for run in runs])] if runs else []


def _thinned(run: Sequence[Point], few: int) -> list[Point]:
    """The means of every `few` neighbours."""
    means = [np.mean(run[start : start + few], axis=0).tolist() for start in range(0, len(run), few)]
    return [(x, y) for x, y in means]


def _losses(log: RunLog, by_step: Sequence[float]) -> list[Line]:
    lines = [_of(log.windows, by_step, level, "train", f"{level}, training") for level in LOSSES]
    known = [epoch for epoch in log.epochs if "step" in epoch]
    lines.append(_of(known, _steps(known), "val_loss", "", "of the stage, validation"))
    return list(chain(*lines))


def _metrics(epochs: Sequence[Event]) -> list[Line]:
    known = [epoch for epoch in epochs if "step" in epoch]
    x = _steps(known)
    return [line for name, title in SHOWN_METRICS.items() for line in _of(known, x, name, "metrics", title)]


def _rates(windows: Sequence[Event], by_step: Sequence[float]) -> list[Line]:
    groups = dict.fromkeys(group for window in windows for group in window.get("lr") or {})
    return [line for group in groups for line in _of(windows, by_step, group, "lr")]


def _time_unit(windows: Sequence[Event]) -> tuple[float, str]:
    """Seconds of a unit, and its name: hours for what takes longer than two."""
    seconds = sum(window["seconds"] for window in windows)
    return (3600.0, "hours of training") if seconds > 7200 else (60.0, "minutes of training")


def _over_time(windows: Sequence[Event], name: str, title: str = "") -> list[Line]:
    times = np.cumsum([window["seconds"] for window in windows]) / _time_unit(windows)[0]
    return _of(windows, times.tolist(), name, "", title)


def _time_shares(windows: Sequence[Event]) -> list[Line]:
    return [
        *_over_time(windows, "data_wait_share", "waiting for data"),
        *_over_time(windows, "device_busy_share", "device busy"),
    ]


# ---- axes ---------------------------------------------------------------------------------------------


def steps_of(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, three to eight of them."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / 2))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 7)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _plain_axis(low: float, high: float) -> Axis:
    top = (high or 1.0) * 1.05
    return Axis(0.0, top, [(value, f"{value:,.10g}") for value in steps_of(0, top)])


def _share_axis(low: float, high: float) -> Axis:
    bottom = 0.0 if low < 0.2 else math.floor(low * 10) / 10
    return Axis(bottom, 1.0, [(value, f"{value:.0%}") for value in steps_of(bottom, 1.0)])


def _log_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    ticks = [(10.0**power, f"{10.0**power:g}") for power in range(first, last + 1)]
    return Axis(10.0**first, 10.0**last, ticks, math.log10)


# ---- drawing ------------------------------------------------------------------------------------------


def _chart(
    title: str,
    lines: Sequence[Line],
    log: RunLog,
    upward: str,
    make_axis: Callable[[float, float], Axis] = _plain_axis,
    over_time: bool = False,
) -> str:
    """A chart over the steps of `log` with its stages, or over time without them."""
    if not lines:
        return ""
    points = [point for line in lines for run in line.runs for point in run]
    values = [value for _, value in points]
    if make_axis is _log_axis and min(values) <= 0:
        make_axis = _plain_axis
    axis = make_axis(min(values), max(values))
    right = max(x for x, _ in points) or 1.0
    plot = Plot(1, axis.scale(axis.high) - axis.scale(axis.low))
    under = [(value / right, f"{value:,.10g}") for value in steps_of(0, right)]
    heights = [(axis.scale(value) - axis.scale(axis.low), label) for value, label in axis.ticks]
    parts = [
        plot.axes(heights, under, upward, _time_unit(log.windows)[1] if over_time else "step"),
        *(_stage_mark(plot, stage, right) for stage in (() if over_time else log.stages)),
        *(_path(plot, axis, line, right, number) for number, line in enumerate(lines, 1)),
    ]
    return f"<div>{heading(title)}{legend([line.name for line in lines])}{plot.svg(text(title), parts)}</div>"


def _stage_mark(plot: Plot, stage: StageStart, right: float) -> str:
    x = plot.x(stage.step / right)
    return (
        f'<path class="stage" d="M{x} {plot.ABOVE - 6}V{plot.HEIGHT - plot.BELOW}"/>'
        f'<text x="{x}" y="{plot.ABOVE - 2}" dx="3">{stage.number}<title>{text(stage.name)}</title></text>'
    )


def _path(plot: Plot, axis: Axis, line: Line, right: float, number: int) -> str:
    low = axis.scale(axis.low)
    runs = [
        [f"{plot.x(x / right)} {plot.y(axis.scale(min(max(y, axis.low), axis.high)) - low)}" for x, y in run]
        for run in line.runs
    ]
    ends = f"{text(line.name)}: {line.runs[0][0][1]:.4g} at first, {line.runs[-1][-1][1]:.4g} at last"
    path = "".join(f"M{'L'.join(run)}" for run in runs)
    few = sum(map(len, runs)) <= DOTTED
    dots = "".join(f"M{point}h0" for run in runs for point in run if few or len(run) == 1)
    marks = f'<path class="dots l{number}" d="{dots}"/>' if dots else ""
    return f'<path class="line l{number}" d="{path}"><title>{ends}</title></path>{marks}'


def legend(names: Iterable[str]) -> str:
    """Which line is which."""
    items = "".join(
        f'<li><svg viewBox="0 0 24 8"><path class="line l{number}" d="M0 4H24"/></svg>{text(name)}</li>'
        for number, name in enumerate(names, 1)
    )
    return f'<ul class="legend">{items}</ul>'


def _epoch_table(log: RunLog) -> str:
    """The numbers behind the lines."""
    head = [
        "stage",
        "epoch",
        "photos/s",
        "data wait",
        "device busy",
        "train loss",
        "val loss",
        *SHOWN_METRICS.values(),
    ]
    rows = [_epoch_row(epoch) for epoch in log.epochs[-MOST_EPOCHS:]]
    if not rows:
        return ""
    cut = f", the last {MOST_EPOCHS} of {len(log.epochs):,}" if len(log.epochs) > MOST_EPOCHS else ""
    return f"<details><summary>All epochs{cut}</summary>{table(head, rows, range(1, len(head)))}</details>"


def _epoch_row(epoch: Mapping[str, Any]) -> list[object]:
    losses = ", ".join(
        f"{level} {epoch['train'][level]:.3f}" for level in LOSSES if level in epoch.get("train", {})
    )
    val_loss = epoch.get("val_loss")
    return [
        epoch["stage"],
        epoch["epoch"],
        f"{epoch['photos_a_second']:,.0f}",
        share(epoch.get("data_wait_share")),
        share(epoch.get("device_busy_share")),
        losses,
        Html("–") if val_loss is None else f"{val_loss:.3f}",
        *(share(epoch["metrics"].get(name)) for name in SHOWN_METRICS),
    ]
