"""Each step against albumentations' own function with the same parameters; tolerances in grey levels."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.augmentations.blur.functional import create_gaussian_kernel_1d
from albumentations.augmentations.geometric import functional as geometric
from albumentations.augmentations.pixel import functional as pixel
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import stats  # type: ignore[import-untyped]

from shardtool.specimens import SpecimenPlan, write_specimens
from train.augment import EvalTransform, Transform
from train.decode import Box, Pixels
from train.draws import ORDERS, PROFILES, Plan, Shadow, draw, generator
from train.fused import (
    HAS_RECOLOUR,
    HUE_CIRCLE,
    FusedTransform,
    _lighten,
    apply,
    hue_steps,
    recolour,
    recolour_in_passes,
)
from train.reference import ReferenceTransform

SIZE = 96
STILL = draw(PROFILES["none"], SIZE, SIZE, SIZE, generator(0, 0, 0, 0))


def colourful(width: int, height: int, seed: int = 0) -> Pixels:
    """Smooth blobs of every colour, black and white among them."""
    coarse = np.random.default_rng(seed).uniform(-0.3, 1.3, (6, 6, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels: Pixels = np.rint(smooth.clip(0, 1) * 255).astype(np.uint8)
    return pixels


PHOTO = colourful(SIZE, SIZE)
GREY = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)


def fused(plan: Plan, photo: Pixels = PHOTO, size: int = SIZE) -> Pixels:
    height, width = photo.shape[:2]
    out = np.empty((size, size, 3), dtype=np.uint8)
    apply(plan, photo, Box(0, 0, width, height), out)
    return out


def differences(ours: Pixels, theirs: Pixels) -> tuple[float, int]:
    """Mean and greatest absolute difference."""
    far = np.abs(ours.astype(int) - theirs)
    return float(far.mean()), int(far.max())


def encode(pixels: Pixels, grey: bool = False) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).convert("L" if grey else "RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_resized_and_flipped_as_in_the_reference_to_the_bit(flip: bool) -> None:
    photo, box = colourful(300, 200), Box(31, 17, 150, 121)
    out = np.empty_like(PHOTO)
    apply(STILL._replace(flip=flip), photo, box, out)
    theirs = geometric.resize(photo[17 : 17 + 121, 31 : 31 + 150], (SIZE, SIZE), cv2.INTER_LINEAR)
    assert np.array_equal(out, theirs[:, ::-1] if flip else theirs)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [-44.0, -3.0, 17.0, 45.0])
@pytest.mark.parametrize(("width", "height"), [(SIZE, SIZE), (110, 125), (70, 60)])
def test_turned_crops_differ_from_the_reference_by_the_second_interpolation(
    flip: bool, angle: float, width: int, height: int
) -> None:
    photo = colourful(width, height)
    straight = geometric.resize(photo, (SIZE, SIZE), cv2.INTER_LINEAR)
    straight = np.ascontiguousarray(straight[:, ::-1]) if flip else straight
    zero, one = {"x": 0, "y": 0}, {"x": 1, "y": 1}
    matrix = geometric.create_affine_transformation_matrix(
        zero, zero, one, angle, geometric.center((SIZE, SIZE))
    )
    theirs = geometric.warp_affine(
        straight, matrix, cv2.INTER_LINEAR, 0, cv2.BORDER_REFLECT_101, (SIZE, SIZE)
    )
    mean, most = differences(fused(STILL._replace(flip=flip, angle=angle), photo), theirs)
    assert mean < 0.6
    assert most <= 16


FACTORS = [0.7, 0.93, 1.08, 1.3]
Recolour = Callable[[Plan, Pixels], None]
needs_extension = pytest.mark.skipif(not HAS_RECOLOUR, reason="train/_pixels.c was not built: no compiler")
both_ways = pytest.mark.parametrize(
    "way", [pytest.param(recolour, marks=needs_extension), recolour_in_passes]
)


def recoloured(way: Recolour, plan: Plan, photo: Pixels = PHOTO) -> Pixels:
    out = photo.copy()
    way(plan, out)
    return out


@both_ways
@pytest.mark.parametrize("factor", FACTORS)
def test_brightness_is_within_one_level(factor: float, way: Recolour) -> None:
    theirs = pixel.adjust_brightness_torchvision(PHOTO, factor)
    mean, most = differences(recoloured(way, STILL._replace(brightness=factor)), theirs)
    assert mean < 0.05
    assert most <= 1


@both_ways
@pytest.mark.parametrize("factor", FACTORS)
def test_contrast_is_within_one_level(factor: float, way: Recolour) -> None:
    theirs = pixel.adjust_contrast_torchvision(PHOTO, factor)
    mean, most = differences(recoloured(way, STILL._replace(contrast=factor)), theirs)
    assert mean < 0.15
    assert most <= 1


@both_ways
@pytest.mark.parametrize("factor", FACTORS)
def test_saturation_is_within_one_level(factor: float, way: Recolour) -> None:
    theirs = pixel.adjust_saturation_torchvision(PHOTO, factor)
    mean, most = differences(recoloured(way, STILL._replace(saturation=factor)), theirs)
    assert mean < 0.2
    assert most <= 1


@both_ways
@pytest.mark.parametrize("hue", [-0.1, -0.034, 0.02, 0.09, 0.1])
def test_hue_differs_by_what_the_reference_rounds_off(hue: float, way: Recolour) -> None:
    # it keeps hues in steps of two degrees: up to 4.25 levels of a channel at full chroma
    ours = recoloured(way, STILL._replace(hue=hue))
    mean, most = differences(ours, pixel.adjust_hue_torchvision(PHOTO, hue))
    assert mean < 0.8
    assert most <= 6


@both_ways
def test_jitter_steps_come_in_the_drawn_order(way: Recolour) -> None:
    factors: dict[str, Any] = {"brightness": 1.3, "contrast": 0.72, "saturation": 1.28, "hue": 0.08}
    jitter = A.ColorJitter()
    results = []
    for number, order in enumerate(ORDERS):
        results.append(recoloured(way, STILL._replace(**factors, order=number)))
        theirs = jitter.apply(PHOTO, order=list(order), **factors)
        mean, most = differences(results[-1], theirs)
        assert mean < 1.2
        assert most <= 10
    apart = [differences(results[0], result)[0] for result in results[1:]]
    assert max(apart) > 5  # so an order that is ignored shows


@both_ways
@pytest.mark.parametrize(("gain", "offset"), [(0.8, 51.0), (1.2, -51.0), (1.13, 20.5), (1.0, -30.2)])
def test_exposure_is_within_one_level(gain: float, offset: float, way: Recolour) -> None:
    theirs = A.RandomBrightnessContrast().apply(PHOTO, alpha=gain, beta=offset)
    mean, most = differences(recoloured(way, STILL._replace(gain=gain, offset=offset)), theirs)
    assert mean < 0.02
    assert most <= 1


def test_colours_change_after_the_resize_and_before_the_blur() -> None:
    plan = STILL._replace(flip=True, contrast=1.3, hue=0.1, gain=1.1, offset=-20.0)
    changed = recoloured(recolour, plan, np.ascontiguousarray(PHOTO[:, ::-1]))
    assert np.array_equal(fused(plan), changed)
    blur: dict[str, Any] = {"blur_size": 5, "blur_sigma": 1.2}
    assert np.array_equal(fused(plan._replace(**blur)), fused(STILL._replace(**blur), changed))


@needs_extension
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["seed", "table"]))
def test_the_extension_differs_from_opencv_by_rounding(
    sample: int, width: int, height: int, name: str
) -> None:
    photo = colourful(width, height, sample)
    plan = draw(PROFILES[name], width, width, height, generator(2, 0, sample, 0))
    ways = [recoloured(way, plan, photo).astype(int) for way in (recolour, recolour_in_passes)]
    far = np.abs(ways[0] - ways[1])
    assert far.mean() < 0.3 + 9 / far.size**0.5  # few pixels may all lie at the same edge
    assert far.max() <= 8  # a level of difference before a step that multiplies it


@needs_extension
@pytest.mark.parametrize("count", [1, 2, 85, 255, 256, 257, 511, 513, 1000])
@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_every_pixel_changes_by_its_own_colour_wherever_it_lies(count: int, order: int) -> None:
    plan = STILL._replace(order=order, brightness=1.2, saturation=0.8, hue=-0.07, gain=0.9, offset=7.0)
    photo = np.random.default_rng(order).integers(0, 256, (1, count, 3), dtype=np.uint8)
    alone = np.concatenate([recoloured(recolour, plan, photo[:, [n]]) for n in range(count)], axis=1)
    assert np.array_equal(recoloured(recolour, plan, photo), alone)
    around = np.full(3 * count + 2, 77, dtype=np.uint8)
    around[1:-1] = photo.ravel()
    recolour(plan._replace(contrast=1.3), around[1:-1].reshape(photo.shape))
    assert (around[[0, -1]] == 77).all()
    assert np.array_equal(around[1:-1], recoloured(recolour, plan._replace(contrast=1.3), photo).ravel())


@needs_extension
@pytest.mark.parametrize("steps", [30, -30])
def test_six_turns_of_hue_by_60_degrees_give_the_photo_back(steps: int) -> None:
    out = np.random.default_rng(steps + 30).integers(0, 256, PHOTO.shape, dtype=np.uint8)
    photo, plan = out.copy(), STILL._replace(hue=(steps + 0.5) / HUE_CIRCLE)
    assert hue_steps(plan.hue) == steps
    for turn in range(6):
        assert turn == 0 or not np.array_equal(out, photo)
        recolour(plan, out)
    assert np.array_equal(out, photo)


@needs_extension
@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1.99), st.floats(-255, 255))
def test_levels_are_exact_to_a_fortieth_for_every_factor(gain: float, offset: float) -> None:
    offset = min(offset, 2 * 255 - 255 * gain - 0.01)
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    ours = recoloured(recolour, STILL._replace(gain=gain, offset=offset), levels).astype(int)
    exact = gain * levels + offset
    assert (ours <= (exact + 1 / 40).clip(0, 255)).all()
    assert (ours >= np.floor(exact - 1 / 40).clip(0, 255)).all()


@needs_extension
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "gain"])
@pytest.mark.parametrize("factor", [2.0, -0.01, float("nan"), float("inf")])
def test_a_factor_out_of_range_is_an_error_and_changes_nothing(name: str, factor: float) -> None:
    assert_refused(PHOTO, **{name: factor})


@needs_extension
@pytest.mark.parametrize(
    "change", [{"offset": 255.5}, {"gain": 1.5, "offset": 200.0}, {"hue": 31 / HUE_CIRCLE}]
)
def test_numbers_that_would_overflow_are_an_error(change: dict[str, Any]) -> None:
    assert_refused(PHOTO, **change)


@needs_extension
@pytest.mark.parametrize("count", [0, 1, 2, 4, 767])
def test_bytes_that_are_no_whole_pixels_are_an_error(count: int) -> None:
    assert_refused(np.full(count, 9, dtype=np.uint8), brightness=1.1)


def assert_refused(pixels: Pixels, **change: Any) -> None:
    out = pixels.copy()
    with pytest.raises(ValueError, match="range"):
        recolour(STILL._replace(**change), out)
    assert np.array_equal(out, pixels)


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("sigma", [0.8, 1.4])
def test_blur_is_that_of_the_reference_to_the_bit(size: int, sigma: float) -> None:
    theirs = pixel.separable_convolve(PHOTO, create_gaussian_kernel_1d(sigma, size))
    assert np.array_equal(fused(STILL._replace(blur_size=size, blur_sigma=sigma)), theirs)


@pytest.mark.parametrize("std", [10**0.5, 5.0, 50**0.5])
def test_noise_is_distributed_as_in_the_reference(std: float) -> None:
    ours = (
        np.stack([fused(STILL._replace(noise_std=std, seed=n * 99991), GREY) for n in range(30)]).astype(int)
        - 128
    )
    noise = A.GaussNoise(std_range=(std / 255, std / 255), p=1)
    noise.set_random_seed(1)
    theirs = np.stack([noise(image=GREY)["image"] for _ in range(30)]).astype(int) - 128
    assert ours.std() == pytest.approx(theirs.std(), rel=0.01)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.05)
    levels = range(-15, 15)
    ours_below, theirs_below = ([(noise < level).mean() for level in levels] for noise in (ours, theirs))
    assert np.abs(np.subtract(ours_below, theirs_below)).max() < 0.01
    assert len(np.unique(ours.reshape(30, -1), axis=0)) == 30
    channels = ours.reshape(-1, 3).T
    assert abs(np.corrcoef(channels) - np.eye(3)).max() < 0.02


def test_realised_noise_of_the_profiles_is_2_8_to_6_7_grey_levels() -> None:
    noisy = [STILL._replace(noise_std=p.noise_std, seed=p.seed) for p in plans("table", 2000) if p.noise_std]
    strengths = [float(fused(plan, GREY).std()) for plan in noisy]
    assert len(strengths) > 200
    assert 2.75 < min(strengths) < 3.0
    assert 6.5 < max(strengths) < 6.75


def plans(name: str, count: int) -> list[Plan]:
    return [draw(PROFILES[name], SIZE, SIZE, SIZE, generator(1, 0, n, 0)) for n in range(count)]


def iso_noise(photo: Pixels, seed: int, intensity: float, colour_shift: float) -> Pixels:
    return np.asarray(
        pixel.iso_noise(photo, colour_shift, intensity, np.random.default_rng(seed)), dtype=np.uint8
    )


def test_the_hue_noise_of_the_references_iso_noise_is_below_rounding() -> None:
    flat = (
        np.random.default_rng(0).integers(0, 256, (1, 1, 3), dtype=np.uint8).repeat(SIZE, 0).repeat(SIZE, 1)
    )
    # equal pixels have no spread of lightness, so no specks: what is left is the turn of the hue
    assert np.array_equal(iso_noise(flat, 1, 0.3, 0.05), flat)


@pytest.mark.parametrize("intensity", [0.1, 0.2, 0.3])
def test_iso_noise_lightens_as_many_pixels_by_as_much_as_the_reference(intensity: float) -> None:
    ours = [fused(STILL._replace(iso_intensity=intensity, seed=n)).astype(int) - PHOTO for n in range(60)]
    theirs = [iso_noise(PHOTO, n, intensity, 0.05).astype(int) - PHOTO for n in range(60)]
    shares = [[float((one != 0).any(axis=2).mean()) for one in some] for some in (ours, theirs)]
    assert np.mean(shares[0]) == pytest.approx(np.mean(shares[1]), rel=0.03)
    assert stats.ks_2samp(*shares).pvalue > 1e-4
    changes = [np.concatenate([one[(one != 0).any(axis=2)] for one in some]) for some in (ours, theirs)]
    for channel in range(3):
        one, other = (change[:, channel] for change in changes)
        assert one.mean() == pytest.approx(other.mean(), abs=1)
        assert np.abs(np.quantile(one, QUANTILES) - np.quantile(other, QUANTILES)).max() < 3


QUANTILES = np.linspace(0.05, 0.95, 10)


def test_a_speck_of_iso_noise_has_the_references_colour() -> None:
    colours = PHOTO[::4, ::4].reshape(-1, 3).astype(np.float32)
    for share in (0.1, 0.3, 0.6):
        hls: Any = cv2.cvtColor((colours / 255)[None], cv2.COLOR_RGB2HLS)
        hls[..., 1] += share * (1 - hls[..., 1])
        theirs = np.rint(cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)[0] * 255)
        ours = _lighten(np.ascontiguousarray(colours.T), np.full(len(colours), share, dtype=np.float32)).T
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("quality", [60, 77, 95])
def test_jpeg_round_trip_is_that_of_the_reference_to_the_bit(quality: int) -> None:
    theirs = pixel.image_compression(PHOTO, quality, ".jpg")
    assert np.array_equal(fused(STILL._replace(quality=quality)), theirs)
    assert differences(theirs, PHOTO)[0] > 0.5


def test_shadows_are_those_of_the_reference_to_the_bit() -> None:
    one = Shadow(0.5, (3, 90, 70, 10, 50), (5, 20, 95, 80, 40))
    other = Shadow(0.5, (0, 95, 30, 60, 20), (50, 60, 0, 95, 10))
    corners = [np.array([shadow.x, shadow.y]).T for shadow in (one, other)]
    theirs = pixel.add_shadow(PHOTO, corners, np.array([0.5, 0.5]))
    assert np.array_equal(fused(STILL._replace(shadows=(one, other))), theirs)
    assert differences(theirs, PHOTO)[0] > 20


def test_grey_is_that_of_the_reference_to_the_bit() -> None:
    assert np.array_equal(fused(STILL._replace(grey=True)), pixel.to_gray(PHOTO, 3, "weighted_average"))


def test_grey_and_shadow_commute_within_a_level() -> None:
    # the profile `table` has grey first
    corners = np.array([(3, 5), (90, 20), (70, 95), (10, 80), (50, 40)])
    shadow = Shadow(0.5, *(tuple(axis.tolist()) for axis in corners.T))
    theirs = pixel.add_shadow(pixel.to_gray(PHOTO, 3, "weighted_average"), [corners], np.array([0.5]))
    assert differences(fused(STILL._replace(grey=True, shadows=(shadow,))), theirs)[1] <= 1


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Drawn leaves of 64 pixels."""
    out = tmp_path_factory.mktemp("leaves")
    write_specimens(SpecimenPlan(species=4, diseases=3, images=10, size=64, seed=2), out)
    return photos(out)


def photos(folder: Path, every: int = 1) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.[jJ][pP]*"))[::every]]


@pytest.mark.parametrize("name", ["seed", "table", "light"])
def test_whole_pipelines_give_the_same_statistics_on_drawn_leaves(name: str, leaves: list[bytes]) -> None:
    assert_same_statistics(name, leaves * (480 // len(leaves)), 64)


@pytest.mark.parametrize("name", ["seed", "table", "light"])
def test_whole_pipelines_give_the_same_statistics_on_real_leaves(name: str, real_leaves: Path) -> None:
    assert_same_statistics(name, photos(real_leaves / "train", every=24), 224)


def assert_same_statistics(name: str, photos: list[bytes], size: int) -> None:
    assert len(photos) >= 400
    transforms: tuple[Transform, ...] = (
        FusedTransform(name, size, 1),
        ReferenceTransform(name, size, 2),
    )
    found = np.empty((2, len(photos), 6))
    out = np.empty((size, size, 3), dtype=np.uint8)
    for number, photo in enumerate(photos):
        for place, transform in enumerate(transforms):
            transform(photo, out, 0, number, 0)
            found[place, number] = statistics(out)
    *alike, energy = found.transpose(2, 0, 1)
    for ours, theirs in alike if PROFILES[name].rotate else [*alike, energy]:
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
        gap = ours - theirs  # of two draws of the same photo, so of nothing but draws
        assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    # the reference interpolates turned photos twice, so its are a little softer
    assert 0.97 < energy[0].mean() / energy[1].mean() < (1.13 if PROFILES[name].rotate else 1.03)


def statistics(image: Pixels) -> NDArray[np.float64]:
    """Means of the channels, spread, chroma, energy of the gradient."""
    means, spreads = cv2.meanStdDev(image)
    red, green, blue = cv2.split(image)
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    down, across = cv2.absdiff(image[1:], image[:-1]), cv2.absdiff(image[:, 1:], image[:, :-1])
    energy = sum(cv2.mean(down)) + sum(cv2.mean(across))
    return np.array([*means[:, 0], spreads.mean(), cv2.mean(chroma)[0], energy])


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_byte_of_the_output_is_written(name: str) -> None:
    transform, photo = FusedTransform(name, 50, 0), encode(colourful(90, 70))
    for sample in range(40):
        outs = [np.full((50, 50, 3), value, dtype=np.uint8) for value in (0, 255)]
        for out in outs:
            transform(photo, out, 0, sample, 0)
        assert np.array_equal(outs[0], outs[1])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 2000),
    st.booleans(),
    st.sampled_from(sorted(PROFILES)),
    st.integers(1, 99),
    st.integers(0, 20),
)
def test_photos_of_every_size_and_grey_ones_work(
    width: int, height: int, grey: bool, name: str, size: int, sample: int
) -> None:
    level = 77
    photo = encode(np.full((height, width, 3), level, dtype=np.uint8), grey)
    out = np.empty((size, size, 3), dtype=np.uint8)
    FusedTransform(name, size, 0)(photo, out, 0, sample, 0)
    plan = draw(PROFILES[name], size, width, height, generator(0, 0, sample, 0))
    quiet = not (plan.noise_std or plan.shadows or plan.gain != 1 or plan.brightness != 1)
    assert np.ptp(out) <= 60 or plan.shadows
    assert not quiet or np.abs(out.astype(int) - level).max() <= 4


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 700), (700, 1), (2, 3), (3000, 2000)])
def test_the_odd_sizes_work_turned_too(width: int, height: int) -> None:
    out = np.empty_like(GREY)
    photo = np.full((height, width, 3), 77, dtype=np.uint8)
    apply(STILL._replace(angle=31.0, flip=True), photo, Box(0, 0, width, height), out)
    assert (out == 77).all()


def test_the_profile_none_is_the_resize_of_the_evaluation() -> None:
    photo, (ours, theirs) = encode(colourful(300, 220)), np.empty((2, SIZE, SIZE, 3), dtype=np.uint8)
    FusedTransform("none", SIZE, 3)(photo, ours, 1, 2, 3)
    EvalTransform(SIZE)(photo, theirs)
    assert np.array_equal(ours, theirs)


def test_every_key_has_its_own_repeatable_pixels_in_any_thread() -> None:
    transform, photo = FusedTransform("seed", SIZE, 3), encode(colourful(200, 150))
    keys = [(epoch, sample, copy) for epoch in range(2) for sample in range(20) for copy in range(2)]

    def image(key: tuple[int, int, int]) -> bytes:
        out = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
        transform(photo, out, *key)
        return out.tobytes()

    expected = {key: image(key) for key in keys}
    assert len(set(expected.values())) == len(keys)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert dict(zip(keys[::-1], pool.map(image, keys[::-1]), strict=True)) == expected
    fresh: list[bytes] = []
    thread = threading.Thread(target=lambda: fresh.append(image(keys[5])))
    thread.start()
    thread.join()
    assert fresh == [expected[keys[5]]]


def test_a_photo_that_does_not_decode_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"."):
        FusedTransform("seed", SIZE, 0)(b"no photo", np.empty_like(GREY), 0, 0, 0)
