"""Copies and look-alikes on the page of the report: two photos side by side, and what was done about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardtool.paths import path_text
from shardtool.report import markup
from shardtool.report.thumbnail import Read, picture
from shardtool.scan import SPLITS, Scan
from shardtool.select import Copies
from shardtool.similar import NearPair

PAIRS = 30  # of each list: they bound the page


@dataclass(frozen=True)
class _Pair:
    """Two photos to be shown side by side, and what was done about them."""

    first: bytes
    second: bytes
    done: str


def copies_section(read: Read, scan: Scan, near: Sequence[NearPair], copies: Copies) -> str:
    """Leaks, label conflicts, copies that were kept, and pairs that look alike."""
    reasons = scan.reasons
    leaks = _refused_pairs(scan, "leak", "left refused, right packed")
    conflicts = _refused_pairs(scan, "label conflict", "both refused")
    lists = [
        (f"Leaks between splits: {reasons['leak']:,} refused", leaks),
        (f"Label conflicts: {reasons['label conflict']:,} refused", conflicts),
        (f"Copies that were kept: {len(copies.photos):,} photos", _kept_pairs(scan, copies)),
        (f"Pairs that look alike: {len(near):,}, both kept", _near_pairs(scan, near[: PAIRS + 1])),
    ]
    return "".join(f"<h3>{title}</h3>{_pair_list(read, pairs)}" for title, pairs in lists)


def _refused_pairs(scan: Scan, reason: str, done: str) -> list[_Pair]:
    """A pair of which both are refused names itself from both sides: it is shown once."""
    pairs = {
        tuple(sorted((refusal.source, refusal.twin))): _Pair(refusal.source, refusal.twin, done)
        for refusal in reversed(scan.refused)
        if refusal.reason == reason and refusal.twin
    }
    return [pairs[both] for both in sorted(pairs)]


def _kept_pairs(scan: Scan, copies: Copies) -> list[_Pair]:
    """One pair more than is shown, so that the list knows that there are more."""
    firsts = np.flatnonzero(np.diff(copies.groups) == 0)[: PAIRS + 1]
    left, right = (_places(scan.photos.take(pa.array(copies.photos[firsts + side]))) for side in (0, 1))
    return [
        _Pair(first, second, f"both kept, {_relation(place, other)}")
        for (first, place), (second, other) in zip(left, right, strict=True)
    ]


def _near_pairs(scan: Scan, near: Sequence[NearPair]) -> list[_Pair]:
    kind = scan.photos.schema.field("source").type
    sources = pa.array([path for pair in near for path in (pair.first, pair.second)], kind)
    found = scan.photos.filter(pc.is_in(scan.photos.column("source"), value_set=sources))
    places = dict(_places(found))
    return [
        _Pair(
            pair.first,
            pair.second,
            f"distance {pair.distance}, {_relation(places[pair.first], places[pair.second])}",
        )
        for pair in near
    ]


def _places(photos: pa.Table) -> list[tuple[bytes, tuple[int, int]]]:
    """(path, (split, class row)) of each photo."""
    sources, splits, rows = (photos.column(name).to_pylist() for name in ("source", "split", "row"))
    return list(zip(sources, zip(splits, rows, strict=True), strict=True))


def _relation(first: tuple[int, int], second: tuple[int, int]) -> str:
    (split, row), (other_split, other_row) = first, second
    where = SPLITS[split] if split == other_split else f"{SPLITS[split]} and {SPLITS[other_split]}"
    return f"{where}, {'same label' if row == other_row else 'labels differ'}"


def _pair_list(read: Read, pairs: Sequence[_Pair]) -> str:
    items = [
        f'<li><div class="pair">{_figure(read, pair.first)}{_figure(read, pair.second)}</div>'
        f"<p>{markup.text(pair.done)}</p></li>"
        for pair in pairs[:PAIRS]
    ]
    more = f"<p><small>The first {PAIRS:,} pairs are shown.</small></p>" if len(pairs) > PAIRS else ""
    return f'<ul class="pairs">{"".join(items)}</ul>{more}' if items else "<p>None.</p>"


def _figure(read: Read, source: bytes) -> str:
    path = markup.name(path_text(source)).replace("/", "/<wbr>")
    return f"<figure>{picture(read, source)}<figcaption>{path}</figcaption></figure>"
