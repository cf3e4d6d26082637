"""What a run tells: to the person, to events.jsonl and to the boards. It decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from shardtool.terminal import clean
from train.checkpoint import LAST, Position
from train.device import device_name
from train.fill import Replaced
from train.logbook import Logbook, read_events
from train.machine import hardware, versions
from train.meter import Meter, Pace, Schedule, memory_text, status_lines
from train.metrics import Scores
from train.recipe import Recipe
from train.stages import RowwiseAdamW
from train.utilisation import Sampler, device_memory, process_memory

SHOWN = ("species_top1", "disease_top1", "macro_f1", "cascade")  # of the metrics of an epoch


class Journal:
    """The log of one process of a run; that of all ranks but the first is `quiet`."""

    def __init__(
        self, out: Path, recipe: Recipe, device: torch.device, schedule: Schedule, quiet: bool
    ) -> None:
        self._out, self._recipe, self._device, self._schedule = out, recipe, device, schedule
        self._log = Logbook(out, quiet)
        self._pace = Pace(schedule)
        self._sampler = Sampler(device, 1.0)
        self._machine: list[str] = []  # lines about memory and utilisation

    def __enter__(self) -> Journal:
        self._log.__enter__()
        self._sampler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.__exit__(kind, error, trace)
        self._log.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """A line that stays on the screen; rich markup."""
        self._log.say(text)

    def event(self, kind: str, at: Position | None = None, **values: Any) -> None:
        """One event; the place `at` which it happens becomes the number of steps of the run."""
        if at is not None:
            values["step"] = self.steps(at)
        self._log.event(kind, **values)

    def steps(self, position: Position) -> int:
        """Steps of the run before a position."""
        return self._schedule.done(position.stage, position.epoch, position.step)

    # ---- the course of a run ----------------------------------------------------------------

    def begin(self, what: str, position: Position, wandb: str, facts: dict[str, Any]) -> None:
        """The run starts or goes on: `what` it works on, for people, and `facts` for the log."""
        name = device_name(self._device)
        self.say(f"{clean(self._recipe.name)} on {clean(name)}, {clean(what)}")
        self.event(
            "run",
            position,
            recipe=self._recipe.as_dict(),
            device=name,
            hardware=hardware(self._device),
            versions=versions(),
            position=vars(position),
            **facts,
        )
        self._pace.recall(read_events(self._out) or ())
        self._log.open_boards(self.steps(position), wandb, self._recipe.as_dict())

    def resumed(self, position: Position, finished: bool) -> None:
        if finished:
            self.say(f"this run is finished; for another one, give another --out than {clean(self._out)}")
        else:
            self.say(
                f"going on from {LAST}: stage {position.stage + 1}, epoch {position.epoch + 1}, "
                f"step {position.step}"
            )

    def stage(self, position: Position, protocol: list[str], steps: int, learning: int) -> None:
        """What a stage does, before it starts."""
        spec = self._recipe.stages[position.stage]
        self.say(f"[bold]stage {position.stage + 1} of {len(self._recipe.stages)}: {clean(spec.name)}[/]")
        for line in protocol:
            self.say(f"  {clean(line)}")
        self.event(
            "stage",
            position,
            stage=spec.name,
            number=position.stage + 1,
            steps_an_epoch=steps,
            learning=learning,
            protocol=protocol,
        )

    def step(self, position: Position, meter: Meter, optimizer: RowwiseAdamW) -> None:
        """After a step: the live lines, and now and then an event."""
        self._log.progress(lambda: self._lines(position, meter))
        if not meter.window_is_full:
            return
        usage, used, here = self._sampler.take(), device_memory(self._device), process_memory()
        busy = [usage.text()] if self._device.type == "cuda" else []
        self._machine = [memory_text(here, used), *busy]
        self.event(
            "steps",
            position,
            stage=self._recipe.stages[position.stage].name,
            epoch=position.epoch + 1,
            **{**meter.close_window(), "lr": _rates(optimizer)},
            process_memory=here,
            device_memory=used and used[0],
            utilisation=usage.percent,
            utilisation_source=usage.source,
        )

    def epoch(
        self, position: Position, counted: int, meter: Meter, scores: Scores, val_loss: float, seconds: float
    ) -> None:
        """An epoch is trained and validated, the latter in `seconds`; `counted` is its number in the names
        of checkpoints."""
        stage = self._recipe.stages[position.stage]
        self._pace.trained(stage, meter.epoch.photos, meter.epoch.seconds)
        self._pace.validated(seconds)
        values = scores.values()
        self.event(
            "epoch",
            position,
            stage=stage.name,
            epoch=counted,
            metrics=values,
            val_loss=val_loss,
            validation_seconds=seconds,
            **meter.summary(),
        )
        chosen = ((name, values[name]) for name in SHOWN)
        shown = "  ".join(f"{name} {value:.1%}" for name, value in chosen if value is not None)
        self.say(
            f"  epoch {counted:02d}  {meter.epoch.rates()}  {meter.epoch.losses_text()}  "
            f"val loss {val_loss:.3f}  {shown}"
        )

    # ---- what goes wrong --------------------------------------------------------------------

    def replaced(self, replaced: Replaced) -> None:
        """A bad photo, once."""
        self.event("replaced", **vars(replaced))
        self.say(
            f"  [yellow]bad photo[/]: {clean(replaced.reason)} ({clean(replaced.where)}); "
            "another one of its class is used in its place"
        )

    def skipped(self, position: Position, samples: tuple[int, ...], photos: list[str]) -> None:
        """A step that was not taken, and the photos to blame."""
        self.event("skipped", position, samples=samples, photos=photos)
        named = "; ".join(photos) or "the gradient, not the loss of a single photo"
        self.say(f"  [bold red]step {position.step:,} skipped[/], not finite: {clean(named)}")

    def halved(self, position: Position, micro_batch: int) -> None:
        """Memory did not suffice."""
        self.event("out of memory", position, micro_batch=micro_batch)
        self.say(f"  [bold red]out of memory[/]: the same batch goes on with {micro_batch} photos at a time")

    def damped(self, position: Position, species: list[str]) -> None:
        """Disease heads that diverge now."""
        self.event("damped", position, species=species)
        if species:
            self.say(f"  [yellow]diverging[/], gradient damped: {clean(', '.join(species))}")

    def not_saved(self, error: Exception) -> None:
        self.event("not saved", error=str(error))
        self.say(f"[bold red]not saved[/], training goes on: {clean(error)}")

    def damaged(self, note: str) -> None:
        """A checkpoint that cannot be used."""
        self.event("damaged", note=note)
        self.say(f"[bold red]{clean(note)}[/]")

    def _lines(self, position: Position, meter: Meter) -> list[str]:
        stage, count = self._recipe.stages[position.stage], len(self._recipe.stages)
        place = (
            f"stage {position.stage + 1}/{count} {stage.name}  epoch {position.epoch + 1}/{stage.epochs}  "
            f"step {position.step:,}/{meter.steps:,}"
        )
        done = position.step / meter.steps
        left = self._pace.left(position.stage, position.epoch, done, meter.epoch)
        return status_lines(place, meter, left, self._machine)


def _rates(optimizer: RowwiseAdamW) -> dict[str, float]:
    """Learning rate of each part of the network."""
    return {
        name.partition(".")[0]: float(group["lr"])
        for group in optimizer.param_groups
        for name in group["names"]
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and the seconds that it took."""
    start = time.monotonic()
    result = work()
    return result, time.monotonic() - start
