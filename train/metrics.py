"""Predictions -> scores, each with its definition, an interval and a verdict against the target.

Pure: numpy arrays in, numbers out. "Tail" classes have at most 80 training photos. Legend: n photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardtool.quality import TAIL_PHOTOS
from shardtool.taxonomy import Taxonomy

RESAMPLES = 300
TOP = 3
CHANCE = 0.025  # that the true value lies beyond one end of an interval
Z = 1.959964  # standard deviations to that end
SYSTEMATIC = 0.05  # of a species' photos: one confusion alone uses up what the 95 % target allows
Samples = NDArray[np.int64]  # indices of photos, as the bootstrap draws them
Verdict = Literal["pass", "fail", "inconclusive", "n/a"]


@dataclass(frozen=True)
class Definition:
    """What a metric means, and the source document's target for it (0 = none)."""

    text: str
    target: float


METRICS = {
    "species_top1": Definition("share of photos whose species is right", 0.95),
    "disease_top1": Definition("share whose disease is right, in the head of the true species", 0.88),
    "disease_top3": Definition(f"same, disease among the head's best {TOP}", 0.94),
    "disease_top3_wide": Definition(f"same, of the photos whose species has more than {TOP} diseases", 0.0),
    "tail_macro_f1": Definition(
        f"mean F1 of the classes with at most {TAIL_PHOTOS} training photos, in the head of the true species",
        0.80,
    ),
    "macro_f1": Definition("same mean over all classes", 0.0),
    "disease_given_species": Definition(
        "share whose disease is right, of the photos whose species is right", 0.0
    ),
    "cascade": Definition(
        "share whose species and disease are both right (= species_top1 × disease_given_species)", 0.90
    ),
    "disease_name": Definition(
        "share whose disease has the right name, in the head of the predicted species, "
        "whether that species is right or not",
        0.0,
    ),
}


@dataclass(frozen=True)
class Predictions:
    """What the model said of n photos.

    species, disease        int64 [n]  the truth; disease ids are inside the species
    species_hat             int64 [n]  predicted species
    disease_hat             int64 [n]  predicted disease, in the head of the TRUE species
    in_top3                 bool  [n]  the true disease is among that head's best three
    routed                  int64 [n]  predicted disease, in the head of the PREDICTED species
    """

    species: NDArray[np.int64]
    disease: NDArray[np.int64]
    species_hat: NDArray[np.int64]
    disease_hat: NDArray[np.int64]
    in_top3: NDArray[np.bool_]
    routed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.species)


@dataclass(frozen=True)
class Score:
    """A metric's value with its 95 % bootstrap interval; all None when no photo could show it.

    `photos` is how many the metric looks at; `classes` is how many classes a mean over classes counts, None
    for shares of photos.
    """

    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    photos: int = 0
    classes: int | None = None


@dataclass(frozen=True)
class Scores:
    """All metrics and the F1 of each class (NaN where a class has neither photos nor predictions)."""

    metrics: dict[str, Score]
    class_f1: NDArray[np.float64]
    tail: NDArray[np.bool_]
    photos: int

    def values(self) -> dict[str, float | None]:
        return {name: score.value for name, score in self.metrics.items()}

    def tail_f1(self, taxonomy: Taxonomy) -> dict[str, float]:
        """F1 of the tail classes by "species/disease"."""
        return {
            "/".join(taxonomy.row_names[row]): float(self.class_f1[row])
            for row in np.flatnonzero(self.tail & ~np.isnan(self.class_f1))
        }


def score(
    predictions: Predictions,
    taxonomy: Taxonomy,
    train_counts: NDArray[np.int64],
    intervals: bool = True,
) -> Scores:
    """All metrics of `predictions`; `train_counts` [rows] says which classes are in the tail.

    `intervals=False` leaves the bootstrap out (every epoch needs the values alone).
    """
    truth = taxonomy.offsets[predictions.species] + predictions.disease
    answer = taxonomy.offsets[predictions.species] + predictions.disease_hat
    tail = train_counts <= TAIL_PHOTOS
    class_f1 = f1(truth, answer, taxonomy.rows)
    metrics = {
        name: _score(_share(hits, among), np.flatnonzero(among), len(truth), METRICS[name].target, intervals)
        for name, (hits, among) in _shares(predictions, taxonomy).items()
    }
    for name, classes in {"tail_macro_f1": tail, "macro_f1": np.ones_like(tail)}.items():
        looked_at = np.flatnonzero(classes[truth] | classes[answer])
        measure = _macro_f1(truth, answer, classes)
        result = _score(measure, looked_at, len(truth), METRICS[name].target, intervals)
        metrics[name] = replace(result, classes=int((classes & ~np.isnan(class_f1)).sum()))
    return Scores({name: metrics[name] for name in METRICS}, class_f1, tail, len(predictions))


def _shares(
    predictions: Predictions, taxonomy: Taxonomy
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Of each metric that is a share: which photos hit, and among which they are counted, bool [n] both."""
    species_right = predictions.species_hat == predictions.species
    disease_right = predictions.disease_hat == predictions.disease
    everyone = np.ones(len(predictions), dtype=bool)
    return {
        "species_top1": (species_right, everyone),
        "disease_top1": (disease_right, everyone),
        "disease_top3": (predictions.in_top3, everyone),
        "disease_top3_wide": (predictions.in_top3, taxonomy.sizes[predictions.species] > TOP),
        "disease_given_species": (disease_right, species_right),
        "cascade": (species_right & disease_right, everyone),
        "disease_name": (_same_name(predictions, taxonomy), everyone),
    }


def _same_name(predictions: Predictions, taxonomy: Taxonomy) -> NDArray[np.bool_]:
    """Whether truth and answer carry one disease name, be it of two species: bool [n]."""
    names = np.unique([disease for _, disease in taxonomy.row_names], return_inverse=True)[1]
    truth = taxonomy.offsets[predictions.species] + predictions.disease
    answer = taxonomy.offsets[predictions.species_hat] + predictions.routed
    same: NDArray[np.bool_] = names[truth] == names[answer]
    return same


def f1(truth: NDArray[np.int64], answer: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """F1 of each class, float64 [classes]; NaN for a class that neither occurs nor is predicted."""
    hits = np.bincount(truth[truth == answer], minlength=classes)
    both = np.bincount(truth, minlength=classes) + np.bincount(answer, minlength=classes)
    result = np.full(classes, np.nan)
    np.divide(2 * hits, both, out=result, where=both > 0)
    return result


def verdict(low: float, high: float, target: float) -> Verdict:
    """pass when the whole interval reaches the target, fail when none of it does."""
    if not target:
        return "n/a"
    if low >= target:
        return "pass"
    return "fail" if high < target else "inconclusive"


def _share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> Callable[[Samples], float]:
    def measure(samples: Samples) -> float:
        count = np.count_nonzero(among[samples])
        return float(np.count_nonzero((hits & among)[samples]) / count) if count else math.nan

    return measure


def _macro_f1(
    truth: NDArray[np.int64], answer: NDArray[np.int64], classes: NDArray[np.bool_]
) -> Callable[[Samples], float]:
    def measure(samples: Samples) -> float:
        values = f1(truth[samples], answer[samples], len(classes))[classes]
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else math.nan

    return measure


def _score(
    measure: Callable[[Samples], float], looked_at: Samples, photos: int, target: float, intervals: bool
) -> Score:
    value = measure(np.arange(photos))
    if math.isnan(value):
        return Score(None, None, None, "n/a")
    if not intervals:
        return Score(value, None, None, "n/a", len(looked_at))
    generator = np.random.default_rng(0)
    resampled = [measure(generator.integers(photos, size=photos)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(resampled, [100 * CHANCE, 100 * (1 - CHANCE)])
    # Photos that are all right cannot be resampled to a wrong one: the exact bound of a share takes over.
    unseen = 1 - CHANCE ** (1 / len(looked_at))
    low = min(low, 1 - unseen) if value == 1 else low
    high = max(high, unseen) if value == 0 else high
    return Score(value, float(low), float(high), verdict(low, high, target), len(looked_at))


# ---- which species are taken for which --------------------------------------------------------------


@dataclass(frozen=True)
class Confusion:
    """`count` of the `photos` of species `truth` were taken for `answer`; `low` and `high` are the 95 %
    interval of that share (Wilson's)."""

    truth: int
    answer: int
    count: int
    photos: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.count / self.photos

    @property
    def verdict(self) -> Verdict:
        """fail: systematic, surely above SYSTEMATIC; pass: surely below."""
        if self.low > SYSTEMATIC:
            return "fail"
        return "pass" if self.high <= SYSTEMATIC else "inconclusive"


def confusion_counts(
    truth: NDArray[np.int64], answer: NDArray[np.int64], classes: int
) -> list[tuple[int, int, int]]:
    """(truth, answer, photos) of every pair that occurs, the right ones among them, in order of ids."""
    pairs, counts = np.unique(truth * classes + answer, return_counts=True)
    columns = (pairs // classes, pairs % classes, counts)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def confusions(truth: NDArray[np.int64], answer: NDArray[np.int64], classes: int) -> list[Confusion]:
    """The pairs of different classes that were confused at all, the surest first."""
    photos = np.bincount(truth, minlength=classes)
    found = [
        Confusion(one, other, count, int(photos[one]), *wilson(count, int(photos[one])))
        for one, other, count in confusion_counts(truth, answer, classes)
        if one != other
    ]
    return sorted(found, key=lambda pair: (-pair.low, -pair.share, pair.truth, pair.answer))


def wilson(hits: int, photos: int) -> tuple[float, float]:
    """95 % interval of a share by E. B. Wilson's score method (1927), good for few photos and for shares near
    0 and 1; (0, 1) without photos."""
    if not photos:
        return 0.0, 1.0
    share, square = hits / photos, Z * Z / photos
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


# ---- for programs ---------------------------------------------------------------------------------


def scores_json(scores: Scores, taxonomy: Taxonomy) -> dict[str, Any]:
    """For --json: fractions, intervals, verdicts, definitions, and F1 of every class seen."""
    return {
        "metrics": scores.values(),
        "intervals": {name: [s.low, s.high] for name, s in scores.metrics.items()},
        "verdicts": {name: s.verdict for name, s in scores.metrics.items()},
        "photos_counted": {name: s.photos for name, s in scores.metrics.items()},
        "classes_counted": {name: s.classes for name, s in scores.metrics.items() if s.classes is not None},
        "definitions": {name: definition.text for name, definition in METRICS.items()},
        "targets": {name: d.target for name, d in METRICS.items() if d.target},
        "class_f1": {
            "/".join(names): float(value)
            for names, value in zip(taxonomy.row_names, scores.class_f1, strict=True)
            if not np.isnan(value)
        },
        "photos": scores.photos,
    }
