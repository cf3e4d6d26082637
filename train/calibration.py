"""Logits -> probabilities that mean what they say: of the answers given with 80 %, 80 % are right.

Focal loss and label smoothing make a network less sure than it may be (with both, their optimum lies at
p = 0.69). One temperature for the species and one for the diseases mend that: logits are divided by it
before the softmax, which changes no order inside a head. Pure: numpy arrays in, numbers out.
Legend: n photos, S species, M diseases of the largest species, K species of the beam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
BEAM = 3  # species whose diseases are looked at for an answer
SURE = 0.5  # an answer at least so probable is more likely right than wrong
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are looked at
HALVINGS = 30  # of the logarithm of that range: T to 6e-9 of its value

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Outputs:
    """What the network said of n photos, as logits or log-probabilities: these differ by what is added to all
    numbers of a softmax, which changes nothing. -inf stands behind the last disease of a species.

    species   float [n, S]
    own       float [n, M]     the head of the true species
    beam      int64 [n, K]     the likeliest species, best first
    heads     float [n, K, M]  the heads of these
    """

    species: Floats
    own: Floats
    beam: NDArray[np.int64]
    heads: Floats

    def __getitem__(self, photos: NDArray[Any]) -> Outputs:
        """Those of some of the photos."""
        return Outputs(*(getattr(self, column.name)[photos] for column in fields(self)))


@dataclass(frozen=True)
class Temperatures:
    """What logits are divided by; 1 leaves them alone."""

    species: float = 1.0
    disease: float = 1.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Temperatures:
        """The inverse of `vars`. Raises ValueError for what are no temperatures."""
        try:
            species, disease = float(value["species"]), float(value["disease"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no temperatures: {value!r:.80}") from error
        if not all(0 < number < math.inf for number in (species, disease)):
            raise ValueError("temperatures are above 0")
        return cls(species, disease)


# ---- fitting --------------------------------------------------------------------------------------


def held_half(rows: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """The photos on which temperatures are fitted, bool [n]; they are judged on the others.

    Every second photo of each class (`rows` [n]), in the order of the photos: always the same ones.
    """
    held = np.zeros(len(rows), dtype=bool)
    held[np.argsort(rows, kind="stable")[::2]] = True
    return held


def fit_temperatures(
    outputs: Outputs, species: NDArray[np.int64], disease: NDArray[np.int64]
) -> Temperatures:
    """The temperatures under which the truth (ids, [n]; diseases inside their species) is likeliest."""
    return Temperatures(fit_temperature(outputs.species, species), fit_temperature(outputs.own, disease))


def fit_temperature(logits: Floats, target: NDArray[np.int64]) -> float:
    """The T of least mean -log softmax(logits / T)[target], logits [n, C]; 1 if no photo can tell.

    That mean is convex in 1/T; the zero of its slope, the mean of (expected logit - logit of the target), is
    found by halving. Where there is none, as where every answer is right, T is COLDEST or HOTTEST.
    """
    gaps = logits - logits.max(1, keepdims=True)
    telling = (np.isfinite(gaps) | np.isneginf(gaps)).all(1) & (np.isfinite(gaps).sum(1) > 1)
    gaps, target = gaps[telling].astype(np.float64), target[telling]
    if not len(gaps):
        return 1.0
    weights = np.where(np.isfinite(gaps), gaps, 0.0)
    wanted = float(np.take_along_axis(gaps, target[:, None], 1).mean())
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = np.exp(gaps / math.exp(middle))
        expected = float(((p * weights).sum(1) / p.sum(1)).mean())
        low, high = (low, middle) if expected <= wanted else (middle, high)
    return math.exp((low + high) / 2)


# ---- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """The likeliest pair of species and disease of each photo: int64 [n] ids, and its probability [n]."""

    species: NDArray[np.int64]
    disease: NDArray[np.int64]
    probability: Floats


def answers(outputs: Outputs, temperatures: Temperatures, beam: int = BEAM) -> Answers:
    """The maximum of P(species) x P(disease | species) over the `beam` likeliest species; with a beam of 1
    the species is settled first (hard routing)."""
    joint = joint_log_p(outputs, temperatures)[:, :beam]
    flat = joint.reshape(len(joint), joint.shape[1] * joint.shape[2])
    photo, best = np.arange(len(flat)), flat.argmax(1)
    place, disease = np.divmod(best, joint.shape[2])
    return Answers(outputs.beam[photo, place], disease, np.exp(flat[photo, best]))


def joint_log_p(outputs: Outputs, temperatures: Temperatures) -> Floats:
    """log P(species) + log P(disease | species) of the species of the beam, [n, K, M]; -inf where a
    species has no such disease."""
    species = np.take_along_axis(log_softmax(outputs.species, temperatures.species), outputs.beam, 1)
    return species[:, :, None] + log_softmax(outputs.heads, temperatures.disease)


def truth_log_p(
    outputs: Outputs, species: NDArray[np.int64], disease: NDArray[np.int64], temperatures: Temperatures
) -> Floats:
    """log P(species) + log P(disease | species) of the truth, [n]."""
    photo = np.arange(len(species))
    own = log_softmax(outputs.own, temperatures.disease)[photo, disease]
    result: Floats = log_softmax(outputs.species, temperatures.species)[photo, species] + own
    return result


def log_softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Over the last axis, in float64."""
    if not logits.size:
        return logits.astype(np.float64)
    scaled = (logits - logits.max(-1, keepdims=True)).astype(np.float64) / temperature
    result: Floats = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return result


# ---- judging --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """The photos whose answer had a probability from `start` on, up to the next bin's."""

    start: float
    photos: int
    confidence: float  # mean
    right: float  # share


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> list[Bin]:
    """The BINS equal parts of [0, 1] that hold a photo; `confidence` [n] of answers that are `right` [n]."""
    known = ~np.isnan(confidence)
    number = np.minimum((confidence[known] * BINS).astype(np.int64), BINS - 1)
    photos = np.bincount(number, minlength=BINS)
    sums = [np.bincount(number, values[known], BINS) for values in (confidence, right)]
    return [
        Bin(place / BINS, int(photos[place]), *(float(total[place] / photos[place]) for total in sums))
        for place in np.flatnonzero(photos).tolist()
    ]


def calibration_error(bins: list[Bin]) -> float | None:
    """ECE: the gap between confidence and share of right answers, mean over the photos; None without."""
    photos = sum(part.photos for part in bins)
    if not photos:
        return None
    return sum(part.photos * abs(part.confidence - part.right) for part in bins) / photos
