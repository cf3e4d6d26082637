"""What can interrupt a training, and that the same command goes on as if nothing had happened."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

import train.watch
from shardtool.errors import ResumeRefused, Status, TrainingError, UsageError
from shardtool.index import Split
from shardtool.pack import PackOptions, pack
from train.checkpoint import BEST_SUFFIX, Checkpoint, find_checkpoint
from train.loop import Run, Saving
from train.loop import train as run_training
from train.metrics import Scores
from train.model import HierarchicalModel, Logits
from train.recipe import Recipe, load_recipe
from train.source import open_source

TINY = Path(__file__).parent / "tiny.toml"
CPU = torch.device("cpu")
EACH_STEP = Saving(steps=1)

# torch thinks that a worker needs a core
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class Killed(BaseException):
    """Ends a run as a kill does: nobody catches it."""


def brief(*settings: str) -> Recipe:
    """Only the last stage, two short epochs of it."""
    others = [f"stages.{number}.epochs=0" for number in range(3)]
    return load_recipe(str(TINY), [*others, "optimizer.batch=32", "optimizer.precision=fp32", *settings])


def run(
    recipe: Recipe, shards: Path | str, out: Path, workers: int = 0, val: str = "", **habits: Any
) -> Scores:
    train_split = str(shards / "train") if isinstance(shards, Path) else shards
    source, val_split, _ = open_source(recipe, train_split, val, workers, CPU, (0, 1), f"{out}/index-0")
    return run_training(Run(recipe, source, val_split, out, CPU, workers, **habits))


@contextmanager
def before_batch(number: int, act: Callable[[HierarchicalModel], object]) -> Iterator[None]:
    """`act` on the network before the `number`-th training batch of a process goes through it."""
    batches = itertools.count(1)

    def look(module: torch.nn.Module, arguments: Any) -> None:
        if isinstance(module, HierarchicalModel) and torch.is_grad_enabled() and next(batches) == number:
            act(module)

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def die(model: HierarchicalModel) -> None:
    raise Killed


def killed_before(number: int, recipe: Recipe, shards: Path | str, out: Path, **more: Any) -> None:
    """A run that saved after each step and was killed before its `number`-th."""
    with before_batch(number, die), pytest.raises(Killed):
        run(recipe, shards, out, saving=EACH_STEP, **more)


def last(out: Path) -> Checkpoint:
    return Checkpoint.load(out / "last.pt")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, running mean and scores bit for bit, and the same checkpoints."""
    first, second = last(one), last(other)
    assert same(first.model, second.model)
    assert same(first.ema, second.ema)
    assert (first.metrics, first.best, first.position) == (second.metrics, second.best, second.position)
    assert first.finished
    assert second.finished
    assert _names(one) == _names(other)


def _names(out: Path) -> set[str]:
    """Of checkpoints, without those that are kept for a resume."""
    return {str(path.relative_to(out)) for path in out.rglob("*.pt") if path.parent != out}


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == kind]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On networks this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The folder of an uninterrupted brief run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(brief(), shards, out)
    return out


# ---- out of memory ------------------------------------------------------------------------------------


def test_a_run_whose_memory_gets_short_says_so_and_ends_as_one_with_smaller_parts(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if isinstance(module, HierarchicalModel) and len(arguments[0]) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = register_module_forward_pre_hook(refuse)  # validation has no more memory than training
    try:
        run(brief(), shards, tmp_path / "short")
    finally:
        handle.remove()
    (short,) = events(tmp_path / "short", "out of memory")
    assert short["micro_batch"] < 9
    assert "out of memory" in capsys.readouterr().err
    run(brief(f"optimizer.micro_batch={short['micro_batch']}"), shards, tmp_path / "parts")
    assert_same_end(tmp_path / "short", tmp_path / "parts")


# ---- numbers that are none ----------------------------------------------------------------------------


def poisoned(out: Path, part: str, rows: slice, **changes: Any) -> Checkpoint:
    """Put a NaN into rows of the network from which a run goes on."""
    checkpoint = replace(last(out), **changes)
    checkpoint.model[part][rows] = torch.nan
    checkpoint.save(out / "last.pt")
    return checkpoint


def test_a_run_that_meets_too_many_numbers_that_are_none_ends_and_names_the_photos(
    shards: Path, split: Split, tmp_path: Path
) -> None:
    recipe = brief("optimizer.max_skipped=1", "stages.3.mixing=false")
    killed_before(3, recipe, shards, tmp_path)
    bounds = split.taxonomy.offsets
    before = poisoned(tmp_path, "disease_heads.weight", slice(int(bounds[1]), int(bounds[2])))
    with pytest.raises(TrainingError, match="2 steps had a loss or gradient that is not finite") as error:
        run(recipe, shards, tmp_path, saving=EACH_STEP)
    assert error.value.status == Status.FAILED
    skipped = events(tmp_path, "skipped")
    assert len(skipped) == 2
    for event in skipped:
        assert event["samples"]
        for sample, photo in zip(event["samples"], event["photos"], strict=False):
            species, disease = split.taxonomy.row_names[int(split.row[sample])]
            assert species == split.taxonomy.species[1]
            assert photo == f"{species}/{disease}, {split.where(sample)}"
    assert skipped[-1]["photos"][0] in str(error.value)
    after = last(tmp_path)
    assert after.position.step == before.position.step + 1  # the second one was not saved
    assert before.optimizer is not None
    assert after.optimizer is not None
    for name, value in before.model.items():
        assert torch.allclose(value, after.model[name], 0, 0, equal_nan=True), name
    for name, state in before.optimizer.items():
        assert same(state, after.optimizer[name]), name


def test_a_step_that_was_skipped_leaves_the_losses_of_its_epoch_numbers(shards: Path, tmp_path: Path) -> None:
    def poison(model: HierarchicalModel) -> None:
        def once(module: torch.nn.Module, images: Any, logits: Logits) -> Logits:
            handle.remove()
            return replace(logits, species=logits.species * torch.nan)

        handle: RemovableHandle = model.register_forward_hook(once)

    with before_batch(2, poison):
        run(brief(), shards, tmp_path)
    assert len(events(tmp_path, "skipped")) == 1
    for epoch in events(tmp_path, "epoch"):
        assert epoch["train"]
        assert all(value is not None for value in epoch["train"].values())


def test_a_network_without_numbers_is_never_the_best(shards: Path, tmp_path: Path) -> None:
    recipe = brief("optimizer.max_skipped=1000")
    killed_before(1, recipe, shards, tmp_path)

    def poison(model: HierarchicalModel) -> None:
        with torch.no_grad():
            model.species_head.weight.fill_(torch.nan)

    steps = events(tmp_path, "stage")[0]["steps_an_epoch"]
    with before_batch(1, poison):
        killed_before(steps + 1, recipe, shards, tmp_path)  # in the second epoch
    (first,) = events(tmp_path, "epoch")
    assert first["metrics"]["cascade"] is not None  # it names one class, which some photos are of
    assert first["val_loss"] is None
    assert last(tmp_path).best == {}
    assert not list(tmp_path.rglob(f"*{BEST_SUFFIX}"))


# ---- heads that diverge -------------------------------------------------------------------------------


def test_a_diverging_head_is_named_and_a_killed_run_goes_on_with_the_same_damping(
    shards: Path,
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train.watch, "SEEN", 2)  # steps; a brief run has no twenty of a rare species
    recipe = brief(
        "stages.3.lr=3.0", "stages.3.warmup_epochs=1", "stages.3.mixing=false", "optimizer.clip=1e6"
    )
    run(recipe, shards, tmp_path / "whole")
    damped = events(tmp_path / "whole", "damped")
    assert damped
    assert damped[0]["species"]
    assert set(damped[0]["species"]) <= set(split.taxonomy.species)
    assert f"diverging, gradient damped: {damped[0]['species'][0]}" in capsys.readouterr().err
    killed_before(damped[0]["step"] + 2, recipe, shards, tmp_path / "killed")
    assert (last(tmp_path / "killed").heads["scale"] < 1).any()
    run(recipe, shards, tmp_path / "killed")
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert same(last(tmp_path / "whole").heads, last(tmp_path / "killed").heads)


# ---- the running mean ---------------------------------------------------------------------------------


def test_the_running_mean_goes_on_bit_for_bit_and_is_the_network_that_is_used(
    shards: Path, tmp_path: Path
) -> None:
    recipe = brief("optimizer.ema=0.9")
    run(recipe, shards, tmp_path / "whole")
    for number in (1, 2, 3):
        killed_before(number, recipe, shards, tmp_path / "killed")
    run(recipe, shards, tmp_path / "killed")
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    for path in (tmp_path / "whole" / "last.pt", find_checkpoint(tmp_path / "whole")):
        found = Checkpoint.load(path)
        used = found.build_model().state_dict()
        assert same(used, found.ema)
        assert not same(used, found.model)


def test_evaluate_scores_the_running_mean(shards: Path, tmp_path: Path) -> None:
    run(brief("optimizer.ema=0.99"), shards, tmp_path)
    found = cli("evaluate", tmp_path / "last.pt", "--shards", shards / "val", "--workers", 0, "--json")
    assert found.returncode == 0, found.stderr
    value = json.loads(found.stdout)
    (_, last_epoch) = events(tmp_path, "epoch")
    loss = value["losses"]["species"] + 0.7 * value["losses"]["disease"]
    assert loss == pytest.approx(last_epoch["val_loss"])
    checkpoint = last(tmp_path)
    replace(checkpoint, ema={}).save(tmp_path / "raw.pt")
    raw = cli("evaluate", tmp_path / "raw.pt", "--shards", shards / "val", "--workers", 0, "--json")
    assert json.loads(raw.stdout)["losses"] != pytest.approx(value["losses"])


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from train.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---- damaged and half-written checkpoints -------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty])
def test_from_a_damaged_checkpoint_the_run_goes_on_from_the_one_before(
    whole: Path,
    shards: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed_before(4, brief(), shards, tmp_path)
    before = last(tmp_path).position
    damage(tmp_path / "last.pt")
    run(brief(), shards, tmp_path)
    said = capsys.readouterr().err
    assert "last.pt is damaged (sha256 differs), kept as damaged-last.pt" in said
    assert f"going on from last.pt: stage 4, epoch {before.epoch + 1}, step {before.step - 1}" in said
    assert events(tmp_path, "damaged")
    assert (tmp_path / "damaged-last.pt").exists()
    assert_same_end(whole, tmp_path)


@contextmanager
def killed_at(module: Any, name: str, number: int, torn: bool = False) -> Iterator[None]:
    """The `number`-th call of a function kills the process: from then on it changes no file any more."""
    calls, dead = itertools.count(1), False
    real = {(os, each): getattr(os, each) for each in ("replace", "fsync", "link", "unlink", "rename")}
    real[module, name] = getattr(module, name)

    def wrapped(of: Any, each: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal dead
            if not dead and (of, each) == (module, name) and next(calls) == number:
                dead = True
                if torn:
                    arguments[1].write(b"half of it")
            if dead:
                raise Killed
            return real[of, each](*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for of, each in real:
            patch.setattr(of, each, wrapped(of, each))
        yield


@pytest.mark.parametrize(
    ("module", "name", "workers"),
    [(os, "replace", 0), (os, "replace", 2), (os, "fsync", 0), (os, "link", 0), (torch, "save", 0)],
    ids=["rename", "rename-2-workers", "fsync", "link", "write"],
)
def test_a_run_that_is_killed_inside_one_save_after_another_ends_in_the_same_weights(
    whole: Path, shards: Path, tmp_path: Path, module: Any, name: str, workers: int
) -> None:
    """Killed at the first call, and the next process at its second, and so on to the end."""
    for number in range(1, 60):
        with killed_at(module, name, number, torn=name == "save"):
            try:
                run(brief(), shards, tmp_path, workers, saving=EACH_STEP)
                break
            except Killed:
                pass
    else:
        raise AssertionError("it never ended")
    assert number > 3
    assert events(tmp_path, "damaged") == []
    assert_same_end(whole, tmp_path)
    assert not [path for path in tmp_path.rglob(".tmp-*") if path.suffix == ".pt"]


@pytest.mark.parametrize("name", ["link", "replace", "fsync"])
def test_a_disk_that_is_full_in_any_part_of_a_save_does_not_end_the_run(
    whole: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real, calls = getattr(os, name), itertools.count(1)

    def full(*arguments: Any) -> Any:
        if 3 <= next(calls) <= 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, name, full)
    if name == "link":  # which is then tried as a copy
        monkeypatch.setattr(shutil, "copyfile", full)
    run(brief(), shards, tmp_path, saving=EACH_STEP)
    assert events(tmp_path, "not saved")
    assert_same_end(whole, tmp_path)


# ---- something else than before -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The photos of `shards` with a class renamed, one removed and a species added."""
    root = tmp_path_factory.mktemp("other")
    shutil.copytree(shards.parent / "organized", root / "organized")
    for split in ("train", "val"):
        species = sorted(path for path in (root / "organized" / split).iterdir() if path.is_dir())
        diseases = sorted(species[0].iterdir())
        diseases[0].rename(species[0] / "Renamed")
        shutil.rmtree(diseases[1])
        species[1].rename(species[1].with_name("Zz_Species"))
    pack(root / "organized", root / "shards", PackOptions(shard_size=60_000))
    return root / "shards"


def test_other_classes_are_refused_with_the_difference_and_remap_keeps_what_was_learned(
    shards: Path, other_classes: Path, split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = brief("optimizer.ema=0.9")
    killed_before(3, recipe, shards, tmp_path)
    old = last(tmp_path)
    with pytest.raises(ResumeRefused, match=r"classes: .*Zz_Species.*--remap") as refused:
        run(recipe, other_classes, tmp_path)
    assert "Renamed" in str(refused.value)
    assert same(old.model, last(tmp_path).model)
    start: dict[str, torch.Tensor] = {}

    def note(model: HierarchicalModel) -> None:
        start.update({name: value.clone() for name, value in model.state_dict().items()})
        raise Killed

    with before_batch(1, note), pytest.raises(Killed):
        run(recipe, other_classes, tmp_path, remap=True)
    assert "classes mapped by name" in capsys.readouterr().err
    run(recipe, other_classes, tmp_path, remap=True)
    new = last(tmp_path)
    assert new.finished
    for part, was, now in (
        ("species_head", old.taxonomy.species, new.taxonomy.species),
        ("disease_heads", old.taxonomy.row_names, new.taxonomy.row_names),
    ):
        kept = [(was.index(name), row) for row, name in enumerate(now) if name in was]
        assert 0 < len(kept) < len(now)
        for before, row in kept:
            assert torch.equal(start[f"{part}.weight"][row], old.model[f"{part}.weight"][before])
    assert torch.equal(start["backbone.norm.weight"], old.model["backbone.norm.weight"])
    moved, added = old.remapped(new.taxonomy), new.taxonomy.species.index("Zz_Species")
    for name in ("species_head.weight", "disease_heads.weight"):  # new rows are the same in the mean
        assert torch.equal(moved.model[name], start[name])
    assert torch.equal(moved.ema["species_head.weight"][added], start["species_head.weight"][added])
    run(recipe, other_classes, tmp_path)  # from now on they are the classes of this run


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("seed=1", "seed 0 -> 1"),
        ("optimizer.batch=8", "optimizer.batch 32 -> 8"),
        ("stages.3.lr=0.5", r"stages\.3\.lr 0\.001 -> 0\.5"),
        ("model.drop_path=0.0", r"model\.drop_path 0\.1 -> 0\.0"),
        ("samplers.rare=[]", r"samplers\.rare"),
        ("optimizer.ema=0.5", r"optimizer\.ema 0\.0 -> 0\.5"),
    ],
)
def test_another_recipe_is_refused_with_what_changed(
    whole: Path, shards: Path, setting: str, says: str
) -> None:
    before = (whole / "last.pt").read_bytes()
    with pytest.raises(ResumeRefused, match=says) as refused:
        run(brief(setting), shards, whole)
    assert refused.value.status == Status.RESUME_REFUSED
    assert (whole / "last.pt").read_bytes() == before


def test_the_same_photos_packed_in_another_order_are_refused(
    whole: Path, shards: Path, tmp_path: Path
) -> None:
    pack(shards.parent / "organized", tmp_path / "shards", PackOptions(shard_size=60_000, seed=9))
    with pytest.raises(ResumeRefused, match=r"data [0-9a-f]{12} -> [0-9a-f]{12}") as refused:
        run(brief(), tmp_path / "shards", whole)
    assert "classes" not in refused.value.what


# ---- validation that says little ----------------------------------------------------------------------


def test_without_validation_photos_the_scores_are_unknown_and_the_run_ends_well(
    shards: Path, val_split: Split, tmp_path: Path
) -> None:
    source, _, _ = open_source(brief(), str(shards / "train"), "", 0, CPU, (0, 1), "")
    columns = {name: getattr(val_split, name)[:0] for name in ("start", "size", "crc32c", "row")}
    none = replace(val_split, firsts=np.zeros_like(val_split.firsts), **columns)
    scores = run_training(Run(brief(), source, none, tmp_path, CPU, 0))
    assert scores.photos == 0
    assert all(score.value is None and score.verdict == "n/a" for score in scores.metrics.values())
    assert last(tmp_path).finished
    assert (tmp_path / "report.html").exists()
    assert not list(tmp_path.rglob(f"*{BEST_SUFFIX}"))


def test_without_a_validation_split_nothing_starts(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards.parent / "organized" / "train", tmp_path / "organized" / "train")
    pack(tmp_path / "organized", tmp_path / "shards")
    with pytest.raises(UsageError, match="no split 'val' in this dataset"):
        run(brief(), tmp_path / "shards", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_without_validation_photos_are_left_out_of_the_means_and_counted(
    shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(shards.parent / "organized", tmp_path / "organized")
    kept, *absent = sorted((tmp_path / "organized" / "val").glob("*/*"))
    for folder in absent:
        shutil.rmtree(folder)
    pack(tmp_path / "organized", tmp_path / "shards", PackOptions(shard_size=60_000))
    scores = run(brief(), tmp_path / "shards", tmp_path / "run")
    macro, classes = scores.metrics["macro_f1"], last(tmp_path / "run").taxonomy.row_names
    assert macro.value is not None
    assert macro.classes is not None
    photos = len(list(kept.iterdir()))
    assert 1 <= macro.classes <= 1 + photos < len(classes)  # theirs, and those that they were taken for


# ---- logs, shards and workers that fail ---------------------------------------------------------------


def test_a_log_that_cannot_be_written_costs_no_training(
    whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    run(brief(), shards, tmp_path)
    said = capsys.readouterr().err
    assert "TensorBoard is off, training goes on" in said
    assert "not logged, training goes on" in said
    assert_same_end(whole, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photo_whose_bytes_changed_is_replaced_and_told_once(
    shards: Path, split: Split, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    shard, sample = tmp_path / "shards" / "train" / f"{split.shards[0]}.tar", 3
    data = bytearray(shard.read_bytes())
    data[int(split.offset[sample]) + int(split.size[sample]) // 2] ^= 1
    shard.write_bytes(data)
    run(brief(), tmp_path / "shards", tmp_path / "run", workers)
    (replaced,) = events(tmp_path / "run", "replaced")
    assert replaced["sample"] == sample
    assert replaced["substitute"] != sample
    assert split.row[replaced["substitute"]] == split.row[sample]
    assert replaced["where"] == split.where(sample)
    assert capsys.readouterr().err.count("bad photo") == 1
    assert last(tmp_path / "run").finished
    for number in (2, 3):
        killed_before(number, brief(), tmp_path / "shards", tmp_path / "killed", workers=workers)
    run(brief(), tmp_path / "shards", tmp_path / "killed", workers)
    assert_same_end(tmp_path / "run", tmp_path / "killed")


def test_a_killed_data_worker_is_one_line_and_the_run_can_go_on(
    whole: Path, shards: Path, tmp_path: Path
) -> None:
    def kill(model: HierarchicalModel) -> None:
        children = multiprocessing.active_children()
        assert children
        for child in children:
            assert child.pid
            os.kill(child.pid, signal.SIGKILL)

    with before_batch(2, kill), pytest.raises(TrainingError, match="worker") as error:
        run(brief(), shards, tmp_path, workers=2, saving=EACH_STEP)
    assert error.value.status == Status.FAILED
    assert "\n" not in str(error.value)
    assert last(tmp_path).position.step + last(tmp_path).position.epoch > 0
    run(brief(), shards, tmp_path, workers=2)
    assert_same_end(whole, tmp_path)


# ---- tars without an index ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The tars of `shards` alone, in folders train and val."""
    root = tmp_path_factory.mktemp("tars")
    for split in ("train", "val"):
        (root / split).mkdir()
        for tar in sorted((shards / split).glob("*.tar")):
            shutil.copy(tar, root / split)
    return root


@pytest.mark.parametrize("val", ["packed", "tars"])
def test_tars_without_an_index_are_trained_on_and_a_killed_run_goes_on_with_the_same_workers(
    shards: Path, tars: Path, tmp_path: Path, val: str
) -> None:
    pattern = f"{tars}/train/*.tar"
    more: dict[str, Any] = {"val": str((shards if val == "packed" else tars) / "val"), "workers": 2}
    run(brief(), pattern, tmp_path / "whole", **more)
    for number in (2, 3):
        killed_before(number, brief(), pattern, tmp_path / "killed", **more)
    with pytest.raises(ResumeRefused, match="order of photos: workers 2 -> 1"):
        run(brief(), pattern, tmp_path / "killed", **{**more, "workers": 1})
    run(brief(), pattern, tmp_path / "killed", **more)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert (tmp_path / "whole" / "index-0").exists() == (val == "tars")
    assert last(tmp_path / "whole").metrics["species_top1"] is not None


def test_what_is_lost_without_an_index_is_printed(tars: Path, tmp_path: Path) -> None:
    short = [
        option for number in range(4) for option in ("--set", f"stages.{number}.epochs={int(number == 0)}")
    ]
    done = cli(
        *("--shards", f"{tars}/train/*.tar", "--val", tars / "val", "--recipe", TINY, *short),
        *("--out", tmp_path, "--workers", 0),
    )
    assert done.returncode == 0, done.stderr
    assert "from tars without an index: rare classes are not repeated" in done.stderr.replace("\n", " ")
