"""What people see of an evaluation: the short tables of `train-hier evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardtool.terminal import clean, console, say, table
from shardtool.text import counted
from train.metrics import METRICS, Scores

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "n/a": "dim"}
SHOWN = 10  # rows of a table that could be long


def show_scores(scores: Scores) -> None:
    """Every metric with its interval, target and definition."""
    board = table("", "metric", "value", "95 % interval", "target", "verdict")
    for name, result in scores.metrics.items():
        target = METRICS[name].target
        known = result.low is not None and result.high is not None
        board.add_row(
            name,
            _share(result.value),
            f"{result.low:.1%} – {result.high:.1%}" if known else "",
            f"{target:.0%}" if target else "",
            _coloured(result.verdict),
        )
    console.print(board)
    for name, definition in METRICS.items():
        result = scores.metrics[name]
        of = "" if result.photos == scores.photos else f" ({counted(result.photos, 'photo')})"
        if result.classes is not None:
            of = f" ({counted(result.classes, 'class', 'classes')})"
        say(f"[dim]{name}: {definition.text}{of}[/]")
    say(counted(scores.photos, "photo"))


def show_results(value: Mapping[str, Any]) -> None:
    """The rest of `results.results`, shortened: --json has it all."""
    _show_calibration(value["calibration"], value["temperatures"], value["answers"])
    _show_confusions(value["confusion"])
    _show_classes("classes of the long tail", [entry for entry in value["classes"] if entry["tail"]])
    _show_classes(
        "other classes, the lowest F1 first", [entry for entry in value["classes"] if not entry["tail"]]
    )
    board = table("verification", "item", "figure", "verdict")
    for entry in value["verification"]:
        board.add_row(clean(entry["item"]), clean(entry["figure"]), _coloured(entry["verdict"]))
    console.print(board)
    for note in value["notes"]:
        say(f"[dim]{note}[/]")
    if value["left_out"]:
        say(f"[yellow]{counted(len(value['left_out']), 'photo')} could not be read and left out[/]")


def _show_calibration(
    calibration: Mapping[str, Any], temperatures: Mapping[str, float], answers: Mapping[str, Any]
) -> None:
    board = table("calibration error", "of", "before", "after", "temperature")
    for level in ("species", "disease", "answer"):
        found = calibration[level]
        temperature = f"{temperatures[level]:.2f}" if level in temperatures else ""
        board.add_row(level, _share(found["before"]), _share(found["after"]), temperature)
    console.print(board)
    say(f"[dim]{calibration['definition']}; {calibration['fit']}[/]")
    say(
        f"answers to the {calibration['measured_on']:,} other photos: {_share(answers['hard'])} "
        f"right with hard routing, {_share(answers['joint'])} with a beam of {answers['beam']}; sure of "
        f"{_share(answers['sure'])} (probability ≥ {answers['sure_at']:.0%}), right in "
        f"{_share(answers['right_if_sure'])} of these and {_share(answers['right_if_unsure'])} of the others"
    )


def _show_confusions(confusion: Mapping[str, Any]) -> None:
    if not confusion["pairs"]:
        return
    board = table("species taken for another", "species", "taken for", "photos", "share", "95 % interval", "")
    for pair in confusion["pairs"][:SHOWN]:
        board.add_row(
            clean(pair["truth"]),
            clean(pair["answer"]),
            f"{pair['count']:,} of {pair['photos']:,}",
            f"{pair['share']:.1%}",
            f"{pair['low']:.1%} – {pair['high']:.1%}",
            "[red]systematic[/]" if pair["systematic"] else "",
        )
    console.print(board)
    say(f"[dim]{confusion['definition']}[/]")


def _show_classes(title: str, classes: list[dict[str, Any]]) -> None:
    known = sorted(
        (entry for entry in classes if entry["f1"] is not None), key=lambda entry: float(entry["f1"])
    )
    if not known:
        return
    more = f" ({SHOWN} of {len(known)})" if len(known) > SHOWN else ""
    board = table(title + more, "species", "disease", "F1", "precision", "recall", "train", "photos")
    for entry in known[:SHOWN]:
        board.add_row(
            clean(entry["species"]),
            clean(entry["disease"]),
            *(_share(entry[name]) for name in ("f1", "precision", "recall")),
            f"{entry['train_photos']:,}",
            f"{entry['photos']:,}",
        )
    console.print(board)


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _coloured(verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"
