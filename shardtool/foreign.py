"""A foreign WebDataset: tars without sidecars -> sidecars and dataset.json, reading headers only.

The tars are never written to, and nothing in them is trusted: no name is ever used as a path, and a sample
that cannot be used is refused with its reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import google_crc32c
import numpy as np
import pyarrow as pa
import simplejpeg
from braceexpand import braceexpand
from numpy.typing import NDArray

from shardtool import __version__, jpeg
from shardtool.errors import DatasetError, UsageError, UserError
from shardtool.executor import ordered
from shardtool.headers import Member, Read, walk
from shardtool.index import (
    DATASET_FILE,
    Manifest,
    ShardEntry,
    dataset_digest,
    open_manifest,
    read_sidecar,
    sidecar_bytes,
)
from shardtool.photo import MAX_PIXELS, MAX_SIDE, MIN_SIDE
from shardtool.scan import SPLITS
from shardtool.store import Folder, filesystem, is_remote, open_folder, patiently, shown
from shardtool.taxonomy import Taxonomy
from shardtool.terminal import OpenProgress, silent

Reason = Literal[
    "no photo",
    "two photos",
    "no label",
    "not a JPEG",
    "damaged",
    "not RGB or grey",
    "too large",
    "too small",
    "unsafe name",
    "not a regular file",
    "key twice in a shard",
]

PHOTOS = ("jpg", "jpeg")
DISEASE = "unlabelled"  # of a sample whose label is a class alone
REPORT_FILE = "report.json"
LOCK_FOLDER = ".index"
MAX_SHARDS = 1_000_000
MAX_NAME = 4096
MAX_LABEL = 1 << 20
MAX_PHOTO = 1 << 30
HEADS = (4 << 10, 64 << 10, 1 << 20)  # bytes of a photo that are looked at for its header
CHUNK = 4 << 20
READ_AHEAD = 1 << 20  # of a remote shard: a round trip costs more than the photos between two headers

_META = re.compile(r"__[^/]*__($|/)")
_SPLIT_NAME = re.compile(r"[a-z0-9_-]+")

FOUND = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("species", pa.string()),
        ("disease", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32c", pa.uint32()),
        ("source", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Place:
    """The shards of one split: names without ".tar" in one folder, which may be a URL."""

    split: str
    folder: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A sample that is not in the index, as SPLIT/SHARD.tar/MEMBER, and why."""

    source: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Shard:
    """What was found in one shard: its photos (schema FOUND), refused samples, names left alone."""

    photos: pa.Table
    refused: tuple[Refusal, ...]
    ignored: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Indexed:
    """The outcome of `index`."""

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
    ranges = re.findall(r"\{(\d{1,9})\.\.(\d{1,9})\}", pattern)
    if math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > MAX_SHARDS:
        raise UsageError(f"more than {MAX_SHARDS:,} shards", where=shown(pattern))
    try:
        addresses = list(dict.fromkeys(braceexpand(pattern)))
    except ValueError as error:
        raise UsageError("braces do not match", where=shown(pattern)) from error
    folders = {address.rpartition("/")[0] for address in addresses}
    if len(folders) > 1:
        raise UsageError("the shards of one split lie in one folder", where=shown(pattern))
    return Place(split, folders.pop() or ".", tuple(a.rpartition("/")[2][:-4] for a in addresses))


# --- The samples of one shard ------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason: Reason = reason
        self.detail = detail


def scan_shard(read: Read, end: int, split: str, name: str, checksums: bool = False) -> Shard:
    """All photos of a shard that have a label, read from its headers and labels, and why others have not.

    With `checksums` every byte is read. Raises DatasetError.
    """
    where = f"{split}/{name}.tar"
    members = [member for member in walk(read, end, where) if member.kind != "folder"]
    keyed = [(key, ending, member) for member in members for key, ending in [split_name(member.name)] if key]
    rows, refused, seen = [], [], set()
    for key, group in itertools.groupby(keyed, lambda entry: entry[0]):
        parts = [(ending, member) for _, ending, member in group]
        try:
            if key in seen:
                raise _Refused("key twice in a shard", "the first one counts")
            rows.append(_sample(read, key, parts))
        except _Refused as error:
            refused.append(Refusal(f"{where}/{parts[0][1].name}", error.reason, error.detail))
        seen.add(key)
    photos = pa.Table.from_pylist(rows, schema=FOUND)
    sha256 = ""
    if checksums:
        sha256, photos = _with_checksums(read, end, photos)
    return Shard(photos, tuple(refused), len(members) - len(keyed), end, sha256)


def split_name(name: str) -> tuple[str, str]:
    """Key and ending of a member, as WebDataset has it: at the first dot of the last part.

    ("", "") for a name that belongs to no sample.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem or not ending or _META.match(name):
        return "", ""
    return f"{folder}{slash}{stem}", ending.lower()


def _sample(read: Read, key: str, parts: Sequence[tuple[str, Member]]) -> dict[str, Any]:
    """The row (schema FOUND) of a sample, given its members with their endings."""
    for _, member in parts:
        if member.name.startswith("/") or ".." in member.name.split("/") or len(member.name) > MAX_NAME:
            raise _Refused("unsafe name", "absolute, too long, or with ..")
        if member.kind != "file":
            raise _Refused("not a regular file", "a link, a device or a sparse file")
    photos = [member for ending, member in parts if ending in PHOTOS]
    if len(photos) != 1:
        endings = ", ".join(ending for ending, _ in parts[:5])
        raise _Refused("two photos" if photos else "no photo", f"members: {endings}")
    species, disease = _label(read, dict(parts))
    width, height = _dimensions(read, photos[0])
    return {
        "key": _text(key),
        "offset": photos[0].offset,
        "size": photos[0].size,
        "species": species,
        "disease": disease,
        "width": width,
        "height": height,
        "crc32c": None,
        "source": photos[0].name.encode("utf-8", "surrogateescape"),
    }


def _label(read: Read, parts: dict[str, Member]) -> tuple[str, str]:
    """Species and disease: by name from `.json`, else `.cls` is the species."""
    if "json" in parts and (names := _named(_small(read, parts["json"]))):
        return names
    if "cls" not in parts:
        raise _Refused("no label", 'neither .cls nor .json with "species" and "disease"')
    text = _name(_small(read, parts["cls"]).decode("utf-8", "replace"))
    if not text or re.fullmatch(r"-[0-9]+", text):
        raise _Refused("no label", f".cls is {text!r}")
    return (f"class-{int(text):06d}" if re.fullmatch(r"[0-9]{1,9}", text) else text), DISEASE


def _named(data: bytes) -> tuple[str, str] | None:
    try:
        value = json.loads(data)
        species, disease = _name(value["species"]), _name(value["disease"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (species, disease) if species and disease else None


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return unicodedata.normalize("NFC", _text(value)).strip()


def _text(value: str) -> str:
    """Without lone halves of surrogate pairs, which no file can hold."""
    return value.encode("utf-8", "replace").decode()


def _small(read: Read, member: Member) -> bytes:
    if member.size > MAX_LABEL:
        raise _Refused("no label", f"{member.size} bytes of label")
    return read(member.offset, member.size)


def _dimensions(read: Read, photo: Member) -> tuple[int, int]:
    """Width and height in pixels, from as little of the photo as they stand in."""
    if photo.size > MAX_PHOTO:
        raise _Refused("too large", f"{photo.size} bytes")
    for length in HEADS:
        data = read(photo.offset, min(length, photo.size))
        if not data.startswith(b"\xff\xd8"):
            raise _Refused("not a JPEG", f"starts with {data[:12]!r}" if data else "0 bytes")
        if header := jpeg.read_header(data):
            width, height, plain = header.width, header.height, header.precision == 8
            return _checked(width, height, plain and header.components in (1, 3))
    try:  # a header that is unusual but not wrong
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _Refused("damaged", str(error)) from None
    return _checked(width, height, colours in ("YCbCr", "Gray", "RGB"))


def _checked(width: int, height: int, plain: bool) -> tuple[int, int]:
    size = f"{width} x {height} pixels"
    if not plain:
        raise _Refused("not RGB or grey", "four colours, or 12 bits")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _Refused("too large", size)
    if min(width, height) < MIN_SIDE:
        raise _Refused("too small", size)
    return width, height


def _with_checksums(read: Read, end: int, photos: pa.Table) -> tuple[str, pa.Table]:
    """The shard's SHA-256, and its photos with their CRC-32C; every byte is read once, in order."""
    sha256, sums = hashlib.sha256(), np.zeros(photos.num_rows, np.uint32)
    offsets, sizes = photos.column("offset").to_numpy(), photos.column("size").to_numpy()
    for start in range(0, end, CHUNK):
        data = read(start, min(CHUNK, end - start))
        sha256.update(data)
        first = np.searchsorted(offsets + sizes, start, side="right")
        last = np.searchsorted(offsets, start + len(data))
        for photo in range(first, last):
            piece = data[max(offsets[photo] - start, 0) : offsets[photo] + sizes[photo] - start]
            sums[photo] = google_crc32c.extend(int(sums[photo]), piece)
    place = photos.schema.get_field_index("crc32c")
    return sha256.hexdigest(), photos.set_column(place, "crc32c", pa.array(sums))


# --- The whole dataset -------------------------------------------------------------------------


def index(
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
            for shard in ordered(executor, _scan, jobs, in_flight=2 * workers):
                shards.append(shard)
                advance(1)
        return _write(store, out, places, jobs, shards, checksums, old)


@dataclass(frozen=True)
class _Job:
    split: str
    folder: str
    name: str
    checksums: bool

    def __str__(self) -> str:
        return f"{self.split}/{self.name}.tar"


def _scan(job: _Job) -> Shard:
    with reader(f"{job.folder}/{job.name}.tar") as (read, size):
        return scan_shard(read, size, job.split, job.name, job.checksums)


@contextlib.contextmanager
def reader(path: str) -> Iterator[tuple[Read, int]]:
    """Reads at any place of a file at a path or URL, and its size. Raises DatasetError."""
    try:
        if is_remote(path):
            files, inside = filesystem(path)
            size = patiently(lambda: files.size(inside), path)
            with files.open(inside, "rb", block_size=READ_AHEAD, cache_type="readahead", size=size) as file:
                yield lambda offset, length: _remote(file, offset, length, path), int(size or 0)
        else:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                yield lambda offset, length: os.pread(file.fileno(), length, offset), size
    except FileNotFoundError as error:
        raise DatasetError(
            "file is missing", where=shown(path), cure="see that the address is right"
        ) from error


def _remote(file: Any, offset: int, length: int, path: str) -> bytes:
    def ask() -> bytes:
        file.seek(offset)
        data: bytes = file.read(length)
        return data

    data = patiently(ask, path)
    if len(data) > length:
        raise DatasetError("the server answers with other bytes than those asked for", where=shown(path))
    return data


def _old_manifest(store: Folder, out: str, places: Sequence[Place]) -> Manifest | None:
    """An earlier index at `out`. Raises UsageError for anything else that must not be written over."""
    if DATASET_FILE in store.files():
        try:
            old = open_manifest(out)
        except UserError as error:
            raise UsageError(
                f"{DATASET_FILE} here is not ours", where=store, cure="choose another --out"
            ) from error
        if not old.foreign:
            raise UsageError("this dataset was packed and has its index already", where=store)
        return old
    beside = {_address(out), *(_address(f"{out}/{split}") for split in SPLITS)}
    inside = any(_address(place.folder) in beside for place in places)
    begun = bool(open_folder(f"{out.rstrip('/')}/{LOCK_FOLDER}").files())
    if store.is_foreign() and not inside and not begun:
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


def _write(
    store: Folder,
    out: str,
    places: Sequence[Place],
    jobs: Sequence[_Job],
    shards: Sequence[Shard],
    checksums: bool,
    old: Manifest | None,
) -> Indexed:
    refused = tuple(refusal for shard in shards for refusal in shard.refused)
    taxonomy = Taxonomy.from_labels(pair for shard in shards for pair in _labels(shard.photos))
    if not taxonomy.rows:
        first = f"; the first: {refused[0].source}, {refused[0].reason}" if refused else ""
        raise UserError(f"nothing to index, no sample with a photo and a label{first}")
    store.remove(DATASET_FILE)
    entries: dict[str, tuple[ShardEntry, ...]] = {}
    counts = {place.split: np.zeros(taxonomy.rows, np.int64) for place in places}
    for job, shard in zip(jobs, shards, strict=True):
        rows = np.array([taxonomy.row_of[pair] for pair in _labels(shard.photos)], np.int64)
        counts[job.split] += np.bincount(rows, minlength=taxonomy.rows)
        entry = _write_sidecar(store, job, shard, rows, taxonomy)
        entries[job.split] = (*entries.get(job.split, ()), entry)
    _remove_stale(store, old, entries)
    manifest = Manifest(
        taxonomy,
        entries,
        {split: rows.tolist() for split, rows in counts.items()},
        {"foreign": True, "checksums": checksums},
        f"shardtool {__version__}",
        dataset_digest(taxonomy, entries),
        {place.split: base for place in places if (base := _base(out, place))},
    )
    _put(store, REPORT_FILE, _json(_report(manifest, refused)))
    _put(store, DATASET_FILE, _json(manifest.to_json()))
    return Indexed(manifest, refused, sum(shard.ignored for shard in shards))


def _write_sidecar(
    store: Folder, job: _Job, shard: Shard, rows: NDArray[np.int64], taxonomy: Taxonomy
) -> ShardEntry:
    data = sidecar_bytes(_sidecar(shard.photos, rows, taxonomy), shard.sha256)
    _put(store, f"{job.split}/{job.name}.parquet", data)
    return ShardEntry(job.name, len(rows), shard.bytes, shard.sha256, hashlib.sha256(data).hexdigest())


def _labels(photos: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(photos.column("species").to_pylist(), photos.column("disease").to_pylist(), strict=True)


def _sidecar(photos: pa.Table, rows: NDArray[np.int64], taxonomy: Taxonomy) -> pa.Table:
    species = taxonomy.row_species[rows]
    ids = {"species_id": species, "disease_id": rows - taxonomy.offsets[species]}
    same = ("key", "offset", "size", "species_id", "disease_id", "width", "height", "crc32c", "source")
    columns = {name: pa.array(ids[name], pa.int32()) if name in ids else photos.column(name) for name in same}
    return pa.table(columns)


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
    reasons = Counter(str(refusal.reason) for refusal in refused)
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
