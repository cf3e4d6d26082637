"""scan -> select -> plan -> write shards -> report -> dataset.json, which is the commit.

Every shard is an independent job whose bytes follow from its plan, so the number of workers changes
nothing but the time, and a killed run goes on where it was: a shard that is what its plan says is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np

from shardtool import __version__, card, jpeg, layout, tar
from shardtool.errors import DamagedManifest, NoSpace, ResumeRefused, UsageError, UserError
from shardtool.executor import engine, ordered
from shardtool.index import (
    DATASET_FILE,
    Manifest,
    ShardEntry,
    dataset_digest,
    open_manifest,
    read_sidecar,
)
from shardtool.layout import Layout
from shardtool.photo import MIN_SIDE, Check, Rules
from shardtool.quality import shuffle_quality
from shardtool.report import report_files
from shardtool.scan import SPLITS, Refusal, Scan, examine_tree, list_tree
from shardtool.select import near_duplicates, select
from shardtool.shard import ShardJob, rehearse, up_to_date, write_shard
from shardtool.similar import NearPair
from shardtool.source import Source, open_source
from shardtool.store import Folder, LocalFolder, is_remote, open_folder
from shardtool.terminal import OpenProgress, silent, size_text

REHEARSED_PIECES = 16
CARD_FILE = "README.md"


@dataclass(frozen=True)
class PackOptions:
    """What shapes the bytes of a packed dataset; the number of workers is not among it."""

    shard_size: int = 10**9
    seed: int = 0
    check: Check = "decode"
    val_share: float = 0.1  # only for trees without split folders
    max_side: int = 0  # pixels, 0: as they are
    quality: int = 95  # of converted and shrunk photos
    baseline: bool = False  # rewrite progressive JPEGs without loss
    merge_twins: bool = False  # class folders that differ only in case or blanks
    keep_conflicts: bool = False  # photos whose copies bear another label
    keep_leaks: bool = False  # photos whose copies stand in a later split

    def __post_init__(self) -> None:
        if self.shard_size < tar.RECORD:
            raise UsageError(f"--shard-size {self.shard_size} is under {tar.RECORD} bytes")
        if not 0 <= self.val_share < 1:
            raise UsageError(f"--split: a validation share of {self.val_share} is not in [0, 1)")
        if 0 < self.max_side < MIN_SIDE or self.max_side < 0:
            raise UsageError(f"--max-side {self.max_side} is under {MIN_SIDE} pixels")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality} is not in 1 ... 100")

    @property
    def rules(self) -> Rules:
        return Rules(self.max_side, self.quality, self.baseline)


@dataclass(frozen=True)
class MaxRefused:
    """How many refused files a pack puts up with: a count, or a share of all candidate files."""

    count: int = 0
    share: float = 0.0

    def of(self, files: int) -> int:
        """The number for a tree of so many files."""
        return max(self.count, int(self.share * files))


@dataclass(frozen=True)
class Plan:
    """What a pack would write: every photo checked and placed, every shard with its exact size."""

    source: Source
    options: PackOptions
    scan: Scan
    layouts: Mapping[str, Layout]  # by split

    def jobs(self, out: Folder) -> Iterator[ShardJob]:
        """One job a shard, in the order of the splits; each is made when it is asked for."""
        for shards in self.layouts.values():
            for number in range(len(shards)):
                yield self.job(out, shards.split, number)

    def job(self, out: Folder, split: str, number: int) -> ShardJob:
        """The job that writes one shard."""
        shard = self.layouts[split][number]
        return ShardJob(self.source, out, shard, self.scan.taxonomy, self.options.rules)

    def seconds(self, workers: int) -> float:
        """About how long the writing takes: some of it is done in memory, and timed."""
        total = sum(int(shards.sizes.sum()) for shards in self.layouts.values())
        start = perf_counter()
        done = sum(rehearse(job, REHEARSED_PIECES) for job in islice(self.jobs(LocalFolder(Path())), 1))
        return (perf_counter() - start) * total / max(done, 1) / workers


@dataclass(frozen=True)
class Packed:
    """The outcome of a pack: what is there now, and which shards were written or removed for it."""

    manifest: Manifest
    scan: Scan
    near: Sequence[NearPair]
    kept: int
    written: tuple[str, ...]
    removed: tuple[str, ...]


def plan_pack(
    source: Path | str,
    options: PackOptions = PackOptions(),
    *,
    executor: Executor | None = None,
    workers: int = 1,
    max_refused: MaxRefused | None = None,
    progress: OpenProgress = silent,
) -> Plan:
    """Open every photo of the tree `source` and decide where it goes; nothing is written.

    Raises UsageError; UserError past `max_refused` refusals, and when all were refused.
    """
    if options.baseline and jpeg.jpegtran() is None:
        raise UsageError("--baseline needs the program jpegtran", cure="apt install libjpeg-turbo-progs")
    tree = list_tree(open_source(str(source)), options.merge_twins)
    limit = max_refused.of(tree.photos) if max_refused else None
    refused: list[Refusal] = []
    with progress("checking photos", tree.photos) as advance:

        def seen(photos: int, refusals: Sequence[Refusal]) -> None:
            advance(photos + len(refusals))
            refused.extend(refusals)
            _check_refused(refused, limit)

        scan = examine_tree(tree, options.check, options.rules, executor, workers, seen)
    scan = select(scan, options.val_share, options.seed, options.keep_conflicts, options.keep_leaks)
    _check_refused(scan.refused, limit)
    if not scan.photos.num_rows:
        raise _nothing_packed(f"every one of {len(scan.refused):,} files was refused", scan.refused[0])
    layouts = layout.plan(scan.photos, scan.taxonomy, SPLITS, options.seed, options.shard_size)
    return Plan(tree.source, options, scan, layouts)


def pack(
    source: Path | str,
    out: Path | str,
    options: PackOptions = PackOptions(),
    *,
    workers: int = 1,
    cluster: str = "",
    max_refused: MaxRefused | None = None,
    near_within: bool = False,
    progress: OpenProgress = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> Packed:
    """Pack the organized tree `source` into the dataset folder `out`; both may be URLs.

    Raises what `plan_pack` raises, and DestinationBusy, ResumeRefused, NoSpace, SourceChanged, StorageError.
    """
    folder = open_folder(str(out))
    _check_destination(str(source), folder)
    with folder.exclusive("shardtool pack"), engine(workers, cluster) as (executor, workers):
        _check_options(folder, options)
        plan = plan_pack(
            source, options, executor=executor, workers=workers, max_refused=max_refused, progress=progress
        )
        stale = _stale(plan, folder, executor, workers, progress)
        removed = _make_room(plan, folder, stale, tell)
        photos = sum(int(plan.layouts[split].counts[number]) for split, number in stale)
        with progress("writing photos", photos) as advance:
            jobs = (plan.job(folder, split, number) for split, number in stale)
            for count in ordered(executor, write_shard, jobs, in_flight=2 * workers):
                advance(count)
        near = near_duplicates(plan.scan, near_within)
        manifest = _manifest(plan, folder)
        _publish(plan, folder, manifest, near)
    shards = sum(map(len, plan.layouts.values()))
    written = tuple(f"{split}/{layout.shard_name(number)}" for split, number in stale)
    return Packed(manifest, plan.scan, near, shards - len(stale), written, removed)


def _check_refused(refused: Sequence[Refusal], limit: int | None) -> None:
    if limit is not None and len(refused) > limit:
        raise _nothing_packed(f"{len(refused):,} files refused, more than {limit:,}", refused[0])


def _nothing_packed(why: str, first: Refusal) -> UserError:
    return UserError(
        f"nothing packed: {why}; the first: {first.reason}, {first.detail}", where=os.fsdecode(first.source)
    )


def _check_destination(source: str, out: Folder) -> None:
    open_source(source)  # before a folder is made at --out
    if isinstance(out, LocalFolder):
        if out.root.exists() and not out.root.is_dir():
            raise UsageError("--out is a file", where=out, cure="give a folder")
        inside = not is_remote(source) and out.root.resolve().is_relative_to(Path(source).resolve())
    else:
        inside = f"{out.url}/".startswith(f"{source.rstrip('/')}/")
    if inside:
        raise UsageError("--out lies inside the source tree", where=out, cure="choose another")
    if out.is_foreign():
        raise UsageError("--out is not empty and was not made by shardtool", where=out, cure="choose another")


def _check_options(out: Folder, options: PackOptions) -> None:
    if DATASET_FILE not in out.files():
        return
    try:
        old = {**asdict(PackOptions()), **open_manifest(out.url).options}
    except DamagedManifest:
        return  # it is written anew; the shards are judged one by one
    new = asdict(options)
    changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
    if changed:
        raise ResumeRefused(
            f"this dataset was packed with other options: {', '.join(changed)}",
            where=out,
            cure="use the same options or another --out",
        )


def _stale(
    plan: Plan, out: Folder, executor: Executor | None, workers: int, progress: OpenProgress
) -> list[tuple[str, int]]:
    """The shards, as (split, number), that are not yet there as planned."""
    stale: list[tuple[str, int]] = []
    there: list[tuple[str, int]] = []
    for split, shards in plan.layouts.items():
        sizes = out.files(split)
        for number, size in enumerate(shards.sizes.tolist()):
            found = sizes.get(f"{layout.shard_name(number)}.tar") == size
            (there if found else stale).append((split, number))
    if not there:
        return stale
    jobs = (plan.job(out, split, number) for split, number in there)
    with progress("checking shards", len(there)) as advance:
        for place, good in zip(
            there, ordered(executor, up_to_date, jobs, in_flight=2 * workers), strict=True
        ):
            stale += [] if good else [place]
            advance(1)
    return sorted(stale, key=lambda place: (SPLITS.index(place[0]), place[1]))


def _make_room(
    plan: Plan, out: Folder, stale: Sequence[tuple[str, int]], tell: Callable[[str], None]
) -> tuple[str, ...]:
    """Check the space, withdraw dataset.json if anything will change, delete what is not planned.

    Returns the shards that were removed.
    """
    needed = sum(int(plan.layouts[split].sizes[number]) for split, number in stale)
    free = out.free()
    if free is not None and needed > free:
        raise NoSpace(f"needs {size_text(needed)}, {size_text(free)} free", where=out, cure="free some")
    unplanned = _unplanned(plan, out)
    interrupted = DATASET_FILE not in out.files()
    if stale or unplanned:
        out.remove(DATASET_FILE)
    for name in unplanned:
        out.remove(name)
    partial = out.tidy(SPLITS)
    shards = sum(map(len, plan.layouts.values()))
    if interrupted and (len(stale) < shards or partial):
        tell(f"resuming: {shards - len(stale)} of {shards} shards verified, {partial} partial discarded")
    return tuple(name.removesuffix(".tar") for name in unplanned if name.endswith(".tar"))


def _unplanned(plan: Plan, out: Folder) -> list[str]:
    """Shards and sidecars that lie there and have no place in the plan."""
    wanted = {
        f"{split}/{layout.shard_name(number)}.{ending}"
        for split, shards in plan.layouts.items()
        for number in range(len(shards))
        for ending in ("tar", "parquet")
    }
    found = [
        f"{split}/{name}"
        for split in SPLITS
        for name in sorted(out.files(split))
        if name.startswith("shard-")
    ]
    return [name for name in found if name not in wanted]


def _publish(plan: Plan, out: Folder, manifest: Manifest, near: Sequence[NearPair]) -> None:
    """Write the reports and, last of all, dataset.json."""
    species = plan.scan.taxonomy.row_species
    shuffle = {name: shuffle_quality(species[shards.column("row")]) for name, shards in plan.layouts.items()}
    files = report_files(plan.source.read, plan.scan, manifest, shuffle, near)
    if _is_own(out, CARD_FILE):
        del files[CARD_FILE]
    for name, data in (*files.items(), (DATASET_FILE, _json_bytes(manifest.to_json()))):
        with out.create(name) as file:
            file.write(data)
    out.tidy(SPLITS)  # what a killed worker left, before its job was done again


def _is_own(out: Folder, name: str) -> bool:
    """Whether the person has taken this file over: it no longer says that it is written anew."""
    return name in out.files() and card.MARK.encode() not in out.read(name)


def _manifest(plan: Plan, out: Folder) -> Manifest:
    taxonomy = plan.scan.taxonomy
    shards = {
        split: tuple(_entry(shards, number, out) for number in range(len(shards)))
        for split, shards in plan.layouts.items()
    }
    counts = {
        split: np.bincount(shards.column("row"), minlength=taxonomy.rows).tolist()
        for split, shards in plan.layouts.items()
    }
    digest = dataset_digest(taxonomy, shards)
    return Manifest(taxonomy, shards, counts, asdict(plan.options), f"shardtool {__version__}", digest)


def _entry(shards: Layout, number: int, out: Folder) -> ShardEntry:
    """What dataset.json says of a shard that is written."""
    name = layout.shard_name(number)
    data = out.read(f"{shards.split}/{name}.parquet")
    sha256 = read_sidecar(data, name).schema.metadata[b"shardtool.sha256"].decode()
    sidecar_sha256 = hashlib.sha256(data).hexdigest()
    return ShardEntry(name, int(shards.counts[number]), int(shards.sizes[number]), sha256, sidecar_sha256)


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
