"""The only file that knows the order of things: stages, epochs, steps, validation, saving, stopping.

Everything random in a step is drawn from generators keyed by (seed, epoch, step), and the position is
that of what was trained, never of what was prefetched: so a run that was stopped at any step goes on as
if it had not been, on a CPU bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from shardtool.errors import NoSpace, Status, UsageError, UserError
from shardtool.files import exclusive, remove_temporaries
from shardtool.index import Split
from shardtool.terminal import clean
from train.augment import EvalTransform, TrainTransform
from train.checkpoint import LAST, Checkpoint, Position, save_best, stage_files
from train.data import Batch, Loader
from train.device import autocast, choose_precision, device_name
from train.evaluate import Evaluated, evaluate
from train.logbook import Logbook
from train.losses import level_weight
from train.meter import Meter
from train.metrics import Scores, score
from train.model import HierarchicalModel
from train.order import EpochOrder, blocks, epoch_order, repeats
from train.recipe import CheckpointFolder, Recipe, StageSpec
from train.stages import learning_rate, load_optimizer_state, optimizer_state
from train.step import Step
from train.stopping import StopRequest, stop_signals

SAVE_SECONDS = 600.0
STEP_STREAM = 1  # the order of an epoch draws from stream 0 of the same key, augmentation from 2
BEST_BY: dict[CheckpointFolder, str] = {
    "species_only": "species_top1",
    "disease_heads": "disease_top1",
    "hierarchical_full": "cascade",
}


class Stopped(UserError):
    """A signal asked to stop; everything trained so far is in last.pt."""

    status = Status.STOPPED_RESUMABLE


@dataclass(frozen=True)
class Run:
    """One training: a recipe over a train and a val split, into a folder."""

    recipe: Recipe
    train: Split
    val: Split
    out: Path
    device: torch.device
    workers: int

    @property
    def data(self) -> str:
        """Digest of what is trained and validated on."""
        if self.train.digest == self.val.digest:
            return self.train.digest
        return f"{self.train.digest} {self.val.digest}"


def train(run: Run) -> Scores:
    """Run the stages from where the folder's last.pt stands, to the end.

    Raises Stopped (75) after a signal, ResumeRefused (8) if the folder holds another run,
    DestinationBusy (5) if another process trains into it, TrainingError for non-finite losses.
    """
    _check_splits(run)
    with exclusive(run.out, "train-hier"), Logbook(run.out) as log, stop_signals() as asked:
        for folder in (run.out, *(run.out / name for name in BEST_BY)):
            remove_temporaries(folder)
        return Trainer(run, log, asked).run_stages()


def _check_splits(run: Run) -> None:
    """Raises UsageError for splits that cannot be trained and validated on together."""
    if not len(run.train):
        raise UsageError("there are no photos to train on", where=run.train.folder)
    if run.val.taxonomy.digest != run.train.taxonomy.digest:
        raise UsageError(
            "train and val have other classes: "
            + (run.train.taxonomy.difference(run.val.taxonomy) or "another order"),
            where=run.val.folder,
            cure="pack both splits in one dataset",
        )


class Trainer:
    """The state of a run: the network, the optimizer of the current stage, the position."""

    def __init__(self, run: Run, log: Logbook, asked: StopRequest) -> None:
        self.run, self.log, self.asked = run, log, asked
        self.recipe, self.device = run.recipe, run.device
        self.taxonomy, self.train_counts = run.train.taxonomy, run.train.class_counts
        self.dtype = choose_precision(run.device, run.recipe.optimizer)
        self.blocks = blocks(run.train.shard, run.train.offset)
        size = run.recipe.model.image_size
        self.loader = Loader(
            run.train,
            TrainTransform(run.recipe.augment, size, run.recipe.seed),
            run.workers,
            run.device,
        )
        self.val_loader = Loader(run.val, EvalTransform(size), min(run.workers, 2), run.device)
        self.position, self.finished = Position(), False
        self.metrics: dict[str, float | None] = {}  # of the latest validation
        self.tail_f1: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.resumed = self._resume()
        self.saved_at = time.monotonic()

    # ---- what happens in a run --------------------------------------------------------------

    def run_stages(self) -> Scores:
        """All stages from the current position; returns the final scores with intervals."""
        self.log.say(
            f"{clean(self.recipe.name)} on {clean(device_name(self.device))}, {_dtype_name(self.dtype)}, "
            f"{len(self.run.train):,} photos, {len(self.taxonomy.species):,} species, "
            f"{self.taxonomy.rows:,} classes"
        )
        self.log.event(
            "run",
            recipe=self.recipe.as_dict(),
            data=self.run.data,
            device=device_name(self.device),
            precision=_dtype_name(self.dtype),
            position=vars(self.position),
        )
        for number in range(self.position.stage, len(self.recipe.stages)):
            self._stage(number)
            self.position = Position(number + 1)
        if not self.finished:
            self.finished = True
            self.save_last(self.recipe.stages[-1])
        final = self._scores(self.validate(), intervals=True)
        self.log.event("finished", metrics=final.values())
        return final

    def _stage(self, number: int) -> None:
        stage = self.recipe.stages[number]
        if self.position.epoch >= stage.epochs:
            return
        self.step = Step(self.model, self.recipe, stage, self.device)
        if self.resumed and self.resumed.optimizer is not None:
            load_optimizer_state(self.step.optimizer, self.resumed.optimizer)
            if self.resumed.scaler:
                self.step.scaler.load_state_dict(self.resumed.scaler)
        self.resumed = None  # a later stage starts with a fresh optimizer
        order = self._order(number, 0)
        learning = sum(parameter.numel() for parameter in self.step.learning)
        self.log.say(
            f"[bold]stage {number + 1} of {len(self.recipe.stages)}: {clean(stage.name)}[/], "
            f"{stage.epochs} epochs of {order.steps:,} steps, trains {stage.trains} "
            f"({learning:,} parameters), lr {stage.lr:g}" + (f" to {stage.lr_end:g}" if stage.lr_end else "")
        )
        self.log.event("stage", stage=stage.name, steps_an_epoch=order.steps, learning=learning)
        for epoch in range(self.position.epoch, stage.epochs):
            self._epoch(number, stage, epoch)

    def _epoch(self, number: int, stage: StageSpec, epoch: int) -> None:
        order = self._order(number, epoch)
        start, meter = self.position.step, Meter(order, self.position.step)
        batches = self.loader.epoch(order, self._epoch_number(number, epoch), start)
        for batch in meter.timed(batches):
            losses = self.train_step(stage, batch, epoch, order.steps)
            self.position = Position(number, epoch, batch.step + 1)
            meter.count(len(batch), losses)
            self.log.progress(self._lines(stage, batch.step, meter))
            self._pause_point(stage)
        evaluated = self.validate()
        self.position = Position(number, epoch + 1)
        self._close_epoch(number, stage, epoch, evaluated, meter)

    def train_step(self, stage: StageSpec, batch: Batch, epoch: int, steps_an_epoch: int) -> dict[str, float]:
        """One step, with the rate, the mixing and the random numbers of its place in the run."""
        number = self._epoch_number(self.position.stage, epoch)
        generator = np.random.Generator(
            np.random.Philox(key=[self.recipe.seed, number], counter=[0, STEP_STREAM, 0, batch.step])
        )
        lr = learning_rate(stage, epoch * steps_an_epoch + batch.step, steps_an_epoch)
        mixing = stage.mixing and epoch < stage.epochs - stage.mixing_off_epochs
        return self.step(batch, lr, mixing, generator)

    def validate(self) -> Evaluated:
        """Every photo of the validation split; the stage's frozen parts stay frozen."""
        modes = {name: part.training for name, part in self.model.named_children()}
        cast = autocast(self.device, self.dtype)
        evaluated = evaluate(
            self.model,
            self.val_loader,
            self.recipe.optimizer.micro_batch or self.recipe.optimizer.batch,
            self.device,
            cast,
            self.recipe.loss,
        )
        for name, part in self.model.named_children():
            part.train(modes[name])
        return evaluated

    # ---- saving -----------------------------------------------------------------------------

    def _close_epoch(
        self, number: int, stage: StageSpec, epoch: int, evaluated: Evaluated, meter: Meter
    ) -> None:
        scores = self._scores(evaluated)
        self.metrics, self.tail_f1 = scores.values(), scores.tail_f1(self.taxonomy)
        val_loss = self._val_loss(stage, evaluated)
        counted = 1 + epoch + self._epochs_before(number, stage.folder)
        self.log.event(
            "epoch",
            stage=stage.name,
            epoch=counted,
            metrics=self.metrics,
            val_loss=val_loss,
            **meter.summary(),
        )
        shown = "  ".join(f"{name} {value:.1%}" for name, value in self.metrics.items() if value is not None)
        self.log.say(
            f"  epoch {counted:02d}  {meter.rates()}  {meter.losses()}  val loss {val_loss:.3f}  {shown}"
        )
        with self._surviving_a_full_disk():
            self._save_epoch(number, stage, epoch, counted, val_loss)

    def _save_epoch(self, number: int, stage: StageSpec, epoch: int, counted: int, val_loss: float) -> None:
        """The best checkpoint so far, those of the end of a stage, and last.pt."""
        folder = self.run.out / stage.folder
        value = self.metrics[BEST_BY[stage.folder]]
        if value is not None and value > self.best.get(stage.folder, -1.0):
            save_best(folder, counted, self._checkpoint(stage))
            self.best[stage.folder] = value
        if epoch + 1 == stage.epochs:
            for name in stage_files(stage.folder, counted, val_loss, self._is_last(number)):
                self._checkpoint(stage).save(folder / name)
        self.save_last(stage)

    @contextlib.contextmanager
    def _surviving_a_full_disk(self) -> Iterator[None]:
        """The checkpoints that are there stay, and the next save tries again."""
        try:
            yield
        except NoSpace as error:
            self.log.event("not saved", error=str(error))
            self.log.say(f"[bold red]not saved[/], training goes on: {clean(error)}")
            self.saved_at = time.monotonic()

    def _val_loss(self, stage: StageSpec, evaluated: Evaluated) -> float:
        """What the stage descends, on validation photos and without smoothing; NaN without photos."""
        return sum(
            level_weight(level, stage.losses, self.recipe.loss) * evaluated.losses.get(level, math.nan)
            for level in stage.losses
        )

    def save_last(self, stage: StageSpec) -> None:
        """Write last.pt, from which the same command goes on."""
        optimizer = optimizer_state(self.step.optimizer) if self._in_stage() else None
        scaler = self.step.scaler.state_dict() if self._in_stage() else {}
        replace(self._checkpoint(stage), optimizer=optimizer, scaler=scaler).save(self.run.out / LAST)
        self.saved_at = time.monotonic()

    def _pause_point(self, stage: StageSpec) -> None:
        """Between two steps: save if it is time to, stop if somebody asked."""
        if not self.asked.signal and time.monotonic() - self.saved_at < SAVE_SECONDS:
            return
        if self.asked.signal:
            self.save_last(stage)
            self.log.event("stopped", signal=self.asked.signal, position=vars(self.position))
            raise Stopped(
                f"stopped by {self.asked.signal}, everything is saved",
                where=self.run.out,
                cure="run the same command again to go on",
            )
        with self._surviving_a_full_disk():
            self.save_last(stage)

    def _checkpoint(self, stage: StageSpec) -> Checkpoint:
        return Checkpoint(
            model=self.model.state_dict(),
            recipe=self.recipe.as_dict(),
            taxonomy=self.taxonomy,
            train_counts=self.train_counts,
            dataset=self.run.data,
            position=self.position,
            stage=stage.name,
            metrics=self.metrics,
            tail_f1=self.tail_f1,
            best=dict(self.best),
            finished=self.finished,
        )

    def _resume(self) -> Checkpoint | None:
        """Build the network; from last.pt if there is one. Raises ResumeRefused."""
        path = self.run.out / LAST
        if not path.exists():
            torch.manual_seed(self.recipe.seed)
            self.model = HierarchicalModel(self.recipe.model, self.taxonomy).to(self.device)
            return None
        last = Checkpoint.load(path)
        last.check_resumable(self.recipe.as_dict(), self.taxonomy, self.run.data)
        self.model = last.build_model().to(self.device)
        self.position, self.finished = last.position, last.finished
        self.metrics, self.tail_f1, self.best = last.metrics, last.tail_f1, dict(last.best)
        if self.finished:
            self.log.say(
                f"this run is finished; for another one, give another --out than {clean(self.run.out)}"
            )
        else:
            self.log.say(
                f"going on from {LAST}: stage {last.position.stage + 1}, "
                f"epoch {last.position.epoch + 1}, step {last.position.step}"
            )
        return last

    # ---- small facts ------------------------------------------------------------------------

    def _scores(self, evaluated: Evaluated, intervals: bool = False) -> Scores:
        return score(evaluated.predictions, self.taxonomy, self.train_counts, intervals)

    def _order(self, number: int, epoch: int) -> EpochOrder:
        stage = self.recipe.stages[number]
        tiers = [(tier.below, tier.repeat) for tier in self.recipe.tiers(stage)]
        return epoch_order(
            repeats(self.run.train.row, tiers),
            self.blocks,
            self.recipe.seed,
            self._epoch_number(number, epoch),
            self.recipe.optimizer.batch,
        )

    def _epoch_number(self, stage: int, epoch: int) -> int:
        """Epochs since the start of the run: no two epochs share their random numbers."""
        return sum(spec.epochs for spec in self.recipe.stages[:stage]) + epoch

    def _epochs_before(self, stage: int, folder: str) -> int:
        """Epochs of earlier stages whose checkpoints lie in the same folder."""
        return sum(spec.epochs for spec in self.recipe.stages[:stage] if spec.folder == folder)

    def _is_last(self, stage: int) -> bool:
        """Is this the last stage of its folder?"""
        folder = self.recipe.stages[stage].folder
        return all(spec.folder != folder or not spec.epochs for spec in self.recipe.stages[stage + 1 :])

    def _in_stage(self) -> bool:
        position = self.position
        return (
            position.stage < len(self.recipe.stages)
            and position.epoch < self.recipe.stages[position.stage].epochs
        )

    def _lines(self, stage: StageSpec, step: int, meter: Meter) -> list[str]:
        """Where the run is, how fast it goes, what it learns."""
        steps, position = meter.order.steps, self.position
        photos = len(meter.order.samples)
        left = (stage.epochs - position.epoch - (step + 1) / steps) * photos
        minutes, seconds = divmod(round(meter.seconds_for(round(left))), 60)
        return [
            f"stage {position.stage + 1}/{len(self.recipe.stages)} {stage.name}  "
            f"epoch {position.epoch + 1}/{stage.epochs}  step {step + 1:,}/{steps:,}",
            f"{meter.rates()}  stage done in {minutes}:{seconds:02d}",
            meter.losses(),
        ]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
