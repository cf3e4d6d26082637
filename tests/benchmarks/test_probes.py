"""What the probes measure: the recipe's own stages, and only in the time that they are given."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from benchmarks.probes import (
    PROBES,
    Bench,
    Effort,
    Measurement,
    decode,
    disk_cold,
    loader,
    model_step,
    together,
)
from shardtool.index import open_split
from train.compat import import_torchvision
from train.recipe import load_recipe

import_torchvision()
TINY = Path(__file__).parent.parent / "train" / "tiny.toml"
BRIEF = Effort(2, 0.05)


@pytest.fixture(scope="module")
def bench(packed: Path) -> Bench:
    split = open_split(str(packed / "train"))
    return Bench(load_recipe(str(TINY)), split, torch.device("cpu"), 2, BRIEF)


@pytest.fixture(scope="module")
def taken(bench: Bench) -> dict[str, Measurement]:
    """All probes in their order."""
    results: dict[str, Measurement] = {}
    for name, probe in PROBES.items():
        results[name] = probe(bench, results)
    return results


def test_every_probe_gives_all_its_trials_or_says_why_not(taken: dict[str, Measurement]) -> None:
    assert [measurement.name for measurement in taken.values()] == list(PROBES)
    for measurement in taken.values():
        assert bool(measurement.note) != (len(measurement.trials) == BRIEF.trials)
        assert not measurement.trials or (min(measurement.trials) > 0 and measurement.how)


def test_the_training_shares_its_time_between_waiting_and_work(taken: dict[str, Measurement]) -> None:
    measured = taken["together"]
    assert measured.data_wait is not None
    assert 0 <= measured.data_wait <= 1
    assert measured.device_busy == 1 - measured.data_wait
    assert measured.batch == taken["model step"].batch > 0


def test_no_worker_outlives_its_probe(bench: Bench, taken: dict[str, Measurement]) -> None:
    assert loader(bench, taken).trials
    assert together(bench, taken).trials
    assert multiprocessing.active_children() == []


def test_a_loader_without_workers_is_measured_too(bench: Bench, taken: dict[str, Measurement]) -> None:
    assert loader(replace(bench, workers=0), taken).trials


def test_the_end_to_end_stage_is_the_one_that_is_measured(bench: Bench) -> None:
    assert bench.stage.name == "end"
    heads = bench.recipe.model_copy(update={"stages": bench.recipe.stages[:3]})
    assert replace(bench, recipe=heads).stage.name == "disease"


def test_a_step_too_slow_for_the_recipes_batch_is_measured_on_a_smaller_one(bench: Bench) -> None:
    optimizer = bench.recipe.optimizer.model_copy(update={"batch": 100_000})
    hurried = replace(bench, recipe=bench.recipe.model_copy(update={"optimizer": optimizer}))
    start = time.monotonic()
    measured = model_step(hurried, {})
    assert 0 < measured.batch < 100_000
    assert "not the recipe's 100000" in measured.how
    assert time.monotonic() - start < 20


def test_one_core_probes_put_the_threads_back(bench: Bench) -> None:
    before = cv2.getNumThreads(), torch.get_num_threads()
    decode(bench, {})
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before


def test_a_remote_split_has_no_disk_to_measure(bench: Bench) -> None:
    far = replace(bench, split=replace(bench.split, folder="s3://leaves/train"))
    assert "not on a local disk" in disk_cold(far, {}).note


def test_without_a_model_step_nothing_is_trained_together(bench: Bench) -> None:
    failed = Measurement("model step", "device", note="the device's memory is too small")
    assert together(bench, {"model step": failed}).note == "there is no model step to feed"
