from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from shardtool.index import Split
from train.calibration import Temperatures
from train.checkpoint import Checkpoint, Position
from train.cli import app
from train.model import HierarchicalModel
from train.predict import BATCH, NotAPhoto, Prediction, Rule, find_photos, predict
from train.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny: Recipe, split: Split) -> HierarchicalModel:
    """A network that has learned nothing, but has opinions."""
    torch.manual_seed(3)
    network = HierarchicalModel(tiny.model, split.taxonomy)
    for head in (network.species_head, network.disease_heads):
        torch.nn.init.normal_(head.weight, std=0.5)
    return network.eval()


@pytest.fixture
def checkpoint(model: HierarchicalModel, tiny: Recipe, split: Split, tmp_path: Path) -> Path:
    found = Checkpoint(
        model.state_dict(),
        tiny.as_dict(),
        split.taxonomy,
        split.class_counts,
        split.digest,
        Position(),
        "end",
        temperatures={"species": 0.5, "disease": 2.0},
    )
    found.save(tmp_path / "trained.pt")
    return tmp_path / "trained.pt"


@pytest.fixture
def photos(shards: Path) -> list[Path]:
    return sorted((shards.parent / "organized").rglob("*.jpg"))


def ask(
    model: HierarchicalModel, split: Split, photos: list[Path], rule: Rule | None = None, threads: int = 2
) -> list[Prediction]:
    found = list(predict(model, split.taxonomy, photos, 32, CPU, rule or Rule(), threads))
    answered = [item for item in found if isinstance(item, Prediction)]
    assert len(answered) == len(photos)
    return answered


def test_answers_to_many_photos_are_those_to_each_alone_in_their_order(
    model: HierarchicalModel, split: Split, photos: list[Path]
) -> None:
    many = photos[: BATCH + 9]
    assert len(many) > BATCH
    together = ask(model, split, many, threads=3)
    assert [item.photo for item in together] == list(map(str, many))
    for item, path in list(zip(together, many, strict=True))[::7]:
        (alone,) = ask(model, split, [path])
        assert alone.answer == item.answer
        assert alone.probability == pytest.approx(item.probability, abs=1e-5)


def test_with_a_beam_of_one_the_likeliest_species_is_answered(
    model: HierarchicalModel, split: Split, photos: list[Path]
) -> None:
    for item in ask(model, split, photos[:20], Rule(beam=1)):
        assert item.answer == (item.species[0].name, item.diseases[0].name)
        assert item.probability == pytest.approx(item.species[0].probability * item.diseases[0].probability)


def test_a_wider_beam_finds_pairs_that_are_at_least_as_likely(
    model: HierarchicalModel, split: Split, photos: list[Path]
) -> None:
    hard, joint = ask(model, split, photos, Rule(beam=1)), ask(model, split, photos, Rule(beam=3))
    assert all(one.probability <= other.probability for one, other in zip(hard, joint, strict=True))
    others = [item for one, item in zip(hard, joint, strict=True) if one.answer[0] != item.answer[0]]
    assert others
    for item in others:  # the diseases are those of the answer, not of the likeliest species
        names = split.taxonomy.diseases[split.taxonomy.species.index(item.answer[0])]
        assert {guess.name for guess in item.diseases} <= set(names)
        assert item.diseases[0].name == item.answer[1]


def test_guesses_are_probabilities_the_highest_first(
    model: HierarchicalModel, split: Split, photos: list[Path]
) -> None:
    for item in ask(model, split, photos[:10], Rule(top=9)):
        for guesses in (item.species, item.diseases):
            values = [guess.probability for guess in guesses]
            assert sum(values) == pytest.approx(1)
            assert values == sorted(values, reverse=True)


def test_temperatures_change_how_sure_it_is_and_not_the_order_of_species(
    model: HierarchicalModel, split: Split, photos: list[Path]
) -> None:
    raw = ask(model, split, photos[:20])
    cold = ask(model, split, photos[:20], Rule(temperatures=Temperatures(0.2, 0.2)))
    for one, other in zip(raw, cold, strict=True):
        assert [guess.name for guess in one.species] == [guess.name for guess in other.species]
        assert other.species[0].probability > one.species[0].probability


def test_an_answer_below_the_threshold_is_not_sure(
    model: HierarchicalModel, split: Split, photos: list[Path]
) -> None:
    middle = float(np.median([item.probability for item in ask(model, split, photos)]))
    found = ask(model, split, photos, Rule(sure=middle))
    assert {item.sure for item in found} == {True, False}
    assert all(item.sure == (item.probability >= middle) for item in found)


def test_what_is_no_photo_is_answered_in_its_place(
    model: HierarchicalModel, split: Split, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(photos[0].read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    asked = [
        photos[0],
        *(tmp_path / name for name in ("notes.txt", "none.jpg", "cut.jpg", "folder")),
        photos[1],
        photos[0],
    ]
    found = list(predict(model, split.taxonomy, asked, 32, CPU, Rule(), 2))
    assert [item.photo for item in found] == list(map(str, asked))
    reasons = [item.reason if isinstance(item, NotAPhoto) else "" for item in found]
    for reason, words in zip(reasons[1:5], ("not an image", "No such", "damaged", "no photos"), strict=True):
        assert words in reason
    assert reasons[0] == reasons[5] == reasons[6] == ""
    assert found[0] == found[6]


def test_a_folder_is_all_photos_below_it_sorted(tmp_path: Path) -> None:
    wanted = ["a/b/2.JPG", "a/b/10.jpeg", "a/1.png", "c.webp", "d/nameless"]
    for name in (*wanted, "a/notes.txt", "d/empty", ".hidden/1.jpg", "a/.2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "d/nameless", "JPEG")
    os.symlink(tmp_path / "c.webp", tmp_path / "link.webp")
    os.symlink(tmp_path, tmp_path / "a/loop")
    assert find_photos([tmp_path]) == sorted(tmp_path / name for name in wanted)


def test_a_pattern_is_what_it_matches_but_a_file_of_that_name_comes_first(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "x/y/b.jpg", "x/c.png", "x/[1].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    inside = [tmp_path / "x" / name for name in ("[1].jpg", "a.jpg", "y/b.jpg")]
    assert find_photos([tmp_path / "x/*.jpg"]) == inside[:2]
    assert find_photos([tmp_path / "**/*.jpg"]) == inside
    assert find_photos([tmp_path / "x/[1].jpg"]) == [tmp_path / "x/[1].jpg"]
    assert find_photos([tmp_path / "no/*.jpg"]) == [tmp_path / "no/*.jpg"]


def test_a_photo_that_is_meant_twice_is_answered_once(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    assert find_photos([tmp_path / "a.jpg", tmp_path, tmp_path / "*.jpg"]) == [tmp_path / "a.jpg"]


def test_the_command_uses_the_temperatures_of_the_checkpoint_unless_told_others(
    checkpoint: Path, photos: list[Path], tmp_path: Path
) -> None:
    def probabilities(*options: str) -> list[float]:
        result = CliRunner().invoke(app, ["predict", str(checkpoint), str(photos[0]), "--json", *options])
        assert result.exit_code == 0, result.output
        (item,) = json.loads(result.stdout)
        return [guess["probability"] for guess in item["species"]]

    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"temperatures": {"species": 1.0, "disease": 1.0}}))
    calibrated, raw = probabilities(), probabilities("--temperatures", str(scores))
    squared = [p**2 for p in raw]  # a temperature of a half, before the sum is made one again
    assert calibrated == pytest.approx([p / sum(squared) for p in squared], abs=1e-5)


def test_the_command_says_when_it_is_not_sure(checkpoint: Path, photos: list[Path]) -> None:
    arguments = ["predict", str(checkpoint), str(photos[0])]
    doubtful = CliRunner().invoke(app, [*arguments, "--sure", "1"]).stdout
    certain = CliRunner().invoke(app, [*arguments, "--sure", "0"]).stdout
    assert "not sure, " in doubtful
    assert doubtful.replace("not sure, ", "") == certain


def test_a_folder_without_photos_is_a_usage_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["predict", str(checkpoint), str(tmp_path / "empty")])
    assert result.exit_code == 2
    assert "1 of 1 paths" in result.stderr


def test_a_file_without_temperatures_is_refused(checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]")
    result = CliRunner().invoke(
        app, ["predict", str(checkpoint), str(photos[0]), "--temperatures", str(wrong)]
    )
    assert "no temperatures in this file" in str(result.exception)
