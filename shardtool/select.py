"""Which of the photos go into the dataset, and into which split.

Photos whose copies bear another label are refused, a tree without split folders is split, and photos
whose copies stand in a later split are refused: validation must not ask what was learned by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shardtool import layout
from shardtool.paths import path_text
from shardtool.photo import Reason
from shardtool.scan import Refusal, Scan, column
from shardtool.similar import LOOK_BYTES, NearPair, near_pairs


def select(
    scan: Scan, val_share: float, seed: int, keep_conflicts: bool = False, keep_leaks: bool = False
) -> Scan:
    """The scan without conflicts and leaks, every photo with a split; the rest among the refused."""
    chosen = _Chosen(scan, layout.same_bytes(scan.photos.column("digest")))
    if not keep_conflicts:
        rows = column(scan.photos, "row")
        chosen = _without(chosen, layout.conflicting(chosen.groups, rows), "label conflict")
    chosen = replace(chosen, scan=_with_splits(chosen.scan, val_share, seed))
    if not keep_leaks:
        splits = column(chosen.scan.photos, "split")
        chosen = _without(chosen, layout.leaking(chosen.groups, splits), "leak")
    return replace(chosen.scan, refused=tuple(sorted(chosen.scan.refused, key=lambda each: each.source)))


class Copies(NamedTuple):
    """Photos of equal bytes beside each other, with the number of their group; int64 [copies] each."""

    photos: NDArray[np.int64]
    groups: NDArray[np.int64]


def copies(scan: Scan) -> Copies:
    """The photos whose bytes stand more than once; the groups in the order of the scan."""
    groups = layout.same_bytes(scan.photos.column("digest"))
    several = np.flatnonzero(np.bincount(groups)[groups] > 1)
    _, firsts, groups = np.unique(groups[several], return_index=True, return_inverse=True)
    order = np.argsort(firsts[groups], kind="stable")
    return Copies(several[order], firsts[groups[order]])


def duplicates(scan: Scan) -> int:
    """Photos whose bytes stand more than once."""
    return len(copies(scan).photos)


def near_duplicates(scan: Scan, within: bool) -> tuple[NearPair, ...]:
    """Photos of different bytes that look alike, in different splits or, with `within`, anywhere; the
    closest first. Empty when the photos were not decoded: nobody has looked at them."""
    photos = scan.photos.filter(pc.greater(pc.binary_length(scan.photos.column("look")), 0))
    if not photos.num_rows:
        return ()
    looks = np.frombuffer(b"".join(photos.column("look").to_pylist()), np.uint8).reshape(-1, LOOK_BYTES)
    groups = layout.same_bytes(photos.column("digest"))
    pairs, distances = near_pairs(looks, column(photos, "split"), groups, within)
    source = photos.column("source").take(pairs.ravel()).to_pylist()
    return tuple(
        NearPair(first, second, distance)
        for first, second, distance in zip(source[::2], source[1::2], distances.tolist(), strict=True)
    )


@dataclass(frozen=True)
class _Chosen:
    """The photos that are left; equal `groups` for equal bytes, int64 [photos]."""

    scan: Scan
    groups: NDArray[np.int64]


def _with_splits(scan: Scan, val_share: float, seed: int) -> Scan:
    if not (column(scan.photos, "split") < 0).any():
        return scan
    digests, rows = scan.photos.column("digest"), column(scan.photos, "row")
    splits = layout.make_splits(digests, rows, val_share, seed)
    place = scan.photos.schema.get_field_index("split")
    return replace(scan, photos=scan.photos.set_column(place, "split", pa.array(splits, pa.int8())))


def _without(chosen: _Chosen, refused: NDArray[np.bool_], reason: Reason) -> _Chosen:
    if not refused.any():
        return chosen
    scan = chosen.scan
    refusals = tuple(_refusals(chosen, np.flatnonzero(refused), reason))
    photos = scan.photos.filter(pa.array(~refused))
    return _Chosen(replace(scan, photos=photos, refused=scan.refused + refusals), chosen.groups[~refused])


def _refusals(chosen: _Chosen, photos: NDArray[np.int64], reason: Reason) -> Iterator[Refusal]:
    """Name, for each of these photos, another one with the same bytes: for a leak, the later split's."""
    groups, splits = chosen.groups, column(chosen.scan.photos, "split")
    concerned = np.flatnonzero(np.isin(groups, groups[photos]))
    source = dict(
        zip(concerned.tolist(), chosen.scan.photos.column("source").take(concerned).to_pylist(), strict=True)
    )
    twins: dict[int, list[int]] = {}
    for photo in concerned.tolist():
        twins.setdefault(int(groups[photo]), []).append(photo)
    for photo in photos.tolist():
        others = [other for other in twins[int(groups[photo])] if other != photo]
        twin = source[max(others, key=lambda other: int(splits[other]))]
        yield Refusal(source[photo], reason, f"same bytes as {path_text(twin)}", twin)
