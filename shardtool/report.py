"""report.json for programs and report.html for people: what was packed, what was refused and why.

The page is one file without scripts or network: every name on it is escaped, and a content security
policy forbids what could still slip through. Times, machine names and absolute paths are left out, so the
same pack gives the same page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shardtool.card import croissant, dataset_card
from shardtool.index import Manifest, ShardEntry
from shardtool.photo import Refused, encode
from shardtool.quality import ShuffleQuality
from shardtool.scan import SPLITS, Refusal, Scan, column
from shardtool.similar import NearPair
from shardtool.terminal import plain, size_text

Read = Callable[[bytes], bytes]  # path under the source -> bytes of the photo; raises Refused

TAIL_PHOTOS = 80  # a class with at most as many training photos is in the long tail, as in train.metrics
THUMBNAIL = 96  # pixels, the longer side
# These bound the page: about 3.5 kB a thumbnail, 3 MB in all.
CLASS_THUMBNAILS = 360
REASON_THUMBNAILS = 24
REASON_ENTRIES = 200
PAIRS = 30
BARS = 120
BAR_CLASSES = 5_000  # in a larger label space the plot of the long tail has to do
OPEN_CLASSES = 60  # a label space of up to so many classes is shown unfolded
NAME_CHARACTERS = 160

MEANINGS = {
    "empty": "the file holds no bytes",
    "not an image": "the content is no image format that is read, whatever the name says",
    "damaged": "the pixels do not decode completely",
    "too large": "more pixels or bytes than a photo has",
    "too small": "a side of fewer than 8 pixels",
    "not a regular file": "links, devices, pipes and sockets are not followed",
    "unreadable": "the system does not let it be read",
    "misplaced": "not in a species/disease folder, so it has no label",
    "label conflict": "the same bytes stand under another label: every copy is refused",
    "leak": "the same bytes stand in a later split: this copy is refused, validation stays honest",
}

_STYLE = """
:root{color-scheme:light dark;--page:#fcfcfa;--ink:#20241f;--soft:#667066;--line:#dfe3dc;--card:#f2f4ef;
--leaf:#3f8450;--tail:#c77d18}
@media(prefers-color-scheme:dark){:root{--page:#161916;--ink:#dfe4dc;--soft:#95a094;--line:#333a33;
--card:#1f241f;--leaf:#6db27b;--tail:#e2a144}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:2.5rem 1.25rem 4rem;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;font-weight:600;margin:0}
h2{font-size:1.2rem;font-weight:600;margin:3rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1rem;font-weight:600;margin:1.6rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--leaf)}
small,.soft,dt,th,nav{color:var(--soft)}
code{font-size:.87em}
nav{margin:1rem 0}nav a{margin-right:1rem;white-space:nowrap}
.key{display:grid;grid-template-columns:repeat(auto-fit,minmax(8rem,1fr));gap:.75rem;margin:1.5rem 0}
.key div{background:var(--card);border-radius:8px;padding:.7rem .9rem}
dt{font-size:.82rem}dd{margin:0;white-space:nowrap;font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%;margin:.8rem 0}
th{font-weight:400;font-size:.85rem;text-align:left}
th,td{padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.n:last-child,th.n:last-child{padding-right:0}
.narrow{width:auto;min-width:20rem}.reasons td:first-child{white-space:nowrap}
img{display:block;max-width:96px;border-radius:4px}
svg{display:block}
.chart{width:100%;max-width:36rem;overflow:visible}
.chart text{font:11px system-ui,sans-serif;fill:var(--soft)}.chart .mark{fill:var(--tail);
paint-order:stroke;stroke:var(--page);stroke-width:4px}
.axis{stroke:var(--line)}.head,.bar{fill:var(--leaf)}.tail{fill:var(--tail)}
.limit{stroke:var(--tail);stroke-dasharray:4 3}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem 2rem}
summary{cursor:pointer;padding:.35rem 0}
.tree summary,.tree>p{display:grid;grid-template-columns:1.1rem 1fr repeat(var(--splits),5.5rem);margin:0;
max-width:none;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
.tree summary{list-style:none}.tree summary::-webkit-details-marker{display:none}
.tree summary::before{content:"+";color:var(--soft)}.tree [open]>summary::before{content:"–"}
.tree summary span,.tree>p span{text-align:right}
.tree table{margin:0 0 1rem;table-layout:fixed}
.tree td{vertical-align:middle;border-color:transparent;text-align:right;width:5.5rem;padding:.2rem 0;
font-variant-numeric:tabular-nums}
.tree td:first-child{width:5.2rem;padding-left:1.1rem}.tree td:nth-child(2){width:auto;text-align:left}
.tree td:nth-child(3){width:9rem}.tree img{max-width:56px;max-height:56px}
.tree td svg{width:100%;height:.55rem}
.tree i{color:var(--tail);font-size:.85em;font-style:normal}
.photos,.pairs{display:grid;gap:.8rem;margin:.8rem 0;padding:0;list-style:none;
grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.photos li{display:flex;gap:.7rem}.photos div,figure{min-width:0}
.pairs li{background:var(--card);border-radius:8px;padding:.8rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.8rem}
figure{margin:0}figcaption,.photos div,.pairs p{font-size:.82rem;line-height:1.35;margin-top:.35rem}
.none{flex:none;display:grid;place-items:center;width:96px;height:64px;border:1px dashed var(--line);
border-radius:4px;font-size:.75rem;color:var(--soft)}
@media(max-width:40rem){body{padding:1.5rem 1rem 3rem}.chart text{font-size:14px}
.tree summary,.tree>p{grid-template-columns:1.1rem 1fr repeat(var(--splits),3.6rem)}
.tree td{width:3.6rem}.tree td:nth-child(3){display:none}
td,th{padding-right:.5rem}.narrow{min-width:0}}
@media print{body{max-width:none;padding:0;font-size:11px}nav{display:none}li,tr,svg{break-inside:avoid}
details::details-content{content-visibility:visible;block-size:auto}}
"""


@dataclass(frozen=True)
class _Facts:
    """All that is reported. `copies` are the packed photos whose bytes stand more than once."""

    scan: Scan
    manifest: Manifest
    shuffle: Mapping[str, ShuffleQuality]
    near: Sequence[NearPair]
    copies: _Copies


def report_files(
    read: Read,
    scan: Scan,
    manifest: Manifest,
    shuffle: Mapping[str, ShuffleQuality],
    near: Sequence[NearPair],
) -> dict[str, bytes]:
    """What stands beside the shards for people and other programs: file name -> content.

    `read` gives a source photo for its thumbnail and raises Refused if it cannot; `shuffle` is by split.
    """
    facts = _Facts(scan, manifest, shuffle, near, _copies(scan))
    return {
        "report.json": _json_bytes(_report_json(facts)),
        "report.html": _report_html(read, facts).encode(),
        "README.md": dataset_card(manifest).encode(),
        "croissant.json": _json_bytes(croissant(manifest)),
    }


def _report_json(facts: _Facts) -> dict[str, Any]:
    """Counts, every refused file and every pair that looks alike.

    A path that is not UTF-8 is kept byte for byte, by `surrogateescape`.
    """
    scan, manifest = facts.scan, facts.manifest
    return {
        "digest": manifest.digest,
        "samples": {name: sum(rows) for name, rows in manifest.class_counts.items()},
        "refused": dict(sorted(_reasons(scan).items())),
        "ignored": dict(sorted(scan.ignored.items())),
        "converted": dict(sorted(scan.converted.items())),
        "progressive": scan.progressive,
        "duplicates": len(facts.copies.photos),
        "shuffle": {name: vars(facts.shuffle[name]) for name in sorted(facts.shuffle)},
        "near": [
            {"first": _path(pair.first), "second": _path(pair.second), "distance": pair.distance}
            for pair in facts.near
        ],
        "refusals": [_refusal_json(refusal) for refusal in scan.refused],
    }


def _refusal_json(refusal: Refusal) -> dict[str, str]:
    twin = {"twin": _path(refusal.twin)} if refusal.twin else {}
    return {
        "source": _path(refusal.source),
        "reason": str(refusal.reason),
        "detail": refusal.detail,
        **twin,
    }


def _report_html(read: Read, facts: _Facts) -> str:
    """The page: key figures, classes, refusals, copies, changes, shards, order and options."""
    scan, manifest = facts.scan, facts.manifest
    sections = {
        "Splits": _splits(manifest),
        "Classes": _classes(read, scan, manifest),
        "Refused": _refused(read, scan),
        "Copies": _twins(read, facts),
        "Changes": _changes(scan),
        "Shards": _shards(manifest),
        "Order": "".join(f"<p>{_text(line)}</p>" for line in _shuffle_lines(facts.shuffle)),
        "Options": _options(manifest),
    }
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{title.lower()}"><h2>{title}</h2>{content}</section>'
        for title, content in sections.items()
    )
    return _page(
        f"<header><h1>Packed dataset</h1>"
        f'<p class="soft">{_text(manifest.tool)}, digest <code>{_text(manifest.digest)}</code></p>'
        f"{_key_figures(scan, manifest, facts.near)}<nav>{links}</nav></header><main>{body}</main>",
        f"{_STYLE}:root{{--splits:{len(manifest.splits)}}}",
    )


def _page(body: str, style: str) -> str:
    # the hash lets this style sheet in and no other, not even a style attribute
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Packed dataset</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


# --- Numbers at the top and the splits -----------------------------------------------------------


def _key_figures(scan: Scan, manifest: Manifest, near: Sequence[NearPair]) -> str:
    entries = [entry for shards in manifest.splits.values() for entry in shards]
    figures = {
        "photos": f"{sum(entry.samples for entry in entries):,}",
        "species": f"{len(manifest.taxonomy.species):,}",
        "classes": f"{manifest.taxonomy.rows:,}",
        "shards": f"{len(entries):,}",
        "size": size_text(sum(entry.bytes for entry in entries)),
        "refused": f"{len(scan.refused):,}",
        "pairs alike": f"{len(near):,}",
    }
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items())
    return f'<dl class="key">{cards}</dl>'


def _splits(manifest: Manifest) -> str:
    total = sum(entry.samples for shards in manifest.splits.values() for entry in shards)
    return _table(
        ("split", "photos", "share", "shards", "bytes", "classes"),
        [
            (
                name,
                samples := sum(entry.samples for entry in shards),
                f"{samples / total:.1%}",
                len(shards),
                size_text(sum(entry.bytes for entry in shards)),
                np.count_nonzero(manifest.class_counts[name]),
            )
            for name, shards in manifest.splits.items()
        ],
        numbers=5,
    )


# --- Classes -------------------------------------------------------------------------------------


def _classes(read: Read, scan: Scan, manifest: Manifest) -> str:
    counts_RS = np.array([manifest.class_counts[name] for name in manifest.splits]).T  # [rows, splits]
    shown = _pictured_rows(scan, manifest)
    note = (
        f"<p><small>A thumbnail for {len(shown):,} of {manifest.taxonomy.rows:,} classes, "
        f"{CLASS_THUMBNAILS:,} at most.</small></p>"
    )
    return _tail(manifest) + note + _tree(read, manifest, counts_RS, shown)


def _pictured_rows(scan: Scan, manifest: Manifest) -> dict[int, bytes]:
    """Class row -> its first photo: one class of every species before a second of any."""
    taxonomy = manifest.taxonomy
    rows, firsts = np.unique(column(scan.photos, "row"), return_index=True)
    disease = rows - taxonomy.offsets[taxonomy.row_species[rows]]
    chosen = np.sort(np.lexsort((rows, disease))[:CLASS_THUMBNAILS])
    sources = scan.photos.column("source").take(pa.array(firsts[chosen])).to_pylist()
    return dict(zip(rows[chosen].tolist(), sources, strict=True))


def _tree(read: Read, manifest: Manifest, counts_RS: NDArray[np.int64], shown: Mapping[int, bytes]) -> str:
    taxonomy = manifest.taxonomy
    titles = "".join(f"<span>{_text(name)}</span>" for name in manifest.splits)
    opened = " open" if taxonomy.rows <= OPEN_CLASSES else ""
    counts_R, bars = counts_RS.sum(axis=1), taxonomy.rows <= BAR_CLASSES
    flags = class_flags(counts_RS, tuple(manifest.splits))
    species = []
    for number, name in enumerate(taxonomy.species):
        first, end = taxonomy.offsets[number : number + 2].tolist()
        rows = "".join(
            f"<tr><td>{_picture(read, shown[row]) if row in shown else ''}"
            f"<td>{_name(taxonomy.row_names[row][1])}{_flag(flags[row])}"
            f"<td>{_bar(counts_R[row] / counts_R.max()) if bars else ''}{_cells(counts_RS[row])}\n"
            for row in range(first, end)
        )  # without the closing tags that HTML does not ask for: there can be 100,000 rows
        sums = "".join(f"<span>{count:,}</span>" for count in counts_RS[first:end].sum(axis=0).tolist())
        species.append(
            f"<details{opened}><summary><b>{_name(name)}</b>{sums}</summary><table>{rows}</table></details>"
        )
    return f'<div class="tree"><p class="soft"><b></b><b></b>{titles}</p>{"".join(species)}</div>'


def class_flags(counts_RS: NDArray[np.int64], splits: Sequence[str]) -> list[str]:
    """What is odd about each class, "" for most; `counts_RS` [rows, splits] are its photos."""
    flags = np.full(len(counts_RS), "", dtype=object)
    flags[counts_RS.sum(axis=1) == 1] = "one photo"
    if "train" in splits:
        flags[counts_RS[:, list(splits).index("train")] == 0] = "not in train"
    flags[counts_RS.sum(axis=1) == 0] = "no photo left"
    return [str(flag) for flag in flags]


def _flag(flag: str) -> str:
    return f" <i>{flag}</i>" if flag else ""


def _cells(counts_S: NDArray[np.int64]) -> str:
    return "".join(f"<td>{count:,}" for count in counts_S.tolist())


def _bar(share: float) -> str:
    return f'<svg><rect class="bar" width="{share:.0%}" height="100%"/></svg>'


# --- The long tail -------------------------------------------------------------------------------


def _tail(manifest: Manifest) -> str:
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    counts = np.array(manifest.class_counts[split])
    order = np.argsort(-counts, kind="stable")
    few = int((counts <= TAIL_PHOTOS).sum())
    names = manifest.taxonomy.row_names
    largest, smallest = (f"<bdi>{_name(' / '.join(names[row]))}</bdi>" for row in (order[0], order[-1]))
    text = f"Photos in {_text(split)}: {counts[order[0]]:,} in the largest class, {largest}, "
    text += f"{counts[order[-1]]:,} in the smallest, {smallest}. "
    text += f"{few:,} of {len(counts):,} classes are in the long tail, with at most {TAIL_PHOTOS} photos."
    return f"<p>{text}</p>{_tail_plot(counts[order], split)}"


def _tail_plot(counts: NDArray[np.int64], split: str) -> str:
    """`counts` in falling order, as steps on a logarithmic axis from 0.8 photos up."""
    plot = _Plot(len(counts), math.log10(max(int(counts[0]), 1) * 1.3 / 0.8))
    heights = np.log10(np.maximum(counts, 0.8) / 0.8)
    head = int(np.searchsorted(-counts, -TAIL_PHOTOS, side="left"))
    ticks = {10**power for power in range(len(str(int(counts[0]))))} | {max(int(counts[0]), 1)}
    parts = [
        plot.axes(
            [(math.log10(tick / 0.8), f"{tick:,}") for tick in sorted(ticks)],
            [(rank - 0.5, f"{rank:,}") for rank in _rank_ticks(len(counts))],
            f"photos in {split}, logarithmic",
            "classes, the largest first",
        ),
        plot.steps(heights[:head], 0, "head"),
        plot.steps(heights[head:], head, "tail"),
    ]
    if counts[0] > TAIL_PHOTOS:
        parts.append(plot.limit(math.log10(TAIL_PHOTOS / 0.8), f"{TAIL_PHOTOS} photos"))
    return plot.svg("photos of each class, the largest class first", parts)


def _rank_ticks(count: int) -> list[int]:
    step = nice_step(count)
    return [1, *range(step, count - step // 2, step), count] if count > 1 else [1]


def nice_step(top: float) -> int:
    """A step of 1, 2 or 5 times a power of ten, with three to seven of them up to `top`."""
    power: int = 10 ** max(math.floor(math.log10(max(top, 1) / 3)), 0)
    return max(power * factor for factor in (1, 2, 5) if factor == 1 or power * factor * 3 <= top)


class _Plot:
    """A chart of `columns` of equal width, `top` high, as inline SVG."""

    WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 480, 220, 58, 36, 22  # units of the view box

    def __init__(self, columns: int, top: float) -> None:
        self.columns, self.top = columns, top

    def x(self, place: float) -> str:
        return f"{self.LEFT + place / self.columns * (self.WIDTH - self.LEFT):.1f}"

    def y(self, value: float) -> str:
        span = self.HEIGHT - self.BELOW - self.ABOVE
        return f"{self.HEIGHT - self.BELOW - value / self.top * span:.1f}"

    def svg(self, title: str, parts: Iterable[str]) -> str:
        box = f"0 0 {self.WIDTH} {self.HEIGHT}"
        return f'<svg class="chart" viewBox="{box}" role="img"><title>{title}</title>{"".join(parts)}</svg>'

    def axes(
        self,
        rows: Iterable[tuple[float, str]],
        columns: Iterable[tuple[float, str]],
        upward: str,
        rightward: str,
    ) -> str:
        """Grid lines at `rows` (value, label), labels under `columns` (place, label), and what they are."""
        lines = "".join(
            f'<path class="axis" d="M{self.LEFT} {self.y(value)}H{self.WIDTH}"/>'
            f'<text x="{self.LEFT - 6}" y="{self.y(value)}" dy="4" text-anchor="end">{_text(label)}</text>'
            for value, label in rows
        )
        under = self.HEIGHT - self.BELOW
        ticks = "".join(
            f'<text x="{self.x(place)}" y="{under + 14}" text-anchor="middle">{_text(label)}</text>'
            for place, label in columns
        )
        return (
            f'{lines}{ticks}<path class="axis" d="M{self.LEFT} {under}H{self.WIDTH}"/>'
            f'<text x="0" y="10">{_text(upward)}</text>'
            f'<text x="{self.WIDTH}" y="{self.HEIGHT - 4}" text-anchor="end">{_text(rightward)}</text>'
        )

    def steps(self, heights: NDArray[np.float64], first: int, kind: str) -> str:
        """An area over the columns from `first` on; a run of equal heights is one step."""
        if not len(heights):
            return ""
        ends = np.append(np.flatnonzero(np.diff(heights)) + 1, len(heights))
        path = "".join(f"V{self.y(heights[end - 1])}H{self.x(first + end)}" for end in ends.tolist())
        return f'<path class="{kind}" d="M{self.x(first)} {self.y(0)}{path}V{self.y(0)}Z"/>'

    def column(self, place: int, height: float, title: str) -> str:
        left, right = (float(self.x(place + side)) for side in (0.1, 0.9))
        top = float(self.y(height))
        return (
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{self.HEIGHT - self.BELOW - top:.1f}"><title>{_text(title)}</title></rect>'
        )

    def limit(self, value: float, label: str) -> str:
        return (
            f'<path class="limit" d="M{self.LEFT} {self.y(value)}H{self.WIDTH}"/>'
            f'<text class="mark" x="{self.WIDTH}" y="{self.y(value)}" dy="-4" text-anchor="end">'
            f"{_text(label)}</text>"
        )


# --- Refusals and copies -------------------------------------------------------------------------


def _reasons(scan: Scan) -> Counter[str]:
    return Counter(str(refusal.reason) for refusal in scan.refused)


def _refused(read: Read, scan: Scan) -> str:
    reasons = _reasons(scan)
    if not reasons:
        return "<p>Nothing.</p>"
    rows = [(reason, reasons[reason], MEANINGS.get(reason, "")) for reason in sorted(reasons)]
    lists = []
    for reason in sorted(reasons):
        alone = [refusal for refusal in scan.refused if refusal.reason == reason and not refusal.twin]
        if alone:
            lists.append(f"<h3>{_text(reason)}: {len(alone):,}</h3>{_refusal_list(read, alone)}")
    return _table(("reason", "files", "meaning"), rows, kind="reasons") + "".join(lists)


def _refusal_list(read: Read, refusals: Sequence[Refusal]) -> str:
    items = [
        f"<li>{_picture(read, refusal.source) if number < REASON_THUMBNAILS else ''}"
        f"<div>{_name(_path(refusal.source))}<br><small>{_name(refusal.detail)}</small></div></li>"
        for number, refusal in enumerate(refusals[:REASON_ENTRIES])
    ]
    return f'<ul class="photos">{"".join(items)}</ul>{_rest(len(items), len(refusals))}'


def _rest(shown: int, count: int) -> str:
    return f"<p><small>The first {shown:,} of {count:,}.</small></p>" if shown < count else ""


@dataclass(frozen=True)
class _Pair:
    """Two photos to be shown side by side, and what was done about them."""

    first: bytes
    second: bytes
    done: str


def _twins(read: Read, facts: _Facts) -> str:
    scan, near, reasons = facts.scan, facts.near, _reasons(facts.scan)
    lists = [
        (
            f"Leaks between splits: {reasons['leak']:,} refused",
            _refused_pairs(scan, "leak", "left refused, right packed"),
        ),
        (
            f"Label conflicts: {reasons['label conflict']:,} refused",
            _refused_pairs(scan, "label conflict", "both refused"),
        ),
        (f"Copies that were kept: {len(facts.copies.photos):,} photos", _kept_pairs(scan, facts.copies)),
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


class _Copies(NamedTuple):
    """Photos of equal bytes beside each other, with the number of their group; int64 [copies] each."""

    photos: NDArray[np.int64]
    groups: NDArray[np.int64]


def _copies(scan: Scan) -> _Copies:
    """Not `layout.same_bytes`: this numbers the groups in the order of the scan, which people know."""
    digests = scan.photos.column("digest").combine_chunks().dictionary_encode()
    groups = digests.indices.to_numpy().astype(np.int64)
    several = np.flatnonzero(np.bincount(groups)[groups] > 1)
    several = several[np.argsort(groups[several], kind="stable")]
    return _Copies(several, groups[several])


def _kept_pairs(scan: Scan, copies: _Copies) -> list[_Pair]:
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
        f"<p>{_text(pair.done)}</p></li>"
        for pair in pairs[:PAIRS]
    ]
    more = f"<p><small>The first {PAIRS:,} pairs are shown.</small></p>" if len(pairs) > PAIRS else ""
    return f'<ul class="pairs">{"".join(items)}</ul>{more}' if items else "<p>None.</p>"


def _figure(read: Read, source: bytes) -> str:
    path = _name(_path(source)).replace("/", "/<wbr>")
    return f"<figure>{_picture(read, source)}<figcaption>{path}</figcaption></figure>"


# --- Changes, shards, order, options -------------------------------------------------------------


def _changes(scan: Scan) -> str:
    lines = []
    if scan.converted:
        lines.append(
            _table(("changed on the way in", "photos"), sorted(scan.converted.items()), kind="narrow")
        )
    if count := scan.progressive:
        lines.append(
            f"<p>{count:,} progressive JPEGs: they decode 2.1-2.5 times slower; "
            "<code>--baseline</code> rewrites them without loss.</p>"
        )
    if scan.ignored:
        lines.append(_table(("ignored", "files"), sorted(scan.ignored.items()), kind="narrow"))
    return "".join(lines) or "<p>Every photo was packed byte for byte, nothing was ignored.</p>"


def _shards(manifest: Manifest) -> str:
    target = manifest.options["shard_size"]
    charts = "".join(
        f"<div><h3>{_text(name)}</h3><p>{_shard_sizes(shards)}</p>{_shard_plot(shards, target)}</div>"
        for name, shards in manifest.splits.items()
    )
    return f'<div class="charts">{charts}</div>'


def _shard_sizes(shards: Sequence[ShardEntry]) -> str:
    sizes = sorted(entry.bytes for entry in shards)
    if len(sizes) == 1:
        return f"One shard of {size_text(sizes[0])}."
    return f"{len(sizes):,} shards of {size_text(sizes[0])} to {size_text(sizes[-1])}."


def _shard_plot(shards: Sequence[ShardEntry], target: int) -> str:
    """A bar a shard; of many shards, a bar for a run of neighbours, as high as the largest of them."""
    runs = np.array_split(np.arange(len(shards)), min(len(shards), BARS))
    largest = max(*(entry.bytes for entry in shards), target)
    plot = _Plot(len(runs), 1.1 * largest)
    step = nice_step(largest)
    parts = [
        plot.axes(
            [(value, size_text(value)) for value in range(0, largest + 1, step)],
            [(0.5, "0"), (len(runs) - 0.5, f"{len(shards) - 1:,}")] if len(runs) > 1 else [(0.5, "0")],
            "bytes",
            "shard" if len(runs) == len(shards) else f"shard, {len(runs[0]):,} a bar",
        )
    ]
    for place, run in enumerate(runs):
        members = [shards[number] for number in run.tolist()]
        size, photos = max(entry.bytes for entry in members), sum(entry.samples for entry in members)
        ends = members[0].name if len(members) == 1 else f"{members[0].name} to {members[-1].name}"
        parts.append(plot.column(place, size, f"{ends}: {size_text(size)}, {photos:,} photos"))
    return plot.svg("size of each shard", [*parts, plot.limit(target, "--shard-size")])


def _shuffle_lines(shuffle: Mapping[str, ShuffleQuality]) -> Iterator[str]:
    for name, quality in shuffle.items():
        share = quality.distinct / quality.expected
        verdict = "as well mixed as a random order" if share >= 0.98 else "clumped: shuffle when reading"
        yield (
            f"{name}: a batch of {quality.batch:,} photos, taken as they lie, shows {quality.distinct:.1f} "
            f"species on average; a random order shows {quality.expected:.1f}: {verdict}."
        )


def _options(manifest: Manifest) -> str:
    rows = [
        (name, f"{value:,}" if type(value) is int else json.dumps(value).strip('"'))
        for name, value in manifest.options.items()
    ]
    return _table(("option", "value"), rows, kind="narrow")


# --- Pieces --------------------------------------------------------------------------------------


def _picture(read: Read, source: bytes) -> str:
    data = thumbnail(read, source)
    if not data:
        return '<span class="none">no picture</span>'
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def thumbnail(read: Read, source: bytes) -> bytes:
    """A small JPEG of a photo; b"" if it is gone or its header is no image's."""
    try:
        photo = encode(read(source), "header")
        # not strict: the part of a cut photo that is there tells more than no picture
        pixels = simplejpeg.decode_jpeg(
            photo.data, "RGB", min_height=THUMBNAIL, min_width=THUMBNAIL, strict=False
        )
    except (Refused, ValueError):
        return b""
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0, kind: str = "") -> str:
    """Numbers stand right, under their title; the last `numbers` columns always do."""
    rows = [list(row) for row in rows]
    right = {
        place
        for place in range(len(head))
        if place >= len(head) - numbers or all(isinstance(row[place], int | np.integer) for row in rows)
    }
    titles = _cell_row("th", head, right)
    body = "".join(f"<tr>{_cell_row('td', row, right)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'


def _cell_row(tag: str, values: Sequence[object], right: set[int]) -> str:
    return "".join(
        f'<{tag} class="n">{_value(value)}</{tag}>' if place in right else f"<{tag}>{_value(value)}</{tag}>"
        for place, value in enumerate(values)
    )


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else _name(value)


def _path(source: bytes) -> str:
    return source.decode("utf-8", "surrogateescape")  # whatever the locale says


def _name(value: object) -> str:
    """A name or a path from outside, for any place of the page: a long one loses its middle."""
    text = plain(value)
    if len(text) > NAME_CHARACTERS:
        text = f"{text[: NAME_CHARACTERS * 2 // 3]} … {text[-NAME_CHARACTERS // 3 :]}"
    return html.escape(text)


def _text(value: object) -> str:
    return html.escape(plain(value))


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
