from __future__ import annotations

import albumentations as A
import numpy as np
import pytest

from train.augment import EvalTransform, TrainTransform, profile
from train.loop import STEP_STREAM
from train.recipe import AugmentSpec

GREY = np.full((96, 96, 3), 128, dtype=np.uint8)
PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
SPECS = [
    *(AugmentSpec(profile=name) for name in ("seed", "table", "light", "none")),
    AugmentSpec(profile="light", rand_augment="all"),
    AugmentSpec(profile="light", rand_augment="lesion-safe"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_copy_of_a_photo_has_its_own_repeatable_pixels(spec: AugmentSpec) -> None:
    one, other = TrainTransform(spec, 32, seed=3), TrainTransform(spec, 32, seed=3)
    first = one(PHOTO, 1, 5, 0)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    other(PHOTO, 0, 9, 2)  # what was drawn before does not matter
    assert np.array_equal(first, other(PHOTO, 1, 5, 0))
    if spec.profile != "none":
        for key in ((2, 5, 0), (1, 6, 0), (1, 5, 1)):
            assert not np.array_equal(first, one(PHOTO, *key))
        assert not np.array_equal(first, TrainTransform(spec, 32, seed=4)(PHOTO, 1, 5, 0))


def test_order_steps_and_augmentation_draw_from_streams_of_their_own() -> None:
    transform = TrainTransform(SPECS[0], 32, seed=3)
    first = []
    for sample in range(4):
        transform._bits.state = transform.state(1, sample, 1)
        first.append(transform._numpy.random())
    order = np.random.Generator(np.random.Philox(key=[3, 1]))
    steps = [
        np.random.Generator(np.random.Philox(key=[3, 1], counter=[0, STEP_STREAM, 0, n])) for n in range(4)
    ]
    draws = [*first, order.random(), *(generator.random() for generator in steps)]
    assert len(set(draws)) == len(draws)


def test_random_augment_leaves_torchs_global_generator_alone() -> None:
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    TrainTransform(SPECS[-1], 32, seed=0)(PHOTO, 0, 0, 0)
    assert torch.equal(torch.rand(3), expected)


def only(kind: type, name: str = "table", size: int = 96) -> A.Compose:
    found = [transform for transform in profile(name, size) if isinstance(transform, kind)]
    assert len(found) == 1
    found[0].p = 1.0
    return A.Compose(found, seed=0, strict=True)


def test_the_noise_has_the_strength_of_the_source_document() -> None:
    # variances of 10 to 50 squared grey levels: 3.2 to 7.1, less what rounding to bytes takes
    noise = only(A.GaussNoise)
    strengths = [(noise(image=GREY)["image"].astype(float) - 128).std() for _ in range(200)]
    assert 2.7 < min(strengths) < 3.3
    assert 6.2 < max(strengths) < 7.4


def test_jpeg_artefacts_come_from_qualities_60_to_95() -> None:
    compression = next(t for t in profile("seed", 96) if isinstance(t, A.ImageCompression))
    qualities = {compression.get_params()["quality"] for _ in range(500)}
    assert min(qualities) == 60
    assert max(qualities) == 95


def test_rotation_leaves_no_black_corners() -> None:
    rotate = only(A.Rotate)
    assert all((rotate(image=GREY)["image"] == 128).all() for _ in range(50))


def test_the_share_of_spoiled_photos_in_the_seed_profile_is_three_in_ten() -> None:
    spoiled = A.Compose([t for t in profile("seed", 96) if isinstance(t, A.OneOf)], seed=0, strict=True)
    changed = [not np.array_equal(spoiled(image=PHOTO)["image"], PHOTO) for _ in range(400)]
    assert 0.22 < np.mean(changed) < 0.38


def test_lesion_safe_random_augment_has_no_operation_that_destroys_colour() -> None:
    transform = TrainTransform(SPECS[-1], 32, seed=0)._rand_augment
    operations = set(transform._AUGMENTATION_SPACE)  # type: ignore[union-attr]
    assert not operations & {"Solarize", "Posterize", "Equalize", "Invert"}
    assert "ShearX" in operations
    whole = set(TrainTransform(SPECS[-2], 32, seed=0)._rand_augment._AUGMENTATION_SPACE)  # type: ignore[union-attr]
    assert len(whole) == 14


def test_random_augment_uses_the_papers_scale_of_ten() -> None:
    transform = TrainTransform(SPECS[-2], 32, seed=0)._rand_augment
    assert (transform.num_ops, transform.magnitude, transform.num_magnitude_bins) == (2, 9, 11)  # type: ignore[union-attr]


def test_evaluation_is_the_same_for_every_key() -> None:
    transform = EvalTransform(32)
    assert np.array_equal(transform(PHOTO, 0, 0, 0), transform(PHOTO, 5, 6, 7))
