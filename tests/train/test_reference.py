"""What albumentations really does with the arguments that we give it."""

from __future__ import annotations

import albumentations as A
import numpy as np

from train.reference import profile

GREY = np.full((96, 96, 3), 128, dtype=np.uint8)
PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


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
