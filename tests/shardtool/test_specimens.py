"""The embedded data set: what is drawn, how much of it, and where it lies on disk."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shardtool.specimens import (
    DISEASE_LIMIT,
    FORMS,
    KINDS,
    SPECIES_LIMIT,
    SpecimenPlan,
    canvas,
    class_images,
    disease_name,
    draw,
    jobs,
    leaves,
    lesions,
    scene,
    species_name,
    write_specimens,
)

PLAN = SpecimenPlan(species=3, diseases=4, images=4, size=32, seed=7)


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file, hidden ones included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("specimens")
    write_specimens(PLAN, out)
    return out


def test_the_same_arguments_draw_the_same_photo_on_any_number_of_opencv_threads() -> None:
    threads = cv2.getNumThreads()
    photos = []
    try:
        for count in (1, 4):
            cv2.setNumThreads(count)
            photos += [[draw(3, "train", s, s % 11, 2, 224) for s in range(13)]]
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(photos[0], photos[1])


def test_a_photo_is_a_square_rgb_array_of_the_size_asked_for() -> None:
    for size in (16, 33, 300):
        photo = draw(0, "val", 4, 1, 0, size)
        assert photo.shape == (size, size, 3)
        assert photo.dtype == np.uint8


def test_every_argument_changes_the_photo() -> None:
    first: tuple[Any, ...] = (1, "train", 2, 3, 4, 48)
    others: list[tuple[Any, ...]] = [
        (2, "train", 2, 3, 4, 48),
        (1, "val", 2, 3, 4, 48),
        (1, "train", 15, 3, 4, 48),
        (1, "train", 2, 4, 4, 48),
        (1, "train", 2, 3, 5, 48),
    ]
    photos = {draw(*arguments).tobytes() for arguments in [first, *others]}
    assert len(photos) == 1 + len(others)


def test_no_species_has_the_leaf_of_another() -> None:
    skins = {
        leaf.anatomy.rims.tobytes() + leaf.skin.tobytes()
        for leaf in (leaves.leaf(5, species) for species in range(320))
    }
    assert len(skins) == 320


@pytest.mark.parametrize("kind", lesions.LESIONS)
def test_lesions_change_the_blade_and_nothing_else(kind: str) -> None:
    for species, form in product(range(len(leaves.FAMILIES)), FORMS.values()):
        leaf = leaves.leaf(0, species)
        healthy, ill = (
            scene.photograph(leaf, disease, np.random.default_rng(species), 64).astype(int)
            for disease in (None, lesions.Disease(kind, None, *form))
        )
        changed = np.abs(ill - healthy).max(2)
        blade = blade_of_first_pose(leaf, species)
        assert not changed[blade == 0].any()
        assert np.count_nonzero(changed > 24) > 0.01 * np.count_nonzero(blade)


def blade_of_first_pose(leaf: leaves.Leaf, seed: int) -> canvas.Plane:
    pose = scene._pose(np.random.default_rng(seed), 64)  # a photo's first draw is its pose
    return canvas.filled(leaf.anatomy.moved(pose).rims, 64)


def test_the_diseases_use_every_kind_of_lesion() -> None:
    assert set(KINDS.values()) == set(lesions.LESIONS)


def test_names_are_unique_whatever_the_case_and_safe_in_a_file_system() -> None:
    for name, count in ((species_name, SPECIES_LIMIT), (disease_name, DISEASE_LIMIT)):
        names = [name(index) for index in range(count)]
        assert len({text.lower() for text in names}) == count
        assert all(text.replace("_", "").isalpha() for text in names)
    assert SPECIES_LIMIT >= 400
    assert DISEASE_LIMIT >= 300
    assert disease_name(0) == "Healthy"


@pytest.mark.parametrize("index", [-1, 10_000])
def test_there_are_no_names_out_of_range(index: int) -> None:
    with pytest.raises(ValueError, match="index must be from 0 to"):
        species_name(index)
    with pytest.raises(ValueError, match="index must be from 0 to"):
        disease_name(index)


def test_all_classes_are_alike_without_a_long_tail() -> None:
    assert class_images(PLAN) == {(s, d): (4, 2) for s in range(3) for d in range(4)}
    wide = SpecimenPlan(2, 2, images=50, size=32, seed=0, val_share=0.3)
    assert set(class_images(wide).values()) == {(50, 15)}


def test_a_long_tail_has_classes_below_50_and_below_80_images() -> None:
    plan = SpecimenPlan(5, 6, images=200, size=32, seed=3, long_tail=True)
    train, val = np.array(list(class_images(plan).values())).T
    assert train.max() == 200
    assert train.min() == 4
    assert np.count_nonzero(train < 50) >= 5
    assert np.count_nonzero((train >= 50) & (train < 80)) >= 2
    assert val.min() == 2
    assert class_images(plan) == class_images(plan)


def test_the_seed_deals_the_long_tail_to_the_classes() -> None:
    plans = [SpecimenPlan(5, 6, 200, 32, seed, long_tail=True) for seed in (0, 1)]
    first, second = ([train for train, _ in class_images(plan).values()] for plan in plans)
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize(
    "wrong",
    [
        {"species": 0},
        {"species": SPECIES_LIMIT + 1},
        {"diseases": 0},
        {"diseases": DISEASE_LIMIT + 1},
        {"images": 0},
        {"size": 15},
        {"size": 4096},
        {"seed": -1},
        {"seed": 2**32},
        {"val_share": -0.1},
        {"val_share": 1.5},
        {"val_share": float("nan")},
    ],
)
def test_an_invalid_plan_says_which_range_is_allowed(wrong: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"species": 1, "diseases": 1, "images": 1, "size": 32, "seed": 0}
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be from .* to .*, not"):
        SpecimenPlan(**(usual | wrong))


def test_the_tree_has_exactly_the_photos_of_the_plan(written: Path) -> None:
    photos = {str(path.relative_to(written)) for path in written.rglob("*.jpg")}
    assert photos == {str(specimen.path) for specimen in jobs(PLAN)}
    assert len(photos) == 3 * 4 * (4 + 2)
    assert "train/Silverwort/Leaf_Spot/train_00003.jpg" in photos
    picture = cv2.imread(str(written / "val/Silverwort/Healthy/val_00001.jpg"))
    assert picture is not None
    assert picture.shape == (32, 32, 3)


def test_two_workers_write_the_same_tree_as_one(written: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    assert write_specimens(PLAN, tmp_path, workers=2, progress=steps.append) == 72
    assert sum(steps) == 72
    assert tree(tmp_path) == tree(written)


def test_a_photo_depends_on_no_other_option_of_its_plan(written: Path, tmp_path: Path) -> None:
    plan = SpecimenPlan(species=1, diseases=2, images=9, size=32, seed=7, long_tail=True)
    write_specimens(plan, tmp_path)
    mine, theirs = tree(tmp_path), tree(written)
    shared = {path for path in mine.keys() & theirs.keys() if path.endswith(".jpg")}
    assert len(shared) >= 12
    assert all(mine[path] == theirs[path] for path in shared)


def test_an_interrupted_run_goes_on_to_the_same_tree(written: Path, tmp_path: Path) -> None:
    write_specimens(PLAN, tmp_path)
    gone, short, kept = sorted(tmp_path.rglob("*.jpg"))[10:13]
    gone.with_name(f".{gone.name}.part").write_bytes(gone.read_bytes()[:100])
    gone.unlink()
    short.write_bytes(short.read_bytes()[:-10])
    before = kept.stat().st_mtime_ns
    assert write_specimens(PLAN, tmp_path) == 2
    assert kept.stat().st_mtime_ns == before
    assert tree(tmp_path) == tree(written)
    assert write_specimens(PLAN, tmp_path) == 0


def test_a_folder_takes_the_photos_of_one_plan_only(written: Path) -> None:
    with pytest.raises(ValueError, match="another plan"):
        write_specimens(SpecimenPlan(3, 4, 4, size=64, seed=7), written)


def test_there_must_be_a_worker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be from 1"):
        write_specimens(PLAN, tmp_path, workers=0)
