"""Which species are taken for which: the matrix as SVG, and the pairs as a table.

Legend: a cell is 1 × 1 in the units of the view box, so that the script can sort and zoom by moving cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from shardtool.report.markup import text
from shardtool.text import plain
from train.report.document import attribute, heading, interval, paragraph, sentence, share, table

LABELLED = 30  # species; more have no room for their names beside the matrix
LABEL_CHARACTERS = 17
MARGIN = 0.32  # of the side, for the names
TOOLTIPS = 5_000  # cells; of a larger matrix the script tells each
PAIRS = 100  # rows of the table
CONTROLS = (
    '<p class="controls" hidden><label>Order <select class="order"><option value="name">by name'
    '<option value="wrong">most mistakes first<option value="photos">most photos first</select></label>'
    '<label>Show <select class="show"><option value="0">all species'
    f'<option value="{LABELLED}">the first {LABELLED}<option value="10">the first 10</select></label></p>'
)


def confusion_section(confusion: Mapping[str, Any]) -> str:
    """The matrix with its controls, and the confused pairs, the surest first."""
    if not sum(confusion["photos"]):
        return paragraph("No validation photos.")
    how = paragraph(
        "A row is what the photos show, a column what they were taken for; the darker, the larger the share "
        "of the row. Point at a cell, tap it, or use the arrow keys."
    )
    return f"{how}{CONTROLS}{_matrix(confusion)}<p><output> </output></p>{_pairs(confusion)}"


def _matrix(confusion: Mapping[str, Any]) -> str:
    names, photos = [plain(name) for name in confusion["species"]], confusion["photos"]
    side, margin = len(names), MARGIN * len(names)
    counts = confusion["counts"]
    titled = len(counts) <= TOOLTIPS
    cells = "".join(_cell(names, photos, truth, answer, count, titled) for truth, answer, count in counts)
    frame = f'<rect class="frame" width="{side}" height="{side}"/>'
    kind = "matrix" if side <= LABELLED else "matrix bare"
    box = _box(side, margin if side <= LABELLED else 0)
    return (
        f'<svg class="{kind}" viewBox="{box}" role="img" tabindex="0" '
        f'data-names="{attribute(json.dumps(names))}" data-photos="{json.dumps(photos)}" '
        f'data-margin="{MARGIN}" data-labelled="{LABELLED}"><title>confusion of species</title>'
        f'{frame}<g font-size="{side * 0.03:.3f}">{_labels(names)}</g><g>{cells}</g>'
        '<rect class="cursor" width="1" height="1" visibility="hidden"/></svg>'
    )


def _box(side: int, margin: float) -> str:
    return f"{-margin:g} {-margin:g} {side + margin:g} {side + margin:g}"


def _cell(
    names: Sequence[str], photos: Sequence[int], truth: int, answer: int, count: int, titled: bool
) -> str:
    part = count / photos[truth]
    kind = "right" if truth == answer else "wrong"
    opacity = 0.12 + 0.88 * math.sqrt(part)
    words = f"<title>{text(_told(names, photos, truth, answer, count))}</title>" if titled else ""
    return (
        f'<rect class="{kind}" x="{answer}" y="{truth}" width="1" height="1" fill-opacity="{opacity:.2f}" '
        f'data-n="{count}">{words}</rect>'
    )


def _told(names: Sequence[str], photos: Sequence[int], truth: int, answer: int, count: int) -> str:
    what = "recognised" if truth == answer else f"taken for {names[answer]}"
    return f"{names[truth]} {what}: {count:,} of {photos[truth]:,} photos ({count / photos[truth]:.1%})"


def _labels(names: Sequence[str]) -> str:
    """The names of rows and columns, at the place of their species."""
    short = [name if len(name) <= LABEL_CHARACTERS else f"{name[: LABEL_CHARACTERS - 1]}…" for name in names]
    return "".join(
        f'<text class="row" x="-0.2" y="{place + 0.5}" dy=".35em" text-anchor="end">{text(name)}</text>'
        f'<text class="column" transform="translate({place + 0.5} -0.2) rotate(-90)" dy=".35em">'
        f"{text(name)}</text>"
        for place, name in enumerate(short)
    )


def _pairs(confusion: Mapping[str, Any]) -> str:
    pairs = confusion["pairs"]
    if not pairs:
        return paragraph("No species was taken for another.")
    systematic = sum(pair["systematic"] for pair in pairs)
    cut = f" The surest {PAIRS} of {len(pairs):,} pairs." if len(pairs) > PAIRS else ""
    rows = [
        (
            pair["truth"],
            pair["answer"],
            pair["count"],
            pair["photos"],
            share(pair["share"]),
            interval(pair["low"], pair["high"]),
            "systematic" if pair["systematic"] else "",
        )
        for pair in pairs[:PAIRS]
    ]
    head = ("species", "taken for", "times", "of photos", "share", "95 % interval", "")
    return (
        f"{heading(f'Confused pairs, {systematic} of them systematic')}"
        f"{paragraph(sentence(confusion['definition']) + '.' + cut, 'soft')}"
        f"{table(head, rows, range(2, 6), 'sortable')}"
    )
