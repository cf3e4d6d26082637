"""How each species and each disease does: tables that can be sorted, the diseases folded by species."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from shardtool.quality import TAIL_PHOTOS
from shardtool.report.markup import name
from shardtool.text import counted
from train.report.document import badge, interval, paragraph, share, table

TAIL_ROWS = 500
OPEN_CLASSES = 60  # a label space of up to so many classes is shown unfolded

Class = Mapping[str, Any]


def species_section(results: Mapping[str, Any]) -> str:
    """Each species with the head of its diseases, and inside it each disease."""
    rows = [
        (
            entry["name"],
            entry["diseases"],
            entry["photos"],
            share(entry["right"]),
            share(entry["disease_top1"]),
            interval(entry["low"], entry["high"]) if entry["photos"] else "",
            share(entry["commonest"]) if entry["photos"] else "",
            "–" if entry["loss"] is None else f"{entry['loss']:.3f}",
            badge(entry["verdict"]),
        )
        for entry in results["species"]
    ]
    head = (
        *("species", "diseases", "photos", "species right", "disease right", "95 % interval"),
        *("commonest disease", "loss", "has learned"),
    )
    note = paragraph(
        "Disease right: in the head of the true species. Commonest disease: what the one answer that is "
        "right most often would reach.",
        "soft",
    )
    return note + table(head, rows, range(1, 8), "sortable") + _folds(results["classes"])


def _folds(classes: Sequence[Class]) -> str:
    opened = " open" if len(classes) <= OPEN_CLASSES else ""
    folds = [
        f"<details{opened}><summary>{name(species)}</summary>{_class_table(list(entries))}</details>"
        for species, entries in groupby(classes, key=lambda entry: str(entry["species"]))
    ]
    return f'<div class="folds">{"".join(folds)}</div>'


def _class_table(entries: Sequence[Class]) -> str:
    rows = [(entry["disease"], *_figures(entry)) for entry in entries]
    return table(("disease", *FIGURES), rows, range(1, 6), "sortable")


FIGURES = ("training photos", "photos", "precision", "recall", "F1")


def _figures(entry: Class) -> tuple[object, ...]:
    return (
        entry["train_photos"],
        entry["photos"],
        *(share(entry[figure]) for figure in ("precision", "recall", "f1")),
    )


def tail_section(results: Mapping[str, Any]) -> str:
    """The rare classes, the worst first."""
    tail = [entry for entry in results["classes"] if entry["tail"]]
    if not tail:
        return ""
    known = [entry for entry in tail if entry["f1"] is not None]
    worst = sorted(known, key=lambda entry: (entry["f1"], entry["species"], entry["disease"]))
    rows = [(entry["species"], entry["disease"], *_figures(entry)) for entry in worst[:TAIL_ROWS]]
    cut = f" The worst {TAIL_ROWS} are shown." if len(worst) > TAIL_ROWS else ""
    mean = math.fsum(entry["f1"] for entry in known) / len(known) if known else None
    words = (
        f"{counted(len(tail), 'class has', 'classes have')} at most {TAIL_PHOTOS} training photos; "
        f"{len(tail) - len(known):,} of them never occur in validation, neither as truth nor as answer. "
        f"Mean F1 of the others: {share(mean)}.{cut}"
    )
    return paragraph(words) + table(("species", "disease", *FIGURES), rows, range(2, 7), "sortable")
