"""Hugging Face datasets: JPEGs in an Arrow table, decoded and cropped on access, in a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.rival_loaders.job import MANY, Job, species
from benchmarks.rival_loaders.opencv import core


def prepare(job: Job) -> None:
    """The photos, embedded in the table."""
    photos = job.photos()
    table = {"image": [photo.read_bytes() for photo in photos], "label": list(map(species, photos))}
    datasets.Dataset.from_dict(table).save_to_disk(_table(job))


def _table(job: Job) -> str:
    return f"{job.prepared}/table"


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3]."""

    def transformed(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [core(jpeg, job.size) for jpeg in rows["image"]], "label": rows["label"]}

    table = datasets.load_from_disk(_table(job)).with_transform(transformed)
    sampler = RandomSampler(table, num_samples=MANY)
    for batch in DataLoader(table, job.batch, sampler=sampler, num_workers=job.workers, drop_last=True):
        yield batch["image"]
