"""What a recipe would do to a packed split, and what it would take on this machine, before it is started.

Every kind of stage is tried: its training step on batches from the real loader, and validation. What comes
out is an estimate at the measured rate of today's machine and never a promise.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from types import TracebackType
from typing import Any

import numpy as np
import torch

from shardtool import terminal
from shardtool.index import Split
from shardtool.text import size_text, time_text
from train.augment import EvalTransform
from train.checkpoint import stage_files
from train.data import BATCHES_AHEAD, Batch, Loader
from train.device import autocast, choose_precision
from train.evaluate import evaluate
from train.meter import WINDOW_STEPS, Meter
from train.model import HierarchicalModel
from train.order import repeats
from train.recipe import Recipe, Tier, Trains
from train.selftest import Prepared, prepare_model
from train.source import Source
from train.step import Step
from train.utilisation import process_memory

WARM_UP = 1 + BATCHES_AHEAD  # steps that are not counted: later ones wait for data as all others will
WARM_UP_SECONDS, MEASURE_SECONDS = 20.0, 60.0  # the most for a kind of stage, once a step each is done
PARTS = 4  # of the measured steps: their means are the spread
EVALUATED_BATCHES = 8
MEMORY_SECONDS = 0.2  # between two looks at the memory
KEPT = 2  # checkpoints to go on from: train-hier's --keep
RATES = ("photos_a_second", "data_wait_share", "device_busy_share")
ADAM_MOMENTS = 2  # float32 numbers that a weight that learns adds to last.pt


# ---- what it would do -------------------------------------------------------------------------------------


def plan_json(recipe: Recipe, split: Split | Source) -> dict[str, Any]:
    """Stages with their steps, and what each repeat rule does to the epoch."""
    stages = []
    for stage in recipe.stages:
        photos = int(repeats(split.row, _pairs(recipe.tiers(stage))).sum())
        stages.append(
            {
                "name": stage.name,
                "folder": stage.folder,
                "trains": stage.trains,
                "epochs": stage.epochs,
                "lr": stage.lr,
                "lr_end": stage.lr_end or stage.lr,
                "sampler": stage.sampler,
                "mixing": stage.mixing,
                "losses": list(stage.losses),
                "photos_an_epoch": photos,
                "steps_an_epoch": -(-photos // recipe.optimizer.batch),
            }
        )
    rules = {name: _effect(split, tiers) for name, tiers in recipe.samplers.items()}
    return {"recipe": recipe.name, "photos": len(split), "stages": stages, "samplers": rules}


def _effect(split: Split | Source, tiers: tuple[Tier, ...]) -> dict[str, Any]:
    """How many classes and photos fall under each tier, and how much the epoch grows."""
    repeat = repeats(split.row, _pairs(tiers))
    rows = []
    for factor in np.unique(repeat).tolist():
        chosen = repeat == factor
        rows.append(
            {
                "tier": f"{factor}x",
                "classes": len(np.unique(split.row[chosen])),
                "photos": int(chosen.sum()),
                "draws": int(chosen.sum()) * factor,
            }
        )
    return {"tiers": rows, "growth": float(repeat.sum() / max(len(split), 1))}


def _pairs(tiers: tuple[Tier, ...]) -> list[tuple[int, int]]:
    return [(tier.below, tier.repeat) for tier in tiers]


# ---- what it would take: measured -------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One kind of stage on this machine; `step_seconds` of each measured step, the wait for data included.

    `process_bytes` and `device_bytes` are the most that was seen, None where nothing says.
    """

    step_seconds: tuple[float, ...]
    rates: dict[str, Any]  # as meter.Tally gives them
    process_bytes: int | None
    device_bytes: int | None
    micro_batch: int
    learning: int  # weights that learn

    def spread(self) -> tuple[float, float, float]:
        """Seconds a step: the mean, and the least and greatest mean of PARTS parts of the steps."""
        parts = np.array_split(np.array(self.step_seconds), min(PARTS, len(self.step_seconds)))
        means = [float(part.mean()) for part in parts]
        return mean(self.step_seconds), min(means), max(means)


@dataclass
class Measurement:
    """All kinds of stages, by what trains, and seconds for a photo of a validation.

    `checkpoint_bytes` is one without what it takes to go on, `event_bytes` a line of events.jsonl.
    """

    prepared: Prepared
    checkpoint_bytes: int
    stages: dict[Trains, Measured] = field(default_factory=dict)
    validation_seconds: float = 0.0
    event_bytes: int = 0


def measure(
    recipe: Recipe, source: Source, val: Split, device: torch.device, workers: int, steps: int
) -> Measurement:
    """Try `steps` steps of every kind of stage of `recipe`, and a validation, on the real photos.

    The learning rate is zero: a step costs the same, and nothing diverges. Weights are drawn, not fetched.
    """
    torch.manual_seed(recipe.seed)
    model = HierarchicalModel(recipe.model, source.taxonomy, pretrained=False).to(device)
    batch = min(recipe.optimizer.batch, len(source))
    asked = min(recipe.optimizer.micro_batch or batch, batch)
    dtype = choose_precision(device, recipe.optimizer)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    copies = 2 if recipe.optimizer.ema else 1
    found = Measurement(prepare_model(model, recipe, device, dtype, asked), copies * weights)
    for stage in recipe.stages:
        if stage.epochs and stage.trains not in found.stages:
            step = Step(model, recipe, stage, device)
            if found.prepared.micro_batch < batch:
                step.micro_batch = found.prepared.micro_batch
            batches = _endless(source, _pairs(recipe.tiers(stage)))
            found.stages[stage.trains] = _measured(step, batches, steps)
            batches.close()
    loader = Loader(val, EvalTransform(recipe.model.image_size), min(workers, 2), device)
    found.event_bytes = max(len(json.dumps(stage.rates)) for stage in found.stages.values())
    with loader:
        found.validation_seconds = _validation(model, loader, recipe, device, dtype)
    return found


def _endless(source: Source, tiers: Sequence[tuple[int, int]]) -> Generator[Batch, None, None]:
    """Batches of one epoch after another."""
    for number in itertools.count():
        yield from source.epoch(number, tiers).batches


def _measured(step: Step, batches: Iterator[Batch], steps: int) -> Measured:
    """Warm up, then measure; on a slow machine fewer steps than asked for, one at least."""
    generator, cuda = np.random.default_rng(0), step.device.type == "cuda"
    with PeakMemory() as memory:
        if cuda:
            torch.cuda.reset_peak_memory_stats(step.device)
        for _ in _within(WARM_UP, WARM_UP_SECONDS):
            step(next(batches), 0.0, step.stage.mixing, generator)
        meter, seconds = Meter(steps, 0, device=step.device), []
        timed, before = meter.timed(batches), time.monotonic()
        for _ in _within(steps, MEASURE_SECONDS):
            batch = next(timed)
            with meter.working():
                result = step(batch, 0.0, step.stage.mixing, generator)
            meter.count(len(batch), result.losses)
            seconds.append(time.monotonic() - before)
            before += seconds[-1]
        rates = meter.summary()
    return Measured(
        tuple(seconds),
        rates,
        memory.most,
        torch.cuda.max_memory_reserved(step.device) if cuda else None,
        step.micro_batch,
        sum(parameter.numel() for parameter in step.learning),
    )


def _within(steps: int, seconds: float) -> Iterator[int]:
    """0, 1, … below `steps`, and none after `seconds` but the first."""
    start = time.monotonic()
    for number in range(steps):
        if number and time.monotonic() - start > seconds:
            return
        yield number


def _validation(
    model: HierarchicalModel, loader: Loader, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds a photo, once the workers run."""
    batch = recipe.optimizer.micro_batch or recipe.optimizer.batch

    def seconds(batches: int) -> float:
        some = np.arange(min(batches * batch, len(loader.split)))
        start = time.monotonic()
        evaluate(model, loader, batch, device, autocast(device, dtype), recipe.loss, samples=some)
        return (time.monotonic() - start) / max(len(some), 1)

    seconds(1)
    return seconds(EVALUATED_BATCHES)


class PeakMemory:
    """The most memory of this process and its workers while the block runs, looked at from a thread."""

    def __init__(self) -> None:
        self.most: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            now = process_memory()
            self.most = max(filter(None, (now, self.most)), default=None)
            if self._stop.wait(MEMORY_SECONDS):
                return


# ---- what it would take: estimated ------------------------------------------------------------------------


def estimate(recipe: Recipe, plan: dict[str, Any], found: Measurement, val_photos: int) -> dict[str, Any]:
    """Time, memory and disk of each stage and of the run, from what was measured of its kind.

    Times leave out the start, saving and the final scores.
    """
    validation = val_photos * found.validation_seconds
    stages = [
        _stage_estimate(recipe, place, steps, found, validation)
        for place, steps in enumerate(stage["steps_an_epoch"] for stage in plan["stages"])
    ]
    seconds = [sum(stage["seconds"][end] for stage in stages) for end in range(3)]
    return {
        "stages": stages,
        "seconds": seconds,
        "process_bytes": _most(stage["process_bytes"] for stage in stages),
        "device_bytes": _most(stage["device_bytes"] for stage in stages),
        "disk_bytes": sum(stage["disk_bytes"] for stage in stages) + _kept_bytes(recipe, found),
        "kept_to_go_on_bytes": _kept_bytes(recipe, found),
        "validation_seconds": validation,
        "self_test_lines": [finding.line() for finding in found.prepared.findings],
        "self_test": [finding.event() for finding in found.prepared.findings],
    }


def _stage_estimate(
    recipe: Recipe, place: int, steps: int, found: Measurement, validation: float
) -> dict[str, Any]:
    stage = recipe.stages[place]
    measured = found.stages.get(stage.trains)
    disk = _stage_bytes(recipe, place, steps, found)
    nothing: dict[str, Any] = {"seconds": [0.0] * 3, "process_bytes": None, "device_bytes": None}
    if measured is None:  # no epochs
        return {"name": stage.name, **nothing, "disk_bytes": disk}
    return {
        "name": stage.name,
        "seconds": [stage.epochs * (steps * each + validation) for each in measured.spread()],
        "step_seconds": measured.spread(),
        "measured_steps": len(measured.step_seconds),
        "micro_batch": measured.micro_batch,
        **{name: measured.rates[name] for name in RATES},
        "process_bytes": measured.process_bytes,
        "device_bytes": measured.device_bytes,
        "disk_bytes": disk,
    }


def _stage_bytes(recipe: Recipe, place: int, steps: int, found: Measurement) -> int:
    """What a stage leaves on the disk: its checkpoints, the best of a folder with its last stage, and events.

    The epochs of a stage write the best anew and remove the one before.
    """
    stage, weights = recipe.stages[place], found.checkpoint_bytes
    if not stage.epochs:
        return 0
    later = (spec.folder for spec in recipe.stages[place + 1 :] if spec.epochs)
    is_last = stage.folder not in later
    names = stage_files(stage.folder, 0, 0.0, is_last)
    windows = stage.epochs * (1 + math.ceil(steps / WINDOW_STEPS))
    return (len(names) + is_last) * weights + windows * found.event_bytes


def _kept_bytes(recipe: Recipe, found: Measurement) -> int:
    """Checkpoints to go on from, in the stage where they are largest."""
    moments = max((measured.learning for measured in found.stages.values()), default=0) * ADAM_MOMENTS * 4
    return KEPT * (found.checkpoint_bytes + moments)


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


# ---- for people -------------------------------------------------------------------------------------------


def show_plan(plan: dict[str, Any]) -> None:
    """The stages, and what the repeat rules do, as two tables."""
    stages = terminal.table(
        f"{terminal.clean(plan['recipe'])} on {plan['photos']:,} photos",
        *("stage", "trains", "epochs", "steps", "lr", "sampler", "mixing", "loss"),
    )
    for stage in plan["stages"]:
        rate = f"{stage['lr']:g}" + (f" → {stage['lr_end']:g}" if stage["lr_end"] != stage["lr"] else "")
        stages.add_row(
            terminal.clean(stage["name"]),
            stage["trains"],
            str(stage["epochs"]),
            f"{stage['epochs'] * stage['steps_an_epoch']:,}",
            rate,
            terminal.clean(stage["sampler"]),
            "on" if stage["mixing"] else "off",
            " + ".join(stage["losses"]),
        )
    terminal.console.print(stages)
    rules = terminal.table("", "sampler", "tier", "classes", "photos", "an epoch")
    for name, effect in plan["samplers"].items():
        for tier in effect["tiers"]:
            rules.add_row(
                terminal.clean(name),
                tier["tier"],
                f"{tier['classes']:,}",
                f"{tier['photos']:,}",
                f"{tier['draws']:,}",
            )
        rules.add_row(
            terminal.clean(name), "all", "", f"{plan['photos']:,}", f"{effect['growth']:.2f} x the photos"
        )
    terminal.console.print(rules)


def show_estimate(value: dict[str, Any]) -> None:
    """What it would take, stage by stage."""
    for line in value["self_test_lines"]:
        terminal.say(f"[dim]{terminal.clean(line)}[/]")
    board = terminal.table(
        f"at the measured rate of {terminal.clean(value['hardware']['device'])}",
        *("stage", "time", "from – to", "img/s", "data wait", "memory", "device memory", "disk"),
    )
    for stage in value["stages"]:
        board.add_row(
            terminal.clean(stage["name"]),
            *_times(stage["seconds"]),
            f"{stage['photos_a_second']:,.0f}" if "photos_a_second" in stage else "",
            f"{stage['data_wait_share']:.0%}" if "data_wait_share" in stage else "",
            *_sizes(stage),
        )
    board.add_row("all", *_times(value["seconds"]), "", "", *_sizes(value), style="bold")
    terminal.console.print(board)
    kept = size_text(value["kept_to_go_on_bytes"])
    terminal.say(
        f"[dim]from – to: the fastest and the slowest of {PARTS} parts of the measured steps; each epoch's "
        f"validation of {time_text(value['validation_seconds'])} is counted, saving is not; {kept} of the "
        "disk are checkpoints to go on from; an estimate, and no better than today's load on this machine[/]"
    )


def _times(seconds: Sequence[float]) -> tuple[str, str]:
    middle, low, high = map(time_text, seconds)
    return middle, f"{low} – {high}"


def _sizes(entry: dict[str, Any]) -> list[str]:
    names = ("process_bytes", "device_bytes", "disk_bytes")
    return ["" if entry[name] is None else size_text(entry[name]) for name in names]
