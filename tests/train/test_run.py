"""Whole trainings: the six steps' machinery on specimens, with everything that stops a run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardtool.errors import ResumeRefused, Status, UsageError
from shardtool.files import exclusive
from shardtool.index import Split, open_split
from shardtool.pack import pack
from shardtool.specimens import SpecimenPlan, write_specimens
from train.checkpoint import Checkpoint, find_checkpoint
from train.data import Batch
from train.loop import Run, Stopped, train
from train.metrics import METRICS
from train.recipe import Recipe, load_recipe
from train.source import Source, open_source
from train.step import Step

TINY = Path(__file__).parent / "tiny.toml"
CPU = torch.device("cpu")


def cli(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from train.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.load(folder / "last.pt").model


def outcome(folder: Path) -> tuple[object, ...]:
    """What a run leaves beside its weights: scores, best scores, the names of its checkpoints."""
    last = Checkpoint.load(folder / "last.pt")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pt"))
    return last.metrics, last.tail_f1, last.best, last.position, names


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(load_recipe(str(TINY)), shards, out)
    return out


def run(recipe: Recipe, shards: Path, out: Path, workers: int = 0) -> None:
    source, val = photos(recipe, shards, workers)
    train(Run(recipe, source, val, out, CPU, workers))


def photos(recipe: Recipe, shards: Path, workers: int = 0) -> tuple[Source, Split]:
    source, val, _ = open_source(recipe, str(shards / "train"), "", workers, CPU, (0, 1), index="")
    return source, val


def test_checkpoints_lie_where_the_source_document_has_them(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*.pt")}
    stages = {name for name in names if "best" not in name and "val_loss" not in name}
    assert stages == {
        "last.pt",
        "last-1.pt",
        "disease_heads/disease_heads_epoch=01.pt",
        "disease_heads/disease_heads_final.pt",
        "hierarchical_full/epoch=02.pt",
    }
    assert sorted(name[:23] for name in names if "val_loss" in name) == [
        "species_only/epoch=01-v",
        "species_only/epoch=03-v",
    ]
    best = [name for name in names if name.endswith("-best.pt")]
    assert sorted(name.split("/")[0] for name in best) == [
        "disease_heads",
        "hierarchical_full",
        "species_only",
    ]


def test_every_checkpoint_loads_safely_and_holds_its_scores(finished: Path) -> None:
    for path in finished.rglob("*.pt"):
        value = torch.load(path, weights_only=True)
        assert set(value["metrics"]) == set(METRICS)
        assert value["tail_f1"]
        assert Checkpoint.load(path).build_model().training is False


def test_the_log_tells_every_epoch_with_metrics_and_rates(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] in ("run", "finished")] == ["run", "finished"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [(line["stage"], line["epoch"]) for line in epochs] == [
        ("head", 1),
        ("full", 2),
        ("full", 3),
        ("disease", 1),
        ("end", 1),
        ("end", 2),
    ]
    for line in epochs:
        assert line["photos"] > 0
        assert 0 <= line["data_wait_share"] <= 1
        assert set(line["metrics"]) == set(METRICS)


def test_frozen_parts_are_untouched_bit_for_bit(finished: Path) -> None:
    species = Checkpoint.load(next((finished / "species_only").glob("epoch=03-val*"))).model
    diseases = Checkpoint.load(finished / "disease_heads" / "disease_heads_final.pt").model
    for name in species:
        assert torch.equal(species[name], diseases[name]) == (not name.startswith("disease_heads")), name


def test_workers_do_not_change_the_weights(finished: Path, shards: Path, tmp_path: Path) -> None:
    run(load_recipe(str(TINY)), shards, tmp_path / "run", workers=2)
    assert same(weights(finished), weights(tmp_path / "run"))


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_weights(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for stage in ("full", "end"):
        _kill_in_stage(stage, shards, out)
    run(load_recipe(str(TINY)), shards, out)
    assert same(weights(finished), weights(out))
    assert outcome(finished) == outcome(out)


def _kill_in_stage(stage: str, shards: Path, out: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from train.cli import main; main()"),
            *("--shards", shards / "train", "--recipe", TINY, "--out", out, "--workers", "1"),
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    _wait(lambda: f'"stage": "{stage}", "number' in _log(out) or process.poll() is not None)
    process.kill()
    process.wait()
    assert '"finished"' not in _log(out), "it was not killed in time"


def _log(out: Path) -> str:
    path = out / "events.jsonl"
    return path.read_text() if path.exists() else ""


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_after_the_step_and_the_run_goes_on(
    finished: Path, shards: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = load_recipe(str(TINY)), tmp_path / "run"
    from train.meter import Meter

    steps = 0
    count = Meter.count

    def count_and_signal(meter: Meter, photos: int, losses: dict[str, float]) -> None:
        nonlocal steps
        steps += 1
        count(meter, photos, losses)
        if steps == 11:  # in the middle of an epoch
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Meter, "count", count_and_signal)
    with pytest.raises(Stopped, match=number.name) as stopped:
        run(recipe, shards, out)
    assert stopped.value.status == Status.STOPPED_RESUMABLE
    assert Checkpoint.load(out / "last.pt").position.step > 0
    run(recipe, shards, out)
    assert same(weights(finished), weights(out))
    assert outcome(finished) == outcome(out)


def test_batches_are_mixed_in_the_epochs_that_the_recipe_says(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: dict[str, set[bool]] = {}
    step = Step.__call__

    def note(self: Step, batch: Batch, lr: float, mixing: bool, generator: np.random.Generator) -> object:
        mixed.setdefault(self.stage.name, set()).add(mixing)
        return step(self, batch, lr, mixing, generator)

    monkeypatch.setattr(Step, "__call__", note)
    run(load_recipe(str(TINY), ["stages.2.mixing=false"]), shards, tmp_path / "run")
    assert mixed == {"head": {True}, "full": {True}, "disease": {False}, "end": {True, False}}


def test_validation_photos_of_other_classes_are_refused(shards: Path, tmp_path: Path) -> None:
    write_specimens(SpecimenPlan(2, 2, 4, 48, seed=1), tmp_path / "organized")
    pack(tmp_path / "organized", tmp_path / "shards")
    recipe, other = load_recipe(str(TINY)), open_split(str(tmp_path / "shards" / "val"))
    with pytest.raises(UsageError, match="other classes: dropped"):
        train(Run(recipe, photos(recipe, shards)[0], other, tmp_path / "run", CPU, 0))


def test_the_micro_batch_may_change_when_a_run_goes_on(finished: Path, shards: Path) -> None:
    run(load_recipe(str(TINY), ["optimizer.micro_batch=5"]), shards, finished)


def test_training_survives_a_full_disk_and_saves_when_there_is_room(
    finished: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, 0

    def fsync_on_a_full_disk(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if 5 <= calls <= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_on_a_full_disk)
    run(load_recipe(str(TINY)), shards, tmp_path / "run")
    assert '"event": "not saved"' in _log(tmp_path / "run")
    assert same(weights(finished), weights(tmp_path / "run"))


def test_a_finished_run_shows_its_scores_again_and_changes_nothing(finished: Path, shards: Path) -> None:
    before = weights(finished)
    run(load_recipe(str(TINY)), shards, finished)
    assert same(before, weights(finished))


def test_another_recipe_is_refused_with_what_differs(finished: Path, shards: Path) -> None:
    with pytest.raises(ResumeRefused, match=r"optimizer\.batch 16 -> 8") as refused:
        run(load_recipe(str(TINY), ["optimizer.batch=8"]), shards, finished)
    assert refused.value.status == 8


def test_two_trainings_into_one_folder_are_refused(shards: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / "run", "train-hier"):
        second = cli("--shards", shards / "train", "--recipe", TINY, "--out", tmp_path / "run")
    assert second.returncode == Status.BUSY
    assert f"pid {os.getpid()}" in second.stderr


def test_micro_batches_change_memory_and_not_the_result(shards: Path, tmp_path: Path) -> None:
    settings = ["optimizer.precision=fp32", "model.drop_path=0.0", "stages.3.epochs=1"]
    run(load_recipe(str(TINY), settings), shards, tmp_path / "whole")
    run(load_recipe(str(TINY), [*settings, "optimizer.micro_batch=5"]), shards, tmp_path / "parts")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(one[name], other[name], atol=2e-3) for name in one)


def test_a_damaged_or_foreign_checkpoint_is_a_clear_error(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    for content in (b"", b"hello\n", (finished / "last.pt").read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="checkpoint"):
            Checkpoint.load(path)
    torch.save({"model": {}}, path)
    with pytest.raises(UsageError, match="not a checkpoint of this program"):
        Checkpoint.load(path)


def test_a_checkpoint_cannot_make_timm_open_addresses_or_files(finished: Path, tmp_path: Path) -> None:
    for model in ({"backbone": "hf-hub:evil/model"}, {"arguments": {"checkpoint_path": "/etc/passwd"}}):
        value = torch.load(finished / "last.pt", weights_only=True)
        value["recipe"]["model"].update(model)
        torch.save(value, tmp_path / "hostile.pt")
        with pytest.raises(UsageError, match="model"):
            Checkpoint.load(tmp_path / "hostile.pt").build_model()


def test_a_checkpoint_with_other_contents_is_a_clear_error(finished: Path, tmp_path: Path) -> None:
    def without_tool(value: dict[str, Any]) -> None:
        del value["tool"]

    def with_more(value: dict[str, Any]) -> None:
        value["more"] = 1

    def with_another_shape(value: dict[str, Any]) -> None:
        value["model"]["species_head.weight"] = torch.zeros(1, 1)

    for change in (without_tool, with_more, with_another_shape):
        value = torch.load(finished / "last.pt", weights_only=True)
        change(value)
        torch.save(value, tmp_path / "changed.pt")
        with pytest.raises(UsageError, match="checkpoint"):
            Checkpoint.load(tmp_path / "changed.pt").build_model()


def test_a_run_folder_stands_for_its_best_checkpoint(finished: Path, tmp_path: Path) -> None:
    assert find_checkpoint(finished).parent.name == "hierarchical_full"
    assert find_checkpoint(finished).name.endswith("-best.pt")
    assert find_checkpoint(tmp_path) == tmp_path / "last.pt"


def test_evaluate_prints_the_metrics_as_json(finished: Path, shards: Path) -> None:
    result = cli("evaluate", finished / "last.pt", "--shards", shards / "val", "--workers", 0, "--json")
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert set(value["metrics"]) == set(METRICS)
    assert value["metrics"] == pytest.approx(torch.load(finished / "last.pt", weights_only=True)["metrics"])


def test_predict_answers_photos_and_says_what_is_wrong_with_the_rest(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    photo = next((shards.parent / "organized" / "val").rglob("*.jpg"))
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    some = cli("predict", finished, photo, text, tmp_path / "missing.jpg", "--json", "--top", 2)
    assert some.returncode == Status.SOME_REFUSED
    first, second, third = json.loads(some.stdout)
    assert len(first["species"]) == len(first["diseases"]) == 2
    assert 0 < first["species"][0]["probability"] <= 1
    assert "not an image" in second["error"]
    assert "No such file" in third["error"]
    none = cli("predict", finished, text)
    assert none.returncode == Status.USAGE
    assert "Traceback" not in some.stderr + none.stderr


def test_plan_shows_stages_and_the_effect_of_the_repeat_rule(shards: Path) -> None:
    result = cli("plan", "--shards", shards / "train", "--recipe", TINY, "--json", "--no-measure")
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert [stage["name"] for stage in value["stages"]] == ["head", "full", "disease", "end"]
    assert value["samplers"]["rare"]["growth"] > 1
    assert sum(tier["photos"] for tier in value["samplers"]["rare"]["tiers"]) == value["photos"]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--shards", "/no/such/train"], 2, "no dataset.json"),
        (["--recipe", "none"], 2, "no such recipe"),
        (["--set", "optimizer.batc=3"], 2, "optimizer.batc"),
        (["--device", "cuda:99"], 2, "--device"),
        (["evaluate", "/no/such.pt"], 2, "no such"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_mistakes_are_one_line_without_a_traceback(
    shards: Path, arguments: list[str], status: int, says: str
) -> None:
    given = (
        arguments
        if "--shards" in arguments or arguments[0] == "evaluate"
        else [*arguments, "--shards", str(shards / "train")]
    )
    result = cli(*given)
    assert result.returncode == status, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_help_is_instant_and_has_an_example() -> None:
    start = time.monotonic()
    result = cli("--help")
    assert time.monotonic() - start < 2  # 0.2 s on an idle machine; torch would take longer than this
    assert "Example: train-hier" in result.stdout
