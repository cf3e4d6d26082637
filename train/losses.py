"""Losses over the species and over the diseases of a photo's own species, in one family.

Softmax focal loss, linear in the target: FL = -alpha sum_c t_c (1 - p_c)^gamma log p_c; cross entropy is
gamma = 0, alpha = 1. Linear in t, so label smoothing and mixed labels are weighted sums of one term a
class. In float32 at least, whatever the network computes in.
Legend: B photos, C classes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from train.mix import Targets
from train.model import Logits
from train.recipe import Level, LossSpec
from train.segments import Segments, at_least_float32


@dataclass(frozen=True)
class Losses:
    """`total` is what is descended; `photos` are the losses of each level, unweighted, [B] without
    gradient."""

    total: torch.Tensor
    photos: dict[Level, torch.Tensor]

    @property
    def parts(self) -> dict[Level, torch.Tensor]:
        """Mean of each level."""
        return {level: losses.mean() for level, losses in self.photos.items()}


def hierarchical_loss(
    logits: Logits, targets: Targets, segments: Segments, levels: Sequence[Level], spec: LossSpec
) -> Losses:
    """L_species + disease_weight x L_disease for the given levels, means over the batch."""
    photos: dict[Level, torch.Tensor] = {}
    total = logits.species.new_zeros((), dtype=torch.float32)
    for level in levels:
        loss = _species_loss if level == "species" else _disease_loss
        losses = loss(logits, targets, segments, spec)
        total = total + level_weight(level, levels, spec) * losses.mean()
        photos[level] = losses.detach()
    return Losses(total, photos)


def ignorance(sizes: torch.Tensor, spec: LossSpec) -> torch.Tensor:
    """Disease loss of a species whose head gives all its `sizes` diseases the same probability, [S]."""
    return _terms(-sizes.float().log(), spec)


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
    log_p = at_least_float32(logits.species).log_softmax(1)
    valid = torch.ones_like(log_p, dtype=torch.bool)
    losses = [weight * class_loss(log_p, species, valid, spec) for species, _, weight in targets.pairs()]
    return torch.stack(losses).sum(0)


def _disease_loss(logits: Logits, targets: Targets, segments: Segments, spec: LossSpec) -> torch.Tensor:
    """Both labels of a mixed batch in one look at the heads, whose gradient is the size of the matrix."""
    species, disease, weights = zip(*targets.pairs(), strict=True)
    log_p, valid = segments.log_softmax(logits.diseases, torch.stack(species, 1))
    losses = [
        weight * class_loss(log_p[:, label], disease[label], valid[:, label], spec)
        for label, weight in enumerate(weights)
    ]
    return torch.stack(losses).sum(0)
