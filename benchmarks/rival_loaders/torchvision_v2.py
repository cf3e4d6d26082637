"""torchvision's transforms v2 over loose files, in a DataLoader: on uint8 tensors, as its guide advises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.rival_loaders.job import CROP_RATIO, CROP_SCALE, MANY, MEAN, STD, Job, species
from train.compat import import_torchvision


class Photos(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, job: Job) -> None:
        self.photos, self.transform = job.photos(), core(job)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.photos[index]) as image:
            return self.transform(image.convert("RGB")), species(self.photos[index])


def core(job: Job) -> Callable[[Image.Image], torch.Tensor]:
    """To a tensor [3, size, size]."""
    import_torchvision()  # its compiled operators may not load beside this torch; none is needed
    from torchvision.transforms import v2

    steps = [
        v2.PILToTensor(),
        v2.RandomResizedCrop((job.size, job.size), scale=CROP_SCALE, ratio=CROP_RATIO, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if job.dtype == "float32":
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform: Callable[[Image.Image], torch.Tensor] = v2.Compose(steps)
    return transform


def batches(job: Job) -> Iterator[Any]:
    """[B, 3, size, size]."""
    photos = Photos(job)
    sampler = RandomSampler(photos, num_samples=MANY)
    for images, _ in DataLoader(photos, job.batch, sampler=sampler, num_workers=job.workers, drop_last=True):
        yield images
