"""Which of the photos go into the dataset, and into which split.

Photos whose copies bear another label are refused, a tree without split folders is split, and photos
whose copies stand in a later split are refused: validation must not ask what was learned by heart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shardtool import layout
from shardtool.photo import Reason
from shardtool.scan import Refusal, Scan, column


def select(scan: Scan, val_share: float, seed: int) -> Scan:
    """The scan without conflicts and leaks, every photo with a split; the rest among the refused."""
    rows = column(scan.photos, "row").astype(np.int32)
    scan = _without(scan, layout.conflicting(_groups(scan), rows), "label conflict")
    scan = _with_splits(scan, val_share, seed)
    leaks = layout.leaking(_groups(scan), column(scan.photos, "split").astype(np.int8))
    scan = _without(scan, leaks, "leak")
    return replace(scan, refused=tuple(sorted(scan.refused, key=lambda refusal: refusal.source)))


def duplicates(scan: Scan) -> int:
    """Photos whose bytes stand more than once."""
    groups = _groups(scan)
    return int((np.bincount(groups)[groups] > 1).sum()) if len(groups) else 0


def _groups(scan: Scan) -> NDArray[np.int64]:
    return layout.same_bytes(scan.photos.column("digest").to_pylist())


def _with_splits(scan: Scan, val_share: float, seed: int) -> Scan:
    if not (column(scan.photos, "split") < 0).any():
        return scan
    digests = scan.photos.column("digest").to_pylist()
    splits = layout.make_splits(digests, column(scan.photos, "row").astype(np.int32), val_share, seed)
    place = scan.photos.schema.get_field_index("split")
    return replace(scan, photos=scan.photos.set_column(place, "split", pa.array(splits, pa.int8())))


def _without(scan: Scan, refused: NDArray[np.bool_], reason: Reason) -> Scan:
    refusals = tuple(_refusals(scan, np.flatnonzero(refused), reason))
    return replace(scan, photos=scan.photos.filter(pa.array(~refused)), refused=scan.refused + refusals)


def _refusals(scan: Scan, photos: NDArray[np.int64], reason: Reason) -> Iterator[Refusal]:
    """Name, for each of these photos, another one with the same bytes: for a leak, the later split's."""
    sources, groups = scan.photos.column("source").to_pylist(), _groups(scan)
    splits = column(scan.photos, "split")
    twins: dict[int, list[int]] = {}
    for photo in np.flatnonzero(np.isin(groups, groups[photos])).tolist():
        twins.setdefault(int(groups[photo]), []).append(photo)
    for photo in photos.tolist():
        others = [other for other in twins[int(groups[photo])] if other != photo]
        witness = max(others, key=lambda other: int(splits[other]))
        twin = sources[witness]
        yield Refusal(sources[photo], reason, f"same bytes as {os.fsdecode(twin)}", twin)
