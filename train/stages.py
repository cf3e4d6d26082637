"""A StageSpec made real: what is frozen, the parameter groups, the optimizer, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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
    """AdamW groups with `names` of their parameters, `scale` of the rate, and `rowwise`."""
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
        {**group, "scale": scale, "weight_decay": decay, "rowwise": rowwise}
        for (scale, decay, rowwise), group in groups.items()
    ]


def _no_decay_names(model: HierarchicalModel) -> set[str]:
    ask = getattr(model.backbone, "no_weight_decay", None)  # timm's own list, where it has one
    return {f"backbone.{name}" for name in (ask() if ask else ())}


def make_optimizer(model: HierarchicalModel, stage: StageSpec, spec: OptimizerSpec) -> RowwiseAdamW:
    """A fresh optimizer for a stage."""
    groups = parameter_groups(model, stage, spec)
    return RowwiseAdamW(groups, lr=stage.lr, betas=spec.betas, eps=EPSILON)


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW that treats each row of a `rowwise` group as a parameter of its own.

    A species without a photo in the batch has no gradient in its rows of the disease matrix. Plain AdamW
    would still move them by momentum; here they rest, as they would in a linear layer of their own.
    """

    def set_lr(self, lr: float) -> None:
        """Set the stage's rate; groups follow with their scale."""
        for group in self.param_groups:
            group["lr"] = lr * group["scale"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step. Rowwise gradients are used up (None) afterwards."""
        for group in self.param_groups:
            if group["rowwise"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_rows(parameter, group)
                        parameter.grad = None  # so that AdamW passes over it
        return super().step(closure)

    def _step_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(len(parameter), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        rows = gradient.reshape(len(gradient), -1).any(1).nonzero().squeeze(1)
        first_decay, second_decay = group["betas"]
        gradient = gradient[rows]
        step = state["step"][rows] + 1
        first = torch.lerp(gradient, state["exp_avg"][rows], first_decay)
        second = torch.lerp(gradient.square(), state["exp_avg_sq"][rows], second_decay)
        state["step"][rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = step, first, second
        by_row = (-1, *(1,) * (parameter.ndim - 1))
        first = first / (1 - first_decay**step).view(by_row)
        second = second / (1 - second_decay**step).view(by_row)
        parameter[rows] -= group["lr"] * first / (second.sqrt() + group["eps"])


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
