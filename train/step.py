"""One optimizer step on one global batch: mix, forward, loss, backward, clip, step.

Legend: B photos of this rank, T photos of the global batch, S species.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shardtool.errors import TrainingError
from train.data import Batch, Normaliser
from train.device import autocast, choose_precision
from train.device_augment import augment
from train.losses import hierarchical_loss, ignorance
from train.mix import Targets, mix
from train.model import HierarchicalModel
from train.ranks import Ranks
from train.recipe import Level, Recipe, StageSpec
from train.stages import freeze, make_optimizer
from train.watch import HeadWatch

AUGMENTED = 64  # photos at a time on the device: each takes a dozen float32 images
NORM_STEPS = 50  # between two looks at the gradient of each head: it is as large as the matrix


@dataclass(frozen=True)
class StepResult:
    """`losses`: the mean of each level over the `photos` of the global batch, and the gradient's norm before
    clipping.

    `bad`: sample ids whose loss is not finite, of a step that was therefore not taken; empty but skipped
    where only the gradient is not finite. `halved`: memory did not suffice for as many photos at a time.
    """

    losses: dict[str, float]
    photos: int
    skipped: bool = False
    bad: tuple[int, ...] = ()
    halved: bool = False


class Step:
    """The network in one stage: what learns, its optimizer, and how a batch changes it."""

    def __init__(
        self,
        model: HierarchicalModel,
        recipe: Recipe,
        stage: StageSpec,
        device: torch.device,
        ranks: Ranks | None = None,
        average: AveragedModel | None = None,
    ) -> None:
        self.model, self.recipe, self.stage, self.device = model, recipe, stage, device
        self.ranks, self.average = ranks or Ranks(), average
        self.normalise = Normaliser(device)
        freeze(model, stage.trains)
        self.optimizer = make_optimizer(model, stage, recipe.optimizer)
        self.learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.dtype = choose_precision(device, recipe.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.never_mix = recipe.mix.model_copy(update={"probability": 0.0})
        self.micro_batch = recipe.optimizer.micro_batch
        self.damped: list[int] = []  # species whose disease head diverges
        self.head_norms: torch.Tensor | None = None  # of the latest step that was measured
        segments = model.segments
        sizes = segments.valid.sum(1).to(device)
        self.watch = HeadWatch(segments.species_of_row.to(device), ignorance(sizes, recipe.loss))

    def __call__(self, batch: Batch, lr: float, mixing: bool, generator: np.random.Generator) -> StepResult:
        """Train on a batch; everything random in it is drawn from `generator`.

        The batch is mixed as a whole and then goes through in micro-batches: their size changes the
        memory and, stochastic depth's draws apart, nothing else. Where memory does not suffice they are
        halved, and the same step is done again. A step whose loss or gradient is not finite is not taken.
        """
        seed = int(generator.integers(1 << 63))  # of stochastic depth
        self.optimizer.set_lr(lr)
        batch = batch.to(self.device)
        total = self._total(len(batch))
        images, targets = self._mixed(batch, mixing, generator)
        before = self.micro_batch
        losses = self._gradients(images, targets, total, seed)
        means = self._summed(losses, targets, total)
        result = self._update(means, losses, batch, total)
        return result if self.micro_batch == before else replace(result, halved=True)

    def _total(self, photos: int) -> int:
        count = torch.tensor([photos], device=self.device)
        self.ranks.sum_([count])
        return int(count) if self.ranks.count > 1 else photos

    def _mixed(
        self, batch: Batch, mixing: bool, generator: np.random.Generator
    ) -> tuple[torch.Tensor, Targets]:
        """This rank's part of the mixed global batch, float [B, 3, H, W]: partners come from all ranks."""
        spec = self.recipe.mix if mixing else self.never_mix
        if batch.plan is not None:
            batch = replace(batch, images=self._augmented(batch.images, batch.plan, generator))
        if self.ranks.count == 1 or not mixing:
            return mix(self.normalise(batch.images), batch.species, batch.disease, spec, generator)
        before = sum(self.ranks.gather(len(batch))[: self.ranks.rank])
        own = slice(before, before + len(batch))
        images, species, disease = map(self.ranks.concatenate, (batch.images, batch.species, batch.disease))
        mixed, targets = mix(self.normalise(images), species, disease, spec, generator)
        return mixed[own], targets[own]

    def _augmented(
        self, images: torch.Tensor, plan: torch.Tensor, generator: np.random.Generator
    ) -> torch.Tensor:
        """What the workers left of the augmentation, some photos at a time for the sake of memory. With other
        ranks, other photos get the same noise."""
        noise = torch.Generator(self.device)
        noise.manual_seed((int(generator.integers(1 << 63)) + self.ranks.rank) % (1 << 63))
        pieces = zip(images.split(AUGMENTED), plan.split(AUGMENTED), strict=True)
        return torch.cat([augment(*piece, noise) for piece in pieces])

    def _gradients(
        self, images: torch.Tensor, targets: Targets, total: int, seed: int
    ) -> dict[Level, torch.Tensor]:
        """Gradients of this rank's photos, as a share of T; returns the loss of each photo by level, [B]."""
        while True:
            try:
                return self._accumulate(images, targets, total, seed)
            except torch.OutOfMemoryError as error:
                self._halve(len(images), error)

    def _accumulate(
        self, images: torch.Tensor, targets: Targets, total: int, seed: int
    ) -> dict[Level, torch.Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed((seed + self.ranks.rank) % (1 << 63))
        parts: dict[Level, list[torch.Tensor]] = {level: [] for level in self.stage.losses}
        micro_batch = self.micro_batch or max(len(images), 1)
        for start in range(0, len(images), micro_batch):
            part = slice(start, start + micro_batch)
            with autocast(self.device, self.dtype):
                logits = self.model(images[part])
            losses = hierarchical_loss(
                logits, targets[part], self.model.segments, self.stage.losses, self.recipe.loss
            )
            self.scaler.scale(losses.total * (len(images[part]) / total)).backward()
            for level, photos in losses.photos.items():
                parts[level].append(photos)
        empty = images.new_zeros(0)
        return {level: torch.cat([empty, *photos]) for level, photos in parts.items()}

    def _halve(self, photos: int, error: torch.OutOfMemoryError) -> None:
        """Half as many photos at a time. Raises TrainingError where one alone is too many."""
        if self.micro_batch == 1:
            raise TrainingError(
                f"not even one photo fits into the memory: {str(error).splitlines()[0]}",
                cure="use a smaller --set model.image_size, or a smaller network",
            ) from error
        self.micro_batch = (self.micro_batch or photos) // 2
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _summed(self, losses: dict[Level, torch.Tensor], targets: Targets, total: int) -> dict[str, float]:
        """Add up the ranks' gradients and losses; follow the heads; the means over the global batch."""
        sums = torch.stack([photos.sum() for photos in losses.values()])
        seen = self._seen(losses, targets)
        if self.ranks.count > 1:
            for parameter in self.learning:
                if parameter.grad is None:  # this rank has no photo of the batch
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in self.learning if parameter.grad is not None]
            self.ranks.sum_([*gradients, sums, *seen])
        if seen:
            self.watch.count(*seen)
        means = (sums / total).tolist()  # the one wait for the device
        return {level: float(mean) for level, mean in zip(losses, means, strict=True)}

    def _seen(self, losses: dict[Level, torch.Tensor], targets: Targets) -> list[torch.Tensor]:
        """Sums of the disease losses of each species and their numbers, [S] each; of unmixed photos, whose
        loss is that of one head."""
        if "disease" not in losses or targets.species_b is not None:
            return []
        none = torch.zeros_like(self.watch.running)
        ones = torch.ones_like(losses["disease"])
        return [
            none.index_add(0, targets.species, losses["disease"]),
            none.index_add(0, targets.species, ones),
        ]

    def _update(
        self, means: dict[str, float], losses: dict[Level, torch.Tensor], batch: Batch, total: int
    ) -> StepResult:
        """Damp what diverges, clip and step."""
        self.scaler.unscale_(self.optimizer)
        if batch.step % NORM_STEPS == 0:
            self._measure_heads()
        self._damp()
        norm = self._clip()
        # a scaled gradient that overflows is the scaler's business: it skips the step and scales less
        finite = math.isfinite(norm) or self.scaler.get_scale() > 1
        taken = finite and all(map(math.isfinite, means.values()))
        if taken:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not taken:
            return StepResult(means, total, True, self._not_finite(losses, batch))
        if self.average is not None:
            self.average.update_parameters(self.model)
        return StepResult({**means, "gradient norm": norm} if math.isfinite(norm) else means, total)

    def _clip(self) -> float:
        """Scale the gradient down to the recipe's norm; returns the norm that it had. A gradient that is
        small enough is left alone: most pages of a large disease matrix's were never written."""
        gradients = [parameter.grad for parameter in self.learning if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if norm > self.recipe.optimizer.clip:
            torch.nn.utils.clip_grads_with_norm_(self.learning, self.recipe.optimizer.clip, norm)
        return float(norm)

    def _measure_heads(self) -> None:
        """Norm of the gradient of each disease head, [S]."""
        gradient = self.model.disease_heads.weight.grad
        if gradient is not None:
            self.head_norms = self.watch.norms(gradient)

    def _damp(self) -> None:
        heads = list(self.model.disease_heads.parameters())
        self.damped = self.watch.damped() if "disease" in self.stage.losses else []
        if self.damped:
            for gradient in (head.grad for head in heads if head.grad is not None):
                self.watch.damp(gradient)

    def _not_finite(self, losses: dict[Level, torch.Tensor], batch: Batch) -> tuple[int, ...]:
        """Sample ids, of all ranks, whose loss is not finite."""
        bad = torch.zeros(len(batch), dtype=torch.bool, device=self.device)
        for photos in losses.values():
            bad |= ~photos.isfinite()
        return tuple(sample for part in self.ranks.gather(batch.sample[bad].tolist()) for sample in part)


def averaged(model: HierarchicalModel, decay: float) -> AveragedModel | None:
    """The running mean of a network's weights, those at hand to begin with; each step leaves `decay` of it,
    and 0 is for no mean."""
    if not decay:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.n_averaged.fill_(1)  # with 0 the first step would replace it, after a resume too
    return average
