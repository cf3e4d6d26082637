"""One function a stage, from the disk to the training step, each to images/s on one scale.

A probe gets the bench and what was measured before it. It warms up, repeats timed trials, and tells in a
sentence how the figure was taken, or why it could not be.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from shardtool.index import Split
from train.augment import Transform, train_transform
from train.data import Batch, Loader
from train.decode import HAS_REGIONS, Box, Pixels, dimensions
from train.decode import decode as decode_photo
from train.draws import PROFILES, RAND_AUGMENT_STREAM, Plan, draw, generator
from train.fused import apply
from train.meter import Meter
from train.model import HierarchicalModel
from train.order import EpochOrder, blocks, epoch_order
from train.randaugment import rand_augment
from train.recipe import Recipe, StageSpec
from train.step import Step
from train.utilisation import Sampler, Usage

CHUNK = 4 << 20  # bytes a read
REGION = 128 << 20  # bytes of shards that the disk probes read: small enough to stay in the page cache
PHOTOS = 48  # held in memory for decode and augment
UNIT = 8  # photos between two looks at the clock
SMALL_BATCH = 4  # where the search for a batch that fits into the time begins
ORDER_PHOTOS = 1 << 20  # an order this long is never used up
RATE = 1e-6  # learning rate: noise is trained on, and a step costs the same at any rate

On = Literal["disk", "one core", "workers", "device", "all"]


@dataclass(frozen=True)
class Measurement:
    """Images/s of one stage. `trials` is empty where it could not be taken, and `note` says why.

    `on` is what worked for it, `batch` the photos of a batch (0: there is none). The training alone has
    `data_wait`, the share of its time that it waited for data, and `usage`, what the GPU said.
    """

    name: str
    on: On
    trials: tuple[float, ...] = ()
    images: int = 0
    how: str = ""
    note: str = ""
    batch: int = 0
    data_wait: float | None = None
    usage: Usage | None = None

    @property
    def images_per_second(self) -> float | None:
        """The median of the trials."""
        return statistics.median(self.trials) if self.trials else None

    @property
    def low(self) -> float | None:
        return min(self.trials, default=None)

    @property
    def high(self) -> float | None:
        return max(self.trials, default=None)

    @property
    def device_busy(self) -> float | None:
        """Share of the training's time in which it did not wait for data."""
        return None if self.data_wait is None else 1 - self.data_wait


@dataclass(frozen=True)
class Effort:
    """How long each probe measures."""

    trials: int
    trial_seconds: float


FULL, QUICK = Effort(5, 1.6), Effort(3, 0.25)


@dataclass(frozen=True)
class Bench:
    """What is measured: a recipe over a split, on a device, with so many workers."""

    recipe: Recipe
    split: Split
    device: torch.device
    workers: int
    effort: Effort

    @property
    def photo_bytes(self) -> float:
        return float(self.split.size.mean())

    @property
    def stage(self) -> StageSpec:
        """The recipe's last end-to-end stage, or else its last."""
        whole = [stage for stage in self.recipe.stages if stage.trains == "all"]
        return (whole or list(self.recipe.stages))[-1]

    @cached_property
    def transform(self) -> Transform:
        return train_transform(self.recipe.augment, self.recipe.model.image_size, self.recipe.seed)

    @property
    def side(self) -> int:
        """Pixels that the decoder is asked for."""
        return self.recipe.model.image_size

    @cached_property
    def photos(self) -> list[bytes]:
        """JPEGs of some random photos."""
        return self.split.read(_random(self.split, PHOTOS))

    @cached_property
    def crops(self) -> list[tuple[bytes, Plan, Pixels]]:
        """The same photos, each with a plan of what to do to it, and its crop decoded."""
        found = []
        for number, photo in enumerate(self.photos):
            plan = self.plan(photo, number)
            found.append((photo, plan, decode_photo(photo, self.side, plan.box)[0].copy()))
        return found

    def plan(self, photo: bytes, number: int) -> Plan:
        """How the recipe's profile augments copy `number` of a photo."""
        profile, numbers = PROFILES[self.recipe.augment.profile], generator(self.recipe.seed, 0, 0, number)
        return draw(profile, self.side, *dimensions(photo), numbers)


Earlier = Mapping[str, Measurement]
Probe = Callable[[Bench, Earlier], Measurement]
Announce = Callable[[str], AbstractContextManager[object]]


def measure(bench: Bench, announce: Announce) -> list[Measurement]:
    """All stages in the order of a photo's way; `announce` is entered around each.

    Raises CorruptSample for a damaged photo and TrainingError for a dead worker.
    """
    taken: dict[str, Measurement] = {}
    for name, probe in PROBES.items():
        with announce(name):
            taken[name] = probe(bench, taken)
    return list(taken.values())


# ---- disk ---------------------------------------------------------------------------------------


def disk_cold(bench: Bench, earlier: Earlier) -> Measurement:
    """Sequential reading of the shard files after the page cache has been told to drop them."""
    name = "disk, cold"
    with _shards(bench) as files:
        if note := _local(files) or _keeps_pages(files):
            return Measurement(name, "disk", note=note)
        rates, total = [], 0
        for _ in range(bench.effort.trials):
            _drop(files)
            count, seconds = _timed(_chunks(files), bench.effort.trial_seconds)
            rates.append(count / seconds)
            total += count
    return _disk(bench, name, tuple(rates), total, "dropped from the page cache before each trial")


def disk_warm(bench: Bench, earlier: Earlier) -> Measurement:
    """The same from the page cache: the speed of memory, and what a second epoch sees if all fits."""
    name = "disk, warm"
    with _shards(bench) as files:
        if note := _local(files):
            return Measurement(name, "disk", note=note)
        for _ in _chunks(files):
            pass
        chunks = itertools.chain.from_iterable(_chunks(files) for _ in itertools.count())
        rates, total = _repeat(lambda: next(chunks), bench.effort)
    return _disk(bench, name, rates, total, "from the page cache")


def _disk(bench: Bench, name: str, rates: tuple[float, ...], total: int, state: str) -> Measurement:
    """Bytes/s to images/s."""
    size = bench.photo_bytes
    speed = statistics.median(rates) / 1e6
    how = f"shard files read in sequence, {state}: {speed:,.0f} MB/s at {size / 1e3:.1f} kB a photo"
    return Measurement(name, "disk", tuple(rate / size for rate in rates), round(total / size), how)


@contextlib.contextmanager
def _shards(bench: Bench) -> Iterator[list[tuple[int, int]]]:
    """Descriptor and bytes to read of the first shards, REGION in all; none if they are remote."""
    with contextlib.ExitStack() as stack:
        files: list[tuple[int, int]] = []
        left = REGION
        for shard in bench.split.shards if Path(bench.split.folder).is_dir() else ():
            file = stack.enter_context(open(f"{bench.split.folder}/{shard}.tar", "rb", buffering=0))
            size = min(os.fstat(file.fileno()).st_size, left)
            left -= size
            if size:
                files.append((file.fileno(), size))
        yield files


def _local(files: list[tuple[int, int]]) -> str:
    return "" if files else "the shards are not on a local disk"


def _chunks(files: list[tuple[int, int]]) -> Iterator[int]:
    """Read everything; the bytes of each read."""
    buffer = bytearray(CHUNK)
    for descriptor, size in files:
        for start in range(0, size, CHUNK):
            view = memoryview(buffer)[: min(CHUNK, size - start)]
            yield os.preadv(descriptor, [view], start)


def _timed(counts: Iterator[int], seconds: float) -> tuple[int, float]:
    """Sum of the counts until the time is up, and the seconds that it took."""
    start, total = time.perf_counter(), 0
    for count in counts:
        total += count
        if time.perf_counter() - start >= seconds:
            break
    return total, time.perf_counter() - start


def _drop(files: list[tuple[int, int]]) -> None:
    for descriptor, size in files:
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_DONTNEED)


def _keeps_pages(files: list[tuple[int, int]]) -> str:
    """Why the page cache cannot be emptied, "" when it can: dropping is advice, so the effect is checked."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return "this system cannot drop files from the page cache"
    _drop(files)
    descriptor, size = files[-1]
    try:
        os.preadv(descriptor, [bytearray(1)], size - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        return ""
    except OSError:
        return "this file system does not tell what is in the page cache"
    return "the page cache keeps the shards (a file system in memory, or they were just written)"


# ---- one core -----------------------------------------------------------------------------------


def shard_read(bench: Bench, earlier: Earlier) -> Measurement:
    """Random photos through the index, with their checksums."""
    units = (bench.split.read(_random(bench.split, UNIT, seed)) for seed in itertools.count(1))
    rates, images = _repeat(lambda: len(next(units)), bench.effort)
    how = "random photos through the index, CRC-32C checked, by one process, as the page cache stands"
    return Measurement("shard read", "one core", rates, images, how)


def decode(bench: Bench, earlier: Earlier) -> Measurement:
    """JPEG bytes in memory to the pixels of a crop, as small as the recipe allows."""
    crops = itertools.cycle(bench.crops)

    def unit() -> int:
        for photo, plan, _ in itertools.islice(crops, UNIT):
            decode_photo(photo, bench.side, plan.box)
        return UNIT

    with _one_core():
        rates, images = _repeat(unit, bench.effort)
    whole = "" if HAS_REGIONS else " (whole photos: train/_jpeg.c is not built)"
    how = (
        f"JPEG to RGB, crops of at least {bench.side} px (as far as the photo has them), "
        f"{len(bench.photos)} photos{whole}"
    )
    return Measurement("decode", "one core", rates, images, how)


def augment(bench: Bench, earlier: Earlier) -> Measurement:
    """The recipe's augmentation of decoded crops, each time with other random numbers."""
    crops, numbers = itertools.cycle(bench.crops), itertools.count()
    out = np.empty((bench.side, bench.side, 3), dtype=np.uint8)
    then = rand_augment(bench.recipe.augment)

    def unit() -> int:
        for photo, first, pixels in itertools.islice(crops, UNIT):
            number = next(numbers)
            plan = bench.plan(photo, number)._replace(
                left=first.left, top=first.top, width=first.width, height=first.height
            )
            apply(plan, pixels, Box(0, 0, pixels.shape[1], pixels.shape[0]), out)
            if then is not None:
                then(out, generator(bench.recipe.seed, 0, 0, number, RAND_AUGMENT_STREAM))
        return UNIT

    with _one_core():
        rates, images = _repeat(unit, bench.effort)
    how = f"profile {_augmentation(bench.recipe)}, to {bench.side} px, fused"
    return Measurement("augment", "one core", rates, images, how)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """OpenCV and torch on one thread, as in a worker."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def _augmentation(recipe: Recipe) -> str:
    return f"{recipe.augment.profile}, RandAugment {recipe.augment.rand_augment}"


# ---- loader, step, training ---------------------------------------------------------------------


def loader(bench: Bench, earlier: Earlier) -> Measurement:
    """Batches from the workers, taken as fast as they come."""
    batch = _loader_batch(bench, earlier)
    order = _order(bench, batch)
    with _running(bench, order) as batches:
        rates, images = _repeat(lambda: sum(map(len, _round(bench, batches))), bench.effort)
    how = (
        f"{bench.workers} workers read, decode, augment and collate batches of {batch}"
        f"{_instead(bench, batch)}; their start and the first batches are left out"
    )
    return Measurement("loader", "workers", rates, images, how, batch=batch)


def model_step(bench: Bench, earlier: Earlier) -> Measurement:
    """Forward, backward and optimizer step on noise."""
    step = Trainee(bench)
    try:
        batch = _largest_batch(step, bench)
        noise = _noise(bench, batch)
        rates, images = _repeat(lambda: step(noise), bench.effort)
    except torch.cuda.OutOfMemoryError:
        cure = "training would need a smaller --set optimizer.micro_batch=N"
        return Measurement("model step", "device", note=f"the device's memory is too small: {cure}")
    how = (
        f"copy, forward, backward, optimizer step of stage {bench.stage.name!r} on noise, "
        f"{str(step.step.dtype).removeprefix('torch.')}, batches of {batch}{_instead(bench, batch)}"
    )
    return Measurement("model step", "device", rates, images, how, batch=batch)


def together(bench: Bench, earlier: Earlier) -> Measurement:
    """A short real training: the loader feeds the step."""
    batch = earlier["model step"].batch
    if not batch:
        return Measurement("together", "all", note="there is no model step to feed")
    step = Trainee(bench)
    step(_noise(bench, batch))  # warm before the workers start, or they would get ahead meanwhile
    order = _order(bench, batch)
    with _running(bench, order, step) as batches, Sampler(bench.device) as sampler:
        windows = [_train(step, batches, order, bench) for _ in range(bench.effort.trials)]
    waited = sum(window["data_wait_share"] * window["seconds"] for window in windows)
    seconds = sum(window["seconds"] for window in windows)
    return Measurement(
        "together",
        "all",
        tuple(window["photos"] / window["seconds"] for window in windows),
        sum(window["photos"] for window in windows),
        f"{bench.workers} workers feed training steps on batches of {batch}{_instead(bench, batch)}",
        batch=batch,
        data_wait=waited / seconds,
        usage=sampler.usage,
    )


class Trainee:
    """The network in the recipe's end-to-end stage; a call trains it on a batch, to the end."""

    def __init__(self, bench: Bench) -> None:
        model = HierarchicalModel(bench.recipe.model, bench.split.taxonomy, pretrained=False)
        self.step = Step(model.to(bench.device), bench.recipe, bench.stage, bench.device)
        self._generator = np.random.default_rng(bench.recipe.seed)

    def __call__(self, batch: Batch) -> int:
        """Returns the number of photos."""
        self.step(batch, RATE, self.step.stage.mixing, self._generator)
        if self.step.device.type == "cuda":
            torch.cuda.synchronize(self.step.device)
        return len(batch)


def _train(step: Trainee, batches: Iterator[Batch], order: EpochOrder, bench: Bench) -> dict[str, Any]:
    """Train for the time of a trial; what the training's own meter says."""
    meter = Meter(order.steps, len(order.samples))
    waited = meter.timed(batches)
    while time.monotonic() - meter.start < bench.effort.trial_seconds:
        for batch in _round(bench, waited):
            meter.count(step(batch), {})
    return meter.summary()


@contextlib.contextmanager
def _running(
    bench: Bench, order: EpochOrder, consume: Callable[[Batch], int] = len
) -> Iterator[Iterator[Batch]]:
    """Batches after the workers' first round, which `consume` gets; the workers end with the block."""
    with Loader(bench.split, bench.transform, bench.workers, bench.device) as source:
        batches = source.epoch(order, 0)
        for batch in _round(bench, batches):
            consume(batch)
        yield batches


def _round(bench: Bench, batches: Iterator[Batch]) -> Iterator[Batch]:
    """One batch of each worker: they come in bursts, and only whole rounds have a steady rate."""
    return itertools.islice(batches, bench.workers or 1)


def _order(bench: Bench, batch: int) -> EpochOrder:
    """The order that training would have, epoch after epoch without a pause: each turn is a new copy."""
    count = len(bench.split)
    place = blocks(bench.split.shard, bench.split.offset)
    epoch = epoch_order(np.ones(count, dtype=np.int64), place, bench.recipe.seed, 0, batch)
    total = max(ORDER_PHOTOS, count)
    return EpochOrder(np.resize(epoch.samples, total), np.arange(total) // count, batch)


def _loader_batch(bench: Bench, earlier: Earlier) -> int:
    """The recipe's batch, or as many photos as a worker prepares in a trial."""
    cost = sum(1 / (earlier[name].images_per_second or 1) for name in ("shard read", "decode", "augment"))
    return max(1, min(bench.recipe.optimizer.batch, int(bench.effort.trial_seconds / cost)))


def _largest_batch(step: Trainee, bench: Bench) -> int:
    """The recipe's batch, or the half, quarter, ... of it whose step fits into a trial's time."""
    batch = whole = bench.recipe.optimizer.batch
    while batch > SMALL_BATCH:
        batch = -(-batch // 2)
    while batch < whole:
        noise = _noise(bench, batch)
        step(noise)  # the first step of a shape also allocates and picks kernels
        _, seconds = _timed(map(step, [noise]), 0)
        if 2 * seconds > bench.effort.trial_seconds:
            break
        batch = min(2 * batch, whole)
    return batch


def _noise(bench: Bench, batch: int) -> Batch:
    """A batch of random pixels with labels as frequent as in the split, on the host."""
    size, split = bench.recipe.model.image_size, bench.split
    samples = _random(split, batch)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    species, disease = split.labels(samples)
    noise = Batch(
        torch.from_numpy(images),
        torch.from_numpy(species),
        torch.from_numpy(disease),
        torch.from_numpy(samples),
        0,
    )
    return noise.map(torch.Tensor.pin_memory) if bench.device.type == "cuda" else noise


def _instead(bench: Bench, batch: int) -> str:
    whole = bench.recipe.optimizer.batch
    return "" if batch == whole else f" (not the recipe's {whole}, to bound the time)"


# ---- what they share ----------------------------------------------------------------------------


def _repeat(work: Callable[[], int], effort: Effort) -> tuple[tuple[float, ...], int]:
    """Rate of each trial, and the total count. `work` returns what it did; its first call is warm-up."""
    work()
    rates, total = [], 0
    for _ in range(effort.trials):
        count, seconds = _timed(iter(work, 0), effort.trial_seconds)
        rates.append(count / seconds)
        total += count
    return tuple(rates), total


def _random(split: Split, count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, len(split), count)


PROBES: dict[str, Probe] = {
    "disk, cold": disk_cold,
    "disk, warm": disk_warm,
    "shard read": shard_read,
    "decode": decode,
    "augment": augment,
    "loader": loader,
    "model step": model_step,
    "together": together,
}
