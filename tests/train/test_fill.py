from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shardtool.errors import CorruptSample
from shardtool.index import Split
from train.augment import EvalTransform
from train.engine import Task
from train.fill import ATTEMPTS, Filler, Replaced, substitutes
from train.slots import Slot, Slots

SIZE = 16


def fill(split: Split, samples: list[int], epoch: int = 0) -> tuple[Slot, list[Replaced]]:
    slots = Slots(1, len(samples), SIZE)
    slots[0].sample[:] = samples
    replaced = Filler(split, EvalTransform(SIZE), slots, seed=5)(Task(0, 0, len(samples), epoch))
    return slots[0], replaced


def damaged(split: Split, *samples: int) -> Split:
    """The same split, which expects other bytes of some photos."""
    crc32c = split.crc32c.copy()
    crc32c[list(samples)] ^= np.uint32(1)
    return replace(split, crc32c=crc32c)


def test_whole_photos_are_put_where_they_were_asked_for_with_their_labels(split: Split) -> None:
    slot, replaced = fill(split, [7, 3, 7])
    assert not replaced
    assert slot.sample.tolist() == [7, 3, 7]
    assert slot.species.tolist() == split.species[[7, 3, 7]].tolist()
    assert (split.taxonomy.offsets[slot.species] + slot.disease).tolist() == split.row[[7, 3, 7]].tolist()
    assert np.array_equal(slot.images[0], slot.images[2])
    assert not np.array_equal(slot.images[0], slot.images[1])


def test_a_bad_photo_is_replaced_by_one_of_its_class_and_named(split: Split) -> None:
    slot, (found,) = fill(damaged(split, 3), [7, 3, 8])
    assert slot.sample.tolist() == [7, found.substitute, 8]
    assert found.substitute != 3
    assert split.row[found.substitute] == split.row[3]
    assert found.where.startswith("train/shard-")
    assert "key" in found.where
    assert "offset" in found.where
    whole, _ = fill(split, [found.substitute])
    assert np.array_equal(slot.images[1], whole.images[0])


def test_the_substitute_is_the_same_in_every_run_and_another_one_in_other_epochs(split: Split) -> None:
    wrong = damaged(split, 3)
    choices = [fill(wrong, [3], epoch)[1][0].substitute for epoch in range(8)]
    assert choices == [fill(wrong, [3], epoch)[1][0].substitute for epoch in range(8)]
    assert len(set(choices)) > 1


def test_a_substitute_that_is_bad_too_is_passed_over(split: Split) -> None:
    first = fill(damaged(split, 3), [3])[1][0].substitute
    second = fill(damaged(split, 3, first), [3])[1][0]
    assert second.sample == 3
    assert second.substitute not in (3, first)


def test_a_class_without_another_photo_is_replaced_by_any_with_its_own_label(split: Split) -> None:
    alone = np.flatnonzero(split.row != split.row[3])
    order = substitutes(np.where(np.arange(len(split)) == 3, -1, split.row), 3, 0, 0, 0)
    assert next(order) != 3
    assert len(alone)


def test_many_bad_photos_in_a_row_end_the_run(split: Split) -> None:
    with pytest.raises(CorruptSample, match=f"and so are {ATTEMPTS} others"):
        fill(damaged(split, *range(len(split))), [3])


def test_a_photo_that_does_not_decode_is_bad_although_its_checksum_is_right(split: Split) -> None:
    class Picky(EvalTransform):
        def __call__(self, photo: bytes, out: object, epoch: int = 0, sample: int = 0, copy: int = 0) -> None:
            if sample == 3:
                raise ValueError("no image")
            super().__call__(photo, out)  # type: ignore[arg-type]

    slots = Slots(1, 2, SIZE)
    slots[0].sample[:] = [3, 4]
    (found,) = Filler(split, Picky(SIZE), slots, seed=5)(Task(0, 0, 2, 0))
    assert found.reason == "not decodable: no image"
    assert slots[0].sample[1] == 4
