from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torchmetrics.functional.classification import multiclass_f1_score

from shardtool.taxonomy import Taxonomy
from train.metrics import (
    CHANCE,
    METRICS,
    Predictions,
    confusion_counts,
    confusions,
    f1,
    score,
    scores_json,
    verdict,
    wilson,
)

COUNTS = np.array([200, 80, 20, 300, 81, 5])


def predictions(seed: int = 0, photos: int = 300) -> Predictions:
    generator = np.random.default_rng(seed)
    sizes = np.array([3, 1, 2])
    species = generator.integers(3, size=photos)
    disease = generator.integers(sizes[species])
    species_hat = np.where(generator.random(photos) < 0.8, species, generator.integers(3, size=photos))
    disease_hat = np.where(generator.random(photos) < 0.7, disease, generator.integers(sizes[species]))
    routed = np.where(species_hat == species, disease_hat, generator.integers(sizes[species_hat]))
    return Predictions(species, disease, species_hat, disease_hat, generator.random(photos) < 0.9, routed)


def all_right(photos: int) -> Predictions:
    """Of species A and its first disease."""
    zero = np.zeros(photos, dtype=np.int64)
    return Predictions(zero, zero, zero, zero, zero == 0, zero)


def test_shares_are_what_counting_one_by_one_gives(ragged: Taxonomy) -> None:
    p = predictions()
    values = score(p, ragged, COUNTS, intervals=False).values()
    rows = list(zip(*vars(p).values(), strict=True))
    assert values["species_top1"] == sum(s == t for s, _, t, *_ in rows) / len(rows)
    assert values["disease_top1"] == sum(d == e for _, d, _, e, *_ in rows) / len(rows)
    assert values["disease_top3"] == sum(bool(top) for *_, top, _ in rows) / len(rows)
    assert values["cascade"] == sum(s == t and d == e for s, d, t, e, *_ in rows) / len(rows)
    right = [d == e for s, d, t, e, *_ in rows if s == t]
    assert values["disease_given_species"] == sum(right) / len(right)
    names = ragged.diseases
    assert values["disease_name"] == sum(names[s][d] == names[t][r] for s, d, t, _, _, r in rows) / len(rows)


def test_the_cascade_is_the_product_of_its_two_steps(ragged: Taxonomy) -> None:
    values = score(predictions(), ragged, COUNTS, intervals=False).values()
    steps = (values["species_top1"] or 0) * (values["disease_given_species"] or 0)
    assert steps == pytest.approx(values["cascade"])
    assert 0 < steps < 1


def test_the_right_disease_on_the_wrong_host_has_the_right_name(ragged: Taxonomy) -> None:
    species, healthy = np.array([0, 0]), np.array([0, 0])
    hosts, routed = np.array([2, 2]), np.array([0, 1])  # C/h and C/z
    seen = Predictions(species, healthy, hosts, healthy, healthy == 0, routed)
    values = score(seen, ragged, COUNTS, intervals=False).values()
    assert (values["disease_name"], values["cascade"]) == (0.5, 0.0)


def test_the_best_three_are_judged_alone_where_a_species_has_more_diseases() -> None:
    taxonomy = Taxonomy(("A", "B"), (("a", "b", "c", "d"), ("a", "b", "c")))
    species, zero = np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64)
    seen = Predictions(species, zero, species, zero, np.array([True, False, True, True]), zero)
    scores = score(seen, taxonomy, np.full(7, 100), intervals=False)
    assert scores.values()["disease_top3"] == 0.75
    assert scores.values()["disease_top3_wide"] == 0.5
    assert scores.metrics["disease_top3_wide"].photos == 2


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
    scores = score(all_right(4), ragged, COUNTS, intervals=False)
    assert np.isnan(scores.class_f1[1:]).all()
    assert scores.values()["macro_f1"] == 1.0
    assert scores.values()["tail_macro_f1"] is None


def test_without_photos_every_metric_is_not_available(ragged: Taxonomy) -> None:
    scores = score(all_right(0), ragged, COUNTS)
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


@pytest.mark.parametrize("photos", [1, 5, 400])
def test_photos_that_are_all_right_prove_no_more_than_their_number_allows(
    ragged: Taxonomy, photos: int
) -> None:
    result = score(all_right(photos), ragged, COUNTS).metrics["species_top1"]
    assert (result.value, result.high) == (1.0, 1.0)
    # so many hits in a row have a chance of 2.5 % where the share is `low`
    assert result.low == pytest.approx(binomtest(photos, photos).proportion_ci(method="exact").low)
    assert (result.low or 0) ** photos == pytest.approx(CHANCE)
    assert result.verdict == ("pass" if photos == 400 else "inconclusive")


def test_the_interval_holds_the_true_share_nineteen_times_in_twenty(ragged: Taxonomy) -> None:
    generator, held = np.random.default_rng(1), 0
    zero = np.zeros(200, dtype=np.int64)
    for _ in range(100):
        species_hat = (generator.random(200) > 0.9).astype(np.int64)
        seen = Predictions(zero, zero, species_hat, zero, zero == 0, zero)
        result = score(seen, ragged, COUNTS).metrics["species_top1"]
        held += (result.low or 0) <= 0.9 <= (result.high or 0)
    assert 88 <= held <= 100


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


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_pair_is_wilsons(case: tuple[int, int]) -> None:
    hits, photos = case
    theirs = binomtest(hits, photos).proportion_ci(method="wilson")
    assert wilson(hits, photos) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_without_photos_a_share_may_be_anything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_confusions_are_what_counting_one_by_one_gives() -> None:
    p = predictions()
    pairs = Counter(zip(p.species.tolist(), p.species_hat.tolist(), strict=True))
    assert {(s, t): n for s, t, n in confusion_counts(p.species, p.species_hat, 3)} == pairs
    found = confusions(p.species, p.species_hat, 3)
    assert {(pair.truth, pair.answer): pair.count for pair in found} == {
        pair: count for pair, count in pairs.items() if pair[0] != pair[1]
    }
    assert all(pair.photos == np.count_nonzero(p.species == pair.truth) for pair in found)
    assert [pair.low for pair in found] == sorted((pair.low for pair in found), reverse=True)


def test_a_pair_is_systematic_when_its_share_is_surely_above_a_twentieth() -> None:
    truth = np.repeat([0, 1, 2], [100, 100, 1000])
    answer = truth.copy()
    answer[:20] = 1  # 20 of 100: more than 13 % for sure
    answer[100:106] = 0  # 6 of 100: may be 3 %
    answer[200:210] = 0  # 10 of 1,000: less than 2 % for sure
    found = {(pair.truth, pair.answer): pair.verdict for pair in confusions(truth, answer, 3)}
    assert found == {(0, 1): "fail", (1, 0): "inconclusive", (2, 0): "pass"}
