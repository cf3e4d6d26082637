from __future__ import annotations

import hashlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from shardtool.errors import DatasetError, TrainingError
from shardtool.index import Split
from train.augment import EvalTransform, train_transform
from train.data import FEW_BAD, MEAN, STD, Batch, Loader, in_order, prepare
from train.fill import Replaced
from train.order import EpochOrder, blocks, epoch_order
from train.recipe import AugmentSpec

CPU = torch.device("cpu")


def order_of(split: Split, epoch: int = 0) -> EpochOrder:
    repeat = 1 + np.arange(len(split)) % 2
    return epoch_order(repeat, blocks(split.shard, split.offset), 0, epoch, batch=16)


def loader_of(split: Split, workers: int) -> Loader:
    return Loader(
        split, train_transform(AugmentSpec(profile="seed", rand_augment="all"), 32, seed=0), workers, CPU
    )


def digest(batches: list[Batch]) -> str:
    content = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.images, batch.species, batch.disease, batch.sample):
            content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def test_batches_are_the_same_bytes_for_any_number_of_workers(split: Split) -> None:
    digests = set()
    for workers in (0, 1, 2):
        loader = loader_of(split, workers)
        digests.add(
            digest([b.clone() for epoch in (0, 1) for b in loader.epoch(order_of(split, epoch), epoch)])
        )
    assert len(digests) == 1


def test_a_resumed_epoch_gives_the_batches_that_were_left(split: Split) -> None:
    order = order_of(split)
    whole = [b.clone() for b in loader_of(split, 0).epoch(order, 3)]
    rest = [b.clone() for b in loader_of(split, 1).epoch(order, 3, start=4)]
    assert [batch.step for batch in rest] == list(range(4, order.steps))
    assert digest(rest) == digest(whole[4:])


def test_evaluation_sees_every_photo_once_with_its_labels(val_split: Split) -> None:
    loader = Loader(val_split, EvalTransform(32), 0, CPU)
    batches = [b.clone() for b in loader.epoch(in_order(np.arange(len(val_split)), 7), 0)]
    assert torch.cat([b.sample for b in batches]).tolist() == list(range(len(val_split)))
    assert torch.cat([b.species for b in batches]).tolist() == val_split.species.tolist()
    rows = val_split.taxonomy.offsets[val_split.species] + torch.cat([b.disease for b in batches]).numpy()
    assert rows.tolist() == val_split.row.tolist()


def test_a_bad_photo_shortens_no_batch_and_is_told_once(split: Split) -> None:
    wrong = replace(split, crc32c=split.crc32c.copy())
    wrong.crc32c[5] ^= np.uint32(1)
    for workers in (0, 2):
        told: list[Replaced] = []
        with Loader(wrong, EvalTransform(32), workers, CPU, told.append) as loader:
            for epoch in range(3):
                order = order_of(split, epoch)
                sizes = [len(batch) for batch in loader.epoch(order, epoch)]
                assert sizes == [len(order.step(step)[0]) for step in range(order.steps)]
        (found,) = told
        assert found.sample == 5
        assert split.row[found.substitute] == split.row[5]


def test_too_many_bad_photos_stop_the_run_with_shard_and_key(split: Split) -> None:
    wrong = replace(split, crc32c=split.crc32c.copy())
    wrong.crc32c[:: len(split) // (FEW_BAD + 1)] ^= np.uint32(1)
    for workers in (0, 1):
        with (
            Loader(wrong, EvalTransform(32), workers, CPU) as loader,
            pytest.raises(DatasetError, match=r"photos are bad.*shard-\d+\.tar, key [0-9a-f]{24}, offset"),
        ):
            list(loader.epoch(order_of(split), 0))


def test_a_killed_worker_ends_the_epoch_with_its_name_and_the_next_epoch_has_new_ones(split: Split) -> None:
    order = order_of(split)
    long = EpochOrder(np.tile(order.samples, 50), np.tile(order.copies, 50), 16)
    before = set(multiprocessing.active_children())
    with loader_of(split, 1) as loader:
        batches = loader.epoch(long, 0)
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - before
        worker.kill()
        with pytest.raises(TrainingError, match=f"data worker died: process {worker.pid}, killed by SIGKILL"):
            list(batches)
        assert len(list(loader.epoch(order, 0))) == order.steps


def test_an_epoch_that_is_left_early_disturbs_no_later_one(split: Split) -> None:
    expected = digest([b.clone() for b in loader_of(split, 0).epoch(order_of(split), 0)])
    with loader_of(split, 2) as loader:
        for _ in range(3):
            batches = loader.epoch(order_of(split, 1), 1)
            next(batches)
            batches.close()
        assert digest([b.clone() for b in loader.epoch(order_of(split), 0)]) == expected


def test_a_new_epoch_ends_the_one_before_it(split: Split) -> None:
    with loader_of(split, 2) as loader:
        left = loader.epoch(order_of(split, 1), 1)
        next(left)
        assert len(list(loader.epoch(order_of(split), 0))) == order_of(split).steps
        assert next(left, None) is None


def test_each_rank_gets_its_part_of_every_batch(split: Split) -> None:
    order = order_of(split)
    parts = []
    for rank in range(3):
        with Loader(split, EvalTransform(32), 1, CPU, part=(rank, 3)) as loader:
            parts.append([batch.sample.tolist() for batch in loader.epoch(order, 0)])
    for step in range(order.steps):
        together = [sample for part in parts for sample in part[step]]
        assert together == order.step(step)[0].tolist()


def test_a_larger_batch_than_before_gets_larger_slots(split: Split) -> None:
    with Loader(split, EvalTransform(32), 1, CPU) as loader:
        for batch in (4, 16, 8):
            seen = [b.sample.clone() for b in loader.epoch(in_order(np.arange(len(split)), batch), 0)]
            assert torch.cat(seen).tolist() == list(range(len(split)))


def test_prepare_normalises_as_torchvision_does() -> None:
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    expected = images.permute(0, 3, 1, 2).float() / 255
    expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    prepared = prepare(images, CPU)
    assert torch.allclose(prepared, expected, atol=1e-5)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
