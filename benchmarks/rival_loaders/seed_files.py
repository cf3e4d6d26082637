"""The source document's DataLoader over loose files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import Dataset, RandomSampler

from benchmarks.rival_loaders import seed
from benchmarks.rival_loaders.job import MANY, Job, species


class Photos(Dataset[tuple[torch.Tensor, int]]):
    """Decoded by OpenCV, as albumentations' documentation has it."""

    def __init__(self, job: Job) -> None:
        self.photos = job.photos()
        self.augment = seed.augment(job)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        photo: Path = self.photos[index]
        image = cv2.imread(str(photo), cv2.IMREAD_COLOR_RGB)
        return self.augment(image), species(photo)


def batches(job: Job) -> Iterator[Any]:
    """float32 [B, 3, size, size]."""
    photos = Photos(job)
    return seed.images(photos, job, sampler=RandomSampler(photos, num_samples=MANY))
