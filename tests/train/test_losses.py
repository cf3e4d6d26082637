from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from shardtool.taxonomy import Taxonomy
from train.losses import class_loss, hierarchical_loss
from train.mix import Targets
from train.model import Logits
from train.recipe import LossSpec
from train.segments import Segments

SPECIES = torch.tensor([0, 1, 2, 2, 0])
DISEASE = torch.tensor([2, 0, 1, 0, 1])
FOCAL = LossSpec()
PLAIN = LossSpec(kind="cross entropy", label_smoothing=0.0)


def separate_heads(
    heads: list[nn.Linear],
    features: torch.Tensor,
    species: torch.Tensor,
    disease: torch.Tensor,
    spec: LossSpec,
) -> torch.Tensor:
    """The slow, obvious way: one linear a species, one photo at a time, the definition written out."""
    losses = []
    for feature, s, d in zip(features, species.tolist(), disease.tolist(), strict=True):
        p = heads[s](feature).softmax(0)
        target = torch.full_like(p, spec.label_smoothing / len(p))
        target[d] += 1 - spec.label_smoothing
        if spec.kind == "focal":
            losses.append(-spec.alpha * (target * (1 - p) ** spec.gamma * p.log()).sum())
        else:
            losses.append(-(target * p.log()).sum())
    return torch.stack(losses)


def as_matrix(heads: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.cat([head.weight for head in heads]).detach().clone().requires_grad_()
    bias = torch.cat([head.bias for head in heads]).detach().clone().requires_grad_()
    return weight, bias


@pytest.mark.parametrize("spec", [FOCAL, PLAIN, LossSpec(gamma=1.5, label_smoothing=0.0)])
def test_the_segmented_matrix_equals_separate_heads(ragged: Taxonomy, spec: LossSpec) -> None:
    torch.manual_seed(0)
    heads = [nn.Linear(7, size) for size in (3, 1, 2)]
    features = torch.randn(5, 7)
    weight, bias = as_matrix(heads)
    reference = separate_heads(heads, features, SPECIES, DISEASE, spec).mean()
    reference.backward()
    logits = Logits(torch.zeros(5, 3), nn.functional.linear(features, weight, bias))
    losses = hierarchical_loss(logits, Targets(SPECIES, DISEASE), Segments(ragged), ("disease",), spec)
    losses.total.backward()
    assert torch.allclose(losses.total, reference, atol=1e-6)
    gradient = torch.cat([head.weight.grad for head in heads if head.weight.grad is not None])
    assert weight.grad is not None
    assert torch.allclose(weight.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_species_with_one_class_costs_nothing(ragged: Taxonomy, gamma: float) -> None:
    logits = Logits(torch.zeros(2, 3), torch.randn(2, 6, requires_grad=True))
    targets = Targets(torch.tensor([1, 1]), torch.tensor([0, 0]))
    losses = hierarchical_loss(logits, targets, Segments(ragged), ("disease",), LossSpec(gamma=gamma))
    losses.total.backward()
    assert losses.total.item() == 0
    assert logits.diseases.grad is not None
    assert not logits.diseases.grad.any()


def test_both_levels_add_up_with_the_disease_weight_of_the_recipe(ragged: Taxonomy) -> None:
    logits = Logits(torch.randn(5, 3), torch.randn(5, 6))
    targets, segments = Targets(SPECIES, DISEASE), Segments(ragged)
    both = hierarchical_loss(logits, targets, segments, ("species", "disease"), FOCAL)
    assert torch.allclose(both.total, both.parts["species"] + 0.7 * both.parts["disease"])
    alone = hierarchical_loss(logits, targets, segments, ("disease",), FOCAL)
    assert torch.equal(alone.total, both.parts["disease"])


def test_a_mixed_photo_is_trained_in_the_heads_of_both_its_labels(ragged: Taxonomy) -> None:
    logits, segments = Logits(torch.randn(5, 3), torch.randn(5, 6)), Segments(ragged)
    other, other_disease = SPECIES.flip(0), DISEASE.flip(0)
    levels = ("species", "disease")
    mixed = hierarchical_loss(
        logits, Targets(SPECIES, DISEASE, 0.3, other, other_disease), segments, levels, FOCAL
    )
    first = hierarchical_loss(logits, Targets(SPECIES, DISEASE), segments, levels, FOCAL)
    second = hierarchical_loss(logits, Targets(other, other_disease), segments, levels, FOCAL)
    assert torch.allclose(mixed.total, 0.3 * first.total + 0.7 * second.total, atol=1e-6)


def test_smoothing_pulls_the_optimum_of_focal_loss_far_below_one() -> None:
    # two classes, gamma 2, smoothing 0.1 (0.69 with five classes and more): raw confidence says little
    p = torch.linspace(0.5, 0.999, 2000)
    log_p = torch.stack([p.log(), (1 - p).log()], 1)
    target = torch.zeros(len(p), dtype=torch.int64)
    losses = class_loss(log_p, target, torch.ones_like(log_p, dtype=torch.bool), FOCAL)
    best = p[losses.argmin()].item()
    slow = [0.95 * (1 - q) ** 2 * -math.log(q) + 0.05 * q**2 * -math.log(1 - q) for q in p.tolist()]
    assert best == pytest.approx(p[min(range(len(slow)), key=slow.__getitem__)].item(), abs=1e-3)
    assert best == pytest.approx(0.75, abs=0.01)


def test_confident_wrong_logits_stay_finite(ragged: Taxonomy) -> None:
    logits = Logits(torch.tensor([[100.0, -100, 0]]), torch.tensor([[90.0, -90, 0, 0, 0, 0]]))
    targets = Targets(torch.tensor([1]), torch.tensor([0]))
    diseases = Targets(torch.tensor([0]), torch.tensor([1]))
    for these in (targets, diseases):
        total = hierarchical_loss(logits, these, Segments(ragged), ("species", "disease"), FOCAL).total
        assert torch.isfinite(total)
