"""The reference are albumentations' own transforms, as train.reference sets them up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import albumentations as A
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from train.draws import COLUMNS, ORDERS, PROFILES, Plan, Shadow, draw, generator
from train.reference import profile

SIZE, DRAWS = 96, 4000
NAMES = sorted(PROFILES)
# One test in ten thousand may fail by chance; the seeds are fixed, so it does not.
CHANCE = 1e-4
PHOTO = np.zeros((120, 160, 3), dtype=np.uint8)
OUTPUT = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)


def plans(name: str, count: int = DRAWS, width: int = 160, height: int = 120) -> list[Plan]:
    return [draw(PROFILES[name], SIZE, width, height, generator(1, 0, n, 0)) for n in range(count)]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Plan]]:
    return {name: plans(name) for name in NAMES}


def reference(kind: Any, name: str, image: NDArray[np.uint8] = OUTPUT) -> list[dict[str, Any]]:
    """Parameters that albumentations draws for the transform of this kind."""
    found = [t for t in leaves(profile(name, SIZE)) if isinstance(t, kind)]
    assert len(found) == 1
    found[0].set_random_seed(3)
    return [
        found[0].get_params()
        | found[0].get_params_dependent_on_data({"shape": image.shape}, {"image": image})
        for _ in range(DRAWS)
    ]


def leaves(transforms: list[Any]) -> list[Any]:
    return [leaf for t in transforms for leaf in (leaves(t.transforms) if isinstance(t, A.OneOf) else [t])]


def assert_alike(ours: list[float], theirs: list[float]) -> None:
    """Kolmogorov and Smirnov's test; with ties it errs towards 'alike', by little where values are many."""
    assert len(ours) > 300
    assert stats.ks_2samp(ours, theirs).pvalue > CHANCE


def assert_uniform_alike(ours: list[float], theirs: list[float]) -> None:
    """Between the same ends, too."""
    assert_alike(ours, theirs)
    reach = max(theirs) - min(theirs)
    assert min(ours) == pytest.approx(min(theirs), abs=0.015 * reach)
    assert max(ours) == pytest.approx(max(theirs), abs=0.015 * reach)


def assert_as_often(ours: list[int], theirs: list[int]) -> None:
    """The chi-square test of two samples of a few whole numbers."""
    values = sorted({*ours, *theirs})
    table = [[sample.count(value) for value in values] for sample in (ours, theirs)]
    assert stats.chi2_contingency(table).pvalue > CHANCE


@pytest.mark.parametrize(("width", "height"), [(160, 120), (120, 160), (400, 100), (60, 300), (7, 5), (1, 1)])
def test_crops_lie_where_albumentations_puts_them(width: int, height: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    theirs = np.array([r["crop_coords"] for r in reference(A.RandomResizedCrop, "seed", image)])
    ours = np.array(
        [(p.left, p.top, p.left + p.width, p.top + p.height) for p in plans("seed", DRAWS, width, height)]
    )
    for ours_edge, theirs_edge in zip(ours.T.tolist(), theirs.T.tolist(), strict=True):
        assert_alike(ours_edge, theirs_edge)
    for function in (np.subtract, np.add):  # the sizes, and something of how the edges hang together
        assert_alike(function(*ours.T[[2, 0]]).tolist(), function(*theirs.T[[2, 0]]).tolist())
        assert_alike(function(*ours.T[[3, 0]]).tolist(), function(*theirs.T[[3, 0]]).tolist())


def test_angles_are_drawn_alike(drawn: dict[str, list[Plan]]) -> None:
    theirs = [math.degrees(math.asin(r["matrix"][0, 1])) for r in reference(A.Rotate, "seed")]
    assert_uniform_alike([p.angle for p in drawn["seed"] if p.angle], theirs)


@pytest.mark.parametrize("name", ["seed", "table", "light"])
@pytest.mark.parametrize("factor", ["brightness", "contrast", "saturation", "hue"])
def test_factors_of_the_jitter_are_drawn_alike(drawn: dict[str, list[Plan]], name: str, factor: str) -> None:
    theirs = [r[factor] for r in reference(A.ColorJitter, name)]
    assert_uniform_alike([getattr(p, factor) for p in drawn[name] if p.brightness != 1], theirs)


def test_orders_of_the_jitter_are_drawn_alike(drawn: dict[str, list[Plan]]) -> None:
    theirs = [ORDERS.index(tuple(r["order"])) for r in reference(A.ColorJitter, "seed")]
    assert_as_often([p.order for p in drawn["seed"] if p.brightness != 1], theirs)


def test_exposures_are_drawn_alike(drawn: dict[str, list[Plan]]) -> None:
    theirs, ours = reference(A.RandomBrightnessContrast, "table"), [p for p in drawn["table"] if p.gain != 1]
    assert_uniform_alike([p.gain for p in ours], [r["alpha"] for r in theirs])
    assert_uniform_alike([p.offset for p in ours], [r["beta"] for r in theirs])


@pytest.mark.parametrize("name", ["seed", "table"])
def test_blurs_are_drawn_alike(drawn: dict[str, list[Plan]], name: str) -> None:
    kernels, ours = (
        [r["kernel"] for r in reference(A.GaussianBlur, name)],
        [p for p in drawn[name] if p.blur_size],
    )
    assert_as_often([p.blur_size for p in ours], [len(kernel) for kernel in kernels])
    # neighbouring weights of a Gaussian tell its sigma
    sigmas = [(2 * math.log(k[len(k) // 2] / k[len(k) // 2 + 1])) ** -0.5 for k in kernels]
    assert_uniform_alike([p.blur_sigma for p in ours], sigmas)


@pytest.mark.parametrize("name", ["seed", "table"])
def test_strengths_of_the_noise_are_drawn_alike(drawn: dict[str, list[Plan]], name: str) -> None:
    theirs = [float(r["noise_map"].std()) for r in reference(A.GaussNoise, name)[:1500]]
    assert_uniform_alike([p.noise_std for p in drawn[name] if p.noise_std], theirs)


def test_strengths_of_the_iso_noise_are_drawn_alike(drawn: dict[str, list[Plan]]) -> None:
    theirs = [r["intensity"] for r in reference(A.ISONoise, "seed")]
    assert_uniform_alike([p.iso_intensity for p in drawn["seed"] if p.iso_intensity], theirs)


def test_jpeg_qualities_are_drawn_alike_from_60_to_95(drawn: dict[str, list[Plan]]) -> None:
    ours = [p.quality for p in drawn["seed"] + drawn["table"] if p.quality]
    assert_as_often(ours, [r["quality"] for r in reference(A.ImageCompression, "seed")])
    assert (min(ours), max(ours)) == (60, 95)


def test_shadows_are_drawn_alike(drawn: dict[str, list[Plan]]) -> None:
    theirs = reference(A.RandomShadow, "seed")
    ours = [p.shadows for p in drawn["seed"] + drawn["table"] if p.shadows]
    assert_as_often([len(shadows) for shadows in ours], [len(r["vertices_list"]) for r in theirs])
    corners = np.concatenate([np.concatenate(r["vertices_list"]) for r in theirs])
    assert_uniform_alike([x for shadows in ours for one in shadows for x in one.x], corners[:, 0].tolist())
    assert_uniform_alike([y for shadows in ours for one in shadows for y in one.y], corners[:, 1].tolist())
    assert {one.intensity for shadows in ours for one in shadows} == {
        float(i) for r in theirs for i in r["intensities"]
    }
    assert {len(one.x) for shadows in ours for one in shadows} == {
        len(v) for r in theirs for v in r["vertices_list"]
    }


FIRES: dict[type, Callable[[Plan], bool]] = {
    A.HorizontalFlip: lambda p: p.flip,
    A.Rotate: lambda p: p.angle != 0,
    A.ColorJitter: lambda p: (p.brightness, p.contrast, p.saturation, p.hue) != (1, 1, 1, 0),
    A.RandomBrightnessContrast: lambda p: (p.gain, p.offset) != (1, 0),
    A.GaussianBlur: lambda p: p.blur_size > 0,
    A.GaussNoise: lambda p: p.noise_std > 0,
    A.ISONoise: lambda p: p.iso_intensity > 0,
    A.ImageCompression: lambda p: p.quality > 0,
    A.RandomShadow: lambda p: len(p.shadows) > 0,
    A.ToGray: lambda p: p.grey,
}


def rates(name: str) -> dict[type, float]:
    """How often each transform of the reference fires."""
    found: dict[type, float] = {}
    for transform in profile(name, SIZE):
        inside = transform.transforms if isinstance(transform, A.OneOf) else [transform]
        whole = sum(t.p for t in inside)
        found |= {type(t): transform.p * (t.p / whole if len(inside) > 1 else 1) for t in inside}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_transform_fires_as_often_as_in_the_reference(drawn: dict[str, list[Plan]], name: str) -> None:
    expected = rates(name)
    assert set(expected) <= {*FIRES, A.RandomResizedCrop, A.Resize}
    for kind, fires in FIRES.items():
        count, rate = sum(map(fires, drawn[name])), expected.get(kind, 0)
        assert stats.binomtest(count, DRAWS, rate).pvalue > CHANCE, kind


def test_one_photo_of_the_seed_profile_gets_at_most_one_of_blur_and_noises(
    drawn: dict[str, list[Plan]],
) -> None:
    spoiled = (A.GaussianBlur, A.GaussNoise, A.ISONoise)
    assert max(sum(FIRES[kind](p) for kind in spoiled) for p in drawn["seed"]) == 1
    assert max(sum(FIRES[kind](p) for kind in spoiled) for p in drawn["table"]) == 2


def test_transforms_fire_independently(drawn: dict[str, list[Plan]]) -> None:
    kinds = [
        A.HorizontalFlip,
        A.Rotate,
        A.ColorJitter,
        A.RandomBrightnessContrast,
        A.GaussianBlur,
        A.GaussNoise,
    ]
    kinds += [A.ImageCompression, A.RandomShadow, A.ToGray]
    fired = np.array([[FIRES[kind](p) for kind in kinds] for p in drawn["table"]], dtype=float)
    correlation = np.corrcoef(fired.T) - np.eye(len(kinds))
    assert abs(correlation).max() < 4.5 / DRAWS**0.5


@given(
    st.sampled_from(NAMES),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 600),
    st.integers(0, 99),
)
def test_a_plan_comes_back_from_its_row(name: str, width: int, height: int, size: int, sample: int) -> None:
    plan = draw(PROFILES[name], size, width, height, generator(0, 0, sample, 0))
    row = plan.row()
    assert row.dtype == np.float32
    assert row.shape == (len(COLUMNS),)
    assert Plan.from_row(row) == plan
    assert row[COLUMNS.index("noise_std")] == plan.noise_std
    assert 0 <= plan.left < plan.left + plan.width <= width
    assert 0 <= plan.top < plan.top + plan.height <= height
    assert all(0 <= corner < size for shadow in plan.shadows for corner in (*shadow.x, *shadow.y))


def test_the_profile_none_takes_the_whole_photo_and_leaves_it_alone() -> None:
    plan = draw(PROFILES["none"], SIZE, 160, 120, generator(0, 0, 0, 0))
    assert plan.box == (0, 0, 160, 120)
    assert plan._replace(seed=0) == Plan.from_row(
        np.array([0, 0, 160, 120, 0, 0, 0, 1, 1, 1, 0, 1] + [0] * 30, np.float32)
    )


GOLDEN = Plan(
    left=34,
    top=10,
    width=116,
    height=100,
    flip=False,
    angle=41.893028259277344,
    order=21,
    brightness=1.216965675354004,
    contrast=0.9873195886611938,
    saturation=0.9485449194908142,
    hue=0.013306201435625553,
    gain=1.0,
    offset=0.0,
    blur_size=5,
    blur_sigma=1.3957055807113647,
    noise_std=0.0,
    iso_intensity=0.0,
    seed=542851,
    quality=81,
    grey=False,
    shadows=(Shadow(intensity=0.5, x=(51, 87, 7, 5, 6), y=(77, 1, 2, 57, 9)),),
)


def test_plans_are_pinned() -> None:
    # another plan for the same key means that a run that resumes sees other photos
    plan = draw(PROFILES["seed"], SIZE, 160, 120, generator(5, 2, 165, 1))
    assert plan == GOLDEN


def test_every_copy_of_every_photo_in_every_epoch_draws_its_own_plan() -> None:
    keys = [(s, e, n, c) for s in (0, 1) for e in (0, 1) for n in (0, 1, 2) for c in (0, 1)]
    drawn = {draw(PROFILES["seed"], SIZE, 160, 120, generator(*key)) for key in keys}
    assert len(drawn) == len(keys)
