"""The plans on tensors against the same plans on the CPU path; tolerances in grey levels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from train.decode import Box, Pixels
from train.device_augment import augment, inside
from train.draws import ORDERS, PROFILES, Plan, Shadow, draw, generator
from train.fused import apply, apply_crop

SIZE = 64
STILL = draw(PROFILES["none"], SIZE, SIZE, SIZE, generator(0, 0, 0, 0))


def colourful(seed: int, side: int = SIZE) -> Pixels:
    coarse = np.random.default_rng(seed).uniform(-0.3, 1.3, (6, 6, 3)).astype(np.float32)
    pixels: Pixels = np.rint(
        cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255
    ).astype(np.uint8)
    return pixels


def on_device(plans: list[Plan], images: list[Pixels], seed: int = 0) -> Pixels:
    rows = torch.from_numpy(np.stack([plan.row() for plan in plans]))
    batch = torch.from_numpy(np.stack(images))
    augmented = augment(batch, rows, torch.Generator().manual_seed(seed))
    assert augmented.dtype == torch.uint8
    assert augmented.shape == batch.shape
    return np.asarray(augmented.numpy(), dtype=np.uint8)


def on_cpu(plans: list[Plan], images: list[Pixels]) -> Pixels:
    out = np.empty((len(plans), *images[0].shape), dtype=np.uint8)
    for plan, image, place in zip(plans, images, out, strict=True):
        apply(plan, image, Box(0, 0, SIZE, SIZE), place)
    return out


def gaps(plans: list[Plan]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean and greatest absolute difference of each image, [B] and [B]."""
    images = [colourful(number) for number in range(len(plans))]
    far = np.abs(on_device(plans, images).astype(int) - on_cpu(plans, images)).reshape(len(plans), -1)
    return far.mean(axis=1), far.max(axis=1)


def test_a_plan_without_changes_changes_nothing() -> None:
    images = [colourful(number) for number in range(3)]
    assert np.array_equal(on_device([STILL] * 3, images), np.stack(images))


def test_flip_and_turn_are_those_of_the_cpu() -> None:
    mean, most = gaps(
        [STILL._replace(flip=f, angle=a) for f in (False, True) for a in (0.0, -44.0, 13.0, 45.0)]
    )
    assert mean.max() < 0.1
    assert most.max() <= 2


CASES: dict[str, list[dict[str, Any]]] = {
    "brightness": [{"brightness": factor} for factor in (0.7, 0.95, 1.3)],
    "contrast": [{"contrast": factor} for factor in (0.7, 0.95, 1.3)],
    "saturation": [{"saturation": factor} for factor in (0.7, 0.95, 1.3)],
    "hue": [{"hue": hue} for hue in (-0.1, -0.03, 0.02, 0.1)],
    "exposure": [{"gain": 0.8, "offset": 51.0}, {"gain": 1.2, "offset": -51.0}],
    "blur": [{"blur_size": n, "blur_sigma": sigma} for n in (3, 5, 7) for sigma in (0.8, 1.4)],
    "grey": [{"grey": True}],
}


@pytest.mark.parametrize("kind", CASES)
def test_each_step_is_within_a_level_of_the_cpu(kind: str) -> None:
    mean, most = gaps([STILL._replace(**case) for case in CASES[kind]])
    assert mean.max() < 0.3
    assert most.max() <= 1


def test_blurred_borders_mirror_the_image() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)]
    plans = [STILL._replace(blur_size=7, blur_sigma=1.4)]
    assert np.abs(on_device(plans, images).astype(int) - on_cpu(plans, images)).max() <= 1


def test_every_order_of_the_jitter_is_that_of_the_cpu() -> None:
    factors: dict[str, Any] = {"brightness": 1.3, "contrast": 0.72, "saturation": 1.28, "hue": 0.08}
    mean, most = gaps([STILL._replace(**factors, order=order) for order in range(len(ORDERS))])
    assert mean.max() < 0.5
    assert most.max() <= 4


def test_shadows_are_those_of_the_cpu_but_for_a_few_pixels_on_their_sides() -> None:
    random, images = np.random.default_rng(0), [np.full((SIZE, SIZE, 3), 200, dtype=np.uint8)] * 40
    corners = random.integers(0, SIZE, (40, 2, 2, 5)).tolist()
    plans = [
        STILL._replace(shadows=tuple(Shadow(0.5, tuple(x), tuple(y)) for x, y in two)) for two in corners
    ]
    ours, theirs = on_device(plans, images), on_cpu(plans, images)
    assert set(np.unique(ours)) == {50, 100, 200}
    differ = (ours != theirs).any(axis=3).mean(axis=(1, 2))
    assert differ.mean() < 0.004
    assert differ.max() < 0.02


def test_pixels_on_the_sides_of_a_polygon_are_inside() -> None:
    x, y = ([torch.full((1, 1, 1), float(v)) for v in values] for values in ((2, 6, 6, 2), (1, 1, 4, 4)))
    expected = np.zeros((9, 9), dtype=bool)
    expected[1:5, 2:7] = True
    assert np.array_equal(inside(x, y, 9)[0].numpy(), expected)


@pytest.mark.parametrize("std", [10**0.5, 50**0.5])
def test_noise_is_as_strong_as_on_the_cpu(std: float) -> None:
    images = [np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)] * 30
    plans = [STILL._replace(noise_std=std, seed=number * 7919) for number in range(30)]
    ours, theirs = (noisy.astype(int) - 128 for noisy in (on_device(plans, images), on_cpu(plans, images)))
    assert ours.std() == pytest.approx(theirs.std(), rel=0.015)
    assert ours.mean() == pytest.approx(0, abs=0.05)
    assert len(np.unique(ours.reshape(30, -1), axis=0)) == 30


@pytest.mark.parametrize("intensity", [0.1, 0.3])
def test_iso_noise_is_as_strong_as_on_the_cpu(intensity: float) -> None:
    images = [colourful(5)] * 40
    plans = [STILL._replace(iso_intensity=intensity, seed=number) for number in range(40)]
    ours, theirs = (
        noisy.astype(int) - images[0] for noisy in (on_device(plans, images), on_cpu(plans, images))
    )
    share, other_share = ((noise != 0).any(axis=3).mean() for noise in (ours, theirs))
    assert share == pytest.approx(other_share, rel=0.05)
    change, other_change = (noise[(noise != 0).any(axis=3)].mean(axis=0) for noise in (ours, theirs))
    assert np.abs(change - other_change).max() < 2


def test_the_noise_of_a_batch_follows_from_its_generator() -> None:
    plans, images = [STILL._replace(noise_std=5.0), STILL._replace(iso_intensity=0.3)], [colourful(1)] * 2
    first = on_device(plans, images, seed=3)
    assert np.array_equal(first, on_device(plans, images, seed=3))
    assert not np.array_equal(first, on_device(plans, images, seed=4))


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    quiet = [p for p in seed_plans(80) if not (p.noise_std or p.iso_intensity)][:40]
    images = [colourful(number) for number in range(len(quiet))]
    whole = on_device(quiet, images)
    for number in (0, 7, 39):
        assert np.array_equal(on_device([quiet[number]], [images[number]])[0], whole[number])


def seed_plans(count: int) -> list[Plan]:
    return [draw(PROFILES["seed"], SIZE, SIZE, SIZE, generator(1, 0, n, 0)) for n in range(count)]


@pytest.mark.parametrize("name", ["seed", "table", "light"])
def test_whole_plans_are_those_of_the_cpu(name: str) -> None:
    drawn = [draw(PROFILES[name], SIZE, SIZE, SIZE, generator(1, 0, n, 0)) for n in range(60)]
    # without what is random, and what the worker does; the crop is the whole image
    plans = [p._replace(noise_std=0.0, iso_intensity=0.0, quality=0) for p in drawn]
    mean, _ = gaps(plans)
    assert np.median(mean) < 0.3
    assert mean.max() < 1.5


def test_the_worker_crops_and_compresses_but_neither_flips_nor_turns() -> None:
    photo, out = colourful(1, 200), np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    box, plan = Box(20, 30, 120, 110), STILL._replace(flip=True, angle=30.0, brightness=1.2, grey=True)
    apply_crop(plan, photo, box, out)
    resized = cv2.resize(photo[30:140, 20:140], (SIZE, SIZE))
    assert np.array_equal(out, resized)
    apply_crop(plan._replace(quality=60), photo, box, out)
    compressed = np.empty_like(out)
    apply(STILL._replace(quality=60), np.asarray(resized, dtype=np.uint8), Box(0, 0, SIZE, SIZE), compressed)
    assert np.array_equal(out, compressed)
    assert not np.array_equal(out, resized)


@pytest.mark.gpu
def test_the_gpu_gives_the_pixels_of_the_cpu_and_never_waits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    plans = [p._replace(noise_std=0.0, iso_intensity=0.0) for p in seed_plans(32)]
    rows = torch.from_numpy(np.stack([plan.row() for plan in plans]))
    images = torch.from_numpy(np.stack([colourful(number) for number in range(32)]))
    expected = augment(images, rows, torch.Generator())
    gpu = (images.cuda(), rows.cuda(), torch.Generator("cuda").manual_seed(0))
    augment(*gpu)  # makes the constant tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(*gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    far = (found.cpu().int() - expected.int()).abs()
    assert far.float().mean() < 0.05
