"""Is a packed dataset what dataset.json says it is? A finding names its shard and, where
there is one, its key and offset.

Fast: sizes, SHA-256 of every file, headers against sidecars, CRC of every photo. Deep: also the label
members against the label space, and every photo decodes.
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
from numpy.typing import NDArray

from shardtool import tar
from shardtool.errors import DatasetError
from shardtool.executor import ordered
from shardtool.index import Manifest, ShardEntry, dataset_digest, open_manifest, read_sidecar
from shardtool.layout import annotation
from shardtool.photo import Refused, encode
from shardtool.scan import SPLITS
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


def verify(
    folder: Path,
    deep: bool = False,
    executor: Executor | None = None,
    workers: int = 1,
    progress: OpenProgress = silent,
) -> Verified:
    """Check a local dataset folder. Raises UsageError or DatasetError if there is no dataset.json."""
    manifest = open_manifest(str(folder))
    findings = list(_dataset_findings(folder, manifest))
    jobs = [
        _Job(folder / split, entry, manifest.taxonomy, deep)
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
                if key in keys:
                    findings.append(Finding(f"{place}, key {key}", f"key is also in {keys[key]}"))
                keys[key] = place
            advance(job.entry.samples)
    findings += _count_findings(manifest, counts, findings)
    return Verified(
        len(jobs),
        sum(job.entry.samples for job in jobs),
        sum(job.entry.bytes for job in jobs),
        tuple(findings),
    )


def _dataset_findings(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    if dataset_digest(manifest.taxonomy, manifest.splits) != manifest.digest:
        yield Finding("dataset.json", "its digest does not follow from its shards")
    for split in set(SPLITS) - set(manifest.splits):
        for path in sorted((folder / split).glob("shard-*")):
            yield Finding(f"{split}/{path.name}", "is not listed in dataset.json")
    for split, entries in manifest.splits.items():
        listed = {f"{entry.name}{ending}" for entry in entries for ending in (".tar", ".parquet")}
        for path in sorted((folder / split).glob("shard-*")):
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
    entry: ShardEntry
    taxonomy: Taxonomy
    deep: bool


def _check_shard(job: _Job) -> tuple[list[Finding], list[str], NDArray[np.int64]]:
    """Findings of one shard, the keys of its samples, and how many each taxonomy row has."""
    none = np.zeros(job.taxonomy.rows, np.int64)
    place = f"{job.folder.name}/{job.entry.name}"
    try:
        sidecar = (job.folder / f"{job.entry.name}.parquet").read_bytes()
        shard = (job.folder / f"{job.entry.name}.tar").open("rb")
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
            findings += _header_findings(place, samples, shard)
            if hashlib.sha256(content).hexdigest() != job.entry.sha256 and not findings:
                findings.append(Finding(f"{place}.tar", "SHA-256 differs from dataset.json"))
    return findings, keys, rows


def _content_findings(
    job: _Job, place: str, samples: Sequence[dict[str, Any]], content: mmap.mmap
) -> Iterator[Finding]:
    for sample in samples:
        where = f"{place}.tar, key {sample['key']}, offset {sample['offset']}"
        jpeg = content[sample["offset"] : sample["offset"] + sample["size"]]
        if google_crc32c.value(jpeg) != sample["crc32c"]:
            yield Finding(where, "CRC of the photo differs")
        elif job.deep:
            yield from _deep_findings(job.taxonomy, where, sample, jpeg, content)


def _deep_findings(
    taxonomy: Taxonomy, where: str, sample: dict[str, Any], jpeg: bytes, content: mmap.mmap
) -> Iterator[Finding]:
    try:
        photo = encode(jpeg)
    except Refused as error:
        yield Finding(where, f"does not decode: {error.detail}")
        return
    if (photo.width, photo.height) != (sample["width"], sample["height"]):
        yield Finding(where, f"is {photo.width} x {photo.height}, the sidecar says otherwise")
    row = int(taxonomy.offsets[sample["species_id"]]) + sample["disease_id"]
    cls, meta = annotation(taxonomy, row, sample["source"])
    at = sample["offset"] + tar.padded(sample["size"]) + tar.BLOCK
    for ending, expected in ((".cls", cls), (".json", meta)):
        found = content[at : at + len(expected)]
        if found != expected:
            yield Finding(where, f"{ending} differs from the label space")
        at += tar.padded(len(expected)) + tar.BLOCK


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


def findings_json(verified: Verified) -> dict[str, Any]:
    """For --json."""
    return {**vars(verified), "findings": [vars(finding) for finding in verified.findings]}
