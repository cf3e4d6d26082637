"""Rows of a batch slot filled: bytes read and checked, decoded, augmented; a bad photo is replaced.

A photo whose bytes are not those that were packed, or that does not decode, is quarantined: another one of
its class takes its place, so that no batch gets shorter. Which one is drawn from (seed, epoch, sample,
copy), like everything random: a run that is repeated or continued meets the same one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardtool.errors import CorruptSample
from shardtool.index import Split
from train.augment import Transform
from train.engine import Task
from train.slots import NO_SAMPLE, Slot, Slots

SUBSTITUTE_STREAM = 3  # of a (seed, epoch): 0 is the order, 1 the steps, 2 the augmentation
ATTEMPTS = 8  # so many bad photos in a row are no accident


@dataclass(frozen=True)
class Replaced:
    """A photo that could not be used, and the sample that took its place in one batch."""

    sample: int
    substitute: int
    where: str
    reason: str


class Filler:
    """What a data worker does with a task. Raises what `Split.read` raises for more than one bad photo,
    and CorruptSample for ATTEMPTS bad ones in a row."""

    def __init__(self, split: Split, transform: Transform, slots: Slots, seed: int) -> None:
        self.split, self.transform, self.slots, self.seed = split, transform, slots, seed

    def __call__(self, task: Task) -> list[Replaced]:
        slot, rows = self.slots[task.slot], slice(task.start, task.stop)
        ahead = slot.ahead[rows]
        self.split.announce(ahead[ahead != NO_SAMPLE])
        photos = self._read(slot.sample[rows])
        replaced = []
        for row, photo in zip(range(task.start, task.stop), photos, strict=True):
            if fault := self._put(slot, row, photo, task.epoch):
                replaced.append(self._replace(slot, row, fault, task.epoch))
        slot.species[rows], slot.disease[rows] = self.split.labels(slot.sample[rows])
        return replaced

    def _read(self, samples: NDArray[np.int64]) -> Sequence[bytes | CorruptSample]:
        """All at once where all are whole: remote neighbours come in one request."""
        try:
            return self.split.read(samples)
        except CorruptSample:
            return [self._read_one(sample) for sample in samples.tolist()]

    def _read_one(self, sample: int) -> bytes | CorruptSample:
        try:
            return self.split.read([sample])[0]
        except CorruptSample as error:
            return error

    def _put(self, slot: Slot, row: int, photo: bytes | CorruptSample, epoch: int) -> CorruptSample | None:
        """Pixels of a photo into a row; returns what is wrong with it."""
        if isinstance(photo, CorruptSample):
            return photo
        sample = int(slot.sample[row])
        try:
            left = self.transform(photo, slot.images[row], epoch, sample, int(slot.copy[row]))
        except ValueError as error:
            return CorruptSample(f"not decodable: {error}", where=self.split.where(sample))
        if left is not None:
            slot.plan[row] = left
        return None

    def _replace(self, slot: Slot, row: int, fault: CorruptSample, epoch: int) -> Replaced:
        sample, copy = int(slot.sample[row]), int(slot.copy[row])
        choice = substitutes(self.split.row, sample, copy, self.seed, epoch)
        for substitute in itertools.islice(choice, ATTEMPTS):
            slot.sample[row] = substitute
            if not self._put(slot, row, self._read_one(substitute), epoch):
                return Replaced(sample, substitute, fault.where, fault.what)
        raise CorruptSample(
            f"{fault.what}, and so are {ATTEMPTS} others that could take its place",
            where=fault.where,
            cure="run shardtool verify --deep, then pack again or fetch the shards again",
        )


def substitutes(row: NDArray[np.integer], sample: int, copy: int, seed: int, epoch: int) -> Iterator[int]:
    """Samples that can take the place of a bad one: the others of its class in random order, then any."""
    stream = np.random.Philox(key=[seed, epoch], counter=[0, SUBSTITUTE_STREAM, copy, sample])
    generator = np.random.Generator(stream)
    same_class = np.flatnonzero(row == row[sample])
    yield from generator.permutation(same_class[same_class != sample]).tolist()
    while True:
        yield int(generator.integers(len(row)))
