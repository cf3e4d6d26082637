"""A packed dataset -> folders again: split/species/disease/photo, ready to be packed once more.

Names come from sidecars and are not trusted: none leads out of the destination.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shardtool.errors import CorruptSample, ResumeRefused, UsageError
from shardtool.executor import ordered
from shardtool.files import TEMPORARY, atomic, exclusive, remove_temporaries, write_atomic
from shardtool.index import Dataset, ShardEntry, open_dataset, open_sidecar, read_photo, where
from shardtool.layout import KEY_DIGITS
from shardtool.progress import OpenProgress, silent
from shardtool.store import is_remote
from shardtool.taxonomy import Taxonomy

MARK = ".shardtool-export"  # which dataset a folder was exported from
JPEG_ENDINGS = (b".jpg", b".jpeg", b".jpe", b".jfif", b".mpo")
PHOTOS_A_JOB = 2000
MAX_NAME = 255  # bytes, of every file system in use
_OWN_KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")


@dataclass(frozen=True)
class Failure:
    """A photo that could not be exported, and why."""

    where: str
    what: str


@dataclass(frozen=True)
class Exported:
    """How many photos were written, how many were there already, and what could not be exported."""

    written: int
    kept: int
    failures: tuple[Failure, ...]


def export(
    folder: str,
    out: Path,
    splits: tuple[str, ...] = (),
    executor: Executor | None = None,
    workers: int = 1,
    progress: OpenProgress = silent,
) -> Exported:
    """Write every photo of a local or remote dataset below `out`; what is there already is kept.

    Raises UsageError and ResumeRefused for a destination that holds something else, DestinationBusy, NoSpace,
    DatasetError for damaged sidecars.
    """
    dataset = open_dataset(folder)
    manifest = dataset.manifest
    names = splits or tuple(manifest.splits)
    if unknown := set(names) - set(manifest.splits):
        raise UsageError(
            f"no split {min(unknown)!r} in this dataset", cure=f"it has {', '.join(manifest.splits)}"
        )
    _check_destination(folder, out)
    with exclusive(out, "shardtool export"):
        _mark(out, manifest.digest)
        with progress("reading sidecars", sum(map(len, manifest.splits.values()))) as advance:
            twins = _twins(dataset, advance)
        jobs = list(_jobs(dataset, out, names, twins))
        written = kept = 0
        failures: list[Failure] = []
        with progress("exporting photos", sum(len(job.rows) for job in jobs)) as advance:
            results = ordered(executor, _export_rows, jobs, in_flight=2 * workers)
            for job, done in zip(jobs, results, strict=True):
                written, kept = written + done.written, kept + done.kept
                failures += done.failures
                advance(len(job.rows))
    return Exported(written, kept, tuple(failures))


# --- Names ---------------------------------------------------------------------------------------


def folder_name(label: str) -> bytes | None:
    """The folder of a species or disease; None if no folder can have this name, or packing would skip it."""
    try:
        name = label.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    plain = name and not name.startswith(b".") and b"/" not in name and b"\0" not in name
    return name if plain and len(name) <= MAX_NAME else None


def file_name(source: bytes, key: str, twin: bool) -> bytes:
    """The name of a photo in its class folder: that of its source, with `key` if another is alike."""
    base = source.rpartition(b"/")[2]
    stem, ending = os.path.splitext(base)
    if ending.lower() not in JPEG_ENDINGS:  # it was converted
        stem, ending = base, b".jpg"
    if not base or base.startswith(b".") or b"\0" in base:
        return key.encode() + b".jpg"
    if twin:
        ending = b"-" + key.encode() + ending
    return stem[: MAX_NAME - len(ending)] + ending


def _safe_key(shard: str, key: str) -> str:
    """Our own keys as they are; others may be any text, and start again in every shard."""
    if _OWN_KEY.fullmatch(key):
        return key
    return xxhash.xxh3_128_hexdigest(f"{shard}/{key}".encode())[:KEY_DIGITS]


def _identities(split: str, table: pa.Table) -> NDArray[np.uint64]:
    """Numbers that are equal for photos that would get the same name, in some file system at least."""
    columns = (table.column(name).to_pylist() for name in ("species_id", "disease_id", "source"))
    return np.array(
        [
            xxhash.xxh3_64_intdigest(
                f"{split}/{species}/{disease}/".encode() + _folded(file_name(source, "", False))
            )
            for species, disease, source in zip(*columns, strict=True)
        ],
        dtype=np.uint64,
    )


def _folded(name: bytes) -> bytes:
    text = name.decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", text).casefold().encode("utf-8", "surrogateescape")


def _twins(dataset: Dataset, advance: Any) -> NDArray[np.uint64]:
    """Sorted identities that more than one photo has."""
    found = []
    for split, _, table in dataset.sidecars():
        found.append(_identities(split, table))
        advance(1)
    identities, counts = np.unique(np.concatenate(found), return_counts=True)
    return identities[counts > 1]


# --- One shard -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    split: str
    folder: str  # of the sidecars
    place: str  # of the shards
    out: Path
    entry: ShardEntry
    rows: range
    taxonomy: Taxonomy
    twins: NDArray[np.uint64]

    def __str__(self) -> str:
        return f"{self.split}/{self.entry.name}.tar"


def _jobs(dataset: Dataset, out: Path, splits: tuple[str, ...], twins: NDArray[np.uint64]) -> Iterator[_Job]:
    for split in splits:
        inside, place = dataset.sidecar_folder(split), dataset.shards(split)
        for entry in dataset.manifest.splits[split]:
            for start in range(0, entry.samples, PHOTOS_A_JOB):
                rows = range(start, min(start + PHOTOS_A_JOB, entry.samples))
                yield _Job(split, inside, place, out, entry, rows, dataset.manifest.taxonomy, twins)


def _export_rows(job: _Job) -> Exported:
    table = open_sidecar(job.folder, job.entry).slice(job.rows.start, len(job.rows))
    twins = np.isin(_identities(job.split, table), job.twins).tolist()
    done = [_export_photo(job, row, twin) for row, twin in zip(table.to_pylist(), twins, strict=True)]
    failures = tuple(outcome for outcome in done if isinstance(outcome, Failure))
    return Exported(done.count("written"), done.count("kept"), failures)


def _export_photo(job: _Job, row: dict[str, Any], twin: bool) -> Literal["written", "kept"] | Failure:
    spot = where(job.split, job.entry.name, row["key"], row["offset"])
    species, disease = job.taxonomy.names(row["species_id"], row["disease_id"])
    folders = [folder_name(name) for name in (job.split, species, disease)]
    if None in folders:
        return Failure(spot, f"no folder can be named {species!r} / {disease!r}")
    name = file_name(row["source"], _safe_key(str(job), row["key"]), twin)
    target = b"/".join([os.fsencode(job.out), *(folder for folder in folders if folder), name])
    if row["crc32c"] is not None and _is_there(target, row["size"], row["crc32c"]):
        return "kept"
    shard = f"{job.place}/{job.entry.name}.tar"
    try:
        jpeg = read_photo(shard, row["offset"], row["size"], row["crc32c"], spot)
    except CorruptSample as error:
        return Failure(spot, error.what)
    if _is_there(target, len(jpeg), google_crc32c.value(jpeg)):
        return "kept"
    # not flushed to the disk one by one: a second run checks what is there
    temporary = job.out / f"{TEMPORARY}{os.getpid()}"
    with atomic(Path(os.fsdecode(target)), synced=False, temporary=temporary) as file:
        file.write(jpeg)
        os.makedirs(os.path.dirname(target), exist_ok=True)
    return "written"


def _is_there(target: bytes, size: int, crc32c: int) -> bool:
    try:
        if os.stat(target).st_size != size:
            return False
        with open(target, "rb") as file:
            return bool(google_crc32c.value(file.read()) == crc32c)
    except FileNotFoundError:
        return False


# --- The destination -----------------------------------------------------------------------------


def _check_destination(folder: str, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError("--to is a file", where=out, cure="give a folder")
    if not is_remote(folder) and out.resolve().is_relative_to(Path(folder).resolve()):
        raise UsageError("--to lies inside the dataset", where=out, cure="choose another")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise UsageError(
            "--to is not empty and was not exported by shardtool", where=out, cure="choose another"
        )


def _mark(out: Path, digest: str) -> None:
    """Note what is exported to here. Raises ResumeRefused if it was something else."""
    mark = out / MARK
    if mark.exists() and mark.read_text() != digest:
        raise ResumeRefused(
            "another dataset was exported to here", where=out, cure="choose another --to, or empty this one"
        )
    write_atomic(mark, digest.encode())
    remove_temporaries(out)
