"""Packed shards -> batches for the device.

Workers are handed sample ids and never own shards. A batch leaves them as uint8, in the layout in which
the decoder writes (B, H, W, 3); on the device it is one permuted view away from channels_last.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardtool.errors import DatasetError, TrainingError
from shardtool.index import Split
from train.augment import Transform, plan_columns
from train.engine import InProcess, Task, Workers
from train.fill import Filler, Replaced
from train.order import EpochOrder
from train.slots import NO_SAMPLE, Slots

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the weights expect
BATCHES_AHEAD = 4  # filled or being filled while one is trained on
PIECE = 32  # photos that a worker takes on at a time
ANNOUNCED_AHEAD = 8  # batches before its turn that a photo's block is announced to the disk
FEW_BAD, BAD_SHARE = 8, 0.01  # of the split: so many photos may be bad before the run stops


@dataclass(frozen=True)
class Batch:
    """images uint8 [B, H, W, 3]; species, disease (inside the species), sample: int64 [B].

    `plan` float32 [B, K] is what train.device_augment still has to do to each photo, None for nothing.
    From a Loader on the CPU the images are a view of a slot: valid until the next batch is asked for.
    """

    images: torch.Tensor
    species: torch.Tensor
    disease: torch.Tensor
    sample: torch.Tensor
    step: int
    plan: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; asynchronous from pinned memory."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def clone(self) -> Batch:
        """The batch in memory of its own."""
        return self.map(torch.Tensor.clone)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with each tensor changed by `function`."""
        return Batch(
            function(self.images),
            function(self.species),
            function(self.disease),
            function(self.sample),
            self.step,
            None if self.plan is None else function(self.plan),
        )


class Normaliser:
    """uint8 [B, H, W, 3] -> normalised float32 [B, 3, H, W] (channels_last) on the device.

    Into one buffer, which the next call writes again: fresh memory of that size costs a CPU several times
    the arithmetic, in page faults.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._buffer = device, torch.empty(0, device=device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        batch, height, width, _ = images.shape
        scale, offset = _scale_and_offset(self._device, width)
        # whole lines at a time: broadcasting over the three channels alone takes nine times as long on a CPU
        levels = images.to(self._device, non_blocking=True).view(batch * height, 3 * width)
        if self._buffer.numel() < levels.numel():
            self._buffer = torch.empty(levels.numel(), device=self._device)
        lines = self._buffer[: levels.numel()].view_as(levels).copy_(levels)
        torch.addcmul(offset, lines, scale, out=lines)
        return lines.view(batch, height, width, 3).permute(0, 3, 1, 2)


def prepare(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same into memory of its own."""
    return Normaliser(device)(images)


@cache
def _scale_and_offset(device: torch.device, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the grey levels of one line, [1, 3 width]; kept on the device, since a copy for each batch would
    wait for it."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD))
    scale, offset = (
        values.repeat(width).float().to(device)[None] for values in (1 / (255 * std), -mean / std)
    )
    return scale, offset


class Loader:
    """Batches of one epoch after another from workers that live as long as the loader.

    `workers` 0 does the work in this process. `on_replaced` hears of each bad photo once. `part` is (rank,
    ranks): which part of each global batch is wanted.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        workers: int,
        device: torch.device,
        on_replaced: Callable[[Replaced], None] = lambda replaced: None,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.split, self.transform, self.workers, self.device = split, transform, workers, device
        self._part = part
        self.on_replaced, self._seed = on_replaced, seed
        self.replaced: dict[int, Replaced] = {}  # by sample
        self._pipeline: _Pipeline | None = None
        self._current: Generator[Batch, None, None] | None = None

    def epoch(self, order: EpochOrder, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, start + 1, … of an epoch; one epoch at a time.

        Raises DatasetError for what a worker met, TrainingError if one dies.
        """
        if self._current is not None:
            self._current.close()  # an epoch that was left early
        self._current = self._batches(order, epoch, start)
        return self._current

    def _batches(self, order: EpochOrder, epoch: int, start: int) -> Generator[Batch, None, None]:
        most = -(-order.batch // self._part[1])  # photos of this rank in a batch
        if self._pipeline is not None and self._pipeline.slots.batch < most:
            self._stop()
        if self._pipeline is None:
            count, columns = 1 + BATCHES_AHEAD if self.workers else 1, plan_columns(self.transform)
            slots = Slots(count, most, self.transform.size, columns)
            fill = Filler(self.split, self.transform, slots, self._seed)
            self._pipeline = _Pipeline(slots, fill, self.workers, self.device)
        try:
            draws = _Draws(order, epoch, start, *self._part)
            yield from self._pipeline.epoch(draws, self._note)
        except TrainingError:  # a worker is missing
            self._stop()
            raise

    def close(self) -> None:
        """Stop the workers and give the memory back."""
        if self._current is not None:
            self._current.close()
        self._stop()

    def _stop(self) -> None:
        if self._pipeline is not None:
            self._pipeline.engine.close()
        self._pipeline = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the end of the interpreter
            self.close()

    def _note(self, replaced: Replaced) -> None:
        """Raises DatasetError when too many photos are bad."""
        if replaced.sample in self.replaced:
            return
        self.replaced[replaced.sample] = replaced
        self.on_replaced(replaced)
        if len(self.replaced) > max(FEW_BAD, BAD_SHARE * len(self.split)):
            raise DatasetError(
                f"{len(self.replaced):,} of {len(self.split):,} photos are bad, the last: {replaced.reason}",
                where=replaced.where,
                cure="run shardtool verify --deep, then pack again or fetch the shards again",
            )


@dataclass(frozen=True)
class _Draws:
    """What a rank wants: its part of the batches of an epoch, from one on."""

    order: EpochOrder
    epoch: int
    start: int
    rank: int
    ranks: int

    def step(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample ids and copies; none after the last batch."""
        if step >= self.order.steps:
            return _NONE, _NONE
        return self.order.step(step, self.rank, self.ranks)


_NONE = np.zeros(0, dtype=np.int64)


@dataclass
class _Filling:
    """A batch on its way: its slot, its photos, and how many of them are not there yet."""

    step: int
    slot: int
    photos: int
    missing: int


class _Pipeline:
    """Slots, and the workers that fill them: some batches ahead of the one that is trained on."""

    def __init__(self, slots: Slots, fill: Filler, workers: int, device: torch.device) -> None:
        self.slots = slots
        self.engine: InProcess[Replaced] | Workers[Replaced] = (
            Workers(fill, workers) if workers else InProcess(fill)
        )
        # not before the fork: locked pages are not inherited
        self._pinned = device.type == "cuda" and slots.pin()
        self._copied: dict[int, torch.cuda.Event] = {}  # by slot: when its copy to the device was queued

    def epoch(self, draws: _Draws, note: Callable[[Replaced], None]) -> Iterator[Batch]:
        free, steps = deque(range(len(self.slots))), iter(range(draws.start, draws.order.steps))
        filling: deque[_Filling] = deque()
        try:
            while True:
                while free and (step := next(steps, None)) is not None:
                    filling.append(self._hand_out(draws, step, free.popleft()))
                if not filling:
                    return
                while filling[0].missing:
                    self._collect(filling, note)
                ready = filling.popleft()
                yield self._batch(ready)
                if self._pinned:  # the copy to the device, which was queued by now, may still be under way
                    self._copied[ready.slot] = torch.cuda.Event()
                    self._copied[ready.slot].record()
                free.append(ready.slot)
        finally:
            self.engine.cancel()

    def _hand_out(self, draws: _Draws, step: int, number: int) -> _Filling:
        """Write into a slot what is wanted, and tell the workers."""
        if number in self._copied:
            self._copied.pop(number).synchronize()
        slot, (samples, copies) = self.slots[number], draws.step(step)
        count, (later, _) = len(samples), draws.step(step + ANNOUNCED_AHEAD)
        slot.sample[:count], slot.copy[:count] = samples, copies
        slot.ahead[:] = NO_SAMPLE
        slot.ahead[: len(later)] = later
        for first in range(0, count, PIECE):
            self.engine.submit(Task(number, first, min(first + PIECE, count), draws.epoch))
        return _Filling(step, number, count, count)

    def _collect(self, filling: deque[_Filling], note: Callable[[Replaced], None]) -> None:
        """Wait for some work to be done and take note of it."""
        by_slot = {batch.slot: batch for batch in filling}
        for done in self.engine.wait():
            if done.error:
                raise done.error
            by_slot[done.task.slot].missing -= done.task.stop - done.task.start
            for replaced in done.notes:
                note(replaced)

    def _batch(self, ready: _Filling) -> Batch:
        slot, photos = self.slots[ready.slot], slice(ready.photos)
        return Batch(
            torch.from_numpy(slot.images[photos]),
            torch.from_numpy(slot.species[photos].copy()),
            torch.from_numpy(slot.disease[photos].copy()),
            torch.from_numpy(slot.sample[photos].copy()),
            ready.step,
            torch.from_numpy(slot.plan[photos].copy()) if slot.plan.size else None,
        )


def in_order(samples: NDArray[np.integer[Any]], batch: int) -> EpochOrder:
    """These samples once, as they stand: for evaluation."""
    return EpochOrder(samples, np.zeros(len(samples), dtype=np.int64), batch)
