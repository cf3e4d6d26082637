"""One function a stage of a photo's way; each gives images a second, on one scale.

A probe warms up, then repeats trials of a bounded time; a figure is the median of its trials.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from benchmarks.gpu import Utilisation, peak_memory, utilisation
from shardtool.index import Split
from train.augment import TrainTransform
from train.data import Batch, Loader, PhotoDataset, decode
from train.model import HierarchicalModel
from train.order import EpochOrder, blocks, epoch_order
from train.recipe import Recipe
from train.step import Step

READ_BYTES = 1 << 20
PHOTOS = 128  # decoded once, for the probes of decoder and augmentation


@dataclass(frozen=True)
class Measurement:
    """Images a second of one stage: a figure a trial, and how they were taken."""

    name: str
    trials: tuple[float, ...]
    images: int
    taken: str

    @property
    def rate(self) -> float:
        """Median of the trials, images a second."""
        return statistics.median(self.trials)

    def as_dict(self) -> dict[str, object]:
        spread = {"median": self.rate, "low": min(self.trials), "high": max(self.trials)}
        return {
            "name": self.name,
            **spread,
            "trials": self.trials,
            "images": self.images,
            "taken": self.taken,
        }


@dataclass(frozen=True)
class Together:
    """A short real training: what the loader and the step reach side by side."""

    measurement: Measurement
    wait_share: float  # of the wall time, waiting for data
    utilisation: Utilisation
    peak_memory: int | None

    @property
    def busy_share(self) -> float:
        return 1 - self.wait_share


@dataclass(frozen=True)
class Bench:
    """What is measured: a packed split, a recipe, a device, and how much time a probe may take."""

    split: Split
    recipe: Recipe
    device: torch.device
    workers: int
    seconds: float  # of a probe
    trials: int

    @cached_property
    def transform(self) -> TrainTransform:
        return TrainTransform(self.recipe.augment, self.recipe.model.image_size, self.recipe.seed)

    @cached_property
    def side(self) -> int:
        return PhotoDataset(self.split, self.transform).side

    @cached_property
    def samples(self) -> np.ndarray:
        """Random sample ids."""
        return np.random.default_rng(0).integers(len(self.split), size=PHOTOS)

    @cached_property
    def photos(self) -> list[bytes]:
        return self.split.read(self.samples)

    @cached_property
    def order(self) -> EpochOrder:
        """One endless-enough epoch."""
        times = -(-2_000_000 // len(self.split))
        place = blocks(self.split.shard, self.split.offset)
        once = epoch_order(np.ones(len(self.split), dtype=np.int64), place, 0, 0, self.batch)
        return EpochOrder(np.tile(once.samples, times), np.tile(once.copies, times), self.batch)

    @property
    def batch(self) -> int:
        return min(self.recipe.optimizer.batch, len(self.split))

    def measure(self, name: str, taken: str, work: Callable[[], int]) -> Measurement:
        """Trials of calling `work`, which returns how many images it did."""
        work()
        trials, images = [], 0
        for _ in range(self.trials):
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < self.seconds / self.trials or not done:
                done += work()
            trials.append(done / (time.perf_counter() - start))
            images += done
        return Measurement(name, tuple(trials), images, taken)


def disk(bench: Bench, cold: bool) -> Measurement:
    """Sequential reads of the shards, in images of the mean size."""
    mean = float(bench.split.size.mean())
    reader = _sequential(bench, cold)
    how = "after POSIX_FADV_DONTNEED" if cold else "page cache warm"
    if not cold:
        for _ in range(sum(os.path.getsize(path) for path in _shards(bench)) // READ_BYTES + 1):
            next(reader)
    return bench.measure(
        "disk, cold" if cold else "disk, warm",
        f"shards read in order, {READ_BYTES >> 20} MB a read, {how}; {mean / 1000:.1f} kB an image",
        lambda: next(reader) / mean,  # type: ignore[arg-type, return-value]
    )


def shard_read(bench: Bench) -> Measurement:
    """JPEG bytes of random samples through the index, CRC checked."""
    generator = np.random.default_rng(1)

    def work() -> int:
        return len(bench.split.read(generator.integers(len(bench.split), size=PHOTOS)))

    return bench.measure("read", "random samples through the index, CRC checked, one core", work)


def decoder(bench: Bench) -> Measurement:
    """JPEG -> pixels at the side that the recipe needs."""

    def work() -> int:
        return len([decode(photo, bench.side) for photo in bench.photos])

    return bench.measure("decode", f"to at least {bench.side} px a side, one core", work)


def augment(bench: Bench) -> Measurement:
    """The recipe's augmentation of decoded photos."""
    pixels = [decode(photo, bench.side) for photo in bench.photos]
    epoch = iter(range(1 << 30))

    def work() -> int:
        number = next(epoch)
        return len([bench.transform(image, number, place, 0) for place, image in enumerate(pixels)])

    taken = (
        f"profile {bench.recipe.augment.profile}, RandAugment {bench.recipe.augment.rand_augment}, one core"
    )
    return bench.measure("augment", taken, work)


def loader(bench: Bench) -> Measurement:
    """Batches from the worker processes; their start and the first batches do not count."""
    batches = _batches(bench)
    for _ in range(2 * max(bench.workers, 1)):
        next(batches)
    return bench.measure(
        "loader", f"batches of {bench.batch}, {bench.workers} workers", lambda: len(next(batches))
    )


def step(bench: Bench) -> Measurement:
    """The last stage's training step on data that is already there: the ceiling."""
    train, batch = _step(bench), _synthetic(bench)
    generator = np.random.default_rng(0)

    def work() -> int:
        train(batch, lr=1e-5, mixing=True, generator=generator)
        _synchronize(bench.device)
        return len(batch)

    taken = f"{bench.recipe.stages[-1].name}: forward, backward, update; batch {bench.batch}, synthetic data"
    return bench.measure("step", taken, work)


def together(bench: Bench) -> Together:
    """Loader and step side by side, as in training."""
    train, batches = _step(bench), _batches(bench)
    generator = np.random.default_rng(0)
    waited, busy, seen = 0.0, 0.0, Utilisation(None, "not asked")

    def work() -> int:
        nonlocal waited, busy, seen
        start = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        train(batch, lr=1e-5, mixing=True, generator=generator)
        _synchronize(bench.device)
        waited, busy = waited + got - start, busy + time.perf_counter() - got
        seen = utilisation(bench.device)
        return len(batch)

    for _ in range(2):
        work()
    waited = busy = 0.0
    measured = bench.measure("together", f"a real training, {bench.workers} workers", work)
    return Together(measured, waited / max(waited + busy, 1e-9), seen, peak_memory(bench.device))


def _batches(bench: Bench) -> Iterator[Batch]:
    return Loader(bench.split, bench.transform, bench.workers, bench.device).epoch(bench.order, 0)


def _step(bench: Bench) -> Step:
    model = HierarchicalModel(bench.recipe.model, bench.split.taxonomy, pretrained=False)
    return Step(model.to(bench.device), bench.recipe, bench.recipe.stages[-1], bench.device)


def _synthetic(bench: Bench) -> Batch:
    generator = np.random.default_rng(0)
    samples = generator.integers(len(bench.split), size=bench.batch)
    size = bench.recipe.model.image_size
    return Batch(
        torch.from_numpy(generator.integers(256, size=(bench.batch, size, size, 3), dtype=np.uint8)),
        torch.from_numpy(bench.split.species[samples].astype(np.int64)),
        torch.from_numpy(bench.split.disease[samples]),
        torch.from_numpy(samples),
        step=0,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _shards(bench: Bench) -> list[str]:
    return [os.path.join(bench.split.folder, f"{name}.tar") for name in bench.split.shards]


def _sequential(bench: Bench, cold: bool) -> Iterator[int]:
    """Read the shards over and over; yields the bytes of each read."""
    buffer = bytearray(READ_BYTES)
    while True:
        for path in _shards(bench):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if cold:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                while count := os.readv(descriptor, [buffer]):
                    yield count
            finally:
                os.close(descriptor)
