from __future__ import annotations

import os

import numpy as np

from train.slots import ALIGNMENT, Slots


def test_slots_do_not_share_a_byte() -> None:
    slots = Slots(3, batch=5, size=7, plan_columns=2)
    for number in range(3):
        for column in vars(slots[number]).values():
            column[...] = number + 1
    for number in range(3):
        for name, column in vars(slots[number]).items():
            assert (column == number + 1).all(), name
            assert column.ctypes.data % ALIGNMENT == 0
    assert slots[0].images.shape == (5, 7, 7, 3)
    assert slots[0].plan.shape == (5, 2)


def test_what_a_forked_process_writes_is_seen_here_without_a_copy() -> None:
    slots = Slots(1, batch=2, size=4)
    child = os.fork()
    if not child:
        slots[0].images[1] = 77
        os._exit(0)
    os.waitpid(child, 0)
    assert (slots[0].images[1] == 77).all()
    assert np.array_equal(slots[0].images[0], np.zeros((4, 4, 3)))
