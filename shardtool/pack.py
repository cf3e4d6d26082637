"""scan -> select -> plan -> write shards -> report -> dataset.json, which is the commit.

Every shard is an independent job whose bytes follow from its plan, so the number of workers changes
nothing but the time, and a killed run goes on where it was: a shard that is what its plan says is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from shardtool import __version__, layout, tar
from shardtool.errors import DamagedManifest, NoSpace, ResumeRefused, UsageError, UserError
from shardtool.executor import ordered, processes
from shardtool.files import exclusive, remove_temporaries, write_atomic
from shardtool.index import (
    DATASET_FILE,
    Manifest,
    ShardEntry,
    dataset_digest,
    open_manifest,
    read_sidecar,
)
from shardtool.layout import ShardPlan
from shardtool.photo import Check
from shardtool.report import write_report
from shardtool.scan import SPLITS, Scan, column, examine_tree, list_tree
from shardtool.select import select
from shardtool.shard import ShardJob, up_to_date, write_shard
from shardtool.terminal import OpenProgress, silent, size_text


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
class Plan:
    """What a pack would write: every photo checked and placed, every shard with its exact size."""

    source: Path
    options: PackOptions
    scan: Scan
    shards: tuple[ShardPlan, ...]


@dataclass(frozen=True)
class Packed:
    """The outcome of a pack: what is there now, and which of the shards had to be written."""

    manifest: Manifest
    scan: Scan
    kept_shards: int
    written_shards: int


def plan_pack(
    source: Path,
    options: PackOptions = PackOptions(),
    executor: Executor | None = None,
    workers: int = 1,
    strict: bool = False,
    progress: OpenProgress = silent,
) -> Plan:
    """Open every photo of the tree `source` and decide where it goes; nothing is written.

    Raises UsageError; UserError with `strict` for the first refused photo, and when all were refused.
    """
    if not source.is_dir():
        raise UsageError("no such folder", where=source, cure="give the folder of the organized tree")
    tree = list_tree(source)
    with progress("checking photos", tree.photos) as advance:
        scan = examine_tree(tree, options.check, executor, workers, advance)
    scan = select(scan, options.val_share, options.seed)
    _check_selection(scan, strict)
    splits = column(scan.photos, "split")
    shards: list[ShardPlan] = []
    for number, name in enumerate(SPLITS):
        photos = scan.photos.filter(pa.array(splits == number))
        shards += layout.plan(photos, scan.taxonomy, name, options.seed, options.shard_size)
    return Plan(source, options, scan, tuple(shards))


def pack(
    source: Path,
    out: Path,
    options: PackOptions = PackOptions(),
    workers: int = 1,
    strict: bool = False,
    progress: OpenProgress = silent,
) -> Packed:
    """Pack the organized tree `source` into the dataset folder `out`.

    Raises what `plan_pack` raises, and DestinationBusy, ResumeRefused, NoSpace, SourceChanged.
    """
    _check_destination(source, out)
    with exclusive(out, "shardtool pack"), processes(workers) as executor:
        _check_options(out, options)
        plan = plan_pack(source, options, executor, workers, strict, progress)
        jobs = [ShardJob(source, out, shard, plan.scan.taxonomy) for shard in plan.shards]
        with progress("checking shards", len(jobs)) as advance:
            stale = []
            good = ordered(executor, up_to_date, jobs, in_flight=2 * workers)
            for job, there in zip(jobs, good, strict=True):
                stale += [] if there else [job]
                advance(1)
        _make_room(out, plan.shards, [job.plan for job in stale])
        with progress("writing photos", sum(job.plan.photos.num_rows for job in stale)) as advance:
            for count in ordered(executor, write_shard, stale, in_flight=2 * workers):
                advance(count)
        manifest = _manifest(plan, out)
        write_report(out, source, plan.scan, manifest)
        write_atomic(out / DATASET_FILE, _json_bytes(manifest.to_json()))
    return Packed(manifest, plan.scan, len(jobs) - len(stale), len(stale))


def _check_destination(source: Path, out: Path) -> None:
    if not source.is_dir():  # before a folder is made at --out
        raise UsageError("no such folder", where=source, cure="give the folder of the organized tree")
    if out.exists() and not out.is_dir():
        raise UsageError("--out is a file", where=out, cure="give a folder")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError("--out lies inside the source tree", where=out, cure="choose another")
    if out.is_dir() and any(out.iterdir()) and not (out / ".lock").exists():
        raise UsageError("--out is not empty and was not made by shardtool", where=out, cure="choose another")


def _check_selection(scan: Scan, strict: bool) -> None:
    """Raises UserError: with `strict` for the first refused photo, and when none is left."""
    if scan.refused and (strict or not scan.photos.num_rows):
        first = scan.refused[0]
        raise UserError(
            f"nothing packed: {first.reason}, {first.detail}"
            if strict
            else f"nothing packed, every photo was refused; the first: {first.reason}, {first.detail}",
            where=os.fsdecode(first.source),
        )


def _check_options(out: Path, options: PackOptions) -> None:
    if not (out / DATASET_FILE).exists():
        return
    try:
        old, new = open_manifest(str(out)).options, asdict(options)
    except DamagedManifest:
        return  # it is written anew; the shards are judged one by one
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
            if not any(folder.iterdir()) and not any(plan.split == split for plan in plans):
                folder.rmdir()


def _manifest(plan: Plan, out: Path) -> Manifest:
    shards: dict[str, tuple[ShardEntry, ...]] = {}
    for shard in plan.shards:
        shards[shard.split] = (*shards.get(shard.split, ()), _entry(shard, out))
    splits, rows = column(plan.scan.photos, "split"), column(plan.scan.photos, "row")
    taxonomy = plan.scan.taxonomy
    counts = {
        name: np.bincount(rows[splits == SPLITS.index(name)], minlength=taxonomy.rows).tolist()
        for name in shards
    }
    digest = dataset_digest(taxonomy, shards)
    return Manifest(taxonomy, shards, counts, asdict(plan.options), f"shardtool {__version__}", digest)


def _entry(shard: ShardPlan, out: Path) -> ShardEntry:
    """What dataset.json says of a shard that is written."""
    path = out / shard.split / f"{shard.name}.parquet"
    data = path.read_bytes()
    sha256 = read_sidecar(data, str(path)).schema.metadata[b"shardtool.sha256"].decode()
    sidecar_sha256 = hashlib.sha256(data).hexdigest()
    return ShardEntry(shard.name, shard.photos.num_rows, shard.size, sha256, sidecar_sha256)


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
