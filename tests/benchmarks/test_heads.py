"""The benchmark of the disease heads: fair label spaces, rivals that learn the same, figures that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.heads import MOST_DISEASES, SIZES, WAYS, Figure, Learner, app, default_way, draw, label_space


@pytest.mark.parametrize(("species", "rows"), SIZES)
def test_label_spaces_have_the_rows_asked_for_and_heads_of_many_sizes(species: int, rows: int) -> None:
    taxonomy = label_space(species, rows)
    assert (len(taxonomy.species), taxonomy.rows) == (species, rows)
    assert min(taxonomy.sizes) >= 1
    assert max(taxonomy.sizes) <= MOST_DISEASES
    if rows < species * MOST_DISEASES:
        assert min(taxonomy.sizes) < max(taxonomy.sizes)


def test_all_ways_lose_and_learn_the_same() -> None:
    taxonomy = label_space(8, 40)
    start = Learner("walk", taxonomy)
    weight, bias = (parameter.detach().clone() for parameter in start.heads.heads.parameters())
    losses = {}
    for way in WAYS:
        learner = Learner(way, taxonomy)
        with torch.no_grad():
            parts = [*learner.heads.heads.parameters()]
            at = 0
            for rows, offsets in zip(parts[::2], parts[1::2], strict=True):
                rows.copy_(weight[at : at + len(rows)])
                offsets.copy_(bias[at : at + len(rows)])
                at += len(rows)
        losses[way] = [learner.step(draw(taxonomy, 5, seed)) for seed in range(8)]
    for way in WAYS:
        assert losses[way] == pytest.approx(losses["walk"], rel=1e-4)
    assert len(set(losses["walk"])) == 8


def test_the_same_seed_draws_the_same_photos_of_diseases_that_exist() -> None:
    taxonomy = label_space(40, 400)
    one, other, third = draw(taxonomy, 64, 1), draw(taxonomy, 64, 1), draw(taxonomy, 64, 2)
    assert torch.equal(one.features, other.features)
    assert not torch.equal(one.species, third.species)
    assert (one.disease < torch.from_numpy(taxonomy.sizes)[one.species]).all()


def test_the_typical_step_is_the_median() -> None:
    assert Figure(1, 1, 1, "walk", (0.5, 0.1, 0.2), 0, True).typical == 0.2


@pytest.mark.slow
def test_a_real_run_has_a_figure_for_every_way(tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    done = CliRunner().invoke(
        app, ["--json", str(file), "--rounds", "2", "--most-rows", "40", "--batch", "9"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert [(figure["way"], figure["batch"]) for figure in found["figures"]] == [(way, 9) for way in WAYS]
    ours = default_way(label_space(8, 40))
    for figure in found["figures"]:
        assert figure["rows"] == 40
        assert len(figure["seconds"]) == 2
        assert min(figure["seconds"]) > 0
        assert figure["peak_bytes"] >= 0
        assert figure["default"] == (figure["way"] == ours)
    assert found["hardware"]["cores"] > 0
