from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import multiclass_calibration_error

from train.calibration import (
    BINS,
    COLDEST,
    HOTTEST,
    Outputs,
    Temperatures,
    answers,
    calibration_error,
    fit_temperature,
    fit_temperatures,
    held_half,
    joint_log_p,
    log_softmax,
    reliability,
    truth_log_p,
)

Floats = NDArray[np.float64]
SIZES = (3, 1, 2)  # diseases of three species


def sampled(seed: int, photos: int, classes: int, spread: float = 2.0) -> tuple[Floats, NDArray[np.int64]]:
    """Logits, and labels drawn from the very probabilities that they stand for."""
    generator = np.random.default_rng(seed)
    logits = spread * generator.normal(size=(photos, classes))
    gumbel = generator.gumbel(size=(photos, classes))
    return logits, (logits + gumbel).argmax(1)


def outputs(seed: int = 0, photos: int = 50, beam: int = 2) -> Outputs:
    """Of species with `SIZES` diseases."""
    generator = np.random.default_rng(seed)
    species = generator.normal(size=(photos, 3))
    diseases = generator.normal(size=(photos, 3, max(SIZES)))
    diseases[:, np.arange(max(SIZES)) >= np.array(SIZES)[:, None]] = -np.inf
    likeliest = np.argsort(-species, axis=1)[:, :beam]
    photo = np.arange(photos)
    true = generator.integers(3, size=photos)
    return Outputs(species, diseases[photo, true], likeliest, diseases[photo[:, None], likeliest])


def mean_loss(logits: Floats, target: NDArray[np.int64], temperature: float) -> float:
    log_p = torch.from_numpy(logits / temperature).log_softmax(1)
    return float(torch.nn.functional.nll_loss(log_p, torch.from_numpy(target)))


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_the_temperature_that_made_the_logits_wrong_is_found(true: float) -> None:
    logits, target = sampled(0, 20_000, 5)
    assert fit_temperature(logits * true, target) == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_no_temperature_has_a_smaller_loss(seed: int) -> None:
    logits, target = sampled(seed, 300, 4, spread=seed + 0.5)
    best = minimize_scalar(
        lambda log_t: mean_loss(logits, target, math.exp(log_t)),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logits, target) == pytest.approx(math.exp(best.x), rel=1e-4)


@given(st.floats(0.5, 2.0), st.floats(-50, 50))
def test_scaled_logits_need_a_scaled_temperature_and_shifted_ones_the_same(
    scale: float, shift: float
) -> None:
    logits, target = sampled(1, 200, 3)
    expected = scale * fit_temperature(logits, target)
    assert fit_temperature(scale * logits + shift, target) == pytest.approx(expected, rel=1e-5)


def test_places_behind_the_last_disease_and_photos_of_one_disease_change_nothing() -> None:
    logits, target = sampled(2, 200, 3)
    padded = np.concatenate([logits, np.full((200, 2), -np.inf)], axis=1)
    single = np.array([[1.0, -np.inf, -np.inf, -np.inf, -np.inf]] * 30)
    both = np.concatenate([padded, single])
    found = fit_temperature(both, np.concatenate([target, np.zeros(30, dtype=np.int64)]))
    assert found == pytest.approx(fit_temperature(logits, target))


def test_answers_that_are_all_right_are_as_sure_as_may_be_and_all_wrong_as_unsure() -> None:
    logits = np.array([[3.0, 0.0], [2.0, 0.0]] * 20)
    right = np.zeros(40, dtype=np.int64)
    assert fit_temperature(logits, right) == pytest.approx(COLDEST)
    assert fit_temperature(logits, 1 - right) == pytest.approx(HOTTEST)


def test_a_network_that_has_diverged_or_saw_nothing_gets_no_temperature() -> None:
    nothing = np.zeros((0, 3)), np.zeros(0, dtype=np.int64)
    assert fit_temperature(*nothing) == 1.0
    assert fit_temperature(np.full((5, 3), np.nan), np.zeros(5, dtype=np.int64)) == 1.0


def test_species_and_diseases_get_a_temperature_of_their_own() -> None:
    logits, target = sampled(3, 5000, 4)
    given = Outputs(logits * 2, logits / 2, np.zeros((5000, 1), dtype=np.int64), logits[:, None])
    found = fit_temperatures(given, target, target)
    assert found.species == pytest.approx(2, rel=0.06)
    assert found.disease == pytest.approx(0.5, rel=0.06)


@given(arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 5)))
def test_half_of_each_class_is_fitted_on_and_always_the_same(rows: NDArray[np.int64]) -> None:
    held = held_half(rows)
    assert (held == held_half(rows.copy())).all()
    assert held.sum() == (len(rows) + 1) // 2
    inside = Counter(rows[held].tolist())
    for row, count in Counter(rows.tolist()).items():
        assert abs(2 * inside[row] - count) <= 1


def test_the_calibration_error_is_torchmetrics_own() -> None:
    logits, target = sampled(4, 3000, 4)
    p = np.exp(log_softmax(logits, 0.6))
    theirs = multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(target), 4, n_bins=BINS, norm="l1"
    )
    ours = calibration_error(reliability(p.max(1), p.argmax(1) == target))
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert 0.01 < (ours or 0) < 1


def test_the_calibration_error_of_a_closed_case() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 1.0])
    bins = reliability(confidence, np.array([True, True, True, False, True]))
    assert [part.photos for part in bins] == [4, 1]
    assert calibration_error(bins) == pytest.approx(4 / 5 * 0.15)
    assert calibration_error([]) is None


def test_a_fitted_temperature_makes_a_wrong_network_honest() -> None:
    logits, target = sampled(5, 8000, 6)
    unsure = logits * 0.3
    half = held_half(target)
    fitted = fit_temperature(unsure[half], target[half])

    def error(temperature: float) -> float:
        p = np.exp(log_softmax(unsure[~half], temperature))
        return calibration_error(reliability(p.max(1), p.argmax(1) == target[~half])) or 0

    assert error(1.0) > 0.2
    assert error(fitted) < 0.03


@pytest.mark.parametrize("temperatures", [Temperatures(), Temperatures(0.4, 2.0)])
@pytest.mark.parametrize("beam", [1, 2, 3])
def test_the_answer_is_the_likeliest_pair_of_the_beam(temperatures: Temperatures, beam: int) -> None:
    given = outputs(beam=3)
    found = answers(given, temperatures, beam)
    for photo in range(50):
        species_p = np.exp(given.species[photo] / temperatures.species)
        pairs = {}
        for place in range(beam):
            species = int(given.beam[photo, place])
            disease_p = np.exp(given.heads[photo, place, : SIZES[species]] / temperatures.disease)
            for disease, p in enumerate(disease_p / disease_p.sum()):
                pairs[species, disease] = species_p[species] / species_p.sum() * p
        best = max(pairs, key=lambda pair: pairs[pair])
        assert (found.species[photo], found.disease[photo]) == best
        assert found.probability[photo] == pytest.approx(pairs[best])


def test_a_beam_of_one_settles_the_species_first_and_a_wider_one_may_find_a_likelier_pair() -> None:
    given = outputs(beam=3, photos=400)
    hard, joint = answers(given, Temperatures(), 1), answers(given, Temperatures(), 3)
    assert (hard.species == given.species.argmax(1)).all()
    assert (joint.probability >= hard.probability).all()
    assert (joint.species != hard.species).any()


def test_the_probabilities_of_all_pairs_sum_to_one() -> None:
    given = outputs(beam=3)
    total = np.exp(joint_log_p(given, Temperatures(0.7, 1.3))).sum((1, 2))
    assert total == pytest.approx(np.ones(50))


def test_the_probability_of_the_truth_is_that_of_its_pair() -> None:
    given = outputs(beam=3)
    temperatures = Temperatures(0.7, 1.3)
    species, own = given.beam[:, 0], given.heads[:, 0]
    seen = Outputs(given.species, own, given.beam, given.heads)
    first = np.zeros(50, dtype=np.int64)
    expected = joint_log_p(given, temperatures)[:, 0, 0]
    assert truth_log_p(seen, species, first, temperatures) == pytest.approx(expected)


def test_outputs_of_some_photos_are_theirs() -> None:
    given, some = outputs(), np.array([3, 7])
    assert (given[some].species == given.species[some]).all()
    assert given[np.arange(50) < 4].heads.shape == (4, 2, 3)


def test_temperatures_travel_as_json_and_nonsense_is_refused() -> None:
    assert Temperatures.from_json(vars(Temperatures(0.5, 2.0))) == Temperatures(0.5, 2.0)
    for wrong in ({}, {"species": 1}, {"species": 0, "disease": 1}, {"species": math.nan, "disease": 1}, []):
        with pytest.raises(ValueError, match="temperatures"):
            Temperatures.from_json(wrong)  # type: ignore[arg-type]
