"""NVIDIA DALI with CPU operators, in the threads of one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from benchmarks.rival_loaders.job import CROP_RATIO, CROP_SCALE, MEAN, STD, Job


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3] or float32 [B, 3, size, size]."""
    pipeline = _pipeline(job, batch_size=job.batch, num_threads=job.workers, device_id=None, seed=0)
    for (outputs,) in DALIGenericIterator([pipeline], ["images"]):  # without a size it never ends
        yield outputs["images"]


@pipeline_def  # type: ignore[untyped-decorator]
def _pipeline(job: Job) -> Any:
    files = list(map(str, job.photos()))
    jpegs, _ = fn.readers.file(files=files, random_shuffle=True, initial_fill=min(len(files), 10_000))
    images = fn.decoders.image_random_crop(
        jpegs, device="cpu", random_area=list(CROP_SCALE), random_aspect_ratio=list(CROP_RATIO)
    )
    images = fn.resize(images, size=[job.size, job.size], interp_type=types.INTERP_LINEAR)
    flip = fn.random.coin_flip()
    if job.dtype == "uint8":
        return fn.flip(images, horizontal=flip)
    mean, std = ([value * 255 for value in values] for values in (MEAN, STD))
    return fn.crop_mirror_normalize(
        images, mirror=flip, mean=mean, std=std, dtype=types.FLOAT, output_layout="CHW"
    )
