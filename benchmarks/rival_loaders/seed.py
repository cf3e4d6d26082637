"""What both loaders of the source document share: its augmentation, and its DataLoader's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import albumentations as A
import cv2
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader

from benchmarks.rival_loaders.job import CROP_RATIO, CROP_SCALE, MEAN, STD, Job


def augment(job: Job) -> Callable[[Any], torch.Tensor]:
    """uint8 [H, W, 3] -> float32 [3, size, size]."""
    crop = A.RandomResizedCrop(size=(job.size, job.size), scale=CROP_SCALE, ratio=CROP_RATIO)
    tiers = [crop, A.HorizontalFlip(p=0.5), *(_beyond_core() if job.work == "full" else [])]
    compose = A.Compose([*tiers, A.Normalize(mean=MEAN, std=STD), ToTensorV2()], strict=True)

    def apply(image: Any) -> torch.Tensor:
        pixels: torch.Tensor = compose(image=image)["image"]
        return pixels

    return apply


def _beyond_core() -> list[Any]:
    """The document's snippet in the words of albumentations 2: there its own do nothing, or another thing."""
    blur = A.GaussianBlur(blur_limit=(3, 7), sigma_limit=(0.8, 1.4), p=1.0)
    noise = A.GaussNoise(std_range=(10**0.5 / 255, 50**0.5 / 255), p=1.0)
    iso = A.ISONoise(color_shift=(0.01, 0.05), intensity=(0.1, 0.3), p=1.0)
    return [
        A.Rotate(limit=45, border_mode=cv2.BORDER_REFLECT_101, p=0.5),
        A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, p=0.8),
        A.OneOf([blur, noise, iso], p=0.3),
        A.ImageCompression(quality_range=(60, 95), p=0.2),
        A.RandomShadow(shadow_roi=(0, 0, 1, 1), num_shadows_limit=(1, 2), p=0.15),
        A.ToGray(p=0.05),
    ]


def images(dataset: Any, job: Job, **order: Any) -> Iterator[torch.Tensor]:
    """Images of the batches of a DataLoader with the document's settings (pin_memory is of no use here)."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=job.batch,
        num_workers=job.workers,
        prefetch_factor=4 if job.workers else None,
        persistent_workers=job.workers > 0,
        drop_last=True,
        worker_init_fn=one_thread,
        **order,
    )
    for batch, _ in loader:
        yield batch


def one_thread(worker: int) -> None:
    """The workers are the threads."""
    cv2.setNumThreads(0)
