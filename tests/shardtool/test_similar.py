"""Near duplicates: changed copies have the same look, other photos do not, and the search misses none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from shardtool.similar import LOOK_BYTES, NEAR, NO_LOOK, look, near_pairs


def scene(number: int, height: int = 224, width: int = 224) -> Any:
    """A grey image (H, W) with edges and shades of many sizes; another number, another image."""
    rng = np.random.default_rng(number)
    layers = [(rng.normal(128, 50, (side, side)), 3 / side) for side in (3, 6, 12, 24)]
    grey = sum(cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) * w for layer, w in layers)
    return np.clip(np.asarray(grey) / sum(w for _, w in layers), 0, 255).astype(np.uint8)


def reencoded(grey: Any, quality: int) -> Any:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(grey[:, :, None]), quality, colorspace="GRAY")
    return simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]


def resized(grey: Any, factor: float) -> Any:
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(grey, None, fx=factor, fy=factor, interpolation=kind)


def cropped(grey: Any, share: float) -> Any:
    """Without `share` of each side, half of it at each end."""
    top, left = (round(side * share / 2) for side in grey.shape)
    return grey[top : grey.shape[0] - top, left : grey.shape[1] - left]


CHANGES: Mapping[str, Callable[[Any], Any]] = {
    "quality 75": lambda grey: reencoded(grey, 75),
    "quality 60": lambda grey: reencoded(grey, 60),
    "half as large": lambda grey: resized(grey, 0.5),
    "twice as large": lambda grey: resized(grey, 2),
    "brighter": lambda grey: cv2.convertScaleAbs(grey, alpha=1, beta=20),
    "more contrast": lambda grey: cv2.convertScaleAbs(grey, alpha=1.15, beta=-15),
    "cropped": lambda grey: cropped(grey, 0.02),
}


def distance(one: bytes, other: bytes) -> int:
    bits = np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)
    return int(np.bitwise_count(bits).sum())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_a_leaf_looks_like_it(change: str, real_leaves: Path) -> None:
    leaves = sorted(real_leaves.glob("val/*/*/*"))[::37]
    greys = [simplejpeg.decode_jpeg(leaf.read_bytes(), colorspace="GRAY")[:, :, 0] for leaf in leaves]
    near = [distance(look(grey), look(CHANGES[change](grey))) <= NEAR for grey in greys]
    assert len(near) > 30
    assert np.mean(near) > 0.95


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_a_drawn_scene_looks_like_it(change: str) -> None:
    for number in range(20):
        grey = scene(number)
        assert distance(look(grey), look(CHANGES[change](grey))) <= NEAR


def test_different_scenes_do_not_look_alike() -> None:
    looks = [look(scene(number)) for number in range(100)]
    assert min(distance(one, other) for k, one in enumerate(looks) for other in looks[:k]) > 2 * NEAR


def test_different_leaves_of_one_crop_do_not_look_alike(real_leaves: Path) -> None:
    leaves = sorted(real_leaves.glob("val/Tomato/*/*"))[::3]
    greys = [simplejpeg.decode_jpeg(leaf.read_bytes(), colorspace="GRAY")[:, :, 0] for leaf in leaves]
    looks = table([look(grey) for grey in greys])
    assert len(looks) > 50
    assert len(near_pairs(looks, zeros(len(looks)), np.arange(len(looks)), within=True)[0]) == 0


def test_plain_photos_have_no_look() -> None:
    down, across = np.mgrid[:200, :300] / 300
    for plain in (np.full((200, 300), 130.0), 90 + 100 * across, 200 - 80 * (down**2 + across**2)):
        assert look(reencoded(np.rint(plain).astype(np.uint8), 75)) == NO_LOOK


@pytest.mark.parametrize("shape", [(8, 8), (8, 3000), (33, 9), (127, 128), (255, 257), (1024, 768)])
def test_an_image_of_any_size_has_a_look(shape: tuple[int, int]) -> None:
    small = look(scene(3, *shape))
    assert len(small) == LOOK_BYTES
    assert small != NO_LOOK


def test_the_look_of_an_image_stays_the_same_for_all_time() -> None:
    down, across = np.mgrid[:300, :400]
    grey = ((down * down // 7 + across * (down // 40) + 31 * (across // 50)) % 256).astype(np.uint8)
    assert look(grey).hex() == "b3bfa297b303bff0e9b00196266656c5"


def table(looks: list[bytes]) -> Any:
    return np.frombuffer(b"".join(looks), np.uint8).reshape(-1, LOOK_BYTES)


def zeros(count: int) -> Any:
    return np.zeros(count, dtype=np.int8)


def random_looks(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, LOOK_BYTES), dtype=np.uint8)


def flipped(looks: Any, signs: int, seed: int = 1) -> Any:
    """Copies of looks (n, 16) with exactly so many different signs."""
    ranks = np.random.default_rng(seed).random((len(looks), 8 * LOOK_BYTES)).argsort(axis=1).argsort(axis=1)
    return looks ^ np.packbits(ranks < signs, axis=1)


def test_pairs_hidden_among_a_hundred_thousand_photos_are_all_found() -> None:
    originals = random_looks(1000)
    near, far = flipped(originals, NEAR), flipped(originals, NEAR + 1, seed=2)
    looks = np.concatenate([originals, near, far, random_looks(100_000, seed=3)])
    splits = zeros(len(looks))
    splits[1000:3000] = 1
    pairs, distances = near_pairs(looks, splits, np.arange(len(looks)), within=False)
    assert pairs.tolist() == [[row, row + 1000] for row in range(1000)]
    assert set(distances) == {NEAR}


@st.composite
def small_sets(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Looks, splits and groups of up to 30 photos, among them many that are nearly alike."""
    count = draw(st.integers(0, 30))
    base = random_looks(3, draw(st.integers(0, 100)))
    looks = base[draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))]
    for row in range(count):
        signs = draw(st.integers(0, 8))
        looks[row] = flipped(looks[row : row + 1], signs, seed=draw(st.integers(0, 3)))[0]
    splits = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    firsts = np.array([groups.index(group) for group in groups], dtype=np.int64)
    return looks[firsts], np.array(splits, dtype=np.int8), firsts  # copies have the same look


@given(small_sets(), st.booleans())
def test_the_search_finds_what_comparing_all_with_all_finds(case: tuple[Any, Any, Any], within: bool) -> None:
    looks, splits, groups = case
    seen: set[tuple[bytes, int]] = set()
    is_first = []
    for look_, split in zip(looks, splits, strict=True):
        unit = (look_.tobytes(), int(split))
        is_first.append(unit not in seen)
        seen.add(unit)
    expected = []
    for a in range(len(looks)):
        for b in range(len(looks)):
            apart = distance(looks[a].tobytes(), looks[b].tobytes())
            ordered = (splits[a], a) < (splits[b], b)
            wanted = within or splits[a] != splits[b]
            if (
                ordered
                and wanted
                and apart <= NEAR
                and groups[a] != groups[b]
                and (is_first[a] or is_first[b])
            ):
                expected.append((apart, a, b))
    pairs, distances = near_pairs(looks, splits, groups, within)
    assert [(int(d), *pair) for d, pair in zip(distances, pairs.tolist(), strict=True)] == sorted(expected)


def test_the_photo_of_the_earlier_split_comes_first() -> None:
    looks = random_looks(1).repeat(3, axis=0)
    splits = np.array([2, 1, 0], dtype=np.int8)
    pairs, _ = near_pairs(looks, splits, np.arange(3), within=False)
    assert pairs.tolist() == [[1, 0], [2, 0], [2, 1]]


def test_pairs_inside_a_split_are_found_on_request_only() -> None:
    originals = random_looks(2)
    looks = np.concatenate([originals, flipped(originals, 3)])
    assert len(near_pairs(looks, zeros(4), np.arange(4), within=False)[0]) == 0
    assert near_pairs(looks, zeros(4), np.arange(4), within=True)[0].tolist() == [[0, 2], [1, 3]]


def test_exact_copies_are_not_near_duplicates() -> None:
    looks = random_looks(1).repeat(3, axis=0)
    splits = np.array([0, 1, 1], dtype=np.int8)
    pairs, distances = near_pairs(looks, splits, np.array([7, 7, 8]), within=False)
    assert pairs.tolist() == [[0, 2]]
    assert distances.tolist() == [0]


def test_a_hundred_thousand_equal_looks_make_as_many_pairs_and_name_every_photo() -> None:
    looks = random_looks(1).repeat(100_000, axis=0)
    splits = zeros(100_000)
    splits[::10] = 1
    across, _ = near_pairs(looks, splits, np.arange(100_000), within=False)
    anywhere, _ = near_pairs(looks, splits, np.arange(100_000), within=True)
    assert len(np.unique(across)) == len(np.unique(anywhere)) == 100_000
    assert len(across) < len(anywhere) < 2 * 100_000


def test_a_crowd_of_nearly_equal_looks_names_every_photo_in_a_bounded_number_of_pairs() -> None:
    crowd = flipped(random_looks(1).repeat(4000, axis=0), NEAR // 2)  # 8 million pairs are near
    pairs, distances = near_pairs(crowd, zeros(4000), np.arange(4000), within=True)
    assert len(np.unique(pairs)) == 4000
    assert len(pairs) < 100 * 4000
    assert distances.max() <= NEAR
