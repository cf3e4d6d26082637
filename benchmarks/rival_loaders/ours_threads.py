"""Our loader's work done by threads of this process: what worker processes are measured against."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.rival_loaders.job import Job
from benchmarks.rival_loaders.ours import SPECS, whole_batches
from shardtool.index import open_split
from train.augment import train_transform
from train.data import BATCHES_AHEAD, PIECE
from train.engine import Task
from train.fill import Filler, Replaced
from train.slots import Slots


def batches(job: Job) -> Iterator[Any]:
    """uint8 [B, size, size, 3], a view of a slot until the next one is asked for."""
    split = open_split(job.shards)
    slots = Slots(1 + BATCHES_AHEAD, job.batch, job.size)
    fill = Filler(split, train_transform(SPECS[job.work], job.size, seed=0), slots, seed=0)
    order = whole_batches(split, job.batch)
    steps, free = iter(range(order.steps)), deque(range(len(slots)))
    filling: deque[tuple[int, list[Future[list[Replaced]]]]] = deque()
    with ThreadPoolExecutor(job.workers) as threads:
        while True:
            for step in itertools.islice(steps, len(free)):
                number = free.popleft()
                slots[number].sample[:], slots[number].copy[:] = order.step(step)
                tasks = [Task(number, n, min(n + PIECE, job.batch), 0) for n in range(0, job.batch, PIECE)]
                filling.append((number, [threads.submit(fill, task) for task in tasks]))
            number, pieces = filling.popleft()
            for piece in pieces:
                piece.result()
            yield torch.from_numpy(slots[number].images)
            free.append(number)
