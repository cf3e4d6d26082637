"""Grain: ArrayRecord files of JPEGs, batches made in its worker processes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.rival_loaders.job import Job
from benchmarks.rival_loaders.opencv import core


def prepare(job: Job) -> None:
    """One record a photo; groups of one, as random access wants them."""
    writer = ArrayRecordWriter(_records(job), "group_size:1")
    for photo in job.photos():
        writer.write(photo.read_bytes())
    writer.close()


def _records(job: Job) -> str:
    return f"{job.prepared}/photos.array_record"


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3]."""

    def seeded_core(record: bytes, generator: np.random.Generator) -> Any:
        random.seed(int(generator.integers(1 << 63)))
        return core(record, job.size)

    source = grain.sources.ArrayRecordDataSource(_records(job))
    photos = grain.MapDataset.source(source).seed(0).shuffle().repeat().random_map(seeded_core)
    # one reading thread, since each worker has one core
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
    dataset = photos.to_iter_dataset(read).batch(job.batch, drop_remainder=True)
    yield from dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=job.workers))
