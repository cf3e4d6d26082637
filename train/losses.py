"""Losses over the species and over the diseases of a photo's own species, in one family.

Softmax focal loss, linear in the target: FL = -alpha sum_c t_c (1 - p_c)^gamma log p_c; cross entropy is
gamma = 0, alpha = 1. Linear in t, so label smoothing and mixed labels are weighted sums of one term a
class. In float32 whatever the network computes in.
Legend: B photos, S species, R rows of all disease heads, M diseases of the largest species.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from train.mix import Targets
from train.model import Logits, Segments
from train.recipe import Level, LossSpec


@dataclass(frozen=True)
class Losses:
    """`total` is what is descended; `parts` are the means of each level, unweighted."""

    total: torch.Tensor
    parts: dict[Level, torch.Tensor]


def hierarchical_loss(
    logits: Logits, targets: Targets, segments: Segments, levels: Sequence[Level], spec: LossSpec
) -> Losses:
    """L_species + disease_weight x L_disease for the given levels, means over the batch."""
    parts: dict[Level, torch.Tensor] = {}
    total = logits.species.new_zeros((), dtype=torch.float32)
    for level in levels:
        loss = _species_loss if level == "species" else _disease_loss
        parts[level] = loss(logits, targets, segments, spec).mean()
        total = total + level_weight(level, levels, spec) * parts[level]
    return Losses(total, parts)


def level_weight(level: Level, levels: Sequence[Level], spec: LossSpec) -> float:
    """Weight of a level beside the others: alone it is 1, the 0.7 balances two and is no rate."""
    return spec.disease_weight if level == "disease" and len(levels) > 1 else 1.0


def class_loss(
    log_p: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, spec: LossSpec
) -> torch.Tensor:
    """Loss of each photo, [B].

    log_p float32 [B, C], target int64 [B], valid bool [B, C]: the classes that exist in this row;
    label smoothing spreads over these alone.
    """
    terms = _terms(log_p.masked_fill(~valid, 0.0), spec).masked_fill(~valid, 0.0)
    hit = terms.gather(1, target[:, None]).squeeze(1)
    if not spec.label_smoothing:
        return hit
    spread = terms.sum(1) / valid.sum(1)
    return torch.lerp(hit, spread, spec.label_smoothing)


def _terms(log_p: torch.Tensor, spec: LossSpec) -> torch.Tensor:
    """What each class would cost if it were the target."""
    if spec.kind == "cross entropy":
        return -log_p
    # at p = 1 the slope of pow is infinite for gamma < 1, and infinity times log p = 0 is no number
    wrong = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -spec.alpha * wrong.pow(spec.gamma) * log_p


def _species_loss(logits: Logits, targets: Targets, segments: Segments, spec: LossSpec) -> torch.Tensor:
    log_p = logits.species.float().log_softmax(1)
    valid = torch.ones_like(log_p, dtype=torch.bool)
    losses = [weight * class_loss(log_p, species, valid, spec) for species, _, weight in targets.pairs()]
    return torch.stack(losses).sum(0)


def _disease_loss(logits: Logits, targets: Targets, segments: Segments, spec: LossSpec) -> torch.Tensor:
    losses = []
    for species, disease, weight in targets.pairs():
        log_p, valid = segments.log_softmax(logits.diseases, species)
        losses.append(weight * class_loss(log_p, disease, valid, spec))
    return torch.stack(losses).sum(0)
