"""Packed shards -> batches on the device.

Workers are handed sample ids and never own shards. A batch leaves them as uint8, in the layout in which
the decoder writes (B, H, W, 3); on the device it is one permuted view away from channels_last.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from shardtool.errors import TrainingError, UserError
from shardtool.index import Split
from train.augment import DECODE_MARGIN, Pixels, Transform
from train.order import EpochOrder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the weights expect
PREFETCH_BATCHES = 4


@dataclass(frozen=True)
class Batch:
    """images uint8 [B, H, W, 3]; species, disease (inside the species), sample: int64 [B]."""

    images: torch.Tensor
    species: torch.Tensor
    disease: torch.Tensor
    sample: torch.Tensor
    step: int

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """Called by DataLoader where pinned memory makes the copy to the device asynchronous."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            function(self.images),
            function(self.species),
            function(self.disease),
            function(self.sample),
            self.step,
        )


@dataclass(frozen=True)
class Draw:
    """What a worker is asked for: one batch of sample ids of one epoch."""

    samples: NDArray[np.int64]
    copies: NDArray[np.int64]
    epoch: int
    step: int


def decode(data: bytes, side: int) -> Pixels:
    """RGB pixels of a JPEG, uint8 [H, W, 3], at the smallest of the codec's sizes whose sides are both
    at least `side` (never enlarged): decoding at a half costs half."""
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_height=side, min_width=side, strict=False
    )
    return pixels


def prepare(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> normalised float32 [B, 3, H, W] (channels_last) on the device."""
    mean, std = _mean_and_std(device)
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().sub_(mean).div_(std)


@cache
def _mean_and_std(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """In grey levels, [1, 3, 1, 1]; kept on the device, since a copy for each batch would wait for it."""
    mean, std = (torch.tensor(values, device=device).mul(255) for values in (MEAN, STD))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)


def decode_side(size: int) -> int:
    """Pixels a side that the decoder is asked for where the network sees `size`."""
    return math.ceil(size * DECODE_MARGIN)


class PhotoDataset(Dataset["Batch | Exception"]):
    """Map-style over `Draw`s: DataLoader's fetcher calls `__getitems__` with what the sampler yields."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self.split, self.transform = split, transform
        self.disease = split.disease
        self.side = decode_side(transform.size)

    def __getitems__(self, draw: Draw) -> Batch | Exception:
        try:
            return self._batch(draw)
        except (UserError, OSError) as error:
            return error  # raised here, DataLoader would turn it into a traceback as text

    def _batch(self, draw: Draw) -> Batch:
        photos = self.split.read(draw.samples)
        size = self.transform.size
        images = np.empty((len(photos), size, size, 3), dtype=np.uint8)
        for place, (photo, sample, copy) in enumerate(
            zip(photos, draw.samples.tolist(), draw.copies.tolist(), strict=True)
        ):
            images[place] = self.transform(decode(photo, self.side), draw.epoch, sample, copy)
        return Batch(
            torch.from_numpy(images),
            torch.from_numpy(self.split.species[draw.samples].astype(np.int64)),
            torch.from_numpy(self.disease[draw.samples]),
            torch.from_numpy(draw.samples),
            draw.step,
        )


class Loader:
    """Batches of one epoch after another from workers that live as long as the loader."""

    def __init__(
        self,
        split: Split,
        transform: Transform,
        workers: int,
        device: torch.device,
    ) -> None:
        self.split = split
        self._draws = _Draws()
        self._loader: DataLoader[Batch | Exception] = DataLoader(
            PhotoDataset(split, transform),
            # DataLoader hands what the sampler yields to __getitems__ as it is: a Draw, no list
            batch_sampler=cast(Any, self._draws),
            collate_fn=cast(Any, _as_it_is),
            num_workers=workers,
            prefetch_factor=PREFETCH_BATCHES if workers else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
        )

    def epoch(self, order: EpochOrder, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, start + 1, … of an epoch.

        Raises CorruptSample, DatasetError or OSError for what a worker met, TrainingError if one dies.
        """
        self._draws.set(order, epoch, start)
        batches = iter(self._loader)
        while (batch := _next(batches)) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch


def _next(batches: Iterator[Batch | Exception]) -> Batch | Exception | None:
    try:
        return next(batches, None)
    except (ConnectionError, EOFError) as error:  # it died with a batch half handed over
        raise _dead_worker(error) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _dead_worker(error) from error


def _dead_worker(error: Exception) -> TrainingError:
    return TrainingError(
        f"a data worker died: {(str(error) or type(error).__name__).splitlines()[0]}",
        cure="often want of memory or of /dev/shm (docker: --ipc=host); run again to go on",
    )


class _Draws:
    """The batch sampler: which samples each batch of the current epoch holds."""

    def __init__(self) -> None:
        self._order: EpochOrder | None = None

    def set(self, order: EpochOrder, epoch: int, start: int) -> None:
        self._order, self._epoch, self._start = order, epoch, start

    def __iter__(self) -> Iterator[Draw]:
        assert self._order is not None, "set() an epoch first"
        for step in range(self._start, self._order.steps):
            yield Draw(*self._order.step(step), self._epoch, step)

    def __len__(self) -> int:
        return 0 if self._order is None else self._order.steps - self._start


def in_order(count: int, batch: int) -> EpochOrder:
    """Every sample once, as they stand: for evaluation."""
    return EpochOrder(np.arange(count), np.zeros(count, dtype=np.int64), batch)


def _as_it_is(batch: Batch | Exception) -> Batch | Exception:
    return batch


def _start_worker(worker: int) -> None:
    # the main process decides how to stop; its own handlers came along with the fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
