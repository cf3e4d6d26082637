"""A foreign WebDataset: tars at paths, URLs or patterns -> sidecars and dataset.json.

The tars are never written to, and neither is any file that is not ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from braceexpand import braceexpand
from numpy.typing import NDArray

from shardtool.errors import DatasetError, UsageError, UserError
from shardtool.executor import ordered
from shardtool.files import LOCK
from shardtool.foreign import Shard, scan_shard
from shardtool.index import (
    DATASET_FILE,
    REPORT_FILE,
    SIDECAR,
    Manifest,
    Refusal,
    ShardEntry,
    open_manifest,
    read_sidecar,
    sidecar_bytes,
)
from shardtool.progress import OpenProgress, silent
from shardtool.quality import shuffle_quality
from shardtool.scan import SPLITS
from shardtool.store import Folder, is_remote, open_folder, reader, shown
from shardtool.taxonomy import Taxonomy

LOCK_FOLDER = ".index"
MAX_SHARDS = 1_000_000

_SPLIT_NAME = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class Place:
    """The shards of one split: names without ".tar" in one folder, which may be a URL."""

    split: str
    folder: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Indexed:
    """The outcome of `index_shards`."""

    manifest: Manifest
    refused: tuple[Refusal, ...]
    ignored: int  # members that belong to no sample


# --- Which shards ------------------------------------------------------------------------------


def find_shards(source: str, split: str = "train") -> list[Place]:
    """The shards at a folder (with train/, val/, test/ or tars in it), a tar, or a pattern with braces.

    Raises UsageError.
    """
    if named := re.fullmatch(r"([a-z0-9_-]+)=(.+)", source):
        split, source = named.groups()
    if not _SPLIT_NAME.fullmatch(split):
        raise UsageError(f"--split {split!r}", cure="use small letters, digits, _ and -")
    _check_address(source)
    if source.endswith(".tar"):
        return [_pattern(source, split)]
    folder = open_folder(source)
    inside = {name: _tars(folder, name) for name in SPLITS}
    direct = _tars(folder, "")
    root = source.rstrip("/") or "/"
    if direct and any(inside.values()):
        raise UsageError("tars both in the folder and in its splits", where=shown(source), cure="move some")
    if direct:
        return [Place(split, root, direct)]
    places = [Place(name, f"{root}/{name}", names) for name, names in inside.items() if names]
    if not places:
        raise UsageError(
            "no .tar here, nor in train/, val/ or test/",
            where=shown(source),
            cure="give the folder of the shards, or a pattern: https://host/x/train-{000..009}.tar",
        )
    return places


def default_out(sources: Sequence[str]) -> str:
    """The dataset folder when none is given: the folder of the tars itself. Raises UsageError."""
    source = sources[0]
    named = re.match(r"[a-z0-9_-]+=", source)
    if len(sources) > 1 or named or source.endswith(".tar") or source.startswith(("http://", "https://")):
        raise UsageError("where shall the index go?", cure="give --out DIR")
    return source


def _check_address(source: str) -> None:
    if not is_remote(source):
        return
    parts = urlsplit(source)
    if parts.query or parts.password:  # it would be written into dataset.json for all to read
        raise UsageError(
            "a signed address or one with a password cannot be kept in dataset.json",
            where=shown(source),
            cure="give the plain address, and the credentials to fsspec by its environment",
        )


def _tars(folder: Folder, sub: str) -> tuple[str, ...]:
    try:
        files = folder.files(sub)
    except NotADirectoryError:
        raise UsageError("neither a folder nor a .tar", where=folder) from None
    except TypeError:  # no sizes in the listing: a web page of links
        raise UsageError(
            "a web server's folder cannot be listed",
            where=folder,
            cure="give a pattern: …/train-{000..009}.tar",
        ) from None
    return tuple(sorted(name[:-4] for name in files if name.endswith(".tar")))


def _pattern(pattern: str, split: str) -> Place:
    # counted first: braceexpand makes the whole list before it gives the first
    if math.prod(map(_choices, re.findall(r"\{([^{}]*)\}", pattern))) > MAX_SHARDS:
        raise UsageError(f"more than {MAX_SHARDS:,} shards", where=shown(pattern))
    try:
        addresses = list(dict.fromkeys(braceexpand(pattern)))
    except ValueError as error:
        raise UsageError("braces do not match", where=shown(pattern)) from error
    folders = {address.rpartition("/")[0] for address in addresses}
    if len(folders) > 1:
        raise UsageError("the shards of one split lie in one folder", where=shown(pattern))
    return Place(split, folders.pop() or ".", tuple(a.rpartition("/")[2][:-4] for a in addresses))


def _choices(braces: str) -> int:
    """How many texts a pair of braces stands for, or more."""
    if span := re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?", braces):
        return abs(int(span[2]) - int(span[1])) + 1
    return braces.count(",") + 1


# --- The whole dataset -------------------------------------------------------------------------


def index_shards(
    places: Sequence[Place],
    out: str,
    checksums: bool = False,
    executor: Executor | None = None,
    workers: int = 1,
    progress: OpenProgress = silent,
) -> Indexed:
    """Write sidecars and dataset.json for the shards at `places` into `out`, a folder or URL.

    Raises UsageError if something there is not ours, DatasetError for a damaged shard (nothing is written
    then), UserError if no sample can be used.
    """
    if len({place.split for place in places}) < len(places):
        raise UsageError("a split is given twice", cure="give one pattern for all its shards")
    store = open_folder(out)
    old = _old_manifest(store, out, places)
    # not the lock of `out`: it would tell `pack` that the shards here are its own, to be replaced
    with open_folder(f"{out.rstrip('/')}/{LOCK_FOLDER}").exclusive("shardtool index"):
        _check_free(store, places)
        jobs = [_Job(place.split, place.folder, name, checksums) for place in places for name in place.names]
        shards = []
        with progress("reading headers of shards", len(jobs)) as advance:
            for job, shard in zip(jobs, ordered(executor, _scan, jobs, in_flight=2 * workers), strict=True):
                shards.append((job, shard))
                advance(1)
        bases = {place.split: base for place in places if (base := _base(out, place))}
        return _write(store, _Index(shards, bases, checksums), old)


@dataclass(frozen=True)
class _Job:
    split: str
    folder: str
    name: str
    checksums: bool

    def __str__(self) -> str:
        return f"{self.split}/{self.name}.tar"


def _scan(job: _Job) -> Shard:
    path = f"{job.folder}/{job.name}.tar"
    try:
        with reader(path) as (read, size):
            return scan_shard(read, size, job.split, job.name, job.checksums)
    except FileNotFoundError as error:
        raise DatasetError(
            "file is missing", where=shown(path), cure="see that the address is right"
        ) from error


def _old_manifest(store: Folder, out: str, places: Sequence[Place]) -> Manifest | None:
    """An earlier index at `out`. Raises UsageError for anything else that must not be written over."""
    if DATASET_FILE in store.files():
        try:
            old = open_manifest(out)
        except UserError as error:
            raise UsageError(
                f"{DATASET_FILE} here is not ours", where=store, cure="choose another --out"
            ) from error
        if not old.indexed:
            raise UsageError("this dataset was packed and has its index already", where=store)
        return old
    beside = {_address(out), *(_address(f"{out}/{split}") for split in SPLITS)}
    inside = any(_address(place.folder) in beside for place in places)
    begun = bool(open_folder(f"{out.rstrip('/')}/{LOCK_FOLDER}").files())
    if LOCK in store.files() and not begun:
        raise UsageError(
            "a pack lies here that is not finished", where=store, cure="run the same shardtool pack again"
        )
    if store.is_unclaimed() and not inside and not begun:
        raise UsageError(
            "--out is not empty and was not made by shardtool", where=store, cure="choose another"
        )
    return None


def _check_free(store: Folder, places: Sequence[Place]) -> None:
    for place in places:
        there = store.files(place.split)
        for name in (f"{name}.parquet" for name in place.names):
            if name in there:
                _check_ours(store, f"{place.split}/{name}")
    if REPORT_FILE in store.files() and b'"refusals"' not in store.read(REPORT_FILE):
        raise UsageError(f"{REPORT_FILE} here is not ours", where=store, cure="choose another --out")


def _check_ours(store: Folder, path: str) -> None:
    try:
        read_sidecar(store.read(path), path)
    except DatasetError as error:
        raise UsageError(
            "a file of this name is there and is no sidecar of ours",
            where=f"{store}/{path}",
            cure="give --out DIR, nothing of yours is written over",
        ) from error


@dataclass(frozen=True)
class _Index:
    """All that was found, before a byte of it is written."""

    shards: Sequence[tuple[_Job, Shard]]
    bases: dict[str, str]
    checksums: bool


def _write(store: Folder, index: _Index, old: Manifest | None) -> Indexed:
    refused = tuple(refusal for _, shard in index.shards for refusal in shard.refused)
    taxonomy = Taxonomy.from_labels(pair for _, shard in index.shards for pair in _labels(shard.photos))
    if not taxonomy.rows:
        first = f"; the first: {refused[0].source}, {refused[0].reason}" if refused else ""
        raise UserError(f"nothing to index, no sample with a photo and a label{first}")
    store.remove(DATASET_FILE)
    entries: dict[str, tuple[ShardEntry, ...]] = {}
    labels: dict[str, list[NDArray[np.int64]]] = {job.split: [] for job, _ in index.shards}
    for job, shard in index.shards:
        rows = np.array([taxonomy.row_of[pair] for pair in _labels(shard.photos)], np.int64)
        labels[job.split].append(rows)
        entry = _write_sidecar(store, job, shard, rows, taxonomy)
        entries[job.split] = (*entries.get(job.split, ()), entry)
    _remove_stale(store, old, entries)
    options = {"foreign": True, "checksums": index.checksums}
    as_they_lie = {split: np.concatenate(rows) for split, rows in labels.items()}
    counts = {split: np.bincount(rows, minlength=taxonomy.rows) for split, rows in as_they_lie.items()}
    shuffle = {
        split: shuffle_quality(taxonomy.row_species[rows]) for split, rows in as_they_lie.items() if len(rows)
    }
    manifest = Manifest.of(taxonomy, entries, counts, options, index.bases, shuffle)
    _put(store, REPORT_FILE, _json(_report(manifest, refused)))
    _put(store, DATASET_FILE, _json(manifest.to_json()))
    return Indexed(manifest, refused, sum(shard.ignored for _, shard in index.shards))


def _write_sidecar(
    store: Folder, job: _Job, shard: Shard, rows: NDArray[np.int64], taxonomy: Taxonomy
) -> ShardEntry:
    data = sidecar_bytes(_sidecar(shard.photos, rows, taxonomy), shard.sha256)
    _put(store, f"{job.split}/{job.name}.parquet", data)
    return ShardEntry(job.name, len(rows), shard.bytes, shard.sha256, hashlib.sha256(data).hexdigest())


def _labels(photos: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(photos.column("species").to_pylist(), photos.column("disease").to_pylist(), strict=True)


def _sidecar(photos: pa.Table, rows: NDArray[np.int64], taxonomy: Taxonomy) -> pa.Table:
    ids = dict(zip(("species_id", "disease_id"), taxonomy.ids(rows), strict=True))
    columns = (pa.array(ids[name]) if name in ids else photos.column(name) for name in SIDECAR.names)
    return pa.table(dict(zip(SIDECAR.names, columns, strict=True)))


def _remove_stale(store: Folder, old: Manifest | None, entries: dict[str, tuple[ShardEntry, ...]]) -> None:
    new = {(split, entry.name) for split, shards in entries.items() for entry in shards}
    for split, shards in (old.splits if old else {}).items():
        for entry in shards:
            if (split, entry.name) not in new:
                store.remove(f"{split}/{entry.name}.parquet")


def _base(out: str, place: Place) -> str:
    """Manifest.bases of this split: where its shards are, seen from its sidecars."""
    root, folder = _address(out), _address(place.folder)
    if folder == f"{root}/{place.split}":
        return ""
    return ".." if folder == root else folder


def _address(folder: str) -> str:
    """The same folder, the same text."""
    return folder.rstrip("/") if is_remote(folder) else os.path.abspath(folder)


def _report(manifest: Manifest, refused: Sequence[Refusal]) -> dict[str, Any]:
    reasons = Counter(refusal.reason for refusal in refused)
    return {
        "digest": manifest.digest,
        "samples": {name: sum(rows) for name, rows in manifest.class_counts.items()},
        "refused": dict(sorted(reasons.items())),
        "refusals": [vars(refusal) for refusal in refused],
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _put(store: Folder, path: str, data: bytes) -> None:
    with store.create(path) as file:
        file.write(data)
