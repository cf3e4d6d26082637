"""Where training photos come from, as the loop sees it: an indexed split in exact order, or plain tars."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shardtool.errors import UsageError
from shardtool.index import Split, open_split
from shardtool.indexing import find_shards, index_shards
from shardtool.progress import OpenProgress, silent
from shardtool.store import shown
from shardtool.taxonomy import Taxonomy
from train.augment import train_transform
from train.data import Batch, Loader
from train.fill import Replaced
from train.order import EpochOrder, blocks, epoch_order, fingerprint, repeats
from train.recipe import Recipe
from train.stream import Stream, StreamOptions, is_streamed, survey

Tiers = Sequence[tuple[int, int]]  # (below, repeat): see order.repeats


@dataclass(frozen=True)
class Epoch:
    """One epoch of this rank: `steps` batches in all, `photos` of them on all ranks together."""

    steps: int
    photos: int
    batches: Iterator[Batch]


class Source(Protocol):
    """Photos to train on; `row` int [n] is the taxonomy row of each."""

    taxonomy: Taxonomy

    def __len__(self) -> int: ...

    @property
    def row(self) -> NDArray[np.integer[Any]]: ...

    @property
    def digest(self) -> str:
        """Changes when the photos or their order in the dataset do."""

    def fingerprint(self, tiers: Tiers) -> dict[str, Any]:
        """All that decides which photo comes when, by name: a resume compares it."""

    def steps(self, tiers: Tiers) -> int:
        """Batches of an epoch."""

    def epoch(self, number: int, tiers: Tiers, start: int = 0) -> Epoch:
        """Epoch `number` of the run from batch `start` on."""

    def where(self, sample: int) -> str:
        """The place of a photo, for messages."""

    def listen(self, on_replaced: Callable[[Replaced], None]) -> None:
        """Who is to hear of bad photos."""

    def close(self) -> None:
        """Stop the workers."""


class Indexed:
    """A packed or indexed split, in the exact order of train.order."""

    def __init__(self, split: Split, loader: Loader, seed: int, batch: int) -> None:
        self.split, self.loader, self.seed, self.batch = split, loader, seed, batch
        self.taxonomy = split.taxonomy

    def __len__(self) -> int:
        return len(self.split)

    @property
    def row(self) -> NDArray[np.integer[Any]]:
        return self.split.row

    @property
    def digest(self) -> str:
        return self.split.digest

    def fingerprint(self, tiers: Tiers) -> dict[str, Any]:
        return fingerprint(self.split.index_digest, tiers, self.seed, self.batch)

    def steps(self, tiers: Tiers) -> int:
        return -(-int(repeats(self.row, tiers).sum()) // self.batch)

    def epoch(self, number: int, tiers: Tiers, start: int = 0) -> Epoch:
        order = self.order(number, tiers)
        return Epoch(order.steps, len(order.samples), self.loader.epoch(order, number, start))

    def order(self, number: int, tiers: Tiers) -> EpochOrder:
        """All photos of an epoch, of all ranks."""
        return epoch_order(repeats(self.row, tiers), self._blocks, self.seed, number, self.batch)

    @cached_property
    def _blocks(self) -> NDArray[np.int32]:
        return blocks(self.split.shard, self.split.offset)

    def where(self, sample: int) -> str:
        return self.split.where(sample)

    def listen(self, on_replaced: Callable[[Replaced], None]) -> None:
        self.loader.on_replaced = on_replaced

    def close(self) -> None:
        self.loader.close()


class Streamed:
    """Tars without an index: every photo once an epoch, in an order that depends on the workers, too."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.taxonomy = stream, stream.taxonomy

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def row(self) -> NDArray[np.integer[Any]]:
        return self.stream.row

    @property
    def digest(self) -> str:
        return self.stream.survey.digest

    def fingerprint(self, tiers: Tiers) -> dict[str, Any]:
        options = self.stream.options
        return {
            "index": self.digest,
            "seed": options.seed,
            "batch": options.batch,
            "workers": options.workers,
            "ranks": options.ranks,
        }

    def steps(self, tiers: Tiers) -> int:
        return self.stream.steps

    def epoch(self, number: int, tiers: Tiers, start: int = 0) -> Epoch:
        """Repeats of rare classes need an index: `tiers` are not looked at."""
        return Epoch(self.stream.steps, len(self.stream), self.stream.epoch(number, start))

    def where(self, sample: int) -> str:
        return self.stream.where(sample)

    def listen(self, on_replaced: Callable[[Replaced], None]) -> None:
        self.stream.on_replaced = on_replaced

    def close(self) -> None:
        """Its workers end with each epoch."""


def open_source(
    recipe: Recipe,
    shards: str,
    val: str,
    workers: int,
    device: torch.device,
    part: tuple[int, int],
    index: str,
    progress: OpenProgress = silent,
) -> tuple[Source, Split, str]:
    """The photos at `shards`, the validation split, and what there is to say about them.

    `part` is (rank, ranks). Tars without an index are streamed; validation photos are always indexed, since
    each must count once: into the folder `index` where they are not yet. Raises UsageError, DatasetError.
    """
    transform = train_transform(recipe.augment, recipe.model.image_size, recipe.seed)
    if not is_streamed(shards):
        split = open_split(shards)
        loader = Loader(split, transform, workers, device, seed=recipe.seed, part=part)
        source = Indexed(split, loader, recipe.seed, recipe.optimizer.batch)
        return source, _open_val(val or _beside(shards), index, progress), ""
    if recipe.augment.engine == "device":
        raise UsageError(
            "photos without an index are augmented by the workers",
            where=shown(shards),
            cure="--set augment.engine=fused, or shardtool index first",
        )
    if not val:
        raise UsageError(
            "photos without an index need a validation split", where=shown(shards), cure="give --val"
        )
    found, val_split = survey(shards, progress=progress), _open_val(val, index, progress)
    taxonomy = Taxonomy.from_labels([*found.classes, *val_split.taxonomy.row_names])
    rank, ranks = part
    options = StreamOptions(recipe.optimizer.batch, workers, recipe.seed, rank=rank, ranks=ranks)
    stream = Stream(found, taxonomy, transform, options)
    return Streamed(stream), relabelled(val_split, taxonomy), found.note


def relabelled(split: Split, taxonomy: Taxonomy) -> Split:
    """The split with the rows of another label space, which has all its classes."""
    rows = np.array([taxonomy.row_of[names] for names in split.taxonomy.row_names], dtype=np.int32)
    return replace(split, row=rows[split.row], taxonomy=taxonomy)


def _beside(shards: str) -> str:
    return posixpath.join(posixpath.dirname(shards.rstrip("/")), "val")


def _open_val(val: str, index: str, progress: OpenProgress) -> Split:
    if not is_streamed(val):
        return open_split(val)
    index_shards(find_shards(val, "val"), index, progress=progress)
    return open_split(f"{index}/val")
