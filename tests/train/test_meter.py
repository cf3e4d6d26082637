"""Rates, shares and the time that is left, from clocks and sums."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.data import Batch
from train.meter import (
    WINDOW_STEPS,
    EventClock,
    Meter,
    Pace,
    Schedule,
    Tally,
    TimeLeft,
    device_clock,
    memory_text,
    status_lines,
)
from train.recipe import Recipe, StageSpec
from train.utilisation import Sampler, process_memory

CPU = torch.device("cpu")
PAUSE = 0.02


def batches(count: int, photos: int = 4, pause: float = 0.0) -> Iterator[Batch]:
    for step in range(count):
        time.sleep(pause)
        ids = torch.zeros(photos, dtype=torch.int64)
        yield Batch(torch.zeros(photos, 3, 1, 1, dtype=torch.uint8), ids, ids, ids, step)


# ---- an epoch -----------------------------------------------------------------------------------------


def test_wall_time_is_waiting_and_working_and_the_rest() -> None:
    meter = Meter(10, 40, device=CPU)
    for batch in meter.timed(batches(10, pause=PAUSE)):
        with meter.working():
            time.sleep(2 * PAUSE)
        time.sleep(PAUSE)
        meter.count(len(batch), {})
    found = meter.summary()
    assert found["photos"] == 40
    assert found["seconds"] == pytest.approx(40 * PAUSE, rel=0.5)
    assert found["photos_a_second"] == pytest.approx(found["photos"] / found["seconds"], rel=0.01)
    assert found["data_wait_share"] == pytest.approx(0.25, abs=0.1)
    assert found["device_busy_share"] == pytest.approx(0.5, abs=0.15)


def test_what_follows_the_last_step_is_no_training_time() -> None:
    meter = Meter(1, 4, device=CPU)
    for batch in meter.timed(batches(1)):
        meter.count(len(batch), {})
    time.sleep(5 * PAUSE)  # a validation
    assert meter.summary()["seconds"] < PAUSE


def test_a_device_that_cannot_be_timed_is_unknown_and_never_0() -> None:
    for device in (None, torch.device("meta")):
        meter = Meter(1, 4, device=device)
        with meter.working():
            meter.count(4, {})
        assert meter.summary()["device_busy_share"] is None
        assert meter.close_window()["device_busy_share"] is None
        assert "device busy unknown" in meter.rates()


def test_windows_add_up_to_the_epoch() -> None:
    meter = Meter(WINDOW_STEPS + 3, 2 * WINDOW_STEPS + 6, device=CPU)
    windows = []
    for batch in meter.timed(batches(WINDOW_STEPS + 3, photos=2, pause=0.001)):
        with meter.working():
            time.sleep(0.001)
        meter.count(len(batch), {"species": float(batch.step)})
        if meter.window_is_full:
            windows.append(meter.close_window())
    epoch = meter.summary()
    assert [window["steps"] for window in windows] == [WINDOW_STEPS, 3]
    assert windows[0]["train"]["species"] == pytest.approx((WINDOW_STEPS - 1) / 2)
    for name in ("photos", "seconds"):
        assert sum(window[name] for window in windows) == pytest.approx(epoch[name], abs=0.002)
    for share in ("data_wait_share", "device_busy_share"):
        parts = sum(window[share] * window["seconds"] for window in windows)
        assert parts == pytest.approx(epoch[share] * epoch["seconds"], abs=0.002)


def test_a_continued_epoch_closes_its_last_window_at_its_end() -> None:
    meter = Meter(10, 40, first_step=8)
    full = []
    for _ in range(2):
        meter.count(4, {})
        full.append(meter.window_is_full)
    assert full == [False, True]


def test_mean_losses_weigh_photos_and_leave_out_steps_without_them() -> None:
    tally = Tally()
    tally.count(1, {"species": 1.0, "gradient norm": 5.0})
    tally.count(3, {"species": 2.0})
    assert tally.losses() == {"species": 1.75, "gradient norm": 5.0}


def test_an_epoch_without_steps_has_rates_too() -> None:
    meter = Meter(0, 0, device=CPU)
    assert meter.summary()["photos_a_second"] == 0
    assert "0 img/s" in meter.rates()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_a_gpu_is_timed_by_its_own_clock_and_nobody_waits() -> None:
    device = torch.device("cuda")
    clock = device_clock(device)
    assert isinstance(clock, EventClock)
    matrix = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    start = time.monotonic()
    with clock.step():
        for _ in range(50):
            matrix @ matrix
    launched = time.monotonic() - start
    torch.cuda.synchronize()
    wall = time.monotonic() - start
    busy = clock.read()
    assert launched < wall
    assert busy is not None
    assert 0 < busy <= wall * 1.05


# ---- time left ------------------------------------------------------------------------------------------


def schedule(recipe: Recipe, photos: int = 100) -> Schedule:
    count = len(recipe.stages)
    return Schedule(recipe.stages, [photos] * count, [10] * count)


def test_steps_of_a_run_count_on_through_its_stages(tiny: Recipe) -> None:
    plan = schedule(tiny)  # epochs 1, 2, 1, 2
    places = [(0, 0, 0), (0, 0, 3), (0, 1, 0), (1, 0, 0), (1, 1, 5), (3, 1, 10), (4, 0, 0)]
    assert [plan.done(*place) for place in places] == [0, 3, 10, 10, 25, 60, 60]


def test_time_left_takes_the_speed_of_each_kind_of_stage(tiny: Recipe) -> None:
    pace = Pace(schedule(tiny))
    head, full, disease, end = tiny.stages
    pace.trained(head, photos=100, seconds=10)  # 0.1 s a photo with a frozen backbone
    pace.validated(3)
    left = pace.left(1, 0, 0.5, Tally(photos=50, seconds=50))  # 1 s a photo here, where it learns
    stage = 1.5 * 100 * 1 + 2 * 3
    assert left.stage == pytest.approx(stage)
    # the end learns as this stage does, the disease heads as the first one did
    assert left.run == pytest.approx(stage + (100 * 0.1 + 3) + 2 * (100 * 1 + 3))
    assert (full.trains, disease.trains, end.trains) == ("species", "disease heads", "all")


def test_what_was_measured_before_an_interruption_counts(tiny: Recipe) -> None:
    told, recalled = Pace(schedule(tiny)), Pace(schedule(tiny))
    told.trained(tiny.stages[0], 100, 10)
    told.validated(4)
    recalled.recall(
        [
            {"event": "run"},
            {"event": "epoch", "stage": "head", "photos": 100, "seconds": 10, "validation_seconds": 4},
            {"event": "epoch", "stage": "of another recipe", "photos": 1, "seconds": 999},
        ]
    )
    now = Tally(photos=10, seconds=10)
    assert told.left(1, 0, 0.1, now) == recalled.left(1, 0, 0.1, now)


def test_before_the_first_step_the_time_left_is_unknown(tiny: Recipe) -> None:
    left = Pace(schedule(tiny)).left(0, 0, 0.0, Tally())
    assert left == TimeLeft(None, None)
    assert left.text() == "stage done in unknown, run in unknown"


@given(st.integers(0, 3), st.floats(0, 1), st.floats(0.001, 10))
def test_a_run_never_ends_before_its_stage(stage: int, done: float, speed: float) -> None:
    stages = [
        StageSpec(
            name=f"{n}", folder="species_only", epochs=n + 1, trains="species", lr=1, losses=("species",)
        )
        for n in range(4)
    ]
    pace = Pace(Schedule(stages, [10, 20, 30, 40], [1, 2, 3, 4]))
    left = pace.left(stage, stage, done, Tally(photos=10, seconds=10 * speed))
    assert left.stage is not None
    assert left.run is not None
    assert 0 <= left.stage <= left.run


# ---- for people -----------------------------------------------------------------------------------------


def test_the_live_block_tells_place_speed_memory_losses_and_time_left() -> None:
    meter = Meter(10, 40, device=CPU)
    meter.count(4, {"species": 0.25})
    memory = memory_text(1_500_000_000, (10_000_000_000, 80_000_000_000))
    lines = status_lines("stage 2/6 full", meter, TimeLeft(75, 3725), [memory])
    assert lines[0] == "stage 2/6 full"
    assert "img/s  data wait 0%  device busy 0%" in lines[1]
    assert lines[2:] == [
        "memory 1.5 GB, device 10.0 GB of 80.0 GB",
        "loss: species 0.250",
        "stage done in 1:15, run in 1:02:05",
    ]
    assert memory_text(None, None) == "memory unknown"


def test_the_memory_of_data_workers_counts() -> None:
    import subprocess
    import sys

    before = process_memory()
    assert before is not None
    assert before > 50_000_000  # torch alone
    code = "held = bytearray(b'x') * 100_000_000; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = process_memory()
        child.communicate(b"\n")
    assert with_child is not None
    assert 90_000_000 < with_child - before < 200_000_000


def test_a_system_that_does_not_tell_has_unknown_memory(tmp_path: Path) -> None:
    assert process_memory(1, tmp_path) is None


def test_a_sampler_gives_each_reading_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sampler(CPU, 0.001) as sampler:
        time.sleep(0.01)
        assert sampler.take().percent is None
    assert sampler.take().source == "no GPU is used"
