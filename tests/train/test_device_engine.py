"""The `device` engine as a whole: the worker's share, the row that travels, the step's share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shardtool.errors import UsageError
from shardtool.index import Split
from train.augment import DeviceTransform, plan_columns, train_transform
from train.data import Batch, Loader, prepare
from train.device_augment import augment
from train.draws import COLUMNS, Plan
from train.model import HierarchicalModel
from train.order import EpochOrder, blocks, epoch_order
from train.recipe import AugmentSpec, Recipe, load_recipe
from train.source import open_source
from train.step import Step

CPU = torch.device("cpu")
SIZE = 32
TINY = Path(__file__).parent / "tiny.toml"


def spec(engine: str, profile: str = "seed") -> AugmentSpec:
    return AugmentSpec.model_validate({"engine": engine, "profile": profile})


def order_of(split: Split) -> EpochOrder:
    repeat = 1 + np.arange(len(split)) % 2
    return epoch_order(repeat, blocks(split.shard, split.offset), 0, 0, batch=16)


def batches(split: Split, engine: str, workers: int = 0, profile: str = "seed") -> list[Batch]:
    with Loader(split, train_transform(spec(engine, profile), SIZE, 0), workers, CPU) as loader:
        return [batch.clone() for batch in loader.epoch(order_of(split), 0)]


def device_recipe() -> Recipe:
    return load_recipe(str(TINY), ["augment.engine=device", "augment.rand_augment=off"])


def test_every_photo_comes_with_the_row_of_its_own_plan(split: Split) -> None:
    transform = train_transform(spec("device"), SIZE, 0)
    assert isinstance(transform, DeviceTransform)
    assert plan_columns(transform) == len(COLUMNS)
    order, (batch, *_) = order_of(split), batches(split, "device")
    samples, copies = order.step(0)
    assert batch.plan is not None
    assert batch.plan.shape == (len(samples), len(COLUMNS))
    for row, sample, copy in zip(batch.plan.numpy(), samples.tolist(), copies.tolist(), strict=True):
        out = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
        again = transform(split.read([sample])[0], out, 0, sample, copy)
        assert np.array_equal(row, again)
    assert len({tuple(row) for row in batch.plan.tolist()}) == len(samples)


def test_rows_and_pixels_are_the_same_for_any_number_of_workers(split: Split) -> None:
    for one, two in zip(batches(split, "device", 0), batches(split, "device", 2), strict=True):
        assert torch.equal(one.images, two.images)
        assert one.plan is not None
        assert two.plan is not None
        assert torch.equal(one.plan, two.plan)


def test_other_engines_send_no_row(split: Split) -> None:
    assert all(batch.plan is None for batch in batches(split, "fused"))


def test_worker_and_device_together_do_what_the_cpu_does_alone(split: Split) -> None:
    """Without noise, and up to the second interpolation of what is turned and the order of the JPEG."""
    whole, halves = batches(split, "fused", profile="light"), batches(split, "device", profile="light")
    for ours, theirs in zip(halves, whole, strict=True):
        assert ours.plan is not None
        assert torch.equal(ours.sample, theirs.sample)
        finished = augment(ours.images, ours.plan, torch.Generator())
        assert (finished.int() - theirs.images.int()).abs().float().mean() < 0.5
        assert (ours.images.int() - theirs.images.int()).abs().float().mean() > 2  # it had work to do


@pytest.fixture
def step(split: Split) -> Step:
    torch.manual_seed(0)
    recipe = device_recipe()
    return Step(HierarchicalModel(recipe.model, split.taxonomy), recipe, recipe.stages[-1], CPU)


def test_the_step_augments_before_it_normalises(step: Step, split: Split) -> None:
    (batch, *_) = batches(split, "device")
    assert batch.plan is not None
    flip = torch.tensor([Plan.from_row(row).flip for row in batch.plan.numpy()])
    still = torch.zeros_like(batch.plan)
    for name in ("brightness", "contrast", "saturation", "gain"):
        still[:, COLUMNS.index(name)] = 1
    still[:, COLUMNS.index("flip")] = flip.float()
    assert flip.any()
    plain = Batch(batch.images, batch.species, batch.disease, batch.sample, 0, still)
    images, _ = step._mixed(plain, False, np.random.default_rng(0))
    wanted = prepare(batch.images, CPU)
    wanted[flip] = wanted[flip].flip(3)
    assert torch.allclose(images, wanted, atol=1e-5)


def test_noise_goes_by_the_steps_generator_alone(step: Step, split: Split) -> None:
    (batch, *_) = batches(split, "device")

    def images(seed: int) -> torch.Tensor:
        return step._mixed(batch, False, np.random.default_rng(seed))[0].clone()

    assert torch.equal(images(1), images(1))
    torch.manual_seed(9)
    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(2))


def test_a_batch_is_augmented_whole_however_many_pieces_it_takes(
    step: Step, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch, *_) = batches(split, "device", profile="light")  # without noise
    whole, _ = step._mixed(batch, False, np.random.default_rng(0))
    monkeypatch.setattr("train.step.AUGMENTED", 5)
    pieces, _ = step._mixed(batch, False, np.random.default_rng(0))
    assert torch.equal(whole, pieces)


def test_a_training_step_learns_from_a_planned_batch(step: Step, split: Split) -> None:
    (batch, *_) = batches(split, "device")
    before = step.model.species_head.weight.detach().clone()
    result = step(batch, 1e-3, True, np.random.default_rng(0))
    assert not result.skipped
    assert not torch.equal(step.model.species_head.weight, before)


def test_rand_augment_is_refused_since_it_would_come_first() -> None:
    with pytest.raises(UsageError, match="engine device needs rand_augment off"):
        load_recipe(str(TINY), ["augment.engine=device", "augment.rand_augment=all"])


def test_tars_without_an_index_are_augmented_by_the_workers(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(next((shards / "train").glob("*.tar")).read_bytes())
    with pytest.raises(UsageError, match="augmented by the workers"):
        open_source(device_recipe(), str(tmp_path / "a.tar"), "", 0, CPU, (0, 1), index="")
