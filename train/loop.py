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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from shardtool.errors import NoSpace, Status, TrainingError, UsageError, UserError
from shardtool.files import exclusive, no_space, remove_temporaries
from shardtool.index import Split
from shardtool.terminal import clean
from train.augment import EvalTransform
from train.checkpoint import LAST, Checkpoint, Position, load_last, save_best, save_last, stage_files
from train.data import Batch, Loader
from train.decode import HAS_REGIONS
from train.device import autocast, choose_precision
from train.evaluate import Evaluated, calibrate, evaluate, merged
from train.fused import HAS_RECOLOUR
from train.journal import Journal, timed
from train.logbook import read_events
from train.losses import level_weight
from train.meter import Meter, Schedule
from train.metrics import Scores, score
from train.model import HierarchicalModel
from train.order import repeats
from train.ranks import Ranks
from train.recipe import CheckpointFolder, Recipe, StageSpec
from train.report import save_results, write_report
from train.results import results
from train.selftest import prepare_model
from train.source import Source
from train.stages import describe, learning_rate, load_optimizer_state, optimizer_state
from train.step import Step, StepResult, averaged
from train.stopping import StopRequest, stop_signals

NAMED_PHOTOS = 8  # of a step that is skipped
STEP_STREAM = 1  # the order of an epoch draws from stream 0 of the same key, augmentation from 2
BEST_BY: dict[CheckpointFolder, str] = {
    "species_only": "species_top1",
    "disease_heads": "disease_top1",
    "hierarchical_full": "cascade",
}


@dataclass(frozen=True)
class Saving:
    """When last.pt is written inside an epoch, and how many of its predecessors stay (`keep` in all)."""

    seconds: float = 600.0
    steps: int = 0  # 0: by time alone
    keep: int = 2

    def is_due(self, steps: int, seconds: float) -> bool:
        """After so many steps and seconds since the last one."""
        return seconds >= self.seconds or (self.steps > 0 and steps >= self.steps)


class Stopped(UserError):
    """A signal asked to stop; everything trained so far is in last.pt."""

    status = Status.STOPPED_RESUMABLE


@dataclass(frozen=True)
class Run:
    """One training: a recipe over photos and a validation split, into a folder."""

    recipe: Recipe
    source: Source
    val: Split
    out: Path
    device: torch.device
    workers: int
    ranks: Ranks = field(default_factory=Ranks)
    saving: Saving = field(default_factory=Saving)
    remap: bool = False
    wandb: str = ""  # a Weights & Biases project

    @property
    def data(self) -> str:
        """Digest of what is trained and validated on."""
        if self.source.digest == self.val.digest:
            return self.source.digest
        return f"{self.source.digest} {self.val.digest}"

    def schedule(self) -> Schedule:
        """Photos and steps of an epoch of each stage."""
        tiers = [self.tiers(stage) for stage in self.recipe.stages]
        photos = [int(repeats(self.source.row, rule).sum()) for rule in tiers]
        return Schedule(self.recipe.stages, photos, [self.source.steps(rule) for rule in tiers])

    def order(self) -> dict[str, Any]:
        """All that decides which photo comes when, by stage: a resume compares it."""
        return {stage.name: self.source.fingerprint(self.tiers(stage)) for stage in self.recipe.stages}

    def tiers(self, stage: StageSpec) -> list[tuple[int, int]]:
        """The repeat rule of a stage."""
        return [(tier.below, tier.repeat) for tier in self.recipe.tiers(stage)]


def train(run: Run) -> Scores:
    """Run the stages from where the folder's last.pt stands, to the end.

    Raises Stopped (75) after a signal, ResumeRefused (8) if the folder holds another run,
    DestinationBusy (5) if another process trains into it, TrainingError if too many steps had to be
    skipped.
    """
    _check_splits(run)
    with contextlib.ExitStack() as stack:
        if run.ranks.is_first:
            stack.enter_context(exclusive(run.out, "train-hier"))
            for folder in (run.out, *(run.out / name for name in BEST_BY)):
                remove_temporaries(folder)
        schedule = run.schedule()
        journal = Journal(run.out, run.recipe, run.device, schedule, quiet=not run.ranks.is_first)
        stack.enter_context(journal)
        asked = stack.enter_context(stop_signals())
        trainer = Trainer(run, journal, asked)
        stack.callback(trainer.close)
        return trainer.run_stages()


def _check_splits(run: Run) -> None:
    """Raises UsageError for photos that cannot be trained and validated on together."""
    if not len(run.source):
        raise UsageError("there are no photos to train on")
    if run.val.taxonomy.digest != run.source.taxonomy.digest:
        raise UsageError(
            "train and val have other classes: "
            + (run.source.taxonomy.difference(run.val.taxonomy) or "another order"),
            where=run.val.folder,
            cure="pack both splits in one dataset",
        )


class Trainer:
    """The state of a run: the network, the optimizer of the current stage, the position."""

    def __init__(self, run: Run, journal: Journal, asked: StopRequest) -> None:
        self.run, self.journal, self.asked = run, journal, asked
        self.recipe, self.device, self.ranks = run.recipe, run.device, run.ranks
        self.taxonomy = run.source.taxonomy
        self.train_counts = np.bincount(run.source.row, minlength=self.taxonomy.rows)
        self.dtype = choose_precision(run.device, run.recipe.optimizer)
        self.val_loader = Loader(
            run.val,
            EvalTransform(run.recipe.model.image_size),
            min(run.workers, 2),
            run.device,
            journal.replaced,
        )
        run.source.listen(journal.replaced)
        self.position, self.finished = Position(), False
        self.metrics: dict[str, float | None] = {}  # of the latest validation
        self.tail_f1: dict[str, float] = {}
        self.temperatures: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.protocol: list[str] = []  # of the current stage, in words
        self.skipped = 0  # steps since the start of this process that were not taken
        self.damped: list[int] = []
        self.resumed = self._resume()
        self.saved_at, self.saved_steps = time.monotonic(), 0

    def close(self) -> None:
        """Stop the data workers."""
        self.run.source.close()
        self.val_loader.close()

    # ---- what happens in a run --------------------------------------------------------------

    def run_stages(self) -> Scores:
        """All stages from the current position; returns the final scores with intervals."""
        what = (
            f"{_dtype_name(self.dtype)}, {len(self.run.source):,} photos, "
            f"{len(self.taxonomy.species):,} species, {self.taxonomy.rows:,} classes"
        )
        # pixels differ by rounding with and without the C extensions
        facts = {
            "built": {"_jpeg": HAS_REGIONS, "_pixels": HAS_RECOLOUR},
            "data": self.run.data,
            "precision": _dtype_name(self.dtype),
            "ranks": self.ranks.count,
        }
        self.journal.begin(what, self.position, self.run.wandb, facts)
        self.micro_batch = 0 if self.finished else self._prepare()
        for number in range(self.position.stage, len(self.recipe.stages)):
            self._stage(number)
            self.position = Position(number + 1)
        evaluated = self.validate(outputs=True)
        if not self.finished:
            self.finished = True
            self.temperatures = self._calibrated(evaluated)
            self.save_last(self.recipe.stages[-1])
        final = self._scores(evaluated, intervals=True)
        self.journal.event("finished", metrics=final.values())
        if self.ranks.is_first:
            self._report(evaluated)
        return final

    def _prepare(self) -> int:
        """Try the network on the real shapes before anything long; returns the photos that fit at a time, 0
        for as many as the recipe wants."""
        share = -(-min(self.recipe.optimizer.batch, len(self.run.source)) // self.ranks.count)
        asked = min(self.recipe.optimizer.micro_batch or share, share)
        prepared = prepare_model(self.model, self.recipe, self.device, self.dtype, asked, self.ranks)
        for finding in prepared.findings:
            self.journal.event("selftest", **finding.event())
            self.journal.say(f"  {clean(finding.line())}")
        return prepared.micro_batch if prepared.micro_batch < asked else 0

    def _report(self, evaluated: Evaluated) -> None:
        """results.json and report.html beside the run."""
        events = read_events(self.run.out)
        save_results(
            self.run.out, results(evaluated, self.taxonomy, self.train_counts, events), self.run.val, LAST
        )
        self.journal.say(f"report: {clean(write_report(self.run.out))}")

    def _stage(self, number: int) -> None:
        stage = self.recipe.stages[number]
        if self.position.epoch >= stage.epochs:
            return
        self.step = Step(self.model, self.recipe, stage, self.device, self.ranks, self.average)
        self.step.micro_batch = self.micro_batch or self.step.micro_batch
        if self.resumed:
            self._continue_step(self.resumed)
        self.resumed = None  # a later stage starts with a fresh optimizer
        steps = self.run.source.steps(self.run.tiers(stage))
        self.protocol = describe(stage, self.step.optimizer, steps)
        learning = sum(parameter.numel() for parameter in self.step.learning)
        self.position = replace(self.position, stage=number)
        self.journal.stage(self.position, self.protocol, steps, learning)
        for epoch in range(self.position.epoch, stage.epochs):
            self._epoch(number, stage, epoch)

    def _continue_step(self, last: Checkpoint) -> None:
        if last.optimizer is not None:
            load_optimizer_state(self.step.optimizer, last.optimizer)
        if last.scaler:
            self.step.scaler.load_state_dict(last.scaler)
        if last.heads:
            self.step.watch.load_state_dict(last.heads)

    def _epoch(self, number: int, stage: StageSpec, epoch: int) -> None:
        start, counted = self.position.step, self._epoch_number(number, epoch)
        photos = self.run.source.epoch(counted, self.run.tiers(stage), start)
        meter = Meter(photos.steps, photos.photos, start, self.device)
        for batch in meter.timed(photos.batches):
            with meter.working():
                result = self.train_step(stage, batch, epoch, photos.steps)
            self.position = Position(number, epoch, batch.step + 1)
            meter.count(result.photos, {} if result.skipped else result.losses)
            self._look_at(result)
            self.journal.step(self.position, meter, self.step.optimizer)
            self._pause_point(stage)
        evaluated, seconds = timed(lambda: self.validate(outputs=stage.trains == "all"))
        self.position = Position(number, epoch + 1)
        self._close_epoch(number, stage, epoch, evaluated, seconds, meter)

    def train_step(self, stage: StageSpec, batch: Batch, epoch: int, steps_an_epoch: int) -> StepResult:
        """One step, with the rate, the mixing and the random numbers of its place in the run."""
        number = self._epoch_number(self.position.stage, epoch)
        generator = np.random.Generator(
            np.random.Philox(key=[self.recipe.seed, number], counter=[0, STEP_STREAM, 0, batch.step])
        )
        lr = learning_rate(stage, epoch * steps_an_epoch + batch.step, steps_an_epoch)
        mixing = stage.mixing and epoch < stage.epochs - stage.mixing_off_epochs
        return self.step(batch, lr, mixing, generator)

    def _look_at(self, result: StepResult) -> None:
        """Tell what was unusual about a step. Raises TrainingError after too many that were not taken."""
        if result.halved:
            self.micro_batch = self.step.micro_batch
            self.journal.halved(self.position, self.micro_batch)
        if (damped := self.step.damped) != self.damped:
            self.damped = damped
            self.journal.damped(self.position, [self.taxonomy.species[species] for species in damped])
        if not result.skipped:
            return
        self.skipped += 1
        named = [self._named(sample) for sample in result.bad[:NAMED_PHOTOS]]
        self.journal.skipped(self.position, result.bad, named)
        if self.skipped > self.recipe.optimizer.max_skipped:
            raise TrainingError(
                f"{self.skipped} steps had a loss or gradient that is not finite, the last because of "
                f"{'; '.join(named) or 'the gradient alone'}",
                cure="look at these photos; or start anew with another --out, and a lower lr or "
                "--set optimizer.precision=fp32",
            )

    def _named(self, sample: int) -> str:
        """Species, disease and place of a photo."""
        species, disease = self.taxonomy.row_names[int(self.run.source.row[sample])]
        return f"{species}/{disease}, {self.run.source.where(sample)}"

    def validate(self, outputs: bool = False) -> Evaluated:
        """Every photo of the validation split, once on one of the ranks; the stage's frozen parts stay
        frozen."""
        network = self.model if self.average is None else cast(HierarchicalModel, self.average.module)
        modes = {name: part.training for name, part in network.named_children()}
        mine = np.arange(len(self.run.val))[self.ranks.rank :: self.ranks.count]
        evaluated = evaluate(
            network,
            self.val_loader,
            self.micro_batch or self.recipe.optimizer.micro_batch or self.recipe.optimizer.batch,
            self.device,
            autocast(self.device, self.dtype),
            self.recipe.loss,
            samples=mine,
            outputs=outputs,
        )
        for name, part in network.named_children():
            part.train(modes[name])
        return evaluated if self.ranks.count == 1 else merged(self.ranks.gather(evaluated))

    # ---- saving -----------------------------------------------------------------------------

    def _close_epoch(
        self, number: int, stage: StageSpec, epoch: int, evaluated: Evaluated, seconds: float, meter: Meter
    ) -> None:
        scores = self._scores(evaluated)
        self.metrics, self.tail_f1 = scores.values(), scores.tail_f1(self.taxonomy)
        self.temperatures = self._calibrated(evaluated)
        val_loss = self._val_loss(stage, evaluated)
        counted = 1 + epoch + self._epochs_before(number, stage.folder)
        # the place of the last step: the epoch belongs to its stage
        last = Position(number, epoch, meter.steps)
        self.journal.epoch(last, counted, meter, scores, val_loss, seconds)
        self._log_heads(last)
        if self.ranks.is_first:
            with self._surviving_a_full_disk():
                self._save_epoch(number, stage, epoch, counted, val_loss)

    def _log_heads(self, position: Position) -> None:
        """Running loss of each species' disease head, and the norm of its gradient when it was measured."""
        watch, norms = self.step.watch, self.step.head_norms
        seen = watch.seen.tolist()
        if any(seen):
            self.journal.event(
                "heads",
                position,
                species=[name for name, steps in zip(self.taxonomy.species, seen, strict=True) if steps],
                loss=[loss for loss, steps in zip(watch.running.tolist(), seen, strict=True) if steps],
                gradient=[norm for norm, steps in zip(norms.tolist(), seen, strict=True) if steps]
                if norms is not None
                else None,
            )

    def _calibrated(self, evaluated: Evaluated) -> dict[str, float]:
        """Temperatures, where the numbers for them were kept."""
        if evaluated.outputs is None or not len(evaluated.samples):
            return {}
        return {name: float(value) for name, value in vars(calibrate(evaluated, self.taxonomy)).items()}

    def _save_epoch(self, number: int, stage: StageSpec, epoch: int, counted: int, val_loss: float) -> None:
        """The best checkpoint so far, those of the end of a stage, and last.pt."""
        folder = self.run.out / stage.folder
        value = self.metrics[BEST_BY[stage.folder]]
        # a network that gives no numbers can still score, by the class that it then names
        if value is not None and math.isfinite(val_loss) and value > self.best.get(stage.folder, -1.0):
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
        except (NoSpace, OSError) as error:
            full = no_space(error, self.run.out) if isinstance(error, OSError) else error
            if full is None:
                raise
            self.journal.not_saved(full)
            self.saved_at = time.monotonic()

    def _val_loss(self, stage: StageSpec, evaluated: Evaluated) -> float:
        """What the stage descends, on validation photos and without smoothing; NaN without photos."""
        return sum(
            level_weight(level, stage.losses, self.recipe.loss) * evaluated.losses.get(level, math.nan)
            for level in stage.losses
        )

    def save_last(self, stage: StageSpec) -> None:
        """Write last.pt, from which the same command goes on."""
        self.saved_at, self.saved_steps = time.monotonic(), 0
        if not self.ranks.is_first:
            return
        checkpoint = self._checkpoint(stage)
        if self._in_stage():
            checkpoint = replace(
                checkpoint,
                optimizer=optimizer_state(self.step.optimizer),
                scaler=self.step.scaler.state_dict(),
                heads=self.step.watch.state_dict(),
            )
        save_last(self.run.out, checkpoint, self.run.saving.keep)

    def _pause_point(self, stage: StageSpec) -> None:
        """Between two steps: save if it is time to, stop if somebody asked. All ranks agree."""
        self.saved_steps += 1
        signal = next(filter(None, self.ranks.gather(self.asked.signal)), "")
        if signal:
            self.save_last(stage)
            self.journal.event("stopped", self.position, signal=signal)
            raise Stopped(
                f"stopped by {signal}, everything is saved",
                where=self.run.out,
                cure="run the same command again to go on",
            )
        if self.run.saving.is_due(self.saved_steps, time.monotonic() - self.saved_at):
            with self._surviving_a_full_disk():
                self.save_last(stage)

    def _checkpoint(self, stage: StageSpec) -> Checkpoint:
        return Checkpoint(
            model=self.model.state_dict(),
            recipe=self.recipe.as_dict(),
            taxonomy=self.taxonomy,
            train_counts=self.train_counts,
            dataset=self.run.data,
            order=self.run.order(),
            protocol=self.protocol,
            position=self.position,
            stage=stage.name,
            metrics=self.metrics,
            tail_f1=self.tail_f1,
            best=dict(self.best),
            temperatures=self.temperatures,
            ema={} if self.average is None else self.average.module.state_dict(),
            finished=self.finished,
        )

    def _resume(self) -> Checkpoint | None:
        """Build the network; from the newest whole checkpoint if there is one. Raises ResumeRefused."""
        last = self._newest()
        if last is None:
            torch.manual_seed(self.recipe.seed)
            self.model = HierarchicalModel(self.recipe.model, self.taxonomy).to(self.device)
            self.average = averaged(self.model, self.recipe.optimizer.ema)
            return None
        self.model = last.build_model(averaged=False).to(self.device)
        self.average = averaged(self.model, self.recipe.optimizer.ema)
        if self.average is not None and last.ema:
            self.average.module.load_state_dict(last.ema)
        self.position, self.finished = last.position, last.finished
        self.metrics, self.tail_f1, self.best = last.metrics, last.tail_f1, dict(last.best)
        self.temperatures = last.temperatures
        self.journal.resumed(self.position, self.finished)
        return last

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to go on from; what it was made with is that of this run."""
        if self.ranks.is_first:
            last, notes = load_last(self.run.out)
        self.ranks.barrier()  # a damaged one has been moved aside
        if not self.ranks.is_first:
            last, notes = load_last(self.run.out)
        for note in notes:
            self.journal.damaged(note)
        if last is None:
            return None
        if self.run.remap and last.taxonomy.digest != self.taxonomy.digest:
            self.journal.say(f"classes mapped by name: {clean(last.taxonomy.difference(self.taxonomy))}")
            last = last.remapped(self.taxonomy)
            last.check_resumable(self.recipe.as_dict(), self.taxonomy, last.dataset, last.order)
        else:
            last.check_resumable(self.recipe.as_dict(), self.taxonomy, self.run.data, self.run.order())
        return last

    # ---- small facts ------------------------------------------------------------------------

    def _scores(self, evaluated: Evaluated, intervals: bool = False) -> Scores:
        return score(evaluated.predictions, self.taxonomy, self.train_counts, intervals)

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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
