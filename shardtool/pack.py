"""scan -> select -> plan -> write shards -> report -> dataset.json, which is the commit.

Every shard is an independent job whose bytes follow from its plan, so the number of workers changes
nothing but the time, and a killed run goes on where it was: a shard that is what its plan says is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
from shardtool.scan import SPLITS, Refusal, Scan, column, examine_tree, list_tree
from shardtool.select import duplicates, select
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

    Raises UsageError, DestinationBusy, ResumeRefused, NoSpace, SourceChanged; UserError
    with `strict` for the first refused photo, and when every photo was refused.
    """
    _check_destination(source, out)
    with exclusive(out, "shardtool pack"), processes(workers) as executor:
        _check_options(out, options)
        tree = list_tree(source)
        with progress("checking photos", tree.photos) as advance:
            scan = examine_tree(tree, options.check, executor, workers, advance)
        scan = select(scan, options.val_share, options.seed)
        _check_selection(scan, strict)
        plans = plan_shards(scan, options)
        jobs = [ShardJob(source, out, plan, scan.taxonomy) for plan in plans]
        with progress("checking shards", len(jobs)) as advance:
            good = []
            for there in ordered(executor, up_to_date, jobs, in_flight=2 * workers):
                good.append(there)
                advance(1)
        stale = [job for job, there in zip(jobs, good, strict=True) if not there]
        _make_room(out, plans, [job.plan for job in stale])
        with progress("writing photos", sum(job.plan.photos.num_rows for job in stale)) as advance:
            for count in ordered(executor, write_shard, stale, in_flight=2 * workers):
                advance(count)
        manifest = _manifest(scan, plans, options, out)
        write_report(out, source, scan, manifest)
        write_atomic(out / DATASET_FILE, _json_bytes(manifest.to_json()))
    return Packed(
        manifest,
        scan.refused,
        scan.ignored,
        Counter(rule for rule in scan.photos.column("rule").to_pylist() if rule),
        duplicates(scan),
        len(plans) - len(stale),
        len(stale),
    )


def plan_shards(scan: Scan, options: PackOptions) -> list[ShardPlan]:
    """The shards of all splits, in order; nothing is read or written."""
    splits = column(scan.photos, "split")
    plans = []
    for number, name in enumerate(SPLITS):
        photos = scan.photos.filter(pa.array(splits == number))
        plans += layout.plan(photos, scan.taxonomy, name, options.seed, options.shard_size)
    return plans


def _check_destination(source: Path, out: Path) -> None:
    if not source.is_dir():
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


def _manifest(scan: Scan, plans: Sequence[ShardPlan], options: PackOptions, out: Path) -> Manifest:
    splits: dict[str, list[ShardEntry]] = {}
    counts: dict[str, NDArray[np.int64]] = {}
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
