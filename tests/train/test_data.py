from __future__ import annotations

import hashlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from shardtool.errors import CorruptSample, TrainingError
from shardtool.index import Split
from train.augment import EvalTransform, TrainTransform
from train.data import MEAN, STD, Batch, Loader, decode, in_order, prepare
from train.order import EpochOrder, blocks, epoch_order
from train.recipe import AugmentSpec

CPU = torch.device("cpu")


def order_of(split: Split, epoch: int = 0) -> EpochOrder:
    repeat = 1 + np.arange(len(split)) % 2
    return epoch_order(repeat, blocks(split.shard, split.offset), 0, epoch, batch=16)


def loader_of(split: Split, workers: int) -> Loader:
    return Loader(split, TrainTransform(AugmentSpec(profile="seed"), 32, seed=0), workers, CPU)


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
        digests.add(digest([b for epoch in (0, 1) for b in loader.epoch(order_of(split, epoch), epoch)]))
    assert len(digests) == 1


def test_a_resumed_epoch_gives_the_batches_that_were_left(split: Split) -> None:
    order = order_of(split)
    whole = list(loader_of(split, 0).epoch(order, 3))
    rest = list(loader_of(split, 1).epoch(order, 3, start=4))
    assert [batch.step for batch in rest] == list(range(4, order.steps))
    assert digest(rest) == digest(whole[4:])


def test_evaluation_sees_every_photo_once_with_its_labels(val_split: Split) -> None:
    loader = Loader(val_split, EvalTransform(32), 0, CPU)
    batches = list(loader.epoch(in_order(len(val_split), 7), 0))
    assert torch.cat([b.sample for b in batches]).tolist() == list(range(len(val_split)))
    assert torch.cat([b.species for b in batches]).tolist() == val_split.species.tolist()
    rows = val_split.taxonomy.offsets[val_split.species] + torch.cat([b.disease for b in batches]).numpy()
    assert rows.tolist() == val_split.row.tolist()


def test_a_flipped_bit_stops_with_shard_and_key(split: Split) -> None:
    wrong = replace(split, crc32c=split.crc32c ^ np.uint32(1))
    for workers in (0, 1):
        with pytest.raises(CorruptSample, match=r"shard-\d+\.tar, key [0-9a-f]{24}, offset") as found:
            list(loader_of(wrong, workers).epoch(order_of(split), 0))
        assert "Traceback" not in str(found.value)
        assert "shard-" in found.value.where


def test_a_killed_worker_ends_the_epoch_with_its_name(split: Split) -> None:
    order = order_of(split)
    long = EpochOrder(np.tile(order.samples, 50), np.tile(order.copies, 50), 16)
    before = set(multiprocessing.active_children())
    batches = loader_of(split, 1).epoch(long, 0)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    with pytest.raises(TrainingError, match="data worker died"):
        list(batches)


def test_prepare_normalises_as_torchvision_does() -> None:
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    expected = images.permute(0, 3, 1, 2).float() / 255
    expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    prepared = prepare(images, CPU)
    assert torch.allclose(prepared, expected, atol=1e-5)
    assert prepared.is_contiguous(memory_format=torch.channels_last)


def test_decoding_delivers_at_least_the_side_that_is_needed(split: Split) -> None:
    photo = split.read([0])[0]
    for side in (5, 11, 20, 48, 100):
        pixels = decode(photo, side)
        assert min(pixels.shape[:2]) >= min(side, 48)
    assert decode(photo, 6).shape[0] < 48
