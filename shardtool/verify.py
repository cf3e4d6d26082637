"""Is a packed dataset what dataset.json says it is? A finding names its shard and, where
there is one, its key and offset.

Fast: sizes, SHA-256 of every file, headers against sidecars, CRC of every photo. Deep: also the label
members against the label space, and every photo decodes. Of a sample of photos: their CRC, and the sizes
of all shards.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shardtool import tar
from shardtool.errors import DatasetError, UsageError, UserError
from shardtool.executor import ordered
from shardtool.foreign import scan_shard
from shardtool.index import (
    Manifest,
    ShardEntry,
    check_shards,
    dataset_digest,
    open_manifest,
    open_sidecar,
    read_photo,
    read_sidecar,
    shards_folder,
)
from shardtool.layout import Annotations
from shardtool.scan import SPLITS
from shardtool.store import is_remote, shown
from shardtool.taxonomy import Taxonomy
from shardtool.terminal import OpenProgress, silent

MEMBERS = (".jpg", ".cls", ".json")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `where` is split/shard[, key, offset]."""

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
    manifest = open_manifest(str(folder))
    places = {split: shards_folder(str(folder / split), base) for split, base in _bases(manifest)}
    for place in places.values():
        if is_remote(place):
            raise UsageError(
                "the shards are not on this machine",
                where=shown(place),
                cure="use --sample 5%, or fetch them",
            )
    findings = list(_dataset_findings(folder, manifest))
    jobs = [
        _Job(folder / split, Path(places[split]), entry, manifest.taxonomy, deep, manifest.foreign)
        for split, entries in manifest.splits.items()
        for entry in entries
    ]
    keys: dict[str, str] = {}
    counts = {split: np.zeros(manifest.taxonomy.rows, np.int64) for split in manifest.splits}
    with progress("verifying photos", sum(job.entry.samples for job in jobs)) as advance:
        results = ordered(executor, _check_shard, jobs, in_flight=2 * workers)
        for job, (found, shard_keys, rows) in zip(jobs, results, strict=True):
            findings += found
            counts[job.folder.name] += rows
            place = f"{job.folder.name}/{job.entry.name}.tar"
            for key in shard_keys:
                if key in keys and not manifest.foreign:  # others start again in every shard
                    findings.append(Finding(f"{place}, key {key}", f"key is also in {keys[key]}"))
                keys[key] = place
            advance(job.entry.samples)
    findings += _count_findings(manifest, counts, findings)
    return Verified(
        len(jobs),
        sum(job.entry.samples for job in jobs),
        sum(job.entry.bytes for job in jobs),
        tuple(findings),
        tuple(_unknown(manifest)),
    )


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
    manifest = open_manifest(folder)
    findings: list[Finding] = []
    jobs: list[_SampleJob] = []
    for split, base in _bases(manifest):
        inside, entries = f"{folder.rstrip('/')}/{split}", manifest.splits[split]
        place = shards_folder(inside, base)
        try:
            check_shards(place, entries)
        except DatasetError as error:
            findings.append(Finding(error.where, error.what))
        chosen = spread([entry.samples for entry in entries], share)
        jobs += [
            _SampleJob(inside, place, entry, rows, deep)
            for entry, rows in zip(entries, chosen, strict=True)
            if len(rows)
        ]
    photos, read = sum(len(job.rows) for job in jobs), 0
    with progress("verifying photos", photos) as advance:
        results = ordered(executor, _check_sample, jobs, in_flight=2 * workers)
        for job, (found, size) in zip(jobs, results, strict=True):
            findings += found
            read += size
            advance(len(job.rows))
    total = sum(entry.samples for entries in manifest.splits.values() for entry in entries)
    left = ("SHA-256 of shards", "headers and labels", f"{total - photos:,} of {total:,} photos")
    return Verified(len(jobs), photos, read, tuple(findings), (*_unknown(manifest), *left))


def spread(counts: Sequence[int], share: float) -> list[NDArray[np.int64]]:
    """For shards of `counts` samples: the rows to look at, `share` of all in equal steps, one at least."""
    total = sum(counts)
    number = min(total, max(1, round(share * total)))
    chosen = ((np.arange(number) + 0.5) * total / max(number, 1)).astype(np.int64)
    starts = np.cumsum([0, *counts])
    bounds = np.searchsorted(chosen, starts)
    return [chosen[a:b] - start for a, b, start in zip(bounds[:-1], bounds[1:], starts[:-1], strict=True)]


def _bases(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for split in manifest.splits:
        yield split, manifest.bases.get(split, "")


def _unknown(manifest: Manifest) -> Iterator[str]:
    """What cannot be checked, since only the headers of the shards were read when they were indexed."""
    if not all(entry.sha256 for entries in manifest.splits.values() for entry in entries):
        yield "CRC of photos and SHA-256 of shards: unknown (shardtool index --checksums)"


def _dataset_findings(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    if dataset_digest(manifest.taxonomy, manifest.splits) != manifest.digest:
        yield Finding("dataset.json", "its digest does not follow from its shards")
    for split in sorted({*SPLITS, *manifest.splits}):
        yield from _extra_files(folder / split, manifest, split)


def _extra_files(folder: Path, manifest: Manifest, split: str) -> Iterator[Finding]:
    """Shards that nobody lists; in a foreign dataset, other files may be anything."""
    listed = {
        f"{entry.name}{ending}" for entry in manifest.splits.get(split, ()) for ending in (".tar", ".parquet")
    }
    if manifest.foreign:
        found = Path(shards_folder(str(folder), manifest.bases.get(split, ""))).glob("*.tar")
    else:
        found = folder.glob("shard-*")
    for path in sorted(found):
        if path.name not in listed:
            yield Finding(f"{split}/{path.name}", "is not listed in dataset.json")


def _count_findings(
    manifest: Manifest, counts: dict[str, NDArray[np.int64]], findings: Sequence[Finding]
) -> Iterator[Finding]:
    if findings:  # what could not be read was not counted
        return
    for split, rows in counts.items():
        if rows.tolist() != manifest.class_counts[split]:
            yield Finding("dataset.json", f"class counts of {split} are not those of its sidecars")


@dataclass(frozen=True)
class _Job:
    folder: Path
    place: Path
    entry: ShardEntry
    taxonomy: Taxonomy
    deep: bool
    foreign: bool

    def __str__(self) -> str:
        return f"{self.folder.name}/{self.entry.name}.tar"


def _check_shard(job: _Job) -> tuple[list[Finding], list[str], NDArray[np.int64]]:
    """Findings of one shard, the keys of its samples, and how many each taxonomy row has."""
    none = np.zeros(job.taxonomy.rows, np.int64)
    place = f"{job.folder.name}/{job.entry.name}"
    try:
        sidecar = (job.folder / f"{job.entry.name}.parquet").read_bytes()
        shard = (job.place / f"{job.entry.name}.tar").open("rb")
    except OSError as error:
        return [Finding(place, f"cannot be read: {error.strerror}")], [], none
    if hashlib.sha256(sidecar).hexdigest() != job.entry.sidecar_sha256:
        return [Finding(f"{place}.parquet", "SHA-256 differs from dataset.json")], [], none
    samples = read_sidecar(sidecar, place).to_pylist()
    keys = [sample["key"] for sample in samples]
    labels = [job.taxonomy.offsets[sample["species_id"]] + sample["disease_id"] for sample in samples]
    rows = np.bincount(np.array(labels, np.int64), minlength=job.taxonomy.rows)
    with shard:
        size = shard.seek(0, 2)
        if size != job.entry.bytes:
            return [Finding(f"{place}.tar", f"has {size} bytes, not {job.entry.bytes}")], keys, rows
        with mmap.mmap(shard.fileno(), 0, access=mmap.ACCESS_READ) as content:
            findings = list(_content_findings(job, place, samples, content))
            if job.foreign:
                findings += _foreign_findings(job, samples, content)
            else:
                findings += _header_findings(place, samples, shard)
            known = job.entry.sha256
            if known and hashlib.sha256(content).hexdigest() != known and not findings:
                findings.append(Finding(f"{place}.tar", "SHA-256 differs from dataset.json"))
    return findings, keys, rows


def _content_findings(
    job: _Job, place: str, samples: Sequence[dict[str, Any]], content: mmap.mmap
) -> Iterator[Finding]:
    for sample in samples:
        where = f"{place}.tar, key {sample['key']}, offset {sample['offset']}"
        jpeg = content[sample["offset"] : sample["offset"] + sample["size"]]
        if sample["crc32c"] is not None and google_crc32c.value(jpeg) != sample["crc32c"]:
            yield Finding(where, "CRC of the photo differs")
        elif job.deep:
            yield from _decode_findings(where, sample, jpeg)
            if not job.foreign:
                yield from _label_findings(job.taxonomy, where, sample, content)


def _decode_findings(where: str, sample: dict[str, Any], jpeg: bytes) -> Iterator[Finding]:
    try:
        height, width = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY").shape[:2]
    except ValueError as error:
        yield Finding(where, f"does not decode: {error}")
        return
    if (width, height) != (sample["width"], sample["height"]):
        yield Finding(where, f"is {width} x {height}, the sidecar says otherwise")


def _label_findings(
    taxonomy: Taxonomy, where: str, sample: dict[str, Any], content: mmap.mmap
) -> Iterator[Finding]:
    row = int(taxonomy.offsets[sample["species_id"]]) + sample["disease_id"]
    cls, meta = Annotations(taxonomy)(row, sample["source"])
    at = sample["offset"] + tar.padded(sample["size"]) + tar.BLOCK
    for ending, expected in ((".cls", cls), (".json", meta)):
        found = content[at : at + len(expected)]
        if found != expected:
            yield Finding(where, f"{ending} differs from the label space")
        at += tar.padded(len(expected)) + tar.BLOCK


def _foreign_findings(job: _Job, samples: Sequence[dict[str, Any]], content: mmap.mmap) -> Iterator[Finding]:
    """What another look at headers and labels finds that the sidecar has not."""

    def read(offset: int, length: int) -> bytes:
        return content[offset : offset + length]

    try:
        shard = scan_shard(read, len(content), job.folder.name, job.entry.name)
    except DatasetError as error:
        yield Finding(error.where, error.what)
        return
    found = shard.photos.to_pylist()
    if [sample["key"] for sample in samples] != [sample["key"] for sample in found]:
        yield Finding(str(job), "its members are not those of its sidecar")
        return
    for sample, now in zip(samples, found, strict=True):
        species = job.taxonomy.species[sample["species_id"]]
        disease = job.taxonomy.diseases[sample["species_id"]][sample["disease_id"]]
        same = ("offset", "size", "width", "height", "source")
        if (species, disease, *(sample[name] for name in same)) != (
            now["species"],
            now["disease"],
            *(now[name] for name in same),
        ):
            yield Finding(f"{job}, key {sample['key']}", "is not what its sidecar says")


def _header_findings(place: str, samples: Sequence[dict[str, Any]], shard: Any) -> Iterator[Finding]:
    try:
        members = list(tar.members(shard, f"{place}.tar"))
    except DatasetError as error:
        yield Finding(error.where, error.what)
        return
    names = [sample["key"] + ending for sample in samples for ending in MEMBERS]
    if [member.name for member in members] != names:
        yield Finding(f"{place}.tar", "its members are not those of its sidecar")
        return
    for sample, member in zip(samples, members[:: len(MEMBERS)], strict=True):
        if (member.offset, member.size) != (sample["offset"], sample["size"]):
            yield Finding(f"{place}.tar, key {sample['key']}", "lies elsewhere than its sidecar says")


@dataclass(frozen=True)
class _SampleJob:
    folder: str
    place: str
    entry: ShardEntry
    rows: NDArray[np.int64]
    deep: bool

    def __str__(self) -> str:
        return f"{self.folder.rpartition('/')[2]}/{self.entry.name}.tar"


def _check_sample(job: _SampleJob) -> tuple[list[Finding], int]:
    """Findings of the chosen photos of a shard, and how many bytes they have."""
    try:
        samples = open_sidecar(job.folder, job.entry).take(job.rows).to_pylist()
    except DatasetError as error:
        return [Finding(str(job), error.what)], 0
    findings = []
    for sample in samples:
        where = f"{job}, key {sample['key']}, offset {sample['offset']}"
        shard = f"{job.place}/{job.entry.name}.tar"
        try:
            jpeg = read_photo(shard, sample["offset"], sample["size"], sample["crc32c"], where)
        except (UserError, OSError) as error:
            findings.append(Finding(where, error.what if isinstance(error, UserError) else str(error)))
            continue
        findings += _decode_findings(where, sample, jpeg) if job.deep else []
    return findings, sum(sample["size"] for sample in samples)


def findings_json(verified: Verified) -> dict[str, Any]:
    """For --json."""
    return {**vars(verified), "findings": [vars(finding) for finding in verified.findings]}
