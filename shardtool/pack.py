"""scan -> refuse -> plan -> write shards -> sidecars -> report -> dataset.json, which is the commit.

Every shard is an independent job whose bytes follow from its plan, so the number of workers changes
nothing but the time, and a killed run goes on where it was: a shard whose sidecar says what the plan
says is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from shardtool import __version__, layout, tar
from shardtool.errors import (
    DatasetError,
    InputRefused,
    NoSpace,
    ResumeRefused,
    SourceChanged,
    UsageError,
)
from shardtool.executor import ordered, processes
from shardtool.files import atomic, exclusive, remove_temporaries, write_atomic
from shardtool.index import (
    DATASET_FILE,
    Manifest,
    ShardEntry,
    dataset_digest,
    open_manifest,
    read_sidecar,
    sidecar_bytes,
)
from shardtool.layout import ShardPlan
from shardtool.photo import Check, Reason, Refused, encode
from shardtool.report import write_report
from shardtool.scan import (
    SPLITS,
    Refusal,
    Scan,
    column,
    content_digest,
    examine_tree,
    list_tree,
    read_source,
)
from shardtool.taxonomy import Taxonomy
from shardtool.terminal import OpenProgress, silent, size_text

WRITE_BYTES = 4 << 20


@dataclass(frozen=True)
class PackOptions:
    """What shapes the bytes of a packed dataset; the number of workers is not among it."""

    shard_size: int = 10**9
    seed: int = 0
    check: Check = "decode"
    val_share: float = 0.1  # only for trees without split folders

    def __post_init__(self) -> None:
        if self.shard_size < tar.RECORD:
            raise UsageError(f"--shard-size {self.shard_size} is under {tar.RECORD} bytes")
        if not 0 <= self.val_share < 1:
            raise UsageError(f"--split: a validation share of {self.val_share} is not in [0, 1)")


@dataclass(frozen=True)
class Packed:
    """The outcome of a pack: what is there now, and what was left out."""

    manifest: Manifest
    refused: tuple[Refusal, ...]
    ignored: Counter[str]
    converted: Counter[str]
    duplicates: int  # photos whose bytes stand more than once in their class, all kept
    kept_shards: int
    written_shards: int


def pack(
    source: Path,
    out: Path,
    options: PackOptions = PackOptions(),
    workers: int = 1,
    strict: bool = False,
    progress: OpenProgress = silent,
) -> Packed:
    """Pack the organized tree `source` into the dataset folder `out`.

    Raises UsageError, DestinationBusy, ResumeRefused, NoSpace, SourceChanged; with `strict` also
    InputRefused for the first refused photo.
    """
    _check_destination(source, out)
    with exclusive(out, "shardtool pack"), processes(workers) as executor:
        _check_options(out, options)
        tree = list_tree(source)
        with progress("checking photos", tree.photos) as advance:
            scan = examine_tree(tree, options.check, executor, workers, advance)
        scan, groups = _refuse(_with_splits(scan, options))
        if strict and scan.refused:
            first = scan.refused[0]
            raise InputRefused(f"{first.reason}: {first.detail}", where=os.fsdecode(first.source))
        plans = plan_shards(scan, options)
        stale = [plan for plan in plans if not _up_to_date(plan, scan.taxonomy, out)]
        _make_room(out, plans, stale)
        jobs = [_Job(source, out, plan, scan.taxonomy, options.check) for plan in stale]
        with progress("writing photos", sum(plan.photos.num_rows for plan in stale)) as advance:
            for count in ordered(executor, _write_shard, jobs, in_flight=2 * workers):
                advance(count)
        manifest = _manifest(scan, plans, options, out)
        packed = Packed(
            manifest,
            scan.refused,
            scan.ignored,
            Counter(rule for rule in scan.photos.column("rule").to_pylist() if rule),
            int((np.bincount(groups)[groups] > 1).sum()) if len(groups) else 0,
            len(plans) - len(stale),
            len(stale),
        )
        write_report(out, source, scan, manifest)
        write_atomic(out / DATASET_FILE, _json_bytes(manifest.to_json()))
        return packed


def plan_shards(scan: Scan, options: PackOptions) -> list[ShardPlan]:
    """The shards of all splits, in order; nothing is read or written."""
    splits = column(scan.photos, "split")
    plans = []
    for number, name in enumerate(SPLITS):
        photos = scan.photos.filter(pa.array(splits == number))
        plans += layout.plan(photos, scan.taxonomy, name, options.seed, options.shard_size)
    return plans


def _with_splits(scan: Scan, options: PackOptions) -> Scan:
    """Give every photo a split if the tree has none."""
    if not (column(scan.photos, "split") < 0).any():
        return scan
    groups = layout.same_bytes(scan.photos.column("digest").to_pylist())
    splits = layout.make_splits(
        groups, column(scan.photos, "row").astype(np.int32), options.val_share, options.seed
    )
    place = scan.photos.schema.get_field_index("split")
    photos = scan.photos.set_column(place, "split", pa.array(splits, pa.int8()))
    return Scan(scan.root, scan.taxonomy, photos, scan.refused, scan.ignored)


def _refuse(scan: Scan) -> tuple[Scan, np.ndarray]:
    """Leave out label conflicts and leaks; returns the rest and its groups of equal bytes."""
    sources = scan.photos.column("source").to_pylist()
    groups = layout.same_bytes(scan.photos.column("digest").to_pylist())
    splits = column(scan.photos, "split").astype(np.int8)
    conflict = layout.conflicting(groups, column(scan.photos, "row").astype(np.int32))
    leak = layout.leaking(groups, splits) & ~conflict
    refused = list(scan.refused)
    refused += _refusals("label conflict", np.flatnonzero(conflict), groups, splits, sources)
    refused += _refusals("leak", np.flatnonzero(leak), groups, splits, sources)
    keep = ~(conflict | leak)
    photos = scan.photos.filter(pa.array(keep))
    refused.sort(key=lambda refusal: refusal.source)
    kept = Scan(scan.root, scan.taxonomy, photos, tuple(refused), scan.ignored)
    return kept, layout.same_bytes(photos.column("digest").to_pylist())


def _refusals(
    reason: Reason,
    photos: np.ndarray,
    groups: np.ndarray,
    splits: np.ndarray,
    sources: Sequence[bytes],
) -> Iterator[Refusal]:
    """Name, for each of these photos, another one with the same bytes (for a leak: the later split's)."""
    twin: dict[int, list[int]] = {}
    wanted = set(groups[photos].tolist())
    for photo in np.flatnonzero(np.isin(groups, list(wanted))).tolist():
        twin.setdefault(int(groups[photo]), []).append(photo)
    for photo in photos.tolist():
        others = [other for other in twin[int(groups[photo])] if other != photo]
        witness = max(others, key=lambda other: int(splits[other]))
        yield Refusal(sources[photo], reason, f"same bytes as {os.fsdecode(sources[witness])}")


def _check_destination(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise UsageError("no such folder", where=source, cure="give the folder of the organized tree")
    if out.exists() and not out.is_dir():
        raise UsageError("--out is a file", where=out, cure="give a folder")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError("--out lies inside the source tree", where=out, cure="choose another")
    if out.is_dir() and any(out.iterdir()) and not (out / ".lock").exists():
        raise UsageError("--out is not empty and was not made by shardtool", where=out, cure="choose another")


def _check_options(out: Path, options: PackOptions) -> None:
    if not (out / DATASET_FILE).exists():
        return
    old, new = open_manifest(str(out)).options, asdict(options)
    changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
    if changed:
        raise ResumeRefused(
            f"this dataset was packed with other options: {', '.join(changed)}",
            where=out,
            cure="use the same options or another --out",
        )


def _make_room(out: Path, plans: Sequence[ShardPlan], stale: Sequence[ShardPlan]) -> None:
    """Check the space, withdraw dataset.json if anything will change, delete what is not planned."""
    needed, free = sum(plan.size for plan in stale), shutil.disk_usage(out).free
    if needed > free:
        raise NoSpace(f"needs {size_text(needed)}, {size_text(free)} free", where=out, cure="free some")
    if stale:
        (out / DATASET_FILE).unlink(missing_ok=True)
    remove_temporaries(out)
    wanted = {out / plan.split / f"{plan.name}.{end}" for plan in plans for end in ("tar", "parquet")}
    for split in SPLITS:
        folder = out / split
        if any(plan.split == split for plan in plans):
            folder.mkdir(exist_ok=True)
        if folder.is_dir():
            remove_temporaries(folder)
            for path in set(folder.glob("shard-*")) - wanted:
                (out / DATASET_FILE).unlink(missing_ok=True)
                path.unlink()


def _up_to_date(plan: ShardPlan, taxonomy: Taxonomy, out: Path) -> bool:
    path = out / plan.split / plan.name
    try:
        size = path.with_suffix(".tar").stat().st_size
        sidecar = read_sidecar(path.with_suffix(".parquet").read_bytes(), str(path))
    except (OSError, DatasetError):
        return False
    return size == plan.size and sidecar.equals(_sidecar_table(plan, taxonomy))


def _sidecar_table(plan: ShardPlan, taxonomy: Taxonomy) -> pa.Table:
    """The sidecar's rows, all known before the shard is written."""
    photos = plan.photos
    rows = column(photos, "row")
    species = taxonomy.row_species[rows]
    offsets, position = [], 0
    for source, row, size in zip(
        photos.column("source").to_pylist(), rows.tolist(), column(photos, "size"), strict=True
    ):
        offsets.append(position + tar.BLOCK)
        position += layout.sample_size(int(size), *layout.annotation(taxonomy, row, source))
    return pa.table(
        {
            "key": photos.column("key"),
            "offset": pa.array(offsets, pa.int64()),
            "size": photos.column("size"),
            "species_id": pa.array(species, pa.int32()),
            "disease_id": pa.array(rows - taxonomy.offsets[species], pa.int32()),
            "width": photos.column("width"),
            "height": photos.column("height"),
            "crc32c": photos.column("crc32c"),
            "source": photos.column("source"),
        }
    )


@dataclass(frozen=True)
class _Job:
    source: Path
    out: Path
    plan: ShardPlan
    taxonomy: Taxonomy
    check: Check


def _write_shard(job: _Job) -> int:
    """Write one shard and its sidecar; returns the number of samples."""
    path = job.out / job.plan.split / job.plan.name
    sha256 = hashlib.sha256()
    written = 0
    with atomic(path.with_suffix(".tar")) as file:
        for chunk in _chunks(job):
            file.write(chunk)
            sha256.update(chunk)
            written += len(chunk)
    assert written == job.plan.size, (written, job.plan.size)
    table = _sidecar_table(job.plan, job.taxonomy)
    write_atomic(path.with_suffix(".parquet"), sidecar_bytes(table, sha256.hexdigest()))
    return int(job.plan.photos.num_rows)


def _chunks(job: _Job) -> Iterator[bytes]:
    """The shard's bytes in pieces of about WRITE_BYTES."""
    buffer, size = [], 0
    pending = 0
    for piece in _members(job):
        buffer.append(piece)
        pending += len(piece)
        if pending >= WRITE_BYTES:
            yield b"".join(buffer)
            size += pending
            buffer, pending = [], 0
    yield b"".join(buffer) + tar.ending(size + pending)


def _members(job: _Job) -> Iterator[bytes]:
    photos = job.plan.photos
    names = ("source", "row", "key", "digest", "crc32c")
    for source, row, key, digest, crc32c in zip(
        *(photos.column(name).to_pylist() for name in names), strict=True
    ):
        jpeg = _read_again(job, source, digest, crc32c)
        cls, meta = layout.annotation(job.taxonomy, row, source)
        stem = key.encode()
        yield tar.member(stem + b".jpg", jpeg)
        yield tar.member(stem + b".cls", cls)
        yield tar.member(stem + b".json", meta)


def _read_again(job: _Job, source: bytes, digest: bytes, crc32c: int) -> bytes:
    """The JPEG of a photo that the scan has seen. Raises SourceChanged if it is another one now."""
    path = os.path.join(os.fsencode(job.source), source)
    for _ in range(2):  # a second look: the first may have met a file that is being copied
        try:
            data = read_source(path)
        except Refused:
            continue
        if content_digest(data) == digest:
            jpeg = encode(data, "header").data
            assert google_crc32c.value(jpeg) == crc32c, source
            return jpeg
    raise SourceChanged(
        "a photo changed while it was packed",
        where=os.fsdecode(source),
        cure="run the same command again when nothing writes to the source",
    )


def _manifest(scan: Scan, plans: Sequence[ShardPlan], options: PackOptions, out: Path) -> Manifest:
    splits: dict[str, list[ShardEntry]] = {}
    counts: dict[str, np.ndarray] = {}
    for plan in plans:
        path = out / plan.split / f"{plan.name}.parquet"
        data = path.read_bytes()
        metadata = read_sidecar(data, str(path)).schema.metadata
        entry = ShardEntry(
            plan.name,
            plan.photos.num_rows,
            plan.size,
            metadata[b"shardtool.sha256"].decode(),
            hashlib.sha256(data).hexdigest(),
        )
        splits.setdefault(plan.split, []).append(entry)
        rows = np.bincount(column(plan.photos, "row"), minlength=scan.taxonomy.rows)
        counts[plan.split] = counts.get(plan.split, 0) + rows
    shards = {name: tuple(entries) for name, entries in splits.items()}
    return Manifest(
        scan.taxonomy,
        shards,
        {name: rows.tolist() for name, rows in counts.items()},
        asdict(options),
        f"shardtool {__version__}",
        dataset_digest(scan.taxonomy, shards),
    )


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
