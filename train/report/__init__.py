"""report.html beside a run, for people: what was reached, what was confused, how the training went.

One file that opens from disk without a network. It is made from what lies in the run folder: events.jsonl,
and results.json, which `save_results` writes after an evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardtool.errors import UsageError
from shardtool.files import write_atomic
from shardtool.index import Split
from shardtool.report.markup import text
from shardtool.text import plain, time_text
from train.logbook import read_events
from train.report.classes import species_section, tail_section
from train.report.confusion import confusion_section
from train.report.curves import curves_section
from train.report.document import page, paragraph, share
from train.report.history import run_section, troubles_section
from train.report.photos import photos_section, thumbnails
from train.report.runlog import RunLog, read_log
from train.report.scores import calibration_section, targets_section, verification_section

RESULTS = "results.json"
REPORT = "report.html"
SHARDS_CURE = "run train-hier report RUN --shards data/shards/val"


def save_results(run: Path, results: Mapping[str, Any], val: Split, checkpoint: str) -> None:
    """Keep an evaluation (`train.results.results`) of a checkpoint of the run, by name, with thumbnails of
    the photos that it names."""
    value = {**results, "checkpoint": checkpoint, "thumbnails": thumbnails(val, results)}
    write_atomic(run / RESULTS, (json.dumps(value, allow_nan=False) + "\n").encode())


def write_report(run: Path) -> Path:
    """Write the page of a run folder; returns its path. Raises UsageError if nothing is there to tell."""
    events, results = read_events(run), _read_results(run / RESULTS)
    if events is None and results is None:
        raise UsageError("no events.jsonl and no results.json: not a run folder", where=run)
    path = run / REPORT
    write_atomic(path, report_page(run.resolve().name, events or [], results).encode())
    return path


def _read_results(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"not JSON: {error}", where=path, cure=SHARDS_CURE) from None
    if not isinstance(value, dict) or "verification" not in value:
        raise UsageError("not an evaluation of this program", where=path, cure=SHARDS_CURE)
    return value


def report_page(name: str, events: Sequence[Mapping[str, Any]], results: Mapping[str, Any] | None) -> str:
    """The page as HTML. Pure; `results` as `save_results` keeps them, None before an evaluation."""
    log = read_log(events)
    sections: dict[str, str] = (
        _evaluation(results) if results else {"Verification": paragraph(f"Not evaluated yet: {SHARDS_CURE}.")}
    )
    sections["Curves"] = curves_section(log)
    if log.sessions:
        sections["Photos and steps left out"] = troubles_section(log)
    sections["Run"] = run_section(log)
    recipe = log.run.get("recipe", {}).get("name", "")
    about = f"Recipe {plain(recipe)}" if recipe else "Recipe unknown"
    if results:
        about += f", evaluated: {results['checkpoint']}, on {results['photos']:,} validation photos"
    head = f'<h1>{text(name)}</h1><p class="soft">{text(about)}</p>{_key_figures(log, results)}'
    return page(f"Training {name}", head, sections)


def _evaluation(results: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Verification": verification_section(results),
        "Metrics": targets_section(results),
        "Confusion": confusion_section(results["confusion"]),
        "Species": species_section(results),
        "Rare classes": tail_section(results),
        "Mistakes": photos_section(results),
        "Calibration": calibration_section(results),
    }


def _key_figures(log: RunLog, results: Mapping[str, Any] | None) -> str:
    figures: dict[str, str] = {}
    if results:
        metrics = results["metrics"]
        figures = {
            "species right": share(metrics["species_top1"]),
            "disease right": share(metrics["disease_top1"]),
            "both right": share(metrics["cascade"]),
        }
    if log.epochs:
        photos = sum(epoch["photos"] for epoch in log.epochs)
        seconds = sum(epoch["seconds"] for epoch in log.epochs)
        figures |= {
            "photos trained on": f"{photos:,}",
            "photos/s": f"{photos / max(seconds, 1e-9):,.0f}",
            "time": time_text(log.seconds),
        }
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items())
    return f'<dl class="key">{cards}</dl>' if cards else ""
