"""report.json for programs and report.html for people: what was packed, what was refused and why.

The page is one file without scripts or network: every name on it is escaped, and a content security
policy forbids what could still slip through. Times, machine names and absolute paths are left out, so the
same pack gives the same page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from shardtool.index import REPORT_FILE, Manifest, ShardEntry
from shardtool.paths import path_text
from shardtool.quality import ShuffleQuality
from shardtool.report import markup
from shardtool.report.classes import classes_section
from shardtool.report.copies import copies_section
from shardtool.report.plot import Plot, nice_step
from shardtool.report.thumbnail import Read, picture
from shardtool.scan import Refusal, Scan
from shardtool.select import Copies, copies
from shardtool.similar import NearPair
from shardtool.text import counted, size_text

# These bound the page: about 3.5 kB a thumbnail.
REASON_THUMBNAILS = 24
REASON_ENTRIES = 200
BARS = 120

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


@dataclass(frozen=True)
class _Facts:
    """All that is reported. `copies` are the packed photos whose bytes stand more than once."""

    scan: Scan
    manifest: Manifest
    shuffle: Mapping[str, ShuffleQuality]
    near: Sequence[NearPair]
    copies: Copies


def report_files(
    read: Read,
    scan: Scan,
    manifest: Manifest,
    shuffle: Mapping[str, ShuffleQuality],
    near: Sequence[NearPair],
) -> dict[str, bytes]:
    """The two reports: file name -> content.

    `read` gives a source photo for its thumbnail and raises Refused if it cannot; `shuffle` is by split.
    """
    facts = _Facts(scan, manifest, shuffle, near, copies(scan))
    return {
        REPORT_FILE: (json.dumps(_report_json(facts), indent=1) + "\n").encode(),
        "report.html": _report_html(read, facts).encode(),
    }


def _report_json(facts: _Facts) -> dict[str, Any]:
    """Counts, every refused file and every pair that looks alike.

    A path that is not UTF-8 is kept byte for byte, by `surrogateescape`.
    """
    scan, manifest = facts.scan, facts.manifest
    return {
        "digest": manifest.digest,
        "samples": {name: sum(rows) for name, rows in manifest.class_counts.items()},
        "refused": dict(sorted(scan.reasons.items())),
        "ignored": dict(sorted(scan.ignored.items())),
        "converted": dict(sorted(scan.converted.items())),
        "progressive": scan.progressive,
        "duplicates": len(facts.copies.photos),
        "shuffle": {name: vars(facts.shuffle[name]) for name in sorted(facts.shuffle)},
        "near": [
            {"first": path_text(pair.first), "second": path_text(pair.second), "distance": pair.distance}
            for pair in facts.near
        ],
        "refusals": [_refusal_json(refusal) for refusal in scan.refused],
    }


def _refusal_json(refusal: Refusal) -> dict[str, str]:
    twin = {"twin": path_text(refusal.twin)} if refusal.twin else {}
    return {
        "source": path_text(refusal.source),
        "reason": str(refusal.reason),
        "detail": refusal.detail,
        **twin,
    }


def _report_html(read: Read, facts: _Facts) -> str:
    """The page: key figures, classes, refusals, copies, changes, shards, order and options."""
    scan, manifest = facts.scan, facts.manifest
    sections = {
        "Splits": _splits(manifest),
        "Classes": classes_section(read, scan, manifest),
        "Refused": _refused(read, scan),
        "Copies": copies_section(read, scan, facts.near, facts.copies),
        "Changes": _changes(scan),
        "Shards": _shards(manifest),
        "Order": "".join(f"<p>{markup.text(line)}</p>" for line in _shuffle_lines(facts.shuffle)),
        "Options": _options(manifest),
    }
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{title.lower()}"><h2>{title}</h2>{content}</section>'
        for title, content in sections.items()
    )
    style = resources.files("shardtool.report").joinpath("report.css").read_text(encoding="utf-8")
    return markup.page(
        "Packed dataset",
        f"<header><h1>Packed dataset</h1>"
        f'<p class="soft">{markup.text(manifest.tool)}, '
        f"digest <code>{markup.text(manifest.digest)}</code></p>"
        f"{_key_figures(scan, manifest, facts.near)}<nav>{links}</nav></header><main>{body}</main>",
        f"{style}:root{{--splits:{len(manifest.splits)}}}",
    )


# --- Numbers at the top and the splits -----------------------------------------------------------


def _key_figures(scan: Scan, manifest: Manifest, near: Sequence[NearPair]) -> str:
    figures = {
        "photos": f"{manifest.samples():,}",
        "species": f"{len(manifest.taxonomy.species):,}",
        "classes": f"{manifest.taxonomy.rows:,}",
        "shards": f"{sum(map(len, manifest.splits.values())):,}",
        "size": size_text(manifest.bytes()),
        "refused": f"{len(scan.refused):,}",
        "pairs alike": f"{len(near):,}",
    }
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items())
    return f'<dl class="key">{cards}</dl>'


def _splits(manifest: Manifest) -> str:
    total = manifest.samples()
    return markup.table(
        ("split", "photos", "share", "shards", "bytes", "classes"),
        [
            (
                name,
                samples := manifest.samples(name),
                f"{samples / total:.1%}",
                len(shards),
                size_text(manifest.bytes(name)),
                np.count_nonzero(manifest.class_counts[name]),
            )
            for name, shards in manifest.splits.items()
        ],
        numbers=5,
    )


# --- Refusals ------------------------------------------------------------------------------------


def _refused(read: Read, scan: Scan) -> str:
    reasons = scan.reasons
    if not reasons:
        return "<p>Nothing.</p>"
    rows = [(reason, reasons[reason], MEANINGS.get(reason, "")) for reason in sorted(reasons)]
    lists = []
    for reason in sorted(reasons):
        alone = [refusal for refusal in scan.refused if refusal.reason == reason and not refusal.twin]
        if alone:
            lists.append(f"<h3>{markup.text(reason)}: {len(alone):,}</h3>{_refusal_list(read, alone)}")
    return markup.table(("reason", "files", "meaning"), rows, kind="reasons") + "".join(lists)


def _refusal_list(read: Read, refusals: Sequence[Refusal]) -> str:
    items = [
        f"<li>{picture(read, refusal.source) if number < REASON_THUMBNAILS else ''}"
        f"<div>{markup.name(path_text(refusal.source))}<br><small>{markup.name(refusal.detail)}</small></div></li>"
        for number, refusal in enumerate(refusals[:REASON_ENTRIES])
    ]
    return f'<ul class="photos">{"".join(items)}</ul>{_rest(len(items), len(refusals))}'


def _rest(shown: int, count: int) -> str:
    return f"<p><small>The first {shown:,} of {count:,}.</small></p>" if shown < count else ""


# --- Changes, shards, order, options -------------------------------------------------------------


def _changes(scan: Scan) -> str:
    lines = []
    if scan.converted:
        lines.append(
            markup.table(("changed on the way in", "photos"), sorted(scan.converted.items()), kind="narrow")
        )
    if count := scan.progressive:
        lines.append(
            f"<p>{counted(count, 'progressive JPEG')}, 2.1-2.5 times slower to decode; "
            "<code>--baseline</code> rewrites without loss.</p>"
        )
    if scan.ignored:
        lines.append(markup.table(("ignored", "files"), sorted(scan.ignored.items()), kind="narrow"))
    return "".join(lines) or "<p>Every photo was packed byte for byte, nothing was ignored.</p>"


def _shards(manifest: Manifest) -> str:
    target = manifest.options["shard_size"]
    charts = "".join(
        f"<div><h3>{markup.text(name)}</h3><p>{_shard_sizes(shards)}</p>{_shard_plot(shards, target)}</div>"
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
    plot = Plot(len(runs), 1.1 * largest)
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
        parts.append(plot.column(place, size, f"{ends}: {size_text(size)}, {counted(photos, 'photo')}"))
    return plot.svg("size of each shard", [*parts, plot.limit(target, "--shard-size")])


def _shuffle_lines(shuffle: Mapping[str, ShuffleQuality]) -> Iterator[str]:
    for name, quality in shuffle.items():
        share = quality.distinct / quality.expected
        verdict = "as well mixed as a random order" if share >= 0.98 else "clumped: shuffle when reading"
        batch = counted(quality.batch, "photo")
        yield (
            f"{name}: a batch of {batch}, taken as they lie, shows {quality.distinct:.1f} "
            f"species on average; a random order shows {quality.expected:.1f}: {verdict}."
        )


def _options(manifest: Manifest) -> str:
    rows = [
        (name, f"{value:,}" if type(value) is int else json.dumps(value).strip('"'))
        for name, value in manifest.options.items()
    ]
    return markup.table(("option", "value"), rows, kind="narrow")
