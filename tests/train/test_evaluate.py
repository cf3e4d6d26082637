from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shardtool.index import Split
from train.augment import EvalTransform
from train.calibration import BEAM
from train.data import Loader, prepare
from train.evaluate import Evaluated, evaluate, merged
from train.model import HierarchicalModel
from train.recipe import LossSpec, Recipe

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny: Recipe, split: Split) -> HierarchicalModel:
    """A network that has learned nothing, but has opinions."""
    torch.manual_seed(3)
    network = HierarchicalModel(tiny.model, split.taxonomy)
    for head in (network.species_head, network.disease_heads):
        torch.nn.init.normal_(head.weight)
    return network.eval()


def ask(
    model: HierarchicalModel,
    split: Split,
    batch: int = 16,
    outputs: bool = True,
    samples: NDArray[np.int64] | None = None,
) -> Evaluated:
    with Loader(split, EvalTransform(32), 0, CPU) as loader:
        return evaluate(
            model, loader, batch, CPU, nullcontext(), LossSpec(), samples=samples, outputs=outputs
        )


def damaged(split: Split, *samples: int) -> Split:
    """The same split, which expects other bytes of some photos."""
    crc32c = split.crc32c.copy()
    crc32c[list(samples)] ^= np.uint32(1)
    return replace(split, crc32c=crc32c)


def same(one: Evaluated, other: Evaluated) -> None:
    for name, values in vars(one.predictions).items():
        assert (values == getattr(other.predictions, name)).all(), name
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert (one.samples == other.samples).all()
    assert one.outputs is not None
    assert other.outputs is not None
    for name, values in vars(one.outputs).items():
        np.testing.assert_allclose(values, getattr(other.outputs, name), atol=1e-4, err_msg=name)


def test_predictions_are_what_asking_photo_by_photo_gives(model: HierarchicalModel, split: Split) -> None:
    found = ask(model, split)
    assert found.outputs is not None
    transform, pixels = EvalTransform(32), np.empty((32, 32, 3), dtype=np.uint8)
    bounds = split.taxonomy.offsets
    for photo in range(0, len(split), 9):
        transform(split.read([photo])[0], pixels)
        with torch.inference_mode():
            features = model.backbone(prepare(torch.from_numpy(pixels[None]), CPU))
            species = model.species_head(features)[0]
            rows = model.disease_heads(features)[0]
        true, best = int(split.species[photo]), int(species.argmax())
        own = rows[bounds[true] : bounds[true + 1]]
        seen = {name: values[photo] for name, values in vars(found.predictions).items()}
        assert seen["species"] == true
        assert bounds[true] + seen["disease"] == split.row[photo]
        assert seen["species_hat"] == best
        assert seen["disease_hat"] == int(own.argmax())
        assert seen["routed"] == int(rows[bounds[best] : bounds[best + 1]].argmax())
        assert seen["in_top3"] == (seen["disease"] in own.argsort(descending=True)[:3])
        outputs = found.outputs
        np.testing.assert_allclose(outputs.species[photo], species, atol=1e-4)
        np.testing.assert_allclose(outputs.own[photo], own.log_softmax(0), atol=1e-4)
        assert outputs.beam[photo].tolist() == species.argsort(descending=True)[:BEAM].tolist()


def test_every_photo_is_counted_once_whatever_the_batch(model: HierarchicalModel, split: Split) -> None:
    whole = ask(model, split)
    assert whole.samples.tolist() == list(range(len(split)))
    assert len(whole.left_out) == 0
    same(whole, ask(model, split, batch=7))


def test_what_took_the_place_of_a_bad_photo_is_not_counted(model: HierarchicalModel, split: Split) -> None:
    bad = [2, 3, len(split) - 1]
    found = ask(model, damaged(split, *bad))
    assert found.left_out.tolist() == bad
    good = np.setdiff1d(np.arange(len(split)), bad)
    same(found, ask(model, split, samples=good))


def test_a_batch_of_bad_photos_alone_counts_nothing(model: HierarchicalModel, split: Split) -> None:
    found = ask(model, damaged(split, 0, 1), batch=2, samples=np.arange(6))
    assert found.samples.tolist() == [2, 3, 4, 5]
    assert found.left_out.tolist() == [0, 1]


def test_the_parts_of_several_ranks_make_the_whole(model: HierarchicalModel, split: Split) -> None:
    broken = damaged(split, 4)
    parts = [ask(model, broken, samples=np.arange(len(split))[rank::3]) for rank in range(3)]
    together = merged(parts)
    same(together, ask(model, broken))
    assert together.left_out.tolist() == [4]


def test_a_rank_without_photos_adds_nothing(model: HierarchicalModel, split: Split) -> None:
    nothing = ask(model, split, samples=np.zeros(0, dtype=np.int64))
    same(merged([nothing, ask(model, split)]), ask(model, split))
    assert len(merged([nothing, nothing]).predictions) == 0


def test_the_losses_are_means_over_photos_without_smoothing(model: HierarchicalModel, split: Split) -> None:
    found = ask(model, split)
    assert found.outputs is not None
    for level, target in (("species", found.predictions.species), ("disease", found.predictions.disease)):
        logits = torch.from_numpy(found.outputs.species if level == "species" else found.outputs.own)
        log_p = logits.log_softmax(1).gather(1, torch.from_numpy(target)[:, None])
        focal = -0.25 * (1 - log_p.exp()) ** 2 * log_p
        assert found.losses[level] == pytest.approx(float(focal.mean()), rel=1e-4)


def test_numbers_are_kept_only_where_they_are_asked_for(model: HierarchicalModel, split: Split) -> None:
    assert ask(model, split, outputs=False).outputs is None


def test_an_empty_part_is_no_error(model: HierarchicalModel, split: Split) -> None:
    found = ask(model, split, samples=np.zeros(0, dtype=np.int64))
    assert len(found.predictions) == len(found.samples) == 0
    assert found.losses == {}
