"""Faster ways through the network are used only where they give the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from shardtool.errors import TrainingError, UsageError
from shardtool.taxonomy import Taxonomy
from train.model import HierarchicalModel
from train.recipe import ModelSpec, Recipe, Switch
from train.selftest import (
    Finding,
    FusedAttention,
    Trial,
    disagreement,
    distance,
    examine,
    kinds,
    prepare_model,
    refusal,
    unchanged,
)

CPU = torch.device("cpu")
PHOTOS = 6
attend = F.scaled_dot_product_attention


@pytest.fixture
def model(tiny: Recipe, ragged: Taxonomy) -> HierarchicalModel:
    torch.manual_seed(0)
    return HierarchicalModel(tiny.model, ragged)


def trial(model: HierarchicalModel, recipe: Recipe, dtype: torch.dtype = torch.float32) -> Trial:
    return Trial(model, recipe, CPU, dtype, PHOTOS)


def asking(recipe: Recipe, **switches: Switch) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=switches)})


def fused_flags(model: HierarchicalModel) -> set[bool]:
    return {layer.fused_attn for layer in model.backbone.modules() if hasattr(layer, "fused_attn")}


# ---- what is tried ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "kind", "tried"),
    [
        ("off", "cuda", False),
        ("auto", "cuda", True),
        ("auto", "cpu", False),
        ("auto", "rocm", False),
        ("on", "cpu", True),
        ("on", "rocm", True),
    ],
)
def test_auto_tries_on_cuda_alone_and_on_tries_everywhere(setting: Switch, kind: Any, tried: bool) -> None:
    assert (refusal(setting, kind) == "") == tried


def test_each_kind_of_stage_is_tried_once_with_the_epochs_of_its_kind(tiny: Recipe) -> None:
    assert [(stage.name, epochs) for stage, epochs in kinds(tiny.stages)] == [("end", 4), ("head", 2)]


def test_on_a_cpu_auto_changes_nothing_and_says_why(model: HierarchicalModel, tiny: Recipe) -> None:
    prepared = prepare_model(model, tiny, CPU, torch.float32, 7)
    assert prepared.micro_batch == 7
    assert [finding.line() for finding in prepared.findings] == [
        "fused attention: not tried on a CPU, whose runs repeat bit for bit: off",
        "compile: not tried on a CPU, whose runs repeat bit for bit: off",
    ]
    assert fused_flags(model) == {False}
    assert model.compiled_for == 0


# ---- equal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_on_is_checked_and_used(
    model: HierarchicalModel, tiny: Recipe, dtype: torch.dtype
) -> None:
    recipe = asking(tiny, fused_attention="on")
    fused, _ = prepare_model(model, recipe, CPU, dtype, PHOTOS).findings
    assert fused.used
    assert fused_flags(model) == {True}
    assert fused.error is not None
    assert 0 < fused.error < (1e-5 if dtype == torch.float32 else 0.05)
    assert fused.speedup is not None
    assert fused.line().startswith("fused attention: equal within ")
    assert fused.event()["option"] == "fused attention"


def test_equal_but_slower_is_off_unless_the_recipe_insists(
    model: HierarchicalModel, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **named: Any) -> torch.Tensor:
        for _ in range(20):
            attend(*arguments, **named)
        return attend(*arguments, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", slow)
    found = examine(trial(model, tiny), FusedAttention(model))
    assert found.speedup is not None
    assert found.speedup < 1
    assert not found.used
    assert fused_flags(model) == {False}
    assert examine(trial(model, tiny), FusedAttention(model), must=True).used


def without_mask(query: Any, key: Any, value: Any, attn_mask: Any, **named: Any) -> torch.Tensor:
    return attend(query, key, value, **named)


def a_hundredth_off(query: Any, key: Any, value: Any, **named: Any) -> torch.Tensor:
    return attend(query, key, value, **named) * 1.01


def blind_to_the_position_table(
    query: Any, key: Any, value: Any, attn_mask: torch.Tensor, **named: Any
) -> torch.Tensor:
    return attend(query, key, value, attn_mask=attn_mask.detach(), **named)


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].flip(0)


def wrong_backward(query: Any, key: Any, value: Any, **named: Any) -> torch.Tensor:
    return _WrongBackward.apply(attend(query, key, value, **named))


def not_a_number(query: Any, key: Any, value: Any, **named: Any) -> torch.Tensor:
    return attend(query, key, value, **named) * float("nan")


WRONG = [without_mask, a_hundredth_off, blind_to_the_position_table, wrong_backward, not_a_number]


@pytest.mark.parametrize("kernel", WRONG)
def test_a_kernel_that_is_wrong_without_a_word_is_not_used(
    model: HierarchicalModel, tiny: Recipe, monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any]
) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    found = examine(trial(model, tiny), FusedAttention(model), must=True)
    assert not found.used
    assert found.reason.startswith("differs, the ")
    assert fused_flags(model) == {False}


@pytest.mark.parametrize("kernel", [without_mask, blind_to_the_position_table, wrong_backward, not_a_number])
def test_a_wrong_kernel_does_not_hide_behind_the_rounding_of_bfloat16(
    model: HierarchicalModel, tiny: Recipe, monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any]
) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    found = examine(trial(model, tiny, torch.bfloat16), FusedAttention(model))
    assert not found.used
    assert found.reason.startswith("differs, the ")


def test_on_is_an_error_that_says_what_differs(
    model: HierarchicalModel, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", without_mask)
    with pytest.raises(UsageError, match=r"fused attention is on and cannot be used here: differs, the .*"):
        prepare_model(model, asking(tiny, fused_attention="on"), CPU, torch.float32, PHOTOS)


def test_a_distance_is_relative_to_each_tensor_and_not_to_the_greatest() -> None:
    exact = {"the logits": torch.ones(4), "large": torch.full((4,), 100.0), "small": torch.ones(4)}
    other = {**exact, "small": torch.full((4,), 1.01)}
    assert disagreement(exact, exact, other).startswith("differs, small by 9.9e-03 (allowed 1.0e-04)")
    assert distance(exact, other) == pytest.approx(1e-4, rel=0.01)
    assert disagreement(exact, other, other) == ""  # the plain way rounds as much


# ---- what may happen -------------------------------------------------------------------------------------


def test_an_option_that_fails_is_one_line_and_no_end(
    model: HierarchicalModel, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **named: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nand more of it")

    monkeypatch.setattr(F, "scaled_dot_product_attention", broken)
    found = examine(trial(model, tiny), FusedAttention(model))
    assert found.line() == "fused attention: fails (no kernel image is available): off"
    assert fused_flags(model) == {False}


NO_COMPILER = """
import torch
from train.model import HierarchicalModel
from train.recipe import load_recipe
from train.selftest import Compiled, Trial, examine
from shardtool.taxonomy import Taxonomy

recipe = load_recipe("tests/train/tiny.toml")
model = HierarchicalModel(recipe.model, Taxonomy(("A",), (("h", "x"),)))
trial = Trial(model, recipe, torch.device("cpu"), torch.float32, 2)
print(examine(trial, Compiled(model)).line())
print(model.compiled_for, len(trial.gradients(recipe.stages[-1])) > 20)
"""


@pytest.mark.slow
def test_without_a_compiler_compiling_is_off_and_training_goes_on(tmp_path: Path) -> None:
    settings = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER], env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line, after = done.stdout.splitlines()
    assert line.startswith("compile: fails (")
    assert "compiler" in line
    assert line.endswith("): off")
    assert after == "0 True"


def test_nothing_is_learned_or_drawn_and_no_name_changes(model: HierarchicalModel, tiny: Recipe) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    prepare_model(model, asking(tiny, fused_attention="on"), CPU, torch.float32, PHOTOS)
    assert torch.equal(torch.rand(4), expected)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_means_of_a_batch_norm_do_not_see_the_made_up_photos(ragged: Taxonomy, tiny: Recipe) -> None:
    spec = ModelSpec(backbone="xcit_nano_12_p16_224", pretrained=False, image_size=32)
    model = HierarchicalModel(spec, ragged)
    before = [buffer.clone() for buffer in model.buffers()]

    def same() -> bool:
        return all(torch.equal(*pair) for pair in zip(model.buffers(), before, strict=True))

    with unchanged(model):
        trial(model, tiny).gradients(tiny.stages[-1])
        assert not same()
    assert same()


def test_a_step_that_the_device_cannot_do_is_an_error_before_training(
    model: HierarchicalModel, tiny: Recipe
) -> None:
    model.backbone.norm.weight.data = torch.ones(3)  # as a kernel that fails would
    with pytest.raises(TrainingError, match="the device cannot do a training step: "):
        prepare_model(model, asking(tiny, fused_attention="on"), CPU, torch.float32, PHOTOS)


def out_of_memory_above(photos: int) -> Callable[..., None]:
    def forward(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > photos:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    return forward


def test_what_does_not_fit_is_halved_until_it_does(model: HierarchicalModel, tiny: Recipe) -> None:
    model.backbone.patch_embed.register_forward_pre_hook(out_of_memory_above(5))
    prepared = prepare_model(model, asking(tiny, fused_attention="on"), CPU, torch.float32, 16)
    assert prepared.micro_batch == 4


def test_one_photo_that_does_not_fit_is_an_error_with_a_cure(model: HierarchicalModel, tiny: Recipe) -> None:
    model.backbone.patch_embed.register_forward_pre_hook(out_of_memory_above(0))
    with pytest.raises(TrainingError, match=r"not even one photo fits .*Tried to allocate.*image_size"):
        prepare_model(model, asking(tiny, fused_attention="on"), CPU, torch.float32, 2)


def test_only_training_batches_of_one_size_are_compiled(model: HierarchicalModel) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model.backbone.compile(dynamic=False, backend=backend)
    model.compiled_for = PHOTOS
    with torch.no_grad():  # as in validation
        model(torch.zeros(PHOTOS, 3, 32, 32))
    model(torch.zeros(PHOTOS - 1, 3, 32, 32))
    assert not graphs
    model(torch.zeros(PHOTOS, 3, 32, 32))
    assert graphs


@pytest.mark.slow
def test_the_compiled_backbone_is_equal_draws_the_same_and_keeps_its_names(
    model: HierarchicalModel, tiny: Recipe
) -> None:
    names = list(model.state_dict())
    prepared = prepare_model(model, asking(tiny, compile="on"), CPU, torch.float32, PHOTOS)
    found = prepared.findings[-1]
    assert found.used
    assert found.error is not None
    assert found.error < 1e-5
    assert model.compiled_for == PHOTOS
    assert list(model.state_dict()) == names
    ours, images = trial(model, tiny), torch.randn(PHOTOS, 3, 32, 32)
    compiled = ours.gradients(tiny.stages[-1])
    model.compiled_for = 0
    plain = ours.gradients(tiny.stages[-1])
    assert disagreement(plain, plain, compiled) == ""
    assert not all(torch.equal(plain[name], compiled[name]) for name in plain)  # it did run
    with torch.no_grad():  # validation and other sizes are not compiled
        model.eval().compiled_for = PHOTOS
        assert torch.equal(model(images).species, model.species_head(model.backbone.forward(images)))


def test_a_finding_reads_as_one_line() -> None:
    found = Finding("compile", True, "equal within 3e-07, step 1.42x", 3e-7, 1.42, 31.0)
    assert found.line() == "compile: equal within 3e-07, step 1.42x: on"
