"""RandAugment beside its oracle: torchvision's v2.RandAugment on Pillow images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from train.compat import import_torchvision
from train.decode import Pixels
from train.randaugment import MEAN_COLOUR, OPERATIONS, RandAugment, rand_augment
from train.recipe import AugmentSpec

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

ORACLE: Any = v2.RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=11, fill=list(MEAN_COLOUR))
LESION_SAFE = set(OPERATIONS) - {"Solarize", "Posterize", "Equalize"}
ROUNDED = {"Color", "Sharpness"}  # blends of two pictures, rounded at other places


def leaf(side: int, seed: int = 0) -> Pixels:
    """Smooth colours with noise, all levels of all channels present but none equally often."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    noisy = smooth.astype(np.int64) + generator.integers(-9, 10, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def expected(name: str, pixels: Pixels, amount: float) -> Pixels:
    image = ORACLE._apply_image_or_video_transform(
        Image.fromarray(pixels), name, amount, interpolation=ORACLE.interpolation, fill=ORACLE._fill
    )
    return np.asarray(image)


def changed(name: str, pixels: Pixels, amount: float) -> Pixels:
    result = pixels.copy()
    RandAugment(2, 9, False).apply(name, result, amount)
    return result


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("magnitude", [0, 2, 5, 9, 10])
@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_gives_torchvisions_pixels(
    name: str, side: int, magnitude: int, negative: bool
) -> None:
    pixels = leaf(side)
    amount = OPERATIONS[name].signed_amount(magnitude, side, negative)
    ours, theirs = changed(name, pixels, amount), expected(name, pixels, amount)
    if name == "Rotate":  # places halfway between two pixels may go to either
        assert (ours != theirs).any(2).mean() < 0.003
    elif name in ROUNDED:
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    else:
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"Identity"}))
def test_every_other_operation_is_seen_at_the_recipes_magnitude(name: str) -> None:
    pixels = leaf(64) // 2 + 40
    amount = OPERATIONS[name].signed_amount(9, 64, False)
    assert not np.array_equal(changed(name, pixels, amount), pixels)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_flat_pictures_are_treated_as_torchvision_does(name: str, levels: int) -> None:
    pixels = (leaf(32) % levels * 100 + 7).astype(np.uint8)
    amount = OPERATIONS[name].signed_amount(9, 32, False)
    assert np.array_equal(changed(name, pixels, amount), expected(name, pixels, amount))


@pytest.mark.parametrize("side", [64, 224])
def test_the_strengths_are_those_of_torchvisions_table(side: int) -> None:
    space = ORACLE._AUGMENTATION_SPACE
    assert list(OPERATIONS) == list(space)
    for name, (magnitudes, signed) in space.items():
        table = magnitudes(11, side, side)
        assert OPERATIONS[name].signed == signed
        for magnitude in range(11):
            ours = OPERATIONS[name].signed_amount(magnitude, side, False)
            assert ours == pytest.approx(0.0 if table is None else float(table[magnitude]), rel=1e-6)


class Recorder(RandAugment):
    """Notes what would be done."""

    def apply(self, name: str, pixels: Pixels, amount: float) -> None:
        self.seen = [*getattr(self, "seen", []), (name, amount)]


@pytest.mark.parametrize("lesion_safe", [False, True])
def test_operations_are_equally_likely_and_half_of_the_signed_ones_negative(lesion_safe: bool) -> None:
    recorder, photos = Recorder(2, 9, lesion_safe), 7000
    generator = np.random.default_rng(1)
    for _ in range(photos):
        recorder(np.empty((8, 8, 3), dtype=np.uint8), generator)
    names = [name for name, _ in recorder.seen]
    assert set(names) == (LESION_SAFE if lesion_safe else set(OPERATIONS))
    fair = 2 * photos / len(set(names))
    for name in set(names):
        amounts = [amount for seen, amount in recorder.seen if seen == name]
        assert len(amounts) == pytest.approx(fair, abs=5 * fair**0.5)
        if OPERATIONS[name].signed:
            negative = sum(amount < 0 for amount in amounts)
            assert negative == pytest.approx(len(amounts) / 2, abs=2.5 * len(amounts) ** 0.5)
        else:
            assert len(set(amounts)) == 1


def test_the_same_generator_gives_the_same_pixels_whatever_was_done_before() -> None:
    used = RandAugment(2, 9, False)
    for seed in range(30):
        used(leaf(48, seed), np.random.default_rng(seed))
        fresh, again = leaf(64), leaf(64)
        RandAugment(2, 9, False)(fresh, np.random.default_rng(seed))
        used(again, np.random.default_rng(seed))
        assert np.array_equal(fresh, again)


def test_only_the_given_row_of_a_batch_changes() -> None:
    batch = np.stack([leaf(32, seed) for seed in range(3)])
    before, augment, generator = batch.copy(), RandAugment(2, 9, False), np.random.default_rng(0)
    for _ in range(60):
        augment(batch[1], generator)
    assert np.array_equal(batch[[0, 2]], before[[0, 2]])
    assert not np.array_equal(batch[1], before[1])


def test_the_recipe_switches_it_off_and_chooses_the_strength() -> None:
    assert rand_augment(AugmentSpec()) is None
    whole = rand_augment(AugmentSpec(rand_augment="all", rand_augment_ops=3, rand_augment_magnitude=4))
    safe = rand_augment(AugmentSpec(rand_augment="lesion-safe"))
    assert whole is not None
    assert safe is not None
    assert (whole.ops, whole.magnitude, len(whole.names)) == (3, 4, 14)
    assert (safe.ops, safe.magnitude, set(safe.names)) == (2, 9, LESION_SAFE)
