"""The classes on the page of the report: the long tail as a plot, and all classes, species by species."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shardtool.index import Manifest
from shardtool.quality import TAIL_PHOTOS
from shardtool.report import markup
from shardtool.report.plot import Plot, nice_step
from shardtool.report.thumbnail import Read, picture
from shardtool.scan import Scan, column
from shardtool.text import counted

# These bound the page: about 3.5 kB a thumbnail.
CLASS_THUMBNAILS = 360
BAR_CLASSES = 5_000  # in a larger label space the plot of the long tail has to do
OPEN_CLASSES = 60  # a label space of up to so many classes is shown unfolded


def classes_section(read: Read, scan: Scan, manifest: Manifest) -> str:
    """The plot, and a thumbnail for as many classes as the page can bear."""
    counts_RS = np.array([manifest.class_counts[name] for name in manifest.splits]).T  # [rows, splits]
    shown = _pictured_rows(scan, manifest)
    note = (
        f"<p><small>A thumbnail for {len(shown):,} of {counted(manifest.taxonomy.rows, 'class', 'classes')}, "
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
    titles = "".join(f"<span>{markup.text(name)}</span>" for name in manifest.splits)
    opened = " open" if taxonomy.rows <= OPEN_CLASSES else ""
    counts_R, bars = counts_RS.sum(axis=1), taxonomy.rows <= BAR_CLASSES
    flags = class_flags(counts_RS, tuple(manifest.splits))
    species = []
    for number, name in enumerate(taxonomy.species):
        first, end = taxonomy.offsets[number : number + 2].tolist()
        rows = "".join(
            f"<tr><td>{picture(read, shown[row]) if row in shown else ''}"
            f"<td>{markup.name(taxonomy.row_names[row][1])}{_flag(flags[row])}"
            f"<td>{_bar(counts_R[row] / counts_R.max()) if bars else ''}{_cells(counts_RS[row])}\n"
            for row in range(first, end)
        )  # without the closing tags that HTML does not ask for: there can be 100,000 rows
        sums = "".join(f"<span>{count:,}</span>" for count in counts_RS[first:end].sum(axis=0).tolist())
        species.append(
            f"<details{opened}><summary><b>{markup.name(name)}</b>{sums}</summary><table>{rows}</table></details>"
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
    largest, smallest = (f"<bdi>{markup.name(' / '.join(names[row]))}</bdi>" for row in (order[0], order[-1]))
    text = f"Photos in {markup.text(split)}: {counts[order[0]]:,} in the largest class, {largest}, "
    text += f"{counts[order[-1]]:,} in the smallest, {smallest}. "
    classes = counted(len(counts), "class", "classes")
    text += f"In the long tail, with at most {TAIL_PHOTOS} photos: {few:,} of {classes}."
    return f"<p>{text}</p>{_tail_plot(counts[order], split)}"


def _tail_plot(counts: NDArray[np.int64], split: str) -> str:
    """`counts` in falling order, as steps on a logarithmic axis from 0.8 photos up."""
    plot = Plot(len(counts), math.log10(max(int(counts[0]), 1) * 1.3 / 0.8))
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
