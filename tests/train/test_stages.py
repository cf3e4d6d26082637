from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from shardtool.taxonomy import Taxonomy
from train.model import HierarchicalModel
from train.recipe import Recipe, StageSpec, load_recipe
from train.stages import (
    RowwiseAdamW,
    freeze,
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    parameter_groups,
)

SWIN = load_recipe("swin_tiny")


def stage(**values: object) -> StageSpec:
    fields = {
        "name": "s",
        "folder": "species_only",
        "epochs": 4,
        "trains": "species",
        "lr": 1e-4,
        "losses": ["species"],
    }
    return StageSpec.model_validate({**fields, **values})


@pytest.fixture
def model(tiny: Recipe, ragged: Taxonomy) -> HierarchicalModel:
    torch.manual_seed(0)
    return HierarchicalModel(tiny.model, ragged)


def test_the_recipe_is_the_source_documents_table() -> None:
    rows = [(s.folder, s.epochs, s.trains, s.lr, s.lr_end, s.mixing, s.losses) for s in SWIN.stages]
    assert rows == [
        ("species_only", 5, "species head", 1e-3, 0, True, ("species",)),
        ("species_only", 20, "species", 1e-4, 1e-6, True, ("species",)),
        ("species_only", 5, "species", 5e-6, 0, True, ("species",)),
        ("disease_heads", 15, "disease heads", 1e-3, 0, True, ("disease",)),
        ("disease_heads", 5, "disease heads", 5e-4, 0, False, ("disease",)),
        ("hierarchical_full", 10, "all", 1e-5, 0, True, ("species", "disease")),
    ]
    assert SWIN.stages[2].backbone_lr_scale == 0.1
    assert (SWIN.loss.kind, SWIN.loss.gamma, SWIN.loss.alpha) == ("focal", 2.0, 0.25)
    assert (SWIN.loss.label_smoothing, SWIN.loss.disease_weight) == (0.1, 0.7)
    assert (SWIN.mix.mixup_alpha, SWIN.mix.cutmix_alpha) == (0.2, 1.0)
    assert (SWIN.optimizer.batch, SWIN.optimizer.clip) == (256, 1.0)
    assert [(tier.below, tier.repeat) for tier in SWIN.samplers["rare"]] == [(50, 5), (80, 3)]


def test_the_small_recipe_has_the_same_six_steps() -> None:
    small = load_recipe("small")
    for ours, source in zip(small.stages, SWIN.stages, strict=True):
        for name in ("name", "folder", "trains", "sampler", "losses"):
            assert getattr(ours, name) == getattr(source, name)
        assert ours.mixing == source.mixing
    assert small.loss == SWIN.loss
    assert small.samplers == SWIN.samplers


def test_the_rate_warms_up_then_follows_a_cosine_to_its_end() -> None:
    spec = stage(lr_end=1e-6, warmup_epochs=0.5)
    rates = [learning_rate(spec, step, 10) for step in range(40)]
    assert rates[:5] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 1e-4])
    assert rates[5] == pytest.approx(1e-4)
    assert rates[22] == pytest.approx((1e-4 + 1e-6) / 2, rel=0.02)
    assert rates[-1] == pytest.approx(1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[5:]))


def test_a_rate_without_an_end_is_constant() -> None:
    assert {learning_rate(stage(), step, 10) for step in range(40)} == {1e-4}


@pytest.mark.parametrize(
    ("trains", "learning"),
    [
        ("species head", {"species_head"}),
        ("species", {"backbone", "species_head"}),
        ("disease heads", {"disease_heads"}),
        ("all", {"backbone", "species_head", "disease_heads"}),
    ],
)
def test_only_the_parts_of_the_stage_learn(model: HierarchicalModel, trains: str, learning: set[str]) -> None:
    freeze(model, trains)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] in learning)
    assert model.backbone.training == ("backbone" in learning)


def test_frozen_features_do_not_move_with_stochastic_depth(model: HierarchicalModel) -> None:
    freeze(model, "species head")
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(model.backbone(images), model.backbone(images))


def test_heads_norms_biases_and_position_tables_do_not_decay(model: HierarchicalModel, tiny: Recipe) -> None:
    for group in parameter_groups(model, stage(trains="all"), tiny.optimizer):
        for name in group["names"]:
            spared = "head" in name or "norm" in name or name.endswith(("bias", "position_bias_table"))
            assert (group["weight_decay"] == 0) == spared, name


def test_the_backbone_learns_at_a_tenth_of_the_heads_rate(model: HierarchicalModel, tiny: Recipe) -> None:
    optimizer = make_optimizer(model, stage(backbone_lr_scale=0.1), tiny.optimizer)
    optimizer.set_lr(5e-6)
    for group in optimizer.param_groups:
        expected = 5e-7 if group["names"][0].startswith("backbone") else 5e-6
        assert math.isclose(group["lr"], expected)


def test_rows_of_absent_species_rest_as_separate_layers_would() -> None:
    torch.manual_seed(0)
    separate = [nn.Parameter(torch.randn(2, 5)) for _ in range(3)]
    matrix = nn.Parameter(torch.cat([p.detach() for p in separate]))
    group = {"names": ["w"], "scale": 1.0, "weight_decay": 0.0, "rowwise": [0, 2, 4, 6]}
    ours = RowwiseAdamW([{"params": [matrix], **group}], lr=0.01)
    theirs = torch.optim.AdamW(separate, lr=0.01, weight_decay=0.0)
    for present in ([0, 1], [1], [2, 1], [0], [0, 1, 2], [1]):
        gradient = torch.randn(6, 5)
        matrix.grad = torch.zeros_like(matrix)
        theirs.zero_grad(set_to_none=True)
        for place in present:
            rows = slice(2 * place, 2 * place + 2)
            matrix.grad[rows] = gradient[rows]
            separate[place].grad = gradient[rows].clone()
        ours.step()
        theirs.step()
        assert torch.allclose(matrix, torch.cat(list(separate)), atol=1e-6)


def test_optimizer_state_goes_by_name_into_other_groups(model: HierarchicalModel, tiny: Recipe) -> None:
    first = make_optimizer(model, stage(trains="all"), tiny.optimizer)
    model(torch.randn(2, 3, 32, 32)).species.sum().backward()
    first.step()
    second = make_optimizer(model, stage(trains="all", backbone_lr_scale=0.1), tiny.optimizer)
    load_optimizer_state(second, optimizer_state(first))
    before, after = optimizer_state(first), optimizer_state(second)
    assert before.keys() == after.keys()
    for name, state in before.items():
        assert all(torch.equal(value, after[name][key]) for key, value in state.items())
