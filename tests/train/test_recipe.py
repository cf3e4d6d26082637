from __future__ import annotations

from pathlib import Path

import pytest

from shardtool.errors import UsageError
from train.recipe import differences, load_recipe, recipe_names


def test_the_recipes_that_come_along_are_valid() -> None:
    assert {"small", "swin_tiny"} <= set(recipe_names())
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_a_setting_is_overridden_by_its_path() -> None:
    recipe = load_recipe("small", ["optimizer.batch=32", "stages.1.epochs=3", "augment.profile=seed"])
    assert recipe.optimizer.batch == 32
    assert recipe.stages[1].epochs == 3
    assert recipe.augment.profile == "seed"


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("optimizer.batc=32", "optimizer.batc"),
        ("stages.9.epochs=3", "stages.9.epochs"),
        ("optimizer.batch=many", "optimizer.batch"),
        ("optimizer.batch", "write --set"),
        ("loss.kind=hinge", "loss.kind"),
        ("stages.3.sampler=unknown", "unknown"),
        ("seed.x=3", "seed has no parts"),
        ("optimizer.betas=[1.5, 0.9]", "optimizer.betas"),
        ("seed=18446744073709551616", "seed"),
        ("stages.1.lr=inf", "stages.1.lr"),
        ('stages.0.losses=["disease"]', "cannot learn from"),
        ("model.backbone=hf-hub:someone/model", "model.backbone"),
    ],
)
def test_a_wrong_setting_is_named(override: str, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        load_recipe("small", [override])


def test_a_recipe_file_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe"):
        load_recipe(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("a = = 1")
    with pytest.raises(UsageError, match="not TOML"):
        load_recipe(str(broken))


def test_differences_name_what_changed() -> None:
    one, other = load_recipe("small"), load_recipe("small", ["stages.1.lr=0.5", "loss.gamma=1.0"])
    assert differences(one.as_dict(), one.as_dict()) == []
    assert differences(one.as_dict(), other.as_dict()) == [
        "loss.gamma 2.0 -> 1.0",
        "stages.1.lr 0.002 -> 0.5",
    ]


def test_another_number_of_stages_is_a_difference() -> None:
    value = load_recipe("small").as_dict()
    shorter = {**value, "stages": value["stages"][:-1]}
    assert any(line.startswith("stages.5") for line in differences(value, shorter))
