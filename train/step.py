"""One optimizer step on one global batch: mix, forward, loss, backward, clip, step."""

from __future__ import annotations

import math

import numpy as np
import torch

from shardtool.errors import TrainingError
from train.data import Batch, prepare
from train.device import autocast, choose_precision
from train.losses import hierarchical_loss
from train.mix import mix
from train.model import HierarchicalModel
from train.recipe import Recipe, StageSpec
from train.stages import freeze, make_optimizer


class Step:
    """The network in one stage: what learns, its optimizer, and how a batch changes it."""

    def __init__(
        self, model: HierarchicalModel, recipe: Recipe, stage: StageSpec, device: torch.device
    ) -> None:
        self.model, self.recipe, self.stage, self.device = model, recipe, stage, device
        freeze(model, stage.trains)
        self.optimizer = make_optimizer(model, stage, recipe.optimizer)
        self.learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.dtype = choose_precision(device, recipe.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.never_mix = recipe.mix.model_copy(update={"probability": 0.0})

    def __call__(
        self, batch: Batch, lr: float, mixing: bool, generator: np.random.Generator
    ) -> dict[str, float]:
        """Train on a batch; everything random in it is drawn from `generator`.

        The batch is mixed as a whole and then goes through in micro-batches: their size changes the
        memory and, stochastic depth's draws apart, nothing else.

        Returns the mean loss of each level and the gradient's norm before clipping. Raises TrainingError,
        the weights unchanged, for a loss or gradient that is not finite.
        """
        torch.manual_seed(int(generator.integers(1 << 63)))  # stochastic depth
        self.optimizer.set_lr(lr)
        batch = batch.to(self.device)
        spec = self.recipe.mix if mixing else self.never_mix
        images = prepare(batch.images, self.device)
        images, targets = mix(images, batch.species, batch.disease, spec, generator)
        sums: dict[str, torch.Tensor] = {}
        for start in range(0, len(batch), self.recipe.optimizer.micro_batch or len(batch)):
            part = slice(start, start + (self.recipe.optimizer.micro_batch or len(batch)))
            with autocast(self.device, self.dtype):
                logits = self.model(images[part])
            losses = hierarchical_loss(
                logits, targets[part], self.model.segments, self.stage.losses, self.recipe.loss
            )
            share = len(images[part]) / len(batch)
            self.scaler.scale(losses.total * share).backward()
            for level, value in losses.parts.items():
                sums[level] = sums.get(level, 0.0) + value.detach() * share
        means = {level: float(value) for level, value in sums.items()}  # the one wait for the device
        norm = self._update(means, batch)
        # a step that the float16 scaler skips has no norm
        return {**means, "gradient norm": norm} if math.isfinite(norm) else means

    def _update(self, losses: dict[str, float], batch: Batch) -> float:
        """Clip and step; returns the gradient's norm."""
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.learning, self.recipe.optimizer.clip))
        # under float16 a gradient that overflows is the scaler's business: it skips the step
        finite = math.isfinite(norm) or self.scaler.is_enabled()
        if not finite or not all(map(math.isfinite, losses.values())):
            raise TrainingError(
                f"loss or gradient is not finite in step {batch.step}",
                cure="start anew with another --out, and a lower lr or --set optimizer.precision=fp32",
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
