"""The segmented disease heads beside one linear layer a species, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from shardtool.taxonomy import Taxonomy
from train.losses import hierarchical_loss
from train.mix import Targets
from train.model import HierarchicalModel, Logits
from train.recipe import LossSpec, Recipe
from train.segments import (
    WALK_ROWS,
    DiseaseLogits,
    Run,
    Segments,
    Unmultiplied,
    disease_logits,
    species_runs,
)

FEATURES, PHOTOS = 7, 12
SIZES = (3, 1, 2, 5, 4)  # species 4 is never asked about
FORMS = ("walk", "dense")
SPECS = [
    LossSpec(),
    LossSpec(gamma=1.5, label_smoothing=0.0),
    LossSpec(kind="cross entropy", label_smoothing=0.0),
    LossSpec(kind="cross entropy", label_smoothing=0.2),
]


def label_space(sizes: tuple[int, ...]) -> Taxonomy:
    names = tuple(f"{number:03}" for number in range(max(*sizes, len(sizes))))
    return Taxonomy(names[: len(sizes)], tuple(names[:size] for size in sizes))


TAXONOMY = label_space(SIZES)


class Case:
    """Features and heads in float64, twice: for the matrix and for separate layers."""

    def __init__(self, mixed: bool) -> None:
        torch.manual_seed(3)
        self.features = torch.randn(PHOTOS, FEATURES, dtype=torch.float64, requires_grad=True)
        self.separate = self.features.detach().clone().requires_grad_()
        self.matrix = nn.Linear(FEATURES, TAXONOMY.rows, dtype=torch.float64)
        self.heads = [nn.Linear(FEATURES, size, dtype=torch.float64) for size in SIZES]
        for head, first in zip(self.heads, TAXONOMY.offsets.tolist(), strict=False):
            with torch.no_grad():
                head.weight.copy_(self.matrix.weight[first : first + head.out_features])
                head.bias.copy_(self.matrix.bias[first : first + head.out_features])
        species = torch.arange(PHOTOS) % 4
        disease = torch.arange(PHOTOS) // 3 % torch.tensor(SIZES)[species]
        other = torch.randperm(PHOTOS)
        self.targets = Targets(species, disease)
        if mixed:
            self.targets = Targets(species, disease, 0.3, species[other], disease[other])

    def logits(self, form: str) -> Logits:
        diseases: DiseaseLogits = Unmultiplied(self.features, self.matrix.weight, self.matrix.bias)
        if form == "dense":
            diseases = self.matrix(self.features)
        return Logits(torch.zeros(PHOTOS, len(SIZES), dtype=torch.float64), diseases)

    def reference(self, spec: LossSpec) -> torch.Tensor:
        """One layer, one photo, one label at a time, the definition written out."""
        terms = []
        for species, disease, weight in self.targets.pairs():
            for feature, s, d in zip(self.separate, species.tolist(), disease.tolist(), strict=True):
                p = self.heads[s](feature).softmax(0)
                target = torch.full_like(p, spec.label_smoothing / len(p))
                target[d] += 1 - spec.label_smoothing
                focus = spec.alpha * (1 - p) ** spec.gamma if spec.kind == "focal" else 1.0
                terms.append(-weight * (target * focus * p.log()).sum())
        return torch.stack(terms).sum() / PHOTOS


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_all_gradients_are_those_of_separate_layers(
    form: str, spec: LossSpec, mixed: bool
) -> None:
    case = Case(mixed)
    ours = hierarchical_loss(case.logits(form), case.targets, Segments(TAXONOMY), ("disease",), spec).total
    reference = case.reference(spec)
    ours.backward()
    reference.backward()
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(ours, reference, **close)
    torch.testing.assert_close(case.features.grad, case.separate.grad, **close)
    for name in ("weight", "bias"):
        parts = [getattr(head, name) for head in case.heads]
        expected = torch.cat([torch.zeros_like(p) if p.grad is None else p.grad for p in parts])
        torch.testing.assert_close(getattr(case.matrix, name).grad, expected, **close)


@pytest.mark.parametrize("form", FORMS)
def test_absent_species_have_exactly_no_gradient_and_present_ones_all_of_theirs(form: str) -> None:
    case = Case(mixed=True)
    hierarchical_loss(
        case.logits(form), case.targets, Segments(TAXONOMY), ("disease",), LossSpec()
    ).total.backward()
    learning = [size > 1 and species < 4 for species, size in enumerate(SIZES)]
    expected = np.repeat(learning, SIZES)  # one class: its probability is 1, whatever its row says
    for parameter in case.matrix.parameters():
        assert parameter.grad is not None
        assert parameter.grad.reshape(TAXONOMY.rows, -1).any(1).tolist() == expected.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_frozen_features_or_heads_get_no_gradient(form: str) -> None:
    for frozen in ("features", "heads"):
        case = Case(mixed=False)
        case.features.requires_grad_(frozen != "features")
        case.matrix.requires_grad_(frozen != "heads")
        spec = LossSpec()
        loss = hierarchical_loss(case.logits(form), case.targets, Segments(TAXONOMY), ("disease",), spec)
        loss.total.backward()
        assert (case.features.grad is None) == (frozen == "features")
        assert (case.matrix.weight.grad is None) == (case.matrix.bias.grad is None) == (frozen == "heads")


def test_gradients_of_micro_batches_add_up_to_that_of_the_batch() -> None:
    whole, parts = Case(mixed=True), Case(mixed=True)
    segments = Segments(TAXONOMY)
    hierarchical_loss(
        whole.logits("walk"), whole.targets, segments, ("disease",), LossSpec()
    ).total.backward()
    for start in range(0, PHOTOS, 4):
        part = slice(start, start + 4)
        diseases = Unmultiplied(parts.features[part], parts.matrix.weight, parts.matrix.bias)
        logits = Logits(torch.zeros(4, len(SIZES), dtype=torch.float64), diseases)
        loss = hierarchical_loss(logits, parts.targets[part], segments, ("disease",), LossSpec())
        (loss.total / 3).backward()
    torch.testing.assert_close(parts.matrix.weight.grad, whole.matrix.weight.grad)
    torch.testing.assert_close(parts.features.grad, whole.features.grad)


@pytest.mark.parametrize("form", FORMS)
def test_several_species_of_a_photo_are_asked_about_at_once(form: str) -> None:
    case, segments = Case(mixed=False), Segments(TAXONOMY)
    beam = torch.stack([torch.arange(PHOTOS) % 5, (torch.arange(PHOTOS) + 2) % 5], 1)
    log_p, valid = segments.log_softmax(case.logits(form).diseases, beam)
    assert log_p.shape == valid.shape == (PHOTOS, 2, max(SIZES))
    for photo, place in itertools.product(range(PHOTOS), range(2)):
        species = int(beam[photo, place])
        expected = case.heads[species](case.separate[photo]).log_softmax(0)
        torch.testing.assert_close(log_p[photo, place, : SIZES[species]], expected)
        assert log_p[photo, place, SIZES[species] :].tolist() == [-torch.inf] * (max(SIZES) - SIZES[species])


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_features_are_multiplied_and_summed_in_float32(form: str) -> None:
    heads = nn.Linear(FEATURES, TAXONOMY.rows)
    features = torch.randn(PHOTOS, FEATURES).to(torch.bfloat16).requires_grad_()
    species = torch.arange(PHOTOS) % 5
    with torch.autocast("cpu", torch.bfloat16):
        diseases: DiseaseLogits = Unmultiplied(features, heads.weight, heads.bias)
        if form == "dense":
            diseases = heads(features)
        log_p, valid = Segments(TAXONOMY).log_softmax(diseases, species)
    assert log_p.dtype == torch.float32
    log_p[valid].sum().backward()
    assert features.grad is not None
    assert heads.weight.grad is not None
    if form == "walk":
        exact = heads(features.float())[0, :3].log_softmax(0)
        assert torch.allclose(log_p[0, :3], exact, atol=1e-6)


def test_few_rows_are_multiplied_densely_and_many_are_walked() -> None:
    features = torch.randn(4, FEATURES)
    few, many = nn.Linear(FEATURES, WALK_ROWS), nn.Linear(FEATURES, WALK_ROWS + 1)
    assert isinstance(disease_logits(features, few), torch.Tensor)
    assert isinstance(disease_logits(features, many), Unmultiplied)


def test_a_model_with_many_rows_answers_as_its_matrix_does(tiny: Recipe) -> None:
    taxonomy = label_space((WALK_ROWS, 1, 4))
    model = HierarchicalModel(tiny.model, taxonomy).eval()
    images, species = torch.randn(3, 3, 32, 32), torch.tensor([2, 0, 1])
    with torch.inference_mode():
        logits = model(images)
        assert isinstance(logits.diseases, Unmultiplied)
        dense = model.disease_heads(model.backbone(images))
        walked, _ = model.segments.log_softmax(logits.diseases, species)
        expected, _ = model.segments.log_softmax(dense, species)
    assert torch.allclose(walked, expected, atol=1e-5)


def test_runs_cover_the_sorted_photos_with_the_rows_of_their_species() -> None:
    assert species_runs(np.array([0, 0, 2, 3, 3, 3]), [0, 3, 4, 6, 11]) == [
        Run(0, 2, 0, 3),
        Run(2, 3, 4, 6),
        Run(3, 6, 6, 11),
    ]
