"""The order of an epoch is part of what a checkpoint resumes: these numbers change only on purpose."""

from __future__ import annotations

import hashlib

import numpy as np

from train.order import EpochOrder, blocks, epoch_order, fingerprint, repeats

DIGEST = "3a3d9dfc789ee3b1715292758831926fcbb654bde1a3d8ab94892ec77be89a03"
METHOD = "924df8d92fc5a51e1120520285593a8ecc407c2417c77fa8995b250bdc285734"


def pinned_order() -> EpochOrder:
    """5,000 photos of 61 classes in 8 shards and 1,193 blocks, with rare classes 3 and 5 times."""
    number = np.arange(5000)
    repeat = repeats((number**2 // 7 % 61).astype(np.int32), [(80, 3), (50, 5)])
    return epoch_order(repeat, blocks(number // 700, number % 700 * 1_000_003 + 512), 3, 4, batch=256)


def test_a_small_order_is_pinned() -> None:
    order = epoch_order(np.array([1, 1, 3, 1, 1, 1, 1, 1]), np.arange(8) // 5, seed=7, epoch=2, batch=8)
    assert order.samples.tolist() == [5, 2, 6, 7, 3, 2, 0, 4, 2, 1]
    assert order.copies.tolist() == [0, 1, 0, 0, 0, 2, 0, 0, 0, 0]


def test_a_large_order_is_pinned() -> None:
    order = pinned_order()
    assert order.samples[:12].tolist() == [
        4406,
        1187,
        4541,
        4073,
        165,
        3146,
        3765,
        3678,
        3201,
        1272,
        4542,
        849,
    ]
    assert order.copies[:12].tolist() == [0, 0, 0, 0, 3, 0, 0, 1, 0, 1, 0, 0]
    pairs = np.stack([order.samples, order.copies]).astype("<i8")
    assert pairs.shape == (2, 8754)
    assert hashlib.sha256(pairs.tobytes()).hexdigest() == DIGEST


def test_the_batches_of_ranks_are_pinned() -> None:
    order = pinned_order()
    assert order.steps == 35
    assert [len(order.step(34, rank, 8)[0]) for rank in range(8)] == [31, 31, 32, 31, 31, 32, 31, 32]
    assert order.step(34, 5, 8)[0][:6].tolist() == [2956, 2534, 526, 1126, 1196, 2770]


def test_the_fingerprint_of_the_method_is_pinned() -> None:
    assert fingerprint("", (), 0, 1)["method"] == METHOD
