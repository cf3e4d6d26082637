"""Small packed specimens and a tiny recipe, so that a whole training takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardtool.index import Split, open_split
from shardtool.pack import PackOptions, pack
from shardtool.specimens import SpecimenPlan, write_specimens
from shardtool.taxonomy import Taxonomy
from train.compat import import_torchvision
from train.recipe import Recipe, load_recipe

import_torchvision()  # before torchmetrics, which imports it too

TINY = Path(__file__).parent / "tiny.toml"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset: 3 species x 3 diseases, long-tailed, in a few small shards."""
    folder = tmp_path_factory.mktemp("specimens")
    write_specimens(SpecimenPlan(3, 3, 24, 48, seed=5, long_tail=True), folder / "organized")
    pack(folder / "organized", folder / "shards", PackOptions(shard_size=60_000))
    return folder / "shards"


@pytest.fixture(scope="session")
def split(shards: Path) -> Split:
    return open_split(str(shards / "train"))


@pytest.fixture(scope="session")
def val_split(shards: Path) -> Split:
    return open_split(str(shards / "val"))


@pytest.fixture
def tiny() -> Recipe:
    return load_recipe(str(TINY))


@pytest.fixture
def ragged() -> Taxonomy:
    """Three species with 3, 1 and 2 diseases: six rows."""
    return Taxonomy(("A", "B", "C"), (("h", "x", "y"), ("h",), ("h", "z")))
