"""Where a photo went, or why it was refused: found in the sidecars and in report.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shardtool.errors import DatasetError, UsageError
from shardtool.index import REPORT_FILE, Refusal, open_dataset, read_photo, where
from shardtool.paths import path_bytes, path_text
from shardtool.progress import OpenProgress, silent
from shardtool.store import cat, shown
from shardtool.taxonomy import Taxonomy


@dataclass(frozen=True)
class Photo:
    """A photo of a dataset: where it is, and what is known of it. `crc32c` is None if unknown."""

    split: str
    shard: str
    key: str
    offset: int
    size: int
    species: str
    disease: str
    species_id: int
    disease_id: int
    width: int
    height: int
    crc32c: int | None
    source: bytes

    @property
    def name(self) -> str:
        """SPLIT/SHARD/KEY: one photo alone has it, even where keys start again in every shard."""
        return f"{self.split}/{self.shard}/{self.key}"

    @property
    def where(self) -> str:
        return where(self.split, self.shard, self.key, self.offset)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "source": path_text(self.source)}


@dataclass(frozen=True)
class Explained:
    """All that a key or a path may mean."""

    photos: tuple[Photo, ...]
    refused: tuple[Refusal, ...]


def find_key(folder: str, key: str, progress: OpenProgress = silent) -> Photo:
    """The photo with this key, or whose key alone starts so; SPLIT/SHARD/KEY is understood, too.

    Raises UsageError if there is none or more than one.
    """
    photos = list(_search(folder, key, b"", progress))
    found = [photo for photo in photos if key in (photo.key, photo.name)] or photos
    if not found:
        raise UsageError(
            f"no photo has a key that starts with {key!r}",
            where=shown(folder),
            cure="shardtool explain finds the key of a photo",
        )
    if len(found) > 1:
        some = ", ".join(photo.name for photo in found[:3]) + (", …" if len(found) > 3 else "")
        raise UsageError(
            f"{len(found):,} photos have such a key: {some}", where=shown(folder), cure="give more of it"
        )
    return found[0]


def photo_bytes(folder: str, photo: Photo) -> bytes:
    """The JPEG. Raises CorruptSample."""
    shard = f"{open_dataset(folder).shards(photo.split)}/{photo.shard}.tar"
    return read_photo(shard, photo.offset, photo.size, photo.crc32c, photo.where)


def explain(folder: str, what: str, progress: OpenProgress = silent) -> Explained:
    """Photos and refusals that `what` may mean: a key or its beginning, a path as it was given to the
    packer, a path under the packed folder, or the end of one."""
    path = os.path.normpath(os.fsencode(what))
    found = list(_search(folder, what, path, progress))
    refused = [refusal for refusal in _refusals(folder) if common_ending(path_bytes(refusal.source), path)]
    # of pictures/x.jpg and x.jpg in a flat foreign dataset, the longer one is meant
    sources = [photo.source for photo in found] + [path_bytes(refusal.source) for refusal in refused]
    best = max((common_ending(source, path) for source in sources), default=0)
    return Explained(
        tuple(p for p in found if common_ending(p.source, path) == best or _has_key(p, what)),
        tuple(r for r in refused if common_ending(path_bytes(r.source), path) == best),
    )


def common_ending(source: bytes, path: bytes) -> int:
    """Bytes that both have in common if one is the end of the other, beginning at a slash; else 0."""
    short, long = sorted((source, path), key=len)
    return len(short) if short and (long == short or long.endswith(b"/" + short)) else 0


def _search(folder: str, key: str, path: bytes, progress: OpenProgress) -> Iterator[Photo]:
    """Photos whose key starts with `key`, or whose source has an ending in common with `path`."""
    dataset = open_dataset(folder)
    manifest = dataset.manifest
    with progress("searching shards", sum(map(len, manifest.splits.values()))) as advance:
        for split, entry, table in dataset.sidecars():
            start = path_bytes(key.removeprefix(f"{split}/{entry.name}/"))
            fits = pc.or_(
                pc.starts_with(table.column("key"), start), _ends_alike(table.column("source"), path)
            )
            for row in table.filter(fits).to_pylist():
                yield _photo(manifest.taxonomy, split, entry.name, row)
            advance(1)


def _ends_alike(sources: pa.ChunkedArray, path: bytes) -> pa.ChunkedArray:
    parts = path.split(b"/")
    shorter = [b"/".join(parts[start:]) for start in range(len(parts)) if path]
    return pc.or_(
        pc.is_in(sources, value_set=pa.array(shorter, pa.binary())),
        pc.and_(pc.ends_with(sources, b"/" + path), bool(path)),
    )


def _has_key(photo: Photo, what: str) -> bool:
    return photo.key.startswith(what) or photo.name.startswith(what)


def _photo(taxonomy: Taxonomy, split: str, shard: str, row: dict[str, Any]) -> Photo:
    species, disease = taxonomy.names(row["species_id"], row["disease_id"])
    return Photo(split=split, shard=shard, species=species, disease=disease, **row)


def _refusals(folder: str) -> Iterator[Refusal]:
    try:
        report = json.loads(cat(f"{folder.rstrip('/')}/{REPORT_FILE}"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise DatasetError("report is damaged", where=REPORT_FILE, cure="pack again") from error
    try:
        for refusal in report["refusals"]:
            yield Refusal(refusal["source"], refusal["reason"], refusal["detail"])
    except (KeyError, TypeError) as error:
        raise DatasetError("report is damaged", where=REPORT_FILE, cure="pack again") from error
