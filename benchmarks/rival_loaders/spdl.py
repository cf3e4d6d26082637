"""SPDL: FFmpeg decodes, crops, scales and flips in the threads of one process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spdl.io
from spdl.pipeline import PipelineBuilder

from benchmarks.rival_loaders.job import CROP_RATIO, CROP_SCALE, Job, endless


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3]."""

    def load(photos: list[Path]) -> Any:
        frames = [_frame(photo, job.size) for photo in photos]
        return spdl.io.to_torch(spdl.io.convert_frames(frames))

    builder = PipelineBuilder().add_source(_batches_of_paths(job))
    builder = builder.pipe(load, concurrency=job.workers).add_sink(job.workers)
    pipeline = builder.build(num_threads=job.workers)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


def _batches_of_paths(job: Job) -> Iterator[list[Path]]:
    photos = endless(job.photos())
    while True:
        yield [next(photos) for _ in range(job.batch)]


def _frame(photo: Path, size: int) -> Any:
    packets = spdl.io.demux_image(str(photo))
    return spdl.io.decode_packets(packets, filter_desc=_filters(size))


def _filters(size: int) -> str:
    """A random crop, scaled, flipped or not, as FFmpeg's filters: they know the photo's width and height."""
    area, ratio = random.uniform(*CROP_SCALE), random.uniform(*CROP_RATIO)
    sides = [
        f"min({side}\\,sqrt(iw*ih*{area:.4f}*{by:.4f}))" for side, by in (("iw", ratio), ("ih", 1 / ratio))
    ]
    place = f"(iw-ow)*{random.random():.4f}:(ih-oh)*{random.random():.4f}"
    flip = ",hflip" if random.random() < 0.5 else ""
    crop = f"crop={sides[0]}:{sides[1]}:{place}"
    return f"{crop},scale={size}:{size}:flags=bilinear{flip},format=pix_fmts=rgb24"
