"""litdata: chunks of JPEGs, written by its `optimize`, in a StreamingDataLoader."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata

from benchmarks.rival_loaders.job import Job, species
from benchmarks.rival_loaders.opencv import core


def prepare(job: Job) -> None:
    """Photos as they are, with their label; shuffled, since it later shuffles inside chunks only."""
    photos = list(map(str, job.photos()))
    random.Random(0).shuffle(photos)
    options = {"num_workers": 1, "chunk_bytes": "64MB", "start_method": "fork", "verbose": False}
    litdata.optimize(_sample, photos, _chunks(job), **options)


def _sample(path: str) -> dict[str, Any]:
    photo = Path(path)
    return {"image": photo.read_bytes(), "label": species(photo)}


def _chunks(job: Job) -> str:
    return f"{job.prepared}/chunks"


class Photos(litdata.StreamingDataset):  # type: ignore[misc]
    def __init__(self, job: Job) -> None:
        super().__init__(_chunks(job), shuffle=True, drop_last=True)
        self.size = job.size

    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        return core(sample["image"], self.size), sample["label"]


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3]; ParallelStreamingDataset is litdata's way to go round and round."""
    photos = litdata.ParallelStreamingDataset([Photos(job)], length=float("inf"))
    loader = litdata.StreamingDataLoader(photos, batch_size=job.batch, num_workers=job.workers)
    for ((images, _),) in loader:
        yield images
