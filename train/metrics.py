"""Predictions -> scores, each with its definition, an interval and a verdict against the target.

Pure: numpy arrays in, numbers out. "Tail" classes have at most 80 training photos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardtool.quality import TAIL_PHOTOS
from shardtool.taxonomy import Taxonomy

RESAMPLES = 300
Verdict = Literal["pass", "fail", "inconclusive", "n/a"]


@dataclass(frozen=True)
class Definition:
    """What a metric means, and the source document's target for it (0 = none)."""

    text: str
    target: float


METRICS = {
    "species_top1": Definition("share of photos whose species is right", 0.95),
    "disease_top1": Definition("share whose disease is right, in the head of the true species", 0.88),
    "disease_top3": Definition("same, disease among the head's best three", 0.94),
    "tail_macro_f1": Definition(
        f"mean F1 of the classes with at most {TAIL_PHOTOS} training photos, in the head of the true species",
        0.80,
    ),
    "macro_f1": Definition("same mean over all classes", 0.0),
    "cascade": Definition("share whose species and disease are both right", 0.90),
}


@dataclass(frozen=True)
class Predictions:
    """What the model said of n photos.

    species, disease        int64 [n]  the truth; disease ids are inside the species
    species_hat             int64 [n]  predicted species
    disease_hat             int64 [n]  predicted disease, in the head of the TRUE species
    in_top3                 bool  [n]  the true disease is among that head's best three
    """

    species: NDArray[np.int64]
    disease: NDArray[np.int64]
    species_hat: NDArray[np.int64]
    disease_hat: NDArray[np.int64]
    in_top3: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.species)


@dataclass(frozen=True)
class Score:
    """A metric's value with its 95 % bootstrap interval; all None when no photo could show it.

    `classes` is how many classes a mean over classes counts, None for shares of photos.
    """

    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
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
    species_right = predictions.species_hat == predictions.species
    disease_right = predictions.disease_hat == predictions.disease
    tail = train_counts <= TAIL_PHOTOS

    def f1_over(classes: NDArray[np.bool_]) -> Callable[[NDArray[np.int64]], float]:
        return lambda sample: _mean(f1(truth[sample], answer[sample], taxonomy.rows)[classes])

    shares = {
        "species_top1": species_right,
        "disease_top1": disease_right,
        "disease_top3": predictions.in_top3,
        "cascade": species_right & disease_right,
    }
    measures: dict[str, Callable[[NDArray[np.int64]], float]] = {
        **{name: _share(hits) for name, hits in shares.items()},
        "tail_macro_f1": f1_over(tail),
        "macro_f1": f1_over(np.ones_like(tail)),
    }
    metrics = {
        name: _score(measures[name], len(predictions), METRICS[name].target, intervals) for name in METRICS
    }
    class_f1 = f1(truth, answer, taxonomy.rows)
    known = ~np.isnan(class_f1)
    counted = {"tail_macro_f1": int((known & tail).sum()), "macro_f1": int(known.sum())}
    metrics = {name: replace(result, classes=counted.get(name)) for name, result in metrics.items()}
    return Scores(metrics, class_f1, tail, len(predictions))


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


def _share(hits: NDArray[np.bool_]) -> Callable[[NDArray[np.int64]], float]:
    return lambda sample: _mean(hits[sample].astype(np.float64))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _score(
    measure: Callable[[NDArray[np.int64]], float], photos: int, target: float, intervals: bool
) -> Score:
    everyone = np.arange(photos)
    value = measure(everyone)
    if np.isnan(value):
        return Score(None, None, None, "n/a")
    if not intervals:
        return Score(value, None, None, "n/a")
    generator = np.random.default_rng(0)
    resampled = [measure(generator.integers(photos, size=photos)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Score(value, float(low), float(high), verdict(float(low), float(high), target))


def scores_json(scores: Scores, taxonomy: Taxonomy) -> dict[str, Any]:
    """For --json: fractions, intervals, verdicts, definitions, and F1 of every class seen."""
    return {
        "metrics": scores.values(),
        "intervals": {name: [s.low, s.high] for name, s in scores.metrics.items()},
        "verdicts": {name: s.verdict for name, s in scores.metrics.items()},
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
