"""plan -> write the shards that are not there yet -> reports -> dataset.json, which is the commit.

Every shard is an independent job whose bytes follow from its plan, so the number of workers changes
nothing but the time, and a killed run goes on where it was: a shard that is what its plan says is kept.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from shardtool.errors import DamagedManifest, NoSpace, ResumeRefused, UsageError, UserError
from shardtool.executor import engine, ordered
from shardtool.index import DATASET_FILE, Manifest, ShardEntry, open_manifest
from shardtool.plan import DEFAULTS, MaxRefused, PackOptions, Place, Plan, plan_pack
from shardtool.progress import OpenProgress, silent
from shardtool.quality import ShuffleQuality, shuffle_quality
from shardtool.report import card, report_files
from shardtool.scan import SPLITS, Scan
from shardtool.shard import find_shard, rehearse, write_shard
from shardtool.similar import NearPair
from shardtool.source import LocalSource, open_source
from shardtool.store import Folder, LocalFolder, open_folder
from shardtool.text import size_text

__all__ = ["DryRun", "MaxRefused", "PackOptions", "Packed", "dry_run", "pack", "plan_pack"]

REHEARSED_PIECES = 16
SIDECAR_ROW = 100  # bytes a photo, about
CARD_FILE = "README.md"
_OURS = re.compile(r"shard-\d{6,}\.(tar|parquet)")


@dataclass(frozen=True)
class Packed:
    """The outcome of a pack: what is there now, and which shards were written or removed for it."""

    manifest: Manifest
    scan: Scan
    near: Sequence[NearPair]
    kept: int
    written: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class DryRun:
    """What a pack would do: the shards that it would write, and in about how many seconds."""

    plan: Plan
    stale: Sequence[Place]
    seconds: float


def dry_run(
    source: Path | str,
    out: Path | str,
    options: PackOptions = DEFAULTS,
    *,
    workers: int = 1,
    cluster: str = "",
    max_refused: MaxRefused | None = None,
    near_within: bool = False,
    progress: OpenProgress = silent,
) -> DryRun:
    """Do all of `pack` but the writing. Raises what it raises, but DestinationBusy."""
    folder = open_folder(str(out))
    check_destination(str(source), folder)
    with engine(workers, cluster) as (executor, workers):
        plan = plan_pack(
            source,
            options,
            executor=executor,
            workers=workers,
            max_refused=max_refused,
            near_within=near_within,
            progress=progress,
            agreed=partial(check_options, folder),
        )
        found = _find(plan, folder, executor, workers, progress)
    stale = [place for place in plan.places if place not in found]
    _check_room(plan, folder, stale, workers)
    return DryRun(plan, stale, _seconds(plan, folder, stale, workers))


def pack(
    source: Path | str,
    out: Path | str,
    options: PackOptions = DEFAULTS,
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
    check_destination(str(source), folder)
    with folder.exclusive("shardtool pack"), engine(workers, cluster) as (executor, workers):
        plan = plan_pack(
            source,
            options,
            executor=executor,
            workers=workers,
            max_refused=max_refused,
            near_within=near_within,
            progress=progress,
            agreed=partial(check_options, folder),
        )
        _tell_classes(plan, folder, tell)
        found = _find(plan, folder, executor, workers, progress)
        stale = [place for place in plan.places if place not in found]
        removed = _make_room(plan, folder, stale, workers, tell)
        written = _write(plan, folder, stale, executor, workers, progress)
        shuffle = _shuffle(plan)
        manifest = _manifest(plan, {**found, **written}, shuffle)
        _publish(plan, folder, manifest, shuffle)
    names = tuple(map(plan.name, stale))
    return Packed(manifest, plan.scan, plan.near, len(found), names, removed)


def check_destination(source: str, out: Folder) -> None:
    """Raises UsageError if the source is not there, or if `out` is no place for its dataset."""
    tree = open_source(source)  # before a folder is made at --out
    if isinstance(out, LocalFolder):
        if out.root.exists() and not out.root.is_dir():
            raise UsageError("--out is a file", where=out, cure="give a folder")
        inside = isinstance(tree, LocalSource) and out.root.is_relative_to(Path(tree.url).resolve())
    else:
        inside = f"{out.url}/".startswith(f"{tree.url}/")
    if inside:
        raise UsageError("--out lies inside the source tree", where=out, cure="choose another")
    if out.is_unclaimed():
        raise UsageError("--out is not empty and was not made by shardtool", where=out, cure="choose another")


def check_options(out: Folder, options: PackOptions) -> None:
    """Raises ResumeRefused if the dataset that is there was packed with other options."""
    if DATASET_FILE not in out.files():
        return
    try:
        old = {**asdict(DEFAULTS), **open_manifest(out.url).options}
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


def _find(
    plan: Plan, out: Folder, executor: Executor | None, workers: int, progress: OpenProgress
) -> dict[Place, ShardEntry]:
    """The shards that are already there as planned."""
    sizes = {split: out.files(split) for split in plan.layouts}
    there = [
        place
        for place in plan.places
        if sizes[place[0]].get(f"{plan.name(place)}.tar".rpartition("/")[2]) == plan.bytes([place])
    ]
    if not there:
        return {}
    found = {}
    with progress("checking shards", len(there)) as advance:
        entries = ordered(executor, find_shard, plan.jobs(out, there), in_flight=2 * workers)
        for place, entry in zip(there, entries, strict=True):
            if entry is not None:
                found[place] = entry
            advance(1)
    return found


def _write(
    plan: Plan,
    out: Folder,
    places: Sequence[Place],
    executor: Executor | None,
    workers: int,
    progress: OpenProgress,
) -> dict[Place, ShardEntry]:
    written = {}
    with progress("writing photos", plan.photos(places)) as advance:
        entries = ordered(executor, write_shard, plan.jobs(out, places), in_flight=2 * workers)
        for place, entry in zip(places, entries, strict=True):
            written[place] = entry
            advance(entry.samples)
    return written


def _seconds(plan: Plan, out: Folder, places: Sequence[Place], workers: int) -> float:
    """About how long the writing takes, without disk or network: some of it is done, and timed."""
    start = perf_counter()
    done = sum(rehearse(job, REHEARSED_PIECES) for job in plan.jobs(out, places[:1]))
    return (perf_counter() - start) * plan.bytes(places) / max(done, 1) / max(min(workers, len(places)), 1)


def _check_room(plan: Plan, out: Folder, stale: Sequence[Place], workers: int) -> None:
    """Raises NoSpace if the destination cannot hold what will be written.

    A shard that is replaced goes only when the new one is whole: as many as there are workers are there
    twice for a while.
    """
    free = out.free()
    if free is None:
        return
    there = {f"{split}/{name}": size for split in SPLITS for name, size in out.files(split).items()}
    leaving = sum(there.get(f"{plan.name(place)}.tar", 0) for place in stale)
    leaving += sum(there[name] for name in _unplanned(plan, out))
    twice = sorted((plan.bytes([place]) for place in stale), reverse=True)[:workers] if leaving else []
    needed = plan.bytes(stale) + SIDECAR_ROW * plan.photos(stale) - leaving + sum(twice)
    if needed > free:
        raise NoSpace(f"needs {size_text(needed)}, {size_text(free)} free", where=out, cure="free some")


def _tell_classes(plan: Plan, out: Folder, tell: Callable[[str], None]) -> None:
    """Ids follow from the sorted names: say so when they are no longer those of the dataset that is there."""
    with contextlib.suppress(UserError):  # there is none yet, or none that can be read
        change = open_manifest(out.url).taxonomy.difference(plan.scan.taxonomy)
        if change:
            tell(f"classes changed, and with them their ids: {change}")


def _make_room(
    plan: Plan, out: Folder, stale: Sequence[Place], workers: int, tell: Callable[[str], None]
) -> tuple[str, ...]:
    """Check the space, withdraw dataset.json if anything will change, delete what is not planned.

    Returns the shards that were removed.
    """
    _check_room(plan, out, stale, workers)
    unplanned = _unplanned(plan, out)
    interrupted = DATASET_FILE not in out.files()
    if stale or unplanned:
        out.remove(DATASET_FILE)
    for name in unplanned:
        out.remove(name)
    partial = out.tidy(SPLITS)
    shards = len(plan.places)
    if interrupted and (len(stale) < shards or partial):
        tell(f"resuming: {shards - len(stale)} of {shards} shards verified, {partial} partial discarded")
    return tuple(name.removesuffix(".tar") for name in unplanned if name.endswith(".tar"))


def _unplanned(plan: Plan, out: Folder) -> list[str]:
    """Shards and sidecars that lie there and have no place in the plan."""
    wanted = {f"{plan.name(place)}.{ending}" for place in plan.places for ending in ("tar", "parquet")}
    found = [
        f"{split}/{name}" for split in SPLITS for name in sorted(out.files(split)) if _OURS.fullmatch(name)
    ]
    return [name for name in found if name not in wanted]


def _shuffle(plan: Plan) -> dict[str, ShuffleQuality]:
    """How well the photos of each split are mixed in the shards."""
    species = plan.scan.taxonomy.row_species
    return {name: shuffle_quality(species[shards.rows()]) for name, shards in plan.layouts.items()}


def _publish(plan: Plan, out: Folder, manifest: Manifest, shuffle: Mapping[str, ShuffleQuality]) -> None:
    """Write the reports and, last of all, dataset.json."""
    files = report_files(plan.source.read, plan.scan, manifest, shuffle, plan.near)
    files["croissant.json"] = _json_bytes(card.croissant(manifest))
    if not _is_own(out, CARD_FILE):
        files[CARD_FILE] = card.dataset_card(manifest).encode()
    for name, data in (*files.items(), (DATASET_FILE, _json_bytes(manifest.to_json()))):
        with out.create(name) as file:
            file.write(data)
    out.tidy(SPLITS)  # what a killed worker left, before its job was done again


def _is_own(out: Folder, name: str) -> bool:
    """Whether the person has taken this file over: it no longer says that it is written anew."""
    return name in out.files() and card.MARK.encode() not in out.read(name)


def _manifest(
    plan: Plan, entries: Mapping[Place, ShardEntry], shuffle: Mapping[str, ShuffleQuality]
) -> Manifest:
    taxonomy, layouts = plan.scan.taxonomy, plan.layouts
    shards = {
        split: tuple(entries[split, number] for number in range(len(layouts[split]))) for split in layouts
    }
    counts = {
        split: np.bincount(layouts[split].rows(), minlength=taxonomy.rows).astype(np.int64)
        for split in layouts
    }
    return Manifest.of(taxonomy, shards, counts, asdict(plan.options), shuffle=shuffle)


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
