from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from shardtool.taxonomy import Taxonomy
from train.calibration import Outputs, Temperatures, answers, held_half
from train.checklist import OUT_OF_MEMORY, SpeciesResult, has_learned, verification
from train.evaluate import Evaluated
from train.metrics import METRICS, Predictions, score
from train.results import results, without_nan
from train.tables import show_results, show_scores

COUNTS = np.array([200, 80, 20, 300, 81, 5])
SIZES = np.array([3, 1, 2])


def evaluated(photos: int = 240, skill: float = 3.0, seed: int = 0) -> Evaluated:
    """A network that is right the more often the more `skill` it has, on species with `SIZES` diseases."""
    generator = np.random.default_rng(seed)
    species = generator.integers(3, size=photos)
    disease = generator.integers(SIZES[species])
    photo = np.arange(photos)
    by_species = generator.normal(size=(photos, 3))
    by_species[photo, species] += skill
    diseases = generator.normal(size=(photos, 3, 3))
    diseases[photo, species, disease] += skill
    diseases[:, np.arange(3) >= SIZES[:, None]] = -np.inf
    beam = np.argsort(-by_species, axis=1)
    own = diseases[photo, species]
    outputs = Outputs(by_species, own, beam, diseases[photo[:, None], beam])
    routed = diseases[photo, beam[:, 0]].argmax(1)
    seen = Predictions(species, disease, beam[:, 0], own.argmax(1), photo >= 0, routed)
    return Evaluated(seen, {"species": 0.1}, 1000 + photo, np.array([7]), outputs)


def whole(taxonomy: Taxonomy, **arguments: Any) -> dict[str, Any]:
    return results(evaluated(**arguments), taxonomy, COUNTS)


def item(value: dict[str, Any], word: str) -> dict[str, str]:
    (found,) = [entry for entry in value["verification"] if word in entry["item"]]
    return found


def test_all_of_it_is_json_without_nan(ragged: Taxonomy) -> None:
    value = whole(ragged)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert set(value["metrics"]) == set(METRICS)
    assert value["photos"] == 240
    assert value["left_out"] == [7]


def test_a_network_that_has_diverged_is_json_too_and_fails(ragged: Taxonomy) -> None:
    ill = evaluated()
    assert ill.outputs is not None
    ill.outputs.own[ill.predictions.species == 2] = math.nan
    ill.outputs.species[5] = math.nan
    value = results(ill, ragged, COUNTS)
    json.dumps(value, allow_nan=False)
    assert item(value, "converge")["verdict"] == "fail"
    assert item(value, "converge")["figure"].startswith("1 of 3 heads")


def test_without_photos_nothing_is_claimed(ragged: Taxonomy) -> None:
    value = whole(ragged, photos=0)
    json.dumps(value, allow_nan=False)
    assert {entry["verdict"] for entry in value["verification"]} == {"n/a"}
    assert value["calibration"]["answer"]["after"] is None
    assert value["wrong"] == {"confident": [], "worst": []}


def test_calibration_is_measured_on_the_half_that_was_not_fitted(ragged: Taxonomy) -> None:
    seen = evaluated()
    found = results(seen, ragged, COUNTS)
    rows = ragged.offsets[seen.predictions.species] + seen.predictions.disease
    fitted = held_half(rows)
    calibration = found["calibration"]
    assert (calibration["fitted_on"], calibration["measured_on"]) == (fitted.sum(), (~fitted).sum())
    assert calibration["species"]["photos"] == (~fitted).sum()
    # species B has one disease, of which a network is always sure
    several = ~fitted & (seen.predictions.species != 1)
    assert calibration["disease"]["photos"] == several.sum() < (~fitted).sum()
    for level in ("species", "disease", "answer"):
        bins = calibration[level]["bins_after"]
        assert sum(part["photos"] for part in bins) == calibration[level]["photos"]


def test_fitting_mends_the_calibration_of_a_network_that_is_too_modest(ragged: Taxonomy) -> None:
    modest = evaluated(photos=2000)
    assert modest.outputs is not None
    for numbers in (modest.outputs.species, modest.outputs.own, modest.outputs.heads):
        numbers *= 0.25
    found = results(modest, ragged, COUNTS)
    for level in ("species", "disease", "answer"):
        assert found["calibration"][level]["before"] > 0.15
        assert found["calibration"][level]["after"] < 0.05
    assert max(found["temperatures"].values()) < 0.5


def test_answers_count_what_predict_would_say(ragged: Taxonomy) -> None:
    seen = evaluated(skill=1.5)
    assert seen.outputs is not None
    found = results(seen, ragged, COUNTS)
    truth = seen.predictions
    judged = np.flatnonzero(~held_half(ragged.offsets[truth.species] + truth.disease))
    given = answers(seen.outputs[judged], Temperatures(**found["temperatures"]))
    right = (given.species == truth.species[judged]) & (given.disease == truth.disease[judged])
    sure = given.probability >= 0.5
    told = found["answers"]
    assert told["joint"] == right.mean()
    assert told["sure"] == sure.mean()
    assert told["right_if_sure"] == right[sure].mean() > right[~sure].mean() == told["right_if_unsure"]


def test_the_confusion_matrix_holds_every_photo_once(ragged: Taxonomy) -> None:
    seen = evaluated(skill=1.0)
    confusion = results(seen, ragged, COUNTS)["confusion"]
    matrix = np.zeros((3, 3), dtype=int)
    for truth, answer, photos in confusion["counts"]:
        matrix[truth, answer] = photos
    assert matrix.sum() == 240
    assert matrix.sum(1).tolist() == confusion["photos"]
    assert np.trace(matrix) == (seen.predictions.species == seen.predictions.species_hat).sum()
    for pair in confusion["pairs"]:
        truth, answer = (confusion["species"].index(pair[name]) for name in ("truth", "answer"))
        assert matrix[truth, answer] == pair["count"]
        assert pair["low"] < pair["share"] < pair["high"]


def test_classes_are_told_with_precision_recall_and_f1(ragged: Taxonomy) -> None:
    seen = evaluated(skill=1.0)
    classes = results(seen, ragged, COUNTS)["classes"]
    p = seen.predictions
    pairs = list(zip(p.species.tolist(), p.disease.tolist(), p.disease_hat.tolist(), strict=True))
    for entry, (species, disease) in zip(classes, ragged.row_names, strict=True):
        s = ragged.species.index(species)
        d = ragged.diseases[s].index(disease)
        hits = sum(pair == (s, d, d) for pair in pairs)
        assert (entry["species"], entry["disease"]) == (species, disease)
        assert entry["recall"] == hits / sum(pair[:2] == (s, d) for pair in pairs)
        assert entry["precision"] == hits / sum((pair[0], pair[2]) == (s, d) for pair in pairs)
        harmonic = 2 / (1 / entry["recall"] + 1 / entry["precision"])
        assert entry["f1"] == pytest.approx(harmonic)
    assert [entry["tail"] for entry in classes] == [False, True, True, False, False, True]


def test_wrong_photos_are_named_the_most_confident_and_the_least_expected_first(ragged: Taxonomy) -> None:
    wrong = whole(ragged, skill=1.0)["wrong"]
    for kind, key, sign in (("confident", "probability", -1), ("worst", "truth_probability", 1)):
        values = [entry[key] for entry in wrong[kind]]
        assert values == sorted(values, key=lambda value, sign=sign: sign * value)
        assert len(values) == 24
        for entry in wrong[kind]:
            assert entry["truth"] != entry["answer"]
            assert entry["truth_probability"] <= entry["probability"]
            assert 1000 <= entry["sample"] < 1240


def test_only_as_many_wrong_photos_are_named_as_there_are(ragged: Taxonomy) -> None:
    assert whole(ragged, skill=30.0)["wrong"]["worst"] == []


@pytest.mark.parametrize(
    ("diseases", "loss", "low", "high", "expected"),
    [
        (3, None, 0.0, 1.0, "n/a"),
        (3, math.nan, 0.9, 1.0, "fail"),
        (3, math.inf, 0.9, 1.0, "fail"),
        (1, 0.0, 1.0, 1.0, "pass"),
        (3, 0.1, 0.6, 0.9, "pass"),
        (3, 0.1, 0.4, 0.6, "inconclusive"),
        (3, 0.1, 0.3, 0.5, "fail"),
    ],
)
def test_a_head_has_learned_if_it_beats_the_commonest_disease(
    diseases: int, loss: float | None, low: float, high: float, expected: str
) -> None:
    assert has_learned(diseases, loss, low, high, commonest=0.5) == expected


def test_a_skilled_network_passes_the_list(ragged: Taxonomy) -> None:
    value = results(evaluated(photos=3000, skill=30.0), ragged, COUNTS, events=[{"event": "run"}])
    assert len(value["verification"]) == 7
    assert {entry["verdict"] for entry in value["verification"]} == {"pass"}


def test_a_clueless_network_fails_it_and_the_offenders_are_named(ragged: Taxonomy) -> None:
    value = results(evaluated(photos=3000, skill=0.0), ragged, COUNTS)
    assert item(value, "top-1")["verdict"] == "fail"
    assert item(value, "misclassification")["verdict"] == "fail"
    assert item(value, "misclassification")["figure"].startswith("6 systematic pairs, 0 possible: ")
    assert "for A (" in item(value, "misclassification")["figure"]
    assert item(value, "converge")["verdict"] != "pass"


def test_a_species_without_photos_does_not_stand_in_the_way_of_the_others(ragged: Taxonomy) -> None:
    good = SpeciesResult("A", 3, 50, 1.0, 1.0, 0.9, 1.0, 0.4, 0.1, "pass")
    absent = SpeciesResult("B", 2, 0, None, None, 0.0, 1.0, 0.0, None, "n/a")
    seen = evaluated().predictions
    metrics = score(seen, ragged, COUNTS).metrics
    listed = verification(metrics, seen, ragged, [good, absent], None)
    (converge,) = [entry for entry in listed if "converge" in entry["item"]]
    assert converge["verdict"] == "pass"
    assert "0 of 1 heads" in converge["figure"]


def test_memory_errors_are_counted_in_the_log_and_unknown_without_one(ragged: Taxonomy) -> None:
    seen = evaluated()
    outcomes = {}
    for name, events in (
        ("none", None),
        ("clean", [{"event": "epoch"}]),
        ("met", [{"event": OUT_OF_MEMORY}]),
    ):
        outcomes[name] = item(results(seen, ragged, COUNTS, events), "out-of-memory")["verdict"]
    assert outcomes == {"none": "n/a", "clean": "pass", "met": "fail"}


def test_numbers_that_are_none_become_null_at_any_depth() -> None:
    value = {"a": [math.nan, 1.0, {"b": (math.inf, "x", None, True)}]}
    assert without_nan(value) == {"a": [None, 1.0, {"b": [None, "x", None, True]}]}


def test_the_tables_are_shown_with_names_as_they_stand(
    ragged: Taxonomy, capsys: pytest.CaptureFixture[str]
) -> None:
    taxonomy = Taxonomy(("[bold]A", "B", "C"), ragged.diseases)
    seen = evaluated(skill=1.0)
    show_scores(score(seen.predictions, taxonomy, COUNTS))
    show_results(results(seen, taxonomy, COUNTS))
    shown = capsys.readouterr().err
    assert "[bold]A" in shown
    for word in ("cascade", "calibration error", "species taken for another", "long tail", "verification"):
        assert word in shown
    assert "1 photo could not be read" in shown
