"""The source document's WebDataset snippet over our shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from benchmarks.rival_loaders import seed
from benchmarks.rival_loaders.job import Job, species

SHARDS_A_WORKER = 4


def prepare(job: Job) -> None:
    """Shards for every worker, where ours are too few: webdataset gives whole shards to its workers."""
    if len(_shards(job.shards)) >= job.workers:
        return
    photos = job.photos()
    count = -(-len(photos) // (SHARDS_A_WORKER * max(job.workers, 1)))
    order = np.random.default_rng(0).permutation(len(photos)).tolist()
    with wds.ShardWriter(f"{job.prepared}/%06d.tar", maxcount=count, verbose=0) as writer:
        for photo in (photos[place] for place in order):
            writer.write({"__key__": photo.stem, "jpg": photo.read_bytes(), "cls": species(photo)})


def batches(job: Job) -> Iterator[Any]:
    """float32 [B, 3, size, size]."""
    augment = seed.augment(job)

    def augmented(sample: tuple[Any, int]) -> tuple[torch.Tensor, int]:
        image, label = sample
        return augment(np.array(image.convert("RGB"))), label

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on its arguments
        dataset = wds.WebDataset(_shards(job.prepared) or _shards(job.shards), shardshuffle=100)
        dataset = dataset.repeat().shuffle(10000).decode("pil").to_tuple("jpg", "cls").map(augmented)
    return seed.images(dataset, job)


def _shards(folder: str) -> list[str]:
    return sorted(map(str, Path(folder).glob("*.tar")))
