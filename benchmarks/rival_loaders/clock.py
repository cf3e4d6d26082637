"""How long batches take, once everything runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.rival_loaders.job import Job

WARM_UP_ROUNDS = 2  # workers start, buffers fill, just-in-time compilers run


@dataclass(frozen=True)
class Span:
    """How long to measure: `photos`, or if that is 0 for `seconds`; always whole rounds."""

    photos: int = 0
    seconds: float = 4.0

    def is_over(self, photos: int, seconds: float) -> bool:
        return photos >= self.photos if self.photos else seconds >= self.seconds


def time_batches(batches: Iterator[Any], job: Job, span: Span) -> dict[str, Any]:
    """Photos and seconds after the warm-up. Raises ValueError for batches that are not what `job` wants.

    Worker processes deliver at about the same time, so time is taken after a batch of each: else a batch
    more or less would decide.
    """
    for _ in range(WARM_UP_ROUNDS * job.workers):
        check(next(batches), job)
    photos, seconds, start = 0, 0.0, time.monotonic()
    while not span.is_over(photos, seconds):
        for _ in range(max(job.workers, 1)):
            photos += len(next(batches))
        seconds = time.monotonic() - start
    return {"photos": photos, "seconds": seconds}


def check(images: Any, job: Job) -> None:
    """Raises ValueError unless this is a whole batch in one of the two usual layouts."""
    dtype = str(images.dtype).removeprefix("torch.")
    last, first = (job.batch, job.size, job.size, 3), (job.batch, 3, job.size, job.size)
    if dtype != job.dtype or tuple(images.shape) not in (last, first):
        wanted = f"{job.batch} photos of {job.size} pixels as {job.dtype}"
        raise ValueError(f"a batch of {tuple(images.shape)} {dtype}, not {wanted}")
