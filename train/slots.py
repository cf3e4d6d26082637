"""Batch slots: memory that the data workers and the trainer share, written in place, used again and again.

Batches that are made anew and sent between processes cost as much as decoding (page faults of fresh
memory). The memory is an anonymous mapping that workers inherit by fork: no name in /dev/shm, no limit of
a container on it, and nothing left behind by a process that is killed.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: a cache line
NO_SAMPLE = -1


@dataclass(frozen=True)
class Slot:
    """Room for one batch of up to B photos of S pixels a side.

    images   uint8   [B, S, S, 3]
    sample   int64   [B]  sample ids; of what is in `images`, once it is filled
    copy     int64   [B]  which copy of the photo in this epoch
    species  int64   [B]
    disease  int64   [B]  inside the species
    ahead    int64   [B]  samples that will be asked for soon, or NO_SAMPLE
    plan     float32 [B, K]  what the device still has to do to each photo, K = 0 for nothing
    """

    images: NDArray[np.uint8]
    sample: NDArray[np.int64]
    copy: NDArray[np.int64]
    species: NDArray[np.int64]
    disease: NDArray[np.int64]
    ahead: NDArray[np.int64]
    plan: NDArray[np.float32]


class Slots:
    """`count` slots in one anonymous shared mapping."""

    def __init__(self, count: int, batch: int, size: int, plan_columns: int = 0) -> None:
        shapes = _shapes(batch, size, plan_columns)
        each = sum(_padded(shape, dtype) for shape, dtype in shapes.values())
        self._memory = mmap.mmap(-1, max(each * count, 1))
        self.batch = batch
        self._slots = [Slot(**dict(self._arrays(shapes, each * number))) for number in range(count)]

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def pin(self) -> bool:
        """Lock the pages for asynchronous copies to a GPU; call it after the workers are forked, since
        locked pages are not inherited. Returns whether the driver agreed."""
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        return int(torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.numel(), 0)) == 0

    def _arrays(
        self, shapes: dict[str, tuple[tuple[int, ...], type]], place: int
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        for name, (shape, dtype) in shapes.items():
            flat: NDArray[Any] = np.frombuffer(
                self._memory, dtype=dtype, count=math.prod(shape), offset=place
            )
            yield name, flat.reshape(shape)
            place += _padded(shape, dtype)


def _shapes(batch: int, size: int, plan_columns: int) -> dict[str, tuple[tuple[int, ...], type]]:
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        field.name: ((batch,), np.int64) for field in fields(Slot)
    }
    shapes["images"] = ((batch, size, size, 3), np.uint8)
    shapes["plan"] = ((batch, plan_columns), np.float32)
    return shapes


def _padded(shape: tuple[int, ...], dtype: type) -> int:
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
