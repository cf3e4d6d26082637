"""One optimizer step against its references: too little memory, numbers that are none, heads that diverge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardtool.errors import TrainingError
from shardtool.taxonomy import Taxonomy
from train.data import Batch
from train.model import HierarchicalModel
from train.recipe import Recipe, load_recipe
from train.stages import optimizer_state
from train.step import Step, averaged
from train.watch import DAMPED, SEEN

TINY = Path(__file__).parent / "tiny.toml"
CPU = torch.device("cpu")
SPECIES = torch.tensor([0, 0, 1, 2, 2, 0, 1, 2, 0, 2])
DISEASE = torch.tensor([0, 2, 0, 1, 0, 1, 0, 0, 1, 1])
LR = 1e-3
Make = Callable[..., Step]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On networks this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(ragged: Taxonomy) -> Make:
    """A step of the end-to-end stage on a network that is the same each time."""

    def make(*settings: str, ema: float = 0.0) -> Step:
        recipe: Recipe = load_recipe(str(TINY), ["optimizer.precision=fp32", *settings])
        torch.manual_seed(1)
        model = HierarchicalModel(recipe.model, ragged)
        return Step(model, recipe, recipe.stages[3], CPU, average=averaged(model, ema))

    return make


def photos(number: int, white: int | None = None) -> Batch:
    """Ten photos of random pixels with the sample ids 100, 101, …; the one at place `white` is white."""
    draw = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (len(SPECIES), 32, 32, 3), dtype=torch.uint8, generator=draw)
    if white is not None:
        images[white] = 255
    return Batch(images, SPECIES, DISEASE, torch.arange(100, 100 + len(SPECIES)), number)


def take(step: Step, batch: Batch, lr: float = LR) -> Any:
    return step(batch, lr, False, np.random.default_rng(batch.step))


def state(step: Step) -> dict[str, torch.Tensor]:
    """All that a step changes: weights, optimizer, running mean."""
    found = {name: value.clone() for name, value in step.model.state_dict().items()}
    for name, values in optimizer_state(step.optimizer).items():
        found |= {f"{name} {key}": value.clone() for key, value in values.items()}
    if step.average is not None:
        found |= {f"mean {name}": value.clone() for name, value in step.average.state_dict().items()}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def blind_on_white(step: Step) -> None:
    """The network has no number for white photos, as one whose activations overflow."""

    def poison(model: torch.nn.Module, arguments: tuple[torch.Tensor]) -> torch.Tensor:
        (images,) = arguments
        white = images.amin((1, 2, 3)) > 2
        return images.masked_fill(white[:, None, None, None], torch.nan)

    step.model.register_forward_pre_hook(poison)


# ---- out of memory ------------------------------------------------------------------------------------


def memory_for(step: Step, photos: int, from_call: int = 1) -> None:
    """More than so many photos at a time do not fit, from one forward pass on."""
    calls = 0

    def refuse(model: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls >= from_call and len(arguments[0]) > photos:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    step.model.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("drop_path", [0.0, 0.1])
@pytest.mark.parametrize(("start", "from_call"), [(0, 1), (5, 2)])  # at once, or in the middle of a batch
def test_where_memory_is_short_the_same_step_is_done_with_fewer_photos_at_a_time(
    make: Make, drop_path: float, start: int, from_call: int
) -> None:
    short = make(f"optimizer.micro_batch={start}", f"model.drop_path={drop_path}")
    roomy = make("optimizer.micro_batch=2", f"model.drop_path={drop_path}")
    memory_for(short, 3, from_call)
    for number in range(3):
        result, expected = take(short, photos(number)), take(roomy, photos(number))
        assert (result.losses, result.photos) == (expected.losses, expected.photos)
        assert result.halved == (number == 0)
    assert short.micro_batch == 2
    assert same(state(short), state(roomy))


def test_a_photo_that_is_too_large_alone_is_a_clear_error(make: Make) -> None:
    step = make()
    memory_for(step, 0)
    before = state(step)
    with pytest.raises(TrainingError, match="not even one photo fits into the memory: CUDA out of") as error:
        take(step, photos(0))
    assert "image_size" in error.value.cure
    assert "\n" not in str(error.value)
    assert same(before, state(step))


# ---- numbers that are none ----------------------------------------------------------------------------


def test_a_step_whose_loss_is_no_number_changes_nothing_and_names_the_photo(make: Make) -> None:
    step, other = make(ema=0.9), make(ema=0.9)
    blind_on_white(step)
    for each in (step, other):
        take(each, photos(0))
    before = state(step)
    result = take(step, photos(1, white=4))
    assert (result.skipped, result.bad) == (True, (104,))
    assert same(before, state(step))
    for each in (step, other):  # and the next step is as if it had never come
        assert not take(each, photos(2)).skipped
    assert same(state(step), state(other))


def test_a_head_without_numbers_is_blamed_on_the_photos_of_its_species(make: Make) -> None:
    step = make()
    rows = slice(step.model.segments.bounds[2], step.model.segments.bounds[3])
    with torch.no_grad():
        step.model.disease_heads.weight[rows] = torch.nan
    before = state(step)
    result = take(step, photos(0))
    assert result.skipped
    assert result.bad == tuple(100 + place for place, species in enumerate(SPECIES) if species == 2)
    after = state(step)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], 0, 0, equal_nan=True) for name in before)


def test_a_gradient_that_is_no_number_blames_no_photo(make: Make) -> None:
    step = make()
    step.model.species_head.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = state(step)
    result = take(step, photos(0))
    assert (result.skipped, result.bad) == (True, ())
    assert same(before, state(step))


def test_under_float16_a_step_that_was_skipped_does_not_end_the_run(make: Make) -> None:
    step = make()
    step.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    blind_on_white(step)
    assert take(step, photos(0, white=1)).skipped
    before = state(step)
    result = take(step, photos(1))
    assert not result.skipped
    assert not same(before, state(step))
    assert step.scaler.get_scale() == 4.0


def test_a_gradient_that_overflows_float16_lowers_the_scale_and_is_a_fault_only_without_one(
    make: Make,
) -> None:
    step = make()
    step.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    step.model.species_head.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = state(step)
    assert [take(step, photos(number)).skipped for number in range(4)] == [False, False, True, True]
    assert same(before, state(step))


# ---- heads that diverge -------------------------------------------------------------------------------


def test_the_gradient_of_a_head_that_diverges_is_damped_and_that_of_the_others_is_not(make: Make) -> None:
    step = make("optimizer.clip=1e9", "loss.label_smoothing=0.0")
    weight = step.model.disease_heads.weight
    with torch.no_grad():
        step.model.disease_heads.bias[:3] = torch.tensor([8.0, 0.0, 0.0])
    raw, used = [], []
    weight.register_hook(lambda gradient: raw.append(gradient.clone()))
    step.optimizer.register_step_pre_hook(
        lambda *_: used.append(weight.grad.clone()) if weight.grad is not None else None
    )
    right = torch.where(SPECIES == 0, 0, DISEASE)
    wrong = torch.where(SPECIES == 0, 1, DISEASE)
    for number in range(SEEN):
        take(step, _labelled(photos(number), right), lr=0.0)
    assert step.damped == []
    assert torch.equal(raw[-1], used[-1])
    while not step.damped:
        assert len(raw) < 2 * SEEN
        take(step, _labelled(photos(len(raw)), wrong), lr=0.0)
    assert step.damped == [0]
    assert torch.allclose(used[-1][:3], DAMPED * raw[-1][:3])
    assert raw[-1][:3].abs().max() > 0
    assert torch.equal(used[-1][3:], raw[-1][3:])


def _labelled(batch: Batch, disease: torch.Tensor) -> Batch:
    return Batch(batch.images, batch.species, disease, batch.sample, batch.step)


# ---- the running mean ---------------------------------------------------------------------------------


def test_the_running_mean_keeps_its_share_at_each_step(make: Make) -> None:
    decay, step = 0.8, make(ema=0.8)
    assert step.average is not None
    means = {name: value.double() for name, value in step.model.named_parameters()}
    for number in range(4):
        take(step, photos(number))
        for name, value in step.model.named_parameters():
            means[name] = decay * means[name] + (1 - decay) * value.detach().double()
    for name, value in step.average.module.named_parameters():
        assert torch.allclose(value.double(), means[name].detach(), rtol=1e-5, atol=1e-7), name
    moved = [
        not torch.equal(value, means[name].detach().float()) for name, value in step.model.named_parameters()
    ]
    assert any(moved)


def test_no_mean_is_kept_where_none_is_asked_for(make: Make) -> None:
    assert make().average is None
