"""A StageSpec made real: what is frozen, the parameter groups, the optimizer, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.adamw import adamw

from train.model import HierarchicalModel
from train.recipe import OptimizerSpec, StageSpec, Trains

PARTS: dict[Trains, tuple[str, ...]] = {
    "species head": ("species_head",),
    "species": ("backbone", "species_head"),
    "disease heads": ("disease_heads",),
    "all": ("backbone", "species_head", "disease_heads"),
}
EPSILON = 1e-8


def freeze(model: HierarchicalModel, trains: Trains) -> None:
    """Only the named parts learn; the others are frozen and in evaluation mode, so that no stochastic
    depth moves the features under a head that learns alone."""
    for name, part in model.named_children():
        learns = name in PARTS[trains]
        part.train(learns).requires_grad_(learns)


def learning_rate(stage: StageSpec, step: int, steps_an_epoch: int) -> float:
    """The stage's learning rate at a step of the stage: linear warm-up, then constant or cosine."""
    warmup = round(stage.warmup_epochs * steps_an_epoch)
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    if not stage.lr_end:
        return stage.lr
    progress = (step - warmup) / max(stage.epochs * steps_an_epoch - warmup - 1, 1)
    return stage.lr_end + (stage.lr - stage.lr_end) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(model: HierarchicalModel, stage: StageSpec, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """AdamW groups with `names` of their parameters, `scale` of the rate, and `rowwise`: the bounds of the
    segments of rows that rest when they have no gradient, or nothing."""
    position_tables = _no_decay_names(model)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        if part not in PARTS[stage.trains]:
            continue
        in_backbone = part == "backbone"
        decays = in_backbone and parameter.ndim > 1 and name not in position_tables
        kind = (
            stage.backbone_lr_scale if in_backbone else 1.0,
            spec.weight_decay if decays else 0.0,
            part == "disease_heads",
        )
        group = groups.setdefault(kind, {"params": [], "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    return [
        {**group, "scale": scale, "weight_decay": decay, "rowwise": model.segments.bounds if rowwise else []}
        for (scale, decay, rowwise), group in groups.items()
    ]


def _no_decay_names(model: HierarchicalModel) -> set[str]:
    ask = getattr(model.backbone, "no_weight_decay", None)  # timm's own list, where it has one
    return {f"backbone.{name}" for name in (ask() if ask else ())}


def describe(stage: StageSpec, optimizer: RowwiseAdamW, steps_an_epoch: int) -> list[str]:
    """What the stage trains, at which rates, how long: for people, before it starts."""
    steps = stage.epochs * steps_an_epoch
    shape = f"cosine from {stage.lr:g} to {stage.lr_end:g}" if stage.lr_end else f"constant {stage.lr:g}"
    warmup = round(stage.warmup_epochs * steps_an_epoch)
    mixing = "off"
    if stage.mixing:
        mixing = f"on, off in the last {stage.mixing_off_epochs} epochs" if stage.mixing_off_epochs else "on"
    lines = [
        f"trains {stage.trains}; loss {' + '.join(stage.losses)}; sampler {stage.sampler}; mixing {mixing}",
        f"{stage.epochs} epochs of {steps_an_epoch:,} steps, {steps:,} in all; lr {shape}, "
        f"{warmup:,} steps of warm-up",
    ]
    for group in optimizer.param_groups:
        parts = sorted({name.partition(".")[0] for name in group["names"]})
        weights = sum(parameter.numel() for parameter in group["params"])
        lines.append(
            f"{', '.join(parts)}: {weights:,} weights in {len(group['names'])} tensors, "
            f"lr {stage.lr * group['scale']:g}, weight decay {group['weight_decay']:g}"
        )
    return lines


def make_optimizer(model: HierarchicalModel, stage: StageSpec, spec: OptimizerSpec) -> RowwiseAdamW:
    """A fresh optimizer for a stage."""
    groups = parameter_groups(model, stage, spec)
    return RowwiseAdamW(groups, lr=stage.lr, betas=spec.betas, eps=EPSILON)


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW that treats each segment of a `rowwise` group, the rows of one species, as parameters of its own.

    A species without a photo in the batch has no gradient in its rows of the disease matrix. Plain AdamW
    would still move them by momentum; here they rest, as they would in a linear layer of their own. What a
    step costs goes by the species present.
    """

    def set_lr(self, lr: float) -> None:
        """Set the stage's rate; groups follow with their scale."""
        for group in self.param_groups:
            group["lr"] = lr * group["scale"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step. Rowwise gradients are used up (None) afterwards."""
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["rowwise"] and learning:
                present = present_segments([parameter.grad for parameter in learning], group["rowwise"])
                for parameter in learning:
                    self._step_segments(parameter, group, present)
                    parameter.grad = None  # so that AdamW passes over it
        return super().step(closure)

    def _step_segments(self, parameter: nn.Parameter, group: dict[str, Any], present: list[int]) -> None:
        state, bounds = self.state[parameter], group["rowwise"]
        if not state:
            state["step"] = torch.zeros(len(bounds) - 1, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)

        def segments(rows: torch.Tensor) -> list[torch.Tensor]:
            return [rows[bounds[species] : bounds[species + 1]] for species in present]

        assert parameter.grad is not None
        first_decay, second_decay = group["betas"]
        adamw(
            segments(parameter),
            segments(parameter.grad),
            segments(state["exp_avg"]),
            segments(state["exp_avg_sq"]),
            [],
            [state["step"][species] for species in present],
            fused=True,
            amsgrad=False,
            beta1=first_decay,
            beta2=second_decay,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def present_segments(gradients: list[torch.Tensor], bounds: list[int]) -> list[int]:
    """Segments in which something learns. The smallest gradient tells, in practice that of the biases: to
    read all of the matrix takes longer than the step."""
    smallest = min(gradients, key=torch.Tensor.numel)
    rows = smallest.reshape(len(smallest), -1).any(1).nonzero().squeeze(1).cpu().numpy()
    found: list[int] = np.unique(np.searchsorted(bounds, rows, side="right") - 1).tolist()
    return found


def optimizer_state(optimizer: RowwiseAdamW) -> dict[str, dict[str, torch.Tensor]]:
    """The state by parameter NAME: it survives other groups and another order of parameters."""
    return {
        name: dict(optimizer.state[parameter])
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if optimizer.state[parameter]
    }


def load_optimizer_state(optimizer: RowwiseAdamW, state: dict[str, dict[str, torch.Tensor]]) -> None:
    """The inverse of `optimizer_state`."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in state:
                # AdamW keeps its step counters on the CPU
                optimizer.state[parameter] = {
                    key: value.to(parameter.device) if key != "step" or group["rowwise"] else value
                    for key, value in state[name].items()
                }
