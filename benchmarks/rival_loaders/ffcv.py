"""FFCV: a .beton file, its own decoder and crop in the threads of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.rival_loaders.job import CROP_RATIO, CROP_SCALE, MANY, Job, species


class Jpeg(RGBImageField):  # type: ignore[misc]
    """Keeps the JPEG of a file as it is: RGBImageField would encode it again, half as large again."""

    def encode(self, destination: Any, photo: Path, malloc: Callable[[int], tuple[Any, Any]]) -> None:
        data = np.fromfile(photo, np.uint8)
        with Image.open(photo) as image:
            destination["width"], destination["height"] = image.size
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["data_ptr"], storage = malloc(data.nbytes)
        storage[:] = data


class Photos:
    def __init__(self, job: Job) -> None:
        self.photos = job.photos()

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        return self.photos[index], species(self.photos[index])


def prepare(job: Job) -> None:
    """The photos as they are, with their label."""
    writer = DatasetWriter(_beton(job), {"image": Jpeg(), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(Photos(job))


def _beton(job: Job) -> str:
    return f"{job.prepared}/photos.beton"


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3]."""
    decoder = RandomResizedCropRGBImageDecoder((job.size, job.size), CROP_SCALE, CROP_RATIO)
    count = len(job.photos())
    loader = Loader(
        _beton(job),
        batch_size=job.batch,
        num_workers=job.workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        indices=np.tile(np.arange(count), -(-MANY // count)),
        pipelines={"image": [decoder, RandomHorizontalFlip(), ToTensor()], "label": None},
        custom_fields={"image": Jpeg},
    )
    for (images,) in loader:
        yield images
