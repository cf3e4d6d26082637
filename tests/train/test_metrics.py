from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from shardtool.taxonomy import Taxonomy
from train.metrics import METRICS, Predictions, f1, score, scores_json, verdict

COUNTS = np.array([200, 80, 20, 300, 81, 5])


def predictions(seed: int = 0, photos: int = 300) -> Predictions:
    generator = np.random.default_rng(seed)
    sizes = np.array([3, 1, 2])
    species = generator.integers(3, size=photos)
    disease = generator.integers(sizes[species])
    species_hat = np.where(generator.random(photos) < 0.8, species, generator.integers(3, size=photos))
    disease_hat = np.where(generator.random(photos) < 0.7, disease, generator.integers(sizes[species]))
    return Predictions(species, disease, species_hat, disease_hat, generator.random(photos) < 0.9)


def test_shares_are_what_counting_one_by_one_gives(ragged: Taxonomy) -> None:
    p = predictions()
    values = score(p, ragged, COUNTS, intervals=False).values()
    rows = list(zip(p.species, p.disease, p.species_hat, p.disease_hat, p.in_top3, strict=True))
    assert values["species_top1"] == sum(s == t for s, _, t, _, _ in rows) / len(rows)
    assert values["disease_top1"] == sum(d == e for _, d, _, e, _ in rows) / len(rows)
    assert values["disease_top3"] == sum(bool(top) for *_, top in rows) / len(rows)
    assert values["cascade"] == sum(s == t and d == e for s, d, t, e, _ in rows) / len(rows)


def test_f1_agrees_with_torchmetrics(ragged: Taxonomy) -> None:
    p = predictions()
    truth, answer = ragged.offsets[p.species] + p.disease, ragged.offsets[p.species] + p.disease_hat
    theirs = multiclass_f1_score(torch.from_numpy(answer), torch.from_numpy(truth), 6, average="none")
    assert f1(truth, answer, 6) == pytest.approx(theirs.numpy(), abs=1e-6)


def test_the_tail_is_classes_of_80_training_photos_and_less(ragged: Taxonomy) -> None:
    p = predictions()
    scores = score(p, ragged, COUNTS, intervals=False)
    assert scores.tail.tolist() == [False, True, True, False, False, True]
    assert scores.values()["tail_macro_f1"] == pytest.approx(scores.class_f1[[1, 2, 5]].mean())
    assert set(scores.tail_f1(ragged)) == {"A/x", "A/y", "C/z"}


def test_a_class_that_nobody_shows_or_predicts_is_no_zero(ragged: Taxonomy) -> None:
    one = np.zeros(4, dtype=np.int64)
    scores = score(Predictions(one, one, one, one, one == 0), ragged, COUNTS, intervals=False)
    assert np.isnan(scores.class_f1[1:]).all()
    assert scores.values()["macro_f1"] == 1.0
    assert scores.values()["tail_macro_f1"] is None


def test_without_photos_every_metric_is_not_available(ragged: Taxonomy) -> None:
    none = np.zeros(0, dtype=np.int64)
    scores = score(Predictions(none, none, none, none, none == 0), ragged, COUNTS)
    assert set(scores.values().values()) == {None}
    assert {s.verdict for s in scores.metrics.values()} == {"n/a"}


def test_the_interval_holds_the_value_and_shrinks_with_more_photos(ragged: Taxonomy) -> None:
    few = score(predictions(photos=60), ragged, COUNTS).metrics["species_top1"]
    many = score(predictions(photos=3000), ragged, COUNTS).metrics["species_top1"]
    for result in (few, many):
        assert result.value is not None
        assert result.low is not None
        assert result.high is not None
        assert result.low <= result.value <= result.high
    assert (many.high or 0) - (many.low or 0) < (few.high or 0) - (few.low or 0)


def test_verdicts_need_the_whole_interval() -> None:
    assert verdict(0.95, 0.97, 0.95) == "pass"
    assert verdict(0.94, 0.97, 0.95) == "inconclusive"
    assert verdict(0.90, 0.94, 0.95) == "fail"
    assert verdict(0.1, 0.2, 0.0) == "n/a"


def test_json_holds_metrics_with_their_definitions(ragged: Taxonomy) -> None:
    value = scores_json(score(predictions(), ragged, COUNTS), ragged)
    assert set(value["metrics"]) == set(value["definitions"]) == set(METRICS)
    assert value["targets"]["cascade"] == 0.9
    assert value["photos"] == 300
