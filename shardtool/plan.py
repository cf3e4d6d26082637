"""What a pack will do, decided before a byte is written: options, checked photos, exact shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from shardtool import jpeg, layout, tar
from shardtool.errors import UsageError, UserError
from shardtool.layout import Layout
from shardtool.paths import path_text
from shardtool.photo import MIN_SIDE, Check, Rules
from shardtool.progress import OpenProgress, silent
from shardtool.scan import SPLITS, Refusal, Scan, Tree, examine_tree, list_tree
from shardtool.select import near_duplicates, select
from shardtool.shard import ShardJob
from shardtool.similar import NearPair
from shardtool.source import Source, open_source
from shardtool.store import Folder

VAL_SHARE = 0.1

Place = tuple[str, int]  # of a shard: its split and its number


@dataclass(frozen=True)
class PackOptions:
    """What shapes the bytes of a packed dataset; the number of workers is not among it."""

    shard_size: int = 10**9
    seed: int = 0
    check: Check = "decode"
    val_share: float | None = None  # of a tree without split folders: 0.1 unless said otherwise
    max_side: int = 0  # pixels, 0: as they are
    quality: int = 95  # of converted and shrunk photos
    baseline: bool = False  # rewrite progressive JPEGs without loss
    merge_twins: bool = False  # class folders that differ only in case or blanks
    keep_conflicts: bool = False  # photos whose copies bear another label
    keep_leaks: bool = False  # photos whose copies stand in a later split

    def __post_init__(self) -> None:
        if self.shard_size < tar.RECORD:
            raise UsageError(f"--shard-size {self.shard_size} is under {tar.RECORD} bytes")
        if self.val_share is not None and not 0 <= self.val_share < 1:
            raise UsageError(f"--split: a validation share of {self.val_share} is not in [0, 1)")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed {self.seed} is not in 0 ... 2^64 - 1")
        if 0 < self.max_side < MIN_SIDE or self.max_side < 0:
            raise UsageError(f"--max-side {self.max_side} is under {MIN_SIDE} pixels")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality} is not in 1 ... 100")

    @property
    def rules(self) -> Rules:
        return Rules(self.max_side, self.quality, self.baseline)


DEFAULTS = PackOptions()


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
    near: Sequence[NearPair]
    layouts: Mapping[str, Layout]  # by split

    @property
    def places(self) -> list[Place]:
        """All shards, in the order of the splits."""
        return [(split, number) for split, shards in self.layouts.items() for number in range(len(shards))]

    def name(self, place: Place) -> str:
        """The shard's path in the dataset folder, without an ending."""
        return f"{place[0]}/{layout.shard_name(place[1])}"

    def bytes(self, places: Sequence[Place]) -> int:
        """Size of these shards together."""
        return sum(int(self.layouts[split].sizes[number]) for split, number in places)

    def photos(self, places: Sequence[Place]) -> int:
        """Photos in these shards together."""
        return sum(int(self.layouts[split].counts[number]) for split, number in places)

    def jobs(self, out: Folder, places: Sequence[Place]) -> Iterator[ShardJob]:
        """The jobs that write these shards; each is made when it is asked for."""
        for split, number in places:
            shard = self.layouts[split].shard(number)
            yield ShardJob(self.source, out, shard, self.scan.taxonomy, self.options.rules)


def plan_pack(
    source: Path | str,
    options: PackOptions = DEFAULTS,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    max_refused: MaxRefused | None = None,
    near_within: bool = False,
    progress: OpenProgress = silent,
    agreed: Callable[[PackOptions], None] = lambda options: None,
) -> Plan:
    """Open every photo of the tree `source` and decide where it goes; nothing is written.

    `agreed` is called with the options in effect when the tree is listed, before a photo is opened.
    Raises UsageError; UserError past `max_refused` refusals, and when all were refused.
    """
    if options.baseline and jpeg.jpegtran() is None:
        raise UsageError("--baseline needs the program jpegtran", cure="apt install libjpeg-turbo-progs")
    if near_within and options.check != "decode":
        raise UsageError("--near-duplicates needs the pixels", cure="use --check decode")
    tree = list_tree(open_source(str(source)), options.merge_twins)
    options = _in_effect(options, tree)
    agreed(options)
    limit = max_refused.of(tree.photos + len(tree.refused)) if max_refused else None
    scan = _examine(tree, options, executor, workers, limit, progress)
    share = options.val_share or 0.0
    scan = select(scan, share, options.seed, options.keep_conflicts, options.keep_leaks)
    _check_refused(scan.refused, limit)
    if not scan.photos.num_rows:
        raise _nothing_packed(f"every one of {len(scan.refused):,} files was refused", scan.refused[0])
    layouts = layout.plan(scan.photos, scan.taxonomy, SPLITS, options.seed, options.shard_size)
    return Plan(tree.source, options, scan, near_duplicates(scan, near_within), layouts)


def _in_effect(options: PackOptions, tree: Tree) -> PackOptions:
    """The options with the share that a tree without split folders is split by. Raises UsageError."""
    if any(folder.split < 0 for folder in tree.folders):
        return replace(options, val_share=VAL_SHARE if options.val_share is None else options.val_share)
    if options.val_share is not None:
        raise UsageError("--split has no effect: the tree has split folders", cure="leave it out")
    return options


def _examine(
    tree: Tree,
    options: PackOptions,
    executor: Executor | None,
    workers: int,
    limit: int | None,
    progress: OpenProgress,
) -> Scan:
    """Open all photos of the tree, or as many as it takes to find too many that are refused."""
    refused = list(tree.refused)
    _check_refused(refused, limit)
    with progress("checking photos", tree.photos) as advance:

        def seen(photos: int, refusals: Sequence[Refusal]) -> None:
            advance(photos + len(refusals))
            refused.extend(refusals)
            _check_refused(refused, limit)

        return examine_tree(tree, options.check, options.rules, executor, workers, seen)


def _check_refused(refused: Sequence[Refusal], limit: int | None) -> None:
    if limit is not None and len(refused) > limit:
        raise _nothing_packed(f"{len(refused):,} files refused, more than {limit:,}", refused[0])


def _nothing_packed(why: str, first: Refusal) -> UserError:
    return UserError(
        f"nothing packed: {why}; the first: {first.reason}, {first.detail}", where=path_text(first.source)
    )
