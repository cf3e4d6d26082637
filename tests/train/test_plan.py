"""What a run would do and take, told before it starts; measured on packed specimens."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from shardtool.index import Split
from train.checkpoint import Checkpoint, Position
from train.cli import app
from train.model import HierarchicalModel
from train.plan import Measured, Measurement, estimate, measure, plan_json
from train.recipe import Recipe
from train.selftest import Prepared
from train.source import Source, open_source
from train.stages import freeze, make_optimizer, optimizer_state

CPU = torch.device("cpu")
TINY = Path(__file__).parent / "tiny.toml"
RATES = {"photos_a_second": 10.0, "data_wait_share": 0.0, "device_busy_share": None}


@pytest.fixture
def source(tiny: Recipe, shards: Path) -> Iterator[Source]:
    found, _, _ = open_source(tiny, str(shards / "train"), "", 0, CPU, (0, 1), index="")
    yield found
    found.close()


@pytest.fixture
def found(tiny: Recipe, source: Source, val_split: Split) -> Measurement:
    return measure(tiny, source, val_split, CPU, workers=0, steps=4)


def made_up(**seconds: tuple[float, ...]) -> Measurement:
    """Measured step times of heads (frozen backbone) and of everything else."""
    heads, full = (
        Measured(seconds[kind], RATES, memory, None, 16, 1000)
        for kind, memory in (("heads", 5_000), ("full", 9_000))
    )
    stages = {"species head": heads, "disease heads": heads, "species": full, "all": full}
    return Measurement(Prepared(16), 1_000_000, stages, 0.5, 100)  # type: ignore[arg-type]


def command(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["plan", "--recipe", str(TINY), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


# ---- what it would do -------------------------------------------------------------------------------------


def test_the_plan_counts_each_photo_as_often_as_the_rule_says(tiny: Recipe, split: Split) -> None:
    plan = plan_json(tiny, split)
    counts = np.bincount(split.row)
    factors = np.select([counts < 10, counts < 20], [5, 3], 1)
    assert plan["stages"][2]["photos_an_epoch"] == int((counts * factors).sum())
    assert plan["stages"][0]["photos_an_epoch"] == len(split)
    assert plan["stages"][0]["steps_an_epoch"] == math.ceil(len(split) / 16)
    tiers = plan["samplers"]["rare"]["tiers"]
    assert sum(tier["classes"] for tier in tiers) == len(counts[counts > 0])
    assert sum(tier["draws"] for tier in tiers) == plan["stages"][2]["photos_an_epoch"]


# ---- measured ---------------------------------------------------------------------------------------------


def test_every_kind_of_stage_is_measured_for_as_many_steps_as_asked(found: Measurement) -> None:
    assert set(found.stages) == {"species head", "species", "disease heads", "all"}
    for measured in found.stages.values():
        assert len(measured.step_seconds) == 4
        assert min(measured.step_seconds) > 0
        assert 0 < measured.rates["photos"] <= 4 * 16  # the last batch of an epoch is smaller
        assert measured.process_bytes is not None
        assert measured.process_bytes > 50_000_000  # torch alone is more
        assert measured.device_bytes is None
    assert found.validation_seconds > 0


def test_what_learns_in_a_stage_is_what_was_measured(found: Measurement, tiny: Recipe, split: Split) -> None:
    model = HierarchicalModel(tiny.model, split.taxonomy)
    head, heads = (
        sum(p.numel() for p in part.parameters()) for part in (model.species_head, model.disease_heads)
    )
    assert found.stages["species head"].learning == head
    assert found.stages["disease heads"].learning == heads
    assert found.stages["all"].learning == sum(p.numel() for p in model.parameters())


# ---- estimated --------------------------------------------------------------------------------------------


def test_a_stage_takes_its_steps_at_the_measured_rate_and_a_validation_each_epoch(
    tiny: Recipe, split: Split
) -> None:
    plan = plan_json(tiny, split)
    value = estimate(tiny, plan, made_up(heads=(0.1,) * 8, full=(1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0)), 10)
    steps = [stage["steps_an_epoch"] for stage in plan["stages"]]
    assert value["stages"][0]["seconds"] == pytest.approx([steps[0] * 0.1 + 5] * 3)
    assert value["stages"][1]["seconds"] == pytest.approx([2 * (steps[1] * each + 5) for each in (2.5, 1, 4)])
    assert value["seconds"] == pytest.approx(
        [sum(stage["seconds"][end] for stage in value["stages"]) for end in range(3)]
    )
    assert value["process_bytes"] == 9_000


def test_a_stage_without_epochs_takes_nothing(tiny: Recipe, split: Split) -> None:
    stages = (tiny.stages[0], tiny.stages[1].model_copy(update={"epochs": 0}))
    recipe = tiny.model_copy(update={"stages": stages})
    found = made_up(heads=(0.1,), full=(1.0,))
    found = replace(found, stages={"species head": found.stages["species head"]})
    value = estimate(recipe, plan_json(recipe, split), found, 10)
    assert value["stages"][1]["seconds"] == [0, 0, 0]
    assert value["stages"][1]["disk_bytes"] == 0


def test_the_estimated_checkpoints_are_as_large_as_real_ones(
    found: Measurement, tiny: Recipe, split: Split, tmp_path: Path
) -> None:
    model, stage = HierarchicalModel(tiny.model, split.taxonomy), tiny.stages[-1]
    freeze(model, stage.trains)
    optimizer = make_optimizer(model, stage, tiny.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    whole = Checkpoint(
        model.state_dict(), tiny.as_dict(), split.taxonomy, np.bincount(split.row), "", Position(), stage.name
    )
    whole.save(tmp_path / "best.pt")
    replace(whole, optimizer=optimizer_state(optimizer)).save(tmp_path / "last.pt")
    value = estimate(tiny, plan_json(tiny, split), found, 10)
    assert found.checkpoint_bytes == pytest.approx((tmp_path / "best.pt").stat().st_size, rel=0.5, abs=60_000)
    assert value["kept_to_go_on_bytes"] == pytest.approx(
        2 * (tmp_path / "last.pt").stat().st_size, rel=0.5, abs=120_000
    )


# ---- the command ------------------------------------------------------------------------------------------


def test_the_command_prints_one_json_object_with_the_estimate(shards: Path) -> None:
    options = (
        "--shards",
        str(shards / "train"),
        "--steps",
        "2",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--json",
    )
    value = json.loads(command(*options))
    assert len(value["estimate"]["stages"]) == len(value["stages"]) == 4
    assert all(stage["measured_steps"] == 2 for stage in value["estimate"]["stages"])
    assert value["estimate"]["hardware"]["device"].startswith("CPU")
    assert [found["used"] for found in value["estimate"]["self_test"]] == [False, False]


def test_people_read_that_it_is_an_estimate_at_the_measured_rate(shards: Path) -> None:
    options = ("--shards", str(shards / "train"), "--steps", "1", "--workers", "0", "--device", "cpu")
    shown = CliRunner().invoke(app, ["plan", "--recipe", str(TINY), *options]).output
    for words in ("x the photos", "at the measured rate of CPU", "fused attention: not tried", "an estimate"):
        assert words in shown


def test_no_measure_needs_no_validation_split_and_prints_none(shards: Path, tmp_path: Path) -> None:
    for name in ("train", "dataset.json"):
        os.symlink(shards / name, tmp_path / name)
    value = json.loads(command("--shards", str(tmp_path / "train"), "--no-measure", "--json"))
    assert "estimate" not in value
    assert len(value["stages"]) == 4


def test_planning_writes_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command("--shards", str(shards / "train"), "--steps", "1", "--workers", "0", "--device", "cpu")
    assert list(tmp_path.iterdir()) == []
