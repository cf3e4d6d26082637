from __future__ import annotations

import numpy as np
import torch

from train.mix import Targets, cut_box, mix
from train.recipe import MixSpec

ALWAYS = MixSpec(probability=1.0)
SPECIES, DISEASE = torch.arange(8), torch.arange(8) + 100


def constant_images() -> torch.Tensor:
    """Photo i is i everywhere, so a mixed pixel says where it came from."""
    return torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 16).contiguous()


def mixes(count: int = 200) -> list[tuple[torch.Tensor, Targets]]:
    return [
        mix(constant_images(), SPECIES, DISEASE, ALWAYS, np.random.default_rng(seed)) for seed in range(count)
    ]


def test_the_label_weight_is_the_share_of_pixels() -> None:
    for images, targets in mixes():
        assert targets.species_b is not None
        expected = targets.lam * SPECIES + (1 - targets.lam) * targets.species_b
        assert torch.allclose(images.mean(dim=(1, 2, 3)), expected.float(), atol=1e-4)


def test_both_mixup_and_cutmix_occur() -> None:
    # CutMix leaves whole numbers: every pixel is of one photo
    cut = [bool((images == images.round()).all()) for images, t in mixes() if 0.01 < t.lam < 0.99]
    assert 0.3 < np.mean(cut) < 0.8


def test_labels_travel_together() -> None:
    for _, targets in mixes(20):
        assert targets.species_b is not None
        assert targets.disease_b is not None
        assert torch.equal(targets.disease_b, targets.species_b + 100)


def test_probability_zero_leaves_the_batch_alone() -> None:
    images = constant_images()
    mixed, targets = mix(images, SPECIES, DISEASE, MixSpec(probability=0.0), np.random.default_rng(0))
    assert mixed is images
    assert targets.pairs() == [(SPECIES, DISEASE, 1.0)]


def test_a_batch_of_one_is_not_mixed() -> None:
    _, targets = mix(constant_images()[:1], SPECIES[:1], DISEASE[:1], ALWAYS, np.random.default_rng(0))
    assert targets.species_b is None


def test_the_box_stays_inside_and_has_the_asked_area_before_clipping() -> None:
    generator = np.random.default_rng(0)
    for lam in np.linspace(0, 1, 50):
        top, bottom, left, right = cut_box(64, 48, float(lam), generator)
        assert 0 <= top <= bottom <= 64
        assert 0 <= left <= right <= 48
        assert (bottom - top) * (right - left) <= (1 - lam) * 64 * 48 + 64 + 48


def test_an_unclipped_box_has_the_asked_area() -> None:
    class Centre:
        def integers(self, limit: int) -> int:
            return limit // 2

    for lam in np.linspace(0, 1, 50):
        top, bottom, left, right = cut_box(64, 48, float(lam), Centre())  # type: ignore[arg-type]
        area = (bottom - top) * (right - left)
        assert (1 - lam) * 64 * 48 - 2 * (64 + 48) <= area <= (1 - lam) * 64 * 48 + 64 + 48


def test_a_part_of_the_targets_is_the_targets_of_a_part() -> None:
    _, targets = mixes(1)[0]
    part = targets[2:5]
    assert part.species.tolist() == [2, 3, 4]
    assert part.species_b is not None
    assert targets.species_b is not None
    assert torch.equal(part.species_b, targets.species_b[2:5])
