"""Our loader, over the packed split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.rival_loaders.job import MANY, Job
from shardtool.index import Split, open_split
from train.augment import train_transform
from train.data import Loader, Normaliser
from train.order import EpochOrder, blocks, epoch_order
from train.recipe import AugmentSpec

SPECS = {"core": AugmentSpec(profile="core"), "full": AugmentSpec(profile="seed")}


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3], or float32 [B, 3, size, size] as a CPU would train on it."""
    cpu = torch.device("cpu")
    normalise = Normaliser(cpu)
    split = open_split(job.shards)
    transform = train_transform(SPECS[job.work], job.size, seed=0)
    with Loader(split, transform, job.workers, cpu) as loader:
        for batch in loader.epoch(whole_batches(split, job.batch), 0):
            yield batch.images if job.dtype == "uint8" else normalise(batch.images)


def whole_batches(split: Split, batch: int) -> EpochOrder:
    """An order of many photos, all batches full."""
    times = np.full(len(split), -(-MANY // len(split)))
    order = epoch_order(times, blocks(split.shard, split.offset), seed=0, epoch=0, batch=batch)
    count = len(order.samples) // batch * batch
    return EpochOrder(order.samples[:count], order.copies[:count], batch)
