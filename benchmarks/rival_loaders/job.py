"""What a loader is asked for. Standard library only: every environment imports this."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Item = TypeVar("Item")
Work = Literal["core", "full"]
DType = Literal["uint8", "float32"]

MANY = (
    1 << 18
)  # photos of an epoch where it has an end: all of them over and over, so that none is in the way
CROP_SCALE, CROP_RATIO = (0.6, 1.0), (0.75, 1.33)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """Batches of `batch` photos of `size` pixels a side, made by at most `workers` processes or threads.

    core: decode, RandomResizedCrop (CROP_SCALE, CROP_RATIO), horizontal flip; full: tier 1 and 2 as well.
    float32 is normalised by MEAN and STD. Photos are the packed split `shards`, and the same as loose files
    `files`/SPECIES/KEY.jpg; `prepared` is what the loader itself has written.
    """

    loader: str
    work: Work
    dtype: DType
    shards: str
    files: str
    prepared: str
    workers: int
    batch: int = 256
    size: int = 224

    def photos(self) -> list[Path]:
        """The loose files, in one order everywhere."""
        return sorted(Path(self.files).glob("*/*.jpg"))


def species(photo: Path) -> int:
    """The label: loose files lie in a folder of their species."""
    return int(photo.parent.name)


def endless(items: Sequence[Item], seed: int = 0) -> Iterator[Item]:
    """All items in random order, again and again."""
    generator = random.Random(seed)
    while True:
        yield from generator.sample(items, len(items))
