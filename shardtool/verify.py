"""Is a packed dataset what dataset.json says it is? A finding names its shard and, where
there is one, its key and offset.

Fast: sizes, SHA-256 of every file, headers against sidecars, CRC of every photo. Deep: also the label
members against the label space, and every photo decodes. Of a sample of photos: their CRC, and the sizes
of all shards.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
import xxhash
from numpy.typing import NDArray

from shardtool import tar
from shardtool.errors import DatasetError, UsageError, UserError
from shardtool.executor import ordered
from shardtool.foreign import scan_shard
from shardtool.headers import walk_packed
from shardtool.index import (
    Dataset,
    Manifest,
    ShardEntry,
    check_shards,
    dataset_digest,
    open_dataset,
    open_sidecar,
    photo_fault,
    read_sidecar,
    where,
)
from shardtool.layout import Annotations
from shardtool.progress import OpenProgress, silent
from shardtool.scan import SPLITS
from shardtool.store import Read, cat, is_remote, shown
from shardtool.taxonomy import Taxonomy

MEMBERS = (".jpg", ".cls", ".json")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `where` is split/shard, often with key and offset, or a file."""

    where: str
    what: str


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    shards: int
    samples: int
    bytes: int
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...] = ()


def verify(
    folder: Path,
    deep: bool = False,
    executor: Executor | None = None,
    workers: int = 1,
    progress: OpenProgress = silent,
) -> Verified:
    """Check a local dataset folder. Raises UsageError or DatasetError if there is no dataset.json."""
    dataset = open_dataset(str(folder))
    manifest = dataset.manifest
    jobs = _jobs(dataset, deep)
    for job in jobs:
        if is_remote(job.place):
            raise UsageError(
                "the shards are not on this machine",
                where=shown(job.place),
                cure="use --sample 5%, or fetch them",
            )
    findings = list(_dataset_findings(dataset))
    counts = {split: np.zeros(manifest.taxonomy.rows, np.int64) for split in manifest.splits}
    keys = []
    for job, checked in _check(_check_shard, jobs, executor, workers, progress):
        findings += checked.findings
        counts[job.split] += checked.counts
        keys.append(checked.keys)
    findings += _repeat_findings(jobs, keys)
    findings += _count_findings(manifest, counts, findings)
    unknown = tuple(_unknown(manifest))
    return Verified(len(jobs), manifest.samples(), manifest.bytes(), tuple(findings), unknown)


def verify_sample(
    folder: str,
    share: float,
    deep: bool = False,
    executor: Executor | None = None,
    workers: int = 1,
    progress: OpenProgress = silent,
) -> Verified:
    """Check evenly spread photos of a local or remote dataset, and that all shards are there in full size.

    Raises UsageError or DatasetError if there is no dataset.json.
    """
    dataset = open_dataset(folder)
    findings = list(_size_findings(dataset))
    jobs = _jobs(dataset, deep, share)
    read = 0
    for _, checked in _check(_check_sample, jobs, executor, workers, progress):
        findings += checked.findings
        read += checked.bytes
    photos, total = sum(job.photos for job in jobs), dataset.manifest.samples()
    left = ("SHA-256 of shards", "headers and labels", f"{total - photos:,} of {total:,} photos")
    unknown = _unknown(dataset.manifest)
    return Verified(len(jobs), photos, read, tuple(findings), (*unknown, *left))


def spread(counts: Sequence[int], share: float) -> list[NDArray[np.int64]]:
    """For shards of `counts` samples: the rows to look at, `share` of all in equal steps, one at least."""
    total = sum(counts)
    number = min(total, max(1, round(share * total)))
    chosen = ((np.arange(number) + 0.5) * total / max(number, 1)).astype(np.int64)
    starts = np.cumsum([0, *counts])
    bounds = np.searchsorted(chosen, starts)
    return [chosen[a:b] - start for a, b, start in zip(bounds[:-1], bounds[1:], starts[:-1], strict=True)]


def _unknown(manifest: Manifest) -> Iterator[str]:
    """What cannot be checked, since only the headers of the shards were read when they were indexed."""
    if not all(entry.sha256 for entries in manifest.splits.values() for entry in entries):
        yield "CRC of photos and SHA-256 of shards: unknown (shardtool index --checksums)"


# --- The whole dataset ---------------------------------------------------------------------------


def _dataset_findings(dataset: Dataset) -> Iterator[Finding]:
    manifest = dataset.manifest
    if dataset_digest(manifest.taxonomy, manifest.splits) != manifest.digest:
        yield Finding("dataset.json", "its digest does not follow from its shards")
    for split in sorted({*SPLITS, *manifest.splits}):
        yield from _extra_files(dataset, split)


def _extra_files(dataset: Dataset, split: str) -> Iterator[Finding]:
    """Shards that nobody lists. The folder of foreign shards is others': what else lies there is theirs."""
    if dataset.manifest.indexed:
        return
    entries = dataset.manifest.splits.get(split, ())
    listed = {f"{entry.name}{ending}" for entry in entries for ending in (".tar", ".parquet")}
    for path in sorted(Path(dataset.shards(split)).glob("shard-*")):
        if path.name not in listed:
            yield Finding(f"{split}/{path.name}", "is not listed in dataset.json")


def _size_findings(dataset: Dataset) -> Iterator[Finding]:
    for split, entries in dataset.manifest.splits.items():
        try:
            check_shards(dataset.shards(split), entries)
        except DatasetError as error:
            yield Finding(error.where, error.what)


def _repeat_findings(jobs: Sequence[_Job], keys: Sequence[NDArray[np.uint64]]) -> Iterator[Finding]:
    """Keys that two photos have, given the hashes of all; sidecars are read again only if there are any."""
    hashes, counts = np.unique(np.concatenate([*keys, np.zeros(0, np.uint64)]), return_counts=True)
    repeated = hashes[counts > 1]
    earlier: dict[str, str] = {}
    for job, of_shard in zip(jobs, keys, strict=True):
        rows = np.flatnonzero(np.isin(of_shard, repeated))
        if not rows.size:
            continue
        for key in open_sidecar(job.folder, job.entry).column("key").take(rows).to_pylist():
            if key in earlier:
                yield Finding(f"{job}, key {key}", f"key is also in {earlier[key]}")
            earlier[key] = str(job)


def _count_findings(
    manifest: Manifest, counts: dict[str, NDArray[np.int64]], findings: Sequence[Finding]
) -> Iterator[Finding]:
    if findings:  # what could not be read was not counted
        return
    for split, rows in counts.items():
        if rows.tolist() != manifest.class_counts[split]:
            yield Finding("dataset.json", f"class counts of {split} are not those of its sidecars")


# --- One shard -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A shard, and the rows of its sidecar that are to be looked at: None is all of them."""

    split: str
    folder: str  # of the sidecars
    place: str  # of the shards
    entry: ShardEntry
    rows: NDArray[np.int64] | None
    taxonomy: Taxonomy
    deep: bool
    indexed: bool

    def __str__(self) -> str:
        return f"{self.split}/{self.entry.name}.tar"

    @property
    def shard(self) -> str:
        return f"{self.place}/{self.entry.name}.tar"

    @property
    def photos(self) -> int:
        return self.entry.samples if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class _Checked:
    """What is wrong with one shard, and what is known of it."""

    findings: list[Finding]
    bytes: int = 0  # of the photos of a sample
    # a hash of each key; none of foreign ones, which start again in every shard
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    counts: NDArray[np.int64] | int = 0  # photos of each taxonomy row


def _jobs(dataset: Dataset, deep: bool, share: float | None = None) -> list[_Job]:
    """A job a shard: all its photos, or its part of an evenly spread `share`."""
    manifest = dataset.manifest
    jobs = []
    for split, entries in manifest.splits.items():
        folder, place = dataset.sidecar_folder(split), dataset.shards(split)
        chosen = [None] * len(entries) if share is None else spread([e.samples for e in entries], share)
        jobs += [
            _Job(split, folder, place, entry, rows, manifest.taxonomy, deep, manifest.indexed)
            for entry, rows in zip(entries, chosen, strict=True)
        ]
    return [job for job in jobs if job.photos or share is None]


def _check(
    check: Callable[[_Job], _Checked],
    jobs: Sequence[_Job],
    executor: Executor | None,
    workers: int,
    progress: OpenProgress,
) -> Iterator[tuple[_Job, _Checked]]:
    with progress("verifying photos", sum(job.photos for job in jobs)) as advance:
        results = ordered(executor, check, jobs, in_flight=2 * workers)
        for job, checked in zip(jobs, results, strict=True):
            yield job, checked
            advance(job.photos)


def _check_sample(job: _Job) -> _Checked:
    """Look at the chosen photos of a shard that may be behind a URL."""

    def read(offset: int, length: int) -> bytes:
        return cat(job.shard, offset, offset + length)

    try:
        samples = open_sidecar(job.folder, job.entry).take(job.rows).to_pylist()
    except DatasetError as error:
        return _Checked([Finding(str(job), error.what)])
    findings = [finding for sample in samples for finding in _photo_findings(job, sample, read)]
    return _Checked(findings, sum(sample["size"] for sample in samples))


def _check_shard(job: _Job) -> _Checked:
    """Look at everything in a shard of this machine."""
    try:
        sidecar = Path(job.folder, f"{job.entry.name}.parquet").read_bytes()
        with open(job.shard, "rb") as shard:
            return _check_files(job, sidecar, shard)
    except OSError as error:
        return _Checked([Finding(f"{job.split}/{job.entry.name}", f"cannot be read: {error.strerror}")])


def _check_files(job: _Job, sidecar: bytes, shard: BinaryIO) -> _Checked:
    place = f"{job.split}/{job.entry.name}.parquet"
    if hashlib.sha256(sidecar).hexdigest() != job.entry.sidecar_sha256:
        return _Checked([Finding(place, "SHA-256 differs from dataset.json")])
    table = read_sidecar(sidecar, place)
    findings = _shard_findings(job, table.to_pylist(), shard)
    ours = [] if job.indexed else table.column("key").to_pylist()
    keys = [xxhash.xxh3_64_intdigest(key.encode()) for key in ours]
    rows = job.taxonomy.row(table.column("species_id").to_numpy(), table.column("disease_id").to_numpy())
    counts = np.bincount(rows, minlength=job.taxonomy.rows)
    return _Checked(findings, keys=np.array(keys, np.uint64), counts=counts)


def _shard_findings(job: _Job, samples: Sequence[dict[str, Any]], shard: BinaryIO) -> list[Finding]:
    size = shard.seek(0, os.SEEK_END)
    if size != job.entry.bytes:
        return [Finding(str(job), f"has {size} bytes, not {job.entry.bytes}")]
    with mmap.mmap(shard.fileno(), 0, access=mmap.ACCESS_READ) as content:
        findings = list(_content_findings(job, samples, content))
        known = job.entry.sha256
        if known and not findings and hashlib.sha256(content).hexdigest() != known:
            findings.append(Finding(str(job), "SHA-256 differs from dataset.json"))
    return findings


def _content_findings(job: _Job, samples: Sequence[dict[str, Any]], content: mmap.mmap) -> Iterator[Finding]:
    def read(offset: int, length: int) -> bytes:
        return content[offset : offset + length]

    annotations = Annotations(job.taxonomy)
    for sample in samples:
        yield from _photo_findings(job, sample, read)
        if job.deep and not job.indexed:
            yield from _label_findings(job, annotations, sample, read)
    compare = _foreign_findings if job.indexed else _header_findings
    yield from compare(job, samples, read)


def _photo_findings(job: _Job, sample: dict[str, Any], read: Read) -> Iterator[Finding]:
    spot, size = _spot(job, sample), sample["size"]
    try:
        jpeg = read(sample["offset"], size)
    except UserError as error:
        yield Finding(spot, error.what)
        return
    except OSError as error:
        yield Finding(spot, f"cannot be read: {error.strerror or error}")
        return
    if fault := photo_fault(jpeg, size, sample["crc32c"]):
        yield Finding(spot, fault)
    elif job.deep:
        yield from _decode_findings(spot, sample, jpeg)


def _spot(job: _Job, sample: dict[str, Any]) -> str:
    return where(job.split, job.entry.name, sample["key"], sample["offset"])


def _decode_findings(spot: str, sample: dict[str, Any], jpeg: bytes) -> Iterator[Finding]:
    try:
        height, width = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY").shape[:2]
    except ValueError as error:
        yield Finding(spot, f"does not decode: {error}")
        return
    if (width, height) != (sample["width"], sample["height"]):
        yield Finding(spot, f"is {width} x {height}, the sidecar says otherwise")


def _label_findings(
    job: _Job, annotations: Annotations, sample: dict[str, Any], read: Read
) -> Iterator[Finding]:
    row = job.taxonomy.row(sample["species_id"], sample["disease_id"])
    at = sample["offset"] + tar.padded(sample["size"]) + tar.BLOCK
    for ending, expected in zip(MEMBERS[1:], annotations(row, sample["source"]), strict=True):
        if read(at, len(expected)) != expected:
            yield Finding(_spot(job, sample), f"{ending} differs from the label space")
        at += tar.padded(len(expected)) + tar.BLOCK


def _foreign_findings(job: _Job, samples: Sequence[dict[str, Any]], read: Read) -> Iterator[Finding]:
    """What another look at headers and labels finds that the sidecar has not."""
    try:
        shard = scan_shard(read, job.entry.bytes, job.split, job.entry.name)
    except DatasetError as error:
        yield Finding(error.where, error.what)
        return
    found = shard.photos.to_pylist()
    if [sample["key"] for sample in samples] != [sample["key"] for sample in found]:
        yield Finding(str(job), "its members are not those of its sidecar")
        return
    same = ("offset", "size", "width", "height", "source")
    for sample, now in zip(samples, found, strict=True):
        label = job.taxonomy.names(sample["species_id"], sample["disease_id"])
        if label != (now["species"], now["disease"]) or any(sample[name] != now[name] for name in same):
            yield Finding(f"{job}, key {sample['key']}", "is not what its sidecar says")


def _header_findings(job: _Job, samples: Sequence[dict[str, Any]], read: Read) -> Iterator[Finding]:
    try:
        members = list(walk_packed(read, job.entry.bytes, str(job)))
    except DatasetError as error:
        yield Finding(error.where, error.what)
        return
    names = [sample["key"] + ending for sample in samples for ending in MEMBERS]
    if [member.name for member in members] != names:
        yield Finding(str(job), "its members are not those of its sidecar")
        return
    for sample, member in zip(samples, members[:: len(MEMBERS)], strict=True):
        if (member.offset, member.size) != (sample["offset"], sample["size"]):
            yield Finding(f"{job}, key {sample['key']}", "lies elsewhere than its sidecar says")


def findings_json(verified: Verified) -> dict[str, Any]:
    """For --json."""
    return {**vars(verified), "findings": [vars(finding) for finding in verified.findings]}
