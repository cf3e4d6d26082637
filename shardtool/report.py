"""report.json for programs and report.html for people: what was packed, what was refused and why.

The page is one file without scripts or network: every name on it is escaped, and a content security
policy forbids what could still slip through.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shardtool.files import write_atomic
from shardtool.index import Manifest
from shardtool.photo import Refused, encode
from shardtool.scan import Scan, column, read_source
from shardtool.select import duplicates
from shardtool.terminal import size_text

THUMBNAIL = 96
GALLERY_CLASSES = 120
LISTED = 500

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
h1,h2{font-weight:600} table{border-collapse:collapse;margin:1em 0} td,th{padding:.2em .8em;text-align:left;
border-bottom:1px solid #ddd} td.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:inline-block;height:.7em;background:#4a8f4e} .gallery{display:flex;flex-wrap:wrap;gap:.8em}
figure{margin:0;width:96px;font-size:11px;overflow-wrap:anywhere} img{border-radius:4px}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}td,th{border-color:#444}}
"""


def write_report(out: Path, source: Path, scan: Scan, manifest: Manifest) -> None:
    """Write both reports into the dataset folder."""
    value = report_json(scan, manifest)
    write_atomic(out / "report.json", (json.dumps(value, indent=1) + "\n").encode())
    write_atomic(out / "report.html", report_html(source, scan, manifest).encode())


def report_json(scan: Scan, manifest: Manifest) -> dict[str, Any]:
    """Counts and every refused file; no times and no machine names, so it is reproducible."""
    reasons = Counter(str(refusal.reason) for refusal in scan.refused)
    return {
        "digest": manifest.digest,
        "samples": {name: sum(rows) for name, rows in manifest.class_counts.items()},
        "refused": dict(sorted(reasons.items())),
        "ignored": dict(sorted(scan.ignored.items())),
        "converted": dict(sorted(scan.converted.items())),
        "duplicates": duplicates(scan),
        "refusals": [
            {"source": os.fsdecode(r.source), "reason": r.reason, "detail": r.detail} for r in scan.refused
        ],
    }


def report_html(source: Path, scan: Scan, manifest: Manifest) -> str:
    """The page; thumbnails are read from the source photos."""
    refused = [(os.fsdecode(r.source), str(r.reason), r.detail) for r in scan.refused[:LISTED]]
    more = (
        f"<p>and {len(scan.refused) - LISTED:,} more in report.json</p>" if len(scan.refused) > LISTED else ""
    )
    sections = [
        "<h1>Packed dataset</h1>",
        f"<p>digest <code>{manifest.digest}</code></p>",
        _table(("split", "photos", "shards", "bytes"), _split_rows(manifest)),
        *(f"<p>{_text(line)}</p>" for line in _notes(scan)),
        f"<h2>Refused: {len(scan.refused):,}</h2>",
        _table(("file", "reason", "detail"), refused) + more if refused else "<p>Nothing.</p>",
        "<h2>Classes</h2>",
        _class_table(manifest),
        "<h2>A photo of each class</h2>",
        _gallery(source, scan, manifest),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>Packed dataset</title><style>{_STYLE}</style></head><body>"
        + "".join(sections)
        + "</body></html>\n"
    )


def _notes(scan: Scan) -> Iterator[str]:
    """What was converted, ignored or kept twice, a line each."""
    for label, counts in (("Converted", scan.converted), ("Ignored", scan.ignored)):
        if counts:
            yield f"{label}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    if copies := duplicates(scan):
        yield f"Duplicates inside a class, kept: {copies:,}"


def _split_rows(manifest: Manifest) -> Iterable[Sequence[object]]:
    for name, entries in manifest.splits.items():
        total = sum(entry.bytes for entry in entries)
        yield name, sum(entry.samples for entry in entries), len(entries), size_text(total)


def _class_table(manifest: Manifest) -> str:
    names = list(manifest.splits)
    counts = [manifest.class_counts[name] for name in names]
    largest = max((max(rows, default=0) for rows in counts), default=0) or 1
    head = "".join(f"<th>{_text(title)}</th>" for title in ("species", "disease", *names, ""))
    body = []
    for row, (species, disease) in enumerate(manifest.taxonomy.row_names):
        cells = "".join(f'<td class="n">{rows[row]:,}</td>' for rows in counts)
        width = 20 * counts[0][row] / largest if counts else 0
        body.append(
            f"<tr><td>{_text(species)}</td><td>{_text(disease)}</td>{cells}"
            f'<td><span class="bar" style="width:{width:.2f}em"></span></td></tr>'
        )
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _gallery(source: Path, scan: Scan, manifest: Manifest) -> str:
    rows, firsts = np.unique(column(scan.photos, "row"), return_index=True)
    sources = scan.photos.column("source")
    figures = []
    for row, first in list(zip(rows.tolist(), firsts.tolist(), strict=True))[:GALLERY_CLASSES]:
        path = os.path.join(os.fsencode(source), sources[first].as_py())
        name = " / ".join(manifest.taxonomy.row_names[row])
        figures.append(
            f'<figure><img alt="" width="{THUMBNAIL}" src="{_thumbnail(path)}">'
            f"<figcaption>{_text(name)}</figcaption></figure>"
        )
    return f'<div class="gallery">{"".join(figures)}</div>'


def _thumbnail(path: bytes) -> str:
    """A picture for the gallery, an empty one if the photo is gone or was trusted and does not decode."""
    try:
        photo = encode(read_source(path), "header")
        with Image.open(io.BytesIO(photo.data)) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            out = io.BytesIO()
            image.save(out, "JPEG", quality=80)
    except (OSError, Refused):
        return "data:,"
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    return f"<td>{_text(value)}</td>"


def _text(value: object) -> str:
    return html.escape(str(value).encode("utf-8", "replace").decode())
