"""Everything there is to say of an evaluated checkpoint, as plain data: for --json and the report page.

Pure: an evaluation in, JSON-able numbers out; `results` lists the keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardtool.taxonomy import Taxonomy
from train.calibration import (
    BEAM,
    BINS,
    SURE,
    Answers,
    Outputs,
    Temperatures,
    answers,
    calibration_error,
    held_half,
    log_softmax,
    reliability,
    truth_log_p,
)
from train.checklist import CONFUSION_NOTE, SpeciesResult, has_learned, verification
from train.evaluate import Evaluated, calibrate
from train.metrics import Predictions, confusion_counts, confusions, score, scores_json, wilson

SHOWN = 24  # photos of each kind of mistake

TEMPERATURE_NOTE = (
    "one temperature for species, one for diseases, each fitted by likelihood on every second photo of "
    "each class and judged on the others"
)
ERROR_NOTE = (
    f"gap between the probability of the answer and the share of right answers, in {BINS} equal bins of "
    "probability, mean over the photos; of diseases in the head of the true species, where it has several"
)
TARGETS_NOTE = (
    "the targets cannot all hold at their minimum: 95 % of species and 88 % of diseases allow a cascade of "
    "83.6 %, if the two are independent, where 90 % are asked for"
)


def results(
    evaluated: Evaluated,
    taxonomy: Taxonomy,
    train_counts: NDArray[np.int64],
    events: Iterable[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The whole evaluation; `evaluated` holds its outputs, `events` are those of the run (events.jsonl).

    Shares are fractions of 1; a number that no photo could show is None.

    metrics, intervals, verdicts, targets, definitions, photos_counted, classes_counted: by name of the metric
    class_f1      by "species/disease"
    photos        that were looked at; left_out: ids of the photos that could not be read
    losses        mean of each level
    notes         sentences to be shown beside the targets
    temperatures  {species, disease}: what `train-hier predict` takes
    calibration   {definition, fit, fitted_on, measured_on (photos), species, disease, answer}, each of these
                  three {photos, before, after, bins_before, bins_after}: calibration errors, and the bins as
                  [{start, photos, confidence, right}]; "answer" is the pair that predict gives
    answers       of the photos that calibration is measured on, shares: {beam, hard (right with a beam of 1),
                  joint (right with `beam`), sure_at, sure (at least so probable), right_if_sure,
                  right_if_unsure}
    verification  the source document's list: [{item, figure (text), verdict, how (definition)}]
    confusion     {definition, species (names), photos (of each), counts: [[truth, answer, photos]] by species
                  id, the right ones too, pairs: [{truth, answer (names), count, photos, share, low, high,
                  systematic}], the surest first}
    classes       [{species, disease, train_photos, photos, precision, recall, f1, tail}] of all rows, in the
                  head of the true species
    species       [{name, diseases, photos, right, disease_top1, low, high, commonest, loss, verdict}]: share
                  of right species; share of right diseases in its own head with interval, the share of its
                  commonest disease, and whether the head has learned (see checklist.py)
    wrong         {confident, worst}: [{sample, truth, answer (each [species, disease]), probability,
                  truth_probability}]: the wrong answers given with the highest probability; the photos whose
                  truth was given the lowest
    """
    assert evaluated.outputs is not None, "results need the outputs"
    seen, outputs = evaluated.predictions, evaluated.outputs
    scores = score(seen, taxonomy, train_counts)
    fitted = held_half(taxonomy.offsets[seen.species] + seen.disease)
    temperatures = calibrate(evaluated, taxonomy)
    species = species_results(seen, outputs, taxonomy)
    value = {
        **scores_json(scores, taxonomy),
        "left_out": evaluated.left_out.tolist(),
        "losses": dict(evaluated.losses),
        "notes": [TARGETS_NOTE],
        "temperatures": vars(temperatures),
        "calibration": calibration_json(seen, outputs, fitted, temperatures, taxonomy),
        "answers": answers_json(seen, outputs, ~fitted, temperatures),
        "confusion": confusion_json(seen, taxonomy),
        "classes": class_results(seen, taxonomy, train_counts, scores.class_f1, scores.tail),
        "species": [entry._asdict() for entry in species],
        "wrong": wrong_photos(evaluated, outputs, temperatures, taxonomy),
        "verification": verification(scores.metrics, seen, taxonomy, species, events),
    }
    finite: dict[str, Any] = without_nan(value)
    return finite


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: None says that there is no number."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- calibration ----------------------------------------------------------------------------------


def calibration_json(
    seen: Predictions,
    outputs: Outputs,
    fitted: NDArray[np.bool_],
    temperatures: Temperatures,
    taxonomy: Taxonomy,
) -> dict[str, Any]:
    """Calibration errors on the photos that are not in `fitted`, before and after."""
    judged = np.flatnonzero(~fitted)
    several = np.flatnonzero(~fitted & (taxonomy.sizes[seen.species] > 1))
    return {
        "definition": ERROR_NOTE,
        "fit": TEMPERATURE_NOTE,
        "fitted_on": int(fitted.sum()),
        "measured_on": len(judged),
        "species": _compared(
            *(
                _level(outputs.species[judged], seen.species[judged], temperature)
                for temperature in (1.0, temperatures.species)
            )
        ),
        "disease": _compared(
            *(
                _level(outputs.own[several], seen.disease[several], temperature)
                for temperature in (1.0, temperatures.disease)
            )
        ),
        "answer": _compared(
            *(
                _pairs(seen, answers(outputs[judged], warmth), judged)
                for warmth in (Temperatures(), temperatures)
            )
        ),
    }


class _Judged(NamedTuple):
    """Probabilities of answers, and which are right."""

    confidence: NDArray[np.floating[Any]]
    right: NDArray[np.bool_]


def _level(logits: NDArray[np.floating[Any]], target: NDArray[np.int64], temperature: float) -> _Judged:
    log_p = log_softmax(logits, temperature)
    return _Judged(np.exp(log_p.max(1)), log_p.argmax(1) == target)


def _pairs(seen: Predictions, given: Answers, photos: NDArray[np.int64]) -> _Judged:
    right = (given.species == seen.species[photos]) & (given.disease == seen.disease[photos])
    return _Judged(given.probability, right)


def _compared(before: _Judged, after: _Judged) -> dict[str, Any]:
    bins = [reliability(*before), reliability(*after)]
    return {
        "photos": len(before.right),
        "before": calibration_error(bins[0]),
        "after": calibration_error(bins[1]),
        "bins_before": [vars(part) for part in bins[0]],
        "bins_after": [vars(part) for part in bins[1]],
    }


def answers_json(
    seen: Predictions, outputs: Outputs, judged: NDArray[np.bool_], temperatures: Temperatures
) -> dict[str, Any]:
    """What predict would say of the `judged` photos."""
    photos = np.flatnonzero(judged)
    hard = _pairs(seen, answers(outputs[photos], temperatures, 1), photos)
    joint = _pairs(seen, answers(outputs[photos], temperatures), photos)
    sure = joint.confidence >= SURE
    return {
        "beam": BEAM,
        "hard": _mean(hard.right),
        "joint": _mean(joint.right),
        "sure_at": SURE,
        "sure": _mean(sure),
        "right_if_sure": _mean(joint.right[sure]),
        "right_if_unsure": _mean(joint.right[~sure]),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


# ---- who is taken for whom, and what each class and species is like ---------------------------------


def confusion_json(seen: Predictions, taxonomy: Taxonomy) -> dict[str, Any]:
    """The species confusion matrix, sparse, and the confused pairs by name."""
    number = len(taxonomy.species)
    pairs = confusions(seen.species, seen.species_hat, number)
    return {
        "definition": CONFUSION_NOTE,
        "species": list(taxonomy.species),
        "photos": np.bincount(seen.species, minlength=number).tolist(),
        "counts": [list(entry) for entry in confusion_counts(seen.species, seen.species_hat, number)],
        "pairs": [
            {
                **vars(pair),
                "truth": taxonomy.species[pair.truth],
                "answer": taxonomy.species[pair.answer],
                "share": pair.share,
                "systematic": pair.verdict == "fail",
            }
            for pair in pairs
        ],
    }


def class_results(
    seen: Predictions,
    taxonomy: Taxonomy,
    train_counts: NDArray[np.int64],
    class_f1: NDArray[np.float64],
    tail: NDArray[np.bool_],
) -> list[dict[str, Any]]:
    """Each (species, disease), judged in the head of its species."""
    truth = taxonomy.offsets[seen.species] + seen.disease
    answer = taxonomy.offsets[seen.species] + seen.disease_hat
    counts = [np.bincount(rows, minlength=taxonomy.rows) for rows in (truth, answer, truth[truth == answer])]
    photos, given, hits = (count.tolist() for count in counts)
    return [
        {
            "species": names[0],
            "disease": names[1],
            "train_photos": int(train_counts[row]),
            "photos": photos[row],
            "precision": hits[row] / given[row] if given[row] else None,
            "recall": hits[row] / photos[row] if photos[row] else None,
            "f1": float(class_f1[row]),
            "tail": bool(tail[row]),
        }
        for row, names in enumerate(taxonomy.row_names)
    ]


def species_results(seen: Predictions, outputs: Outputs, taxonomy: Taxonomy) -> list[SpeciesResult]:
    """Each species, and how its head does beside the one answer that is right most often."""
    loss = -log_softmax(outputs.own)[np.arange(len(seen)), seen.disease]
    return [
        _species_result(name, len(diseases), seen, np.flatnonzero(seen.species == number), loss)
        for number, (name, diseases) in enumerate(zip(taxonomy.species, taxonomy.diseases, strict=True))
    ]


def _species_result(
    name: str, diseases: int, seen: Predictions, mine: NDArray[np.int64], loss: NDArray[np.floating[Any]]
) -> SpeciesResult:
    photos, truth = len(mine), seen.disease[mine]
    right = int(np.count_nonzero(seen.disease_hat[mine] == truth))
    low, high = wilson(right, photos)
    commonest = int(np.bincount(truth, minlength=1).max()) / max(photos, 1)
    mean_loss = _mean(loss[mine])
    return SpeciesResult(
        name,
        diseases,
        photos,
        _mean(seen.species_hat[mine] == seen.species[mine]),
        right / photos if photos else None,
        low,
        high,
        commonest,
        mean_loss,
        has_learned(diseases, mean_loss, low, high, commonest),
    )


def wrong_photos(
    evaluated: Evaluated, outputs: Outputs, temperatures: Temperatures, taxonomy: Taxonomy
) -> dict[str, list[dict[str, Any]]]:
    """The wrong answers that were given with most confidence, and the photos whose truth got the least."""
    seen, given = evaluated.predictions, answers(outputs, temperatures)
    truth_p = np.exp(truth_log_p(outputs, seen.species, seen.disease, temperatures))
    wrong = np.flatnonzero((given.species != seen.species) | (given.disease != seen.disease))

    def told(photos: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [
            {
                "sample": int(evaluated.samples[photo]),
                "truth": list(taxonomy.names(seen.species[photo], seen.disease[photo])),
                "answer": list(taxonomy.names(given.species[photo], given.disease[photo])),
                "probability": float(given.probability[photo]),
                "truth_probability": float(truth_p[photo]),
            }
            for photo in photos[:SHOWN].tolist()
        ]

    return {
        "confident": told(wrong[np.argsort(-given.probability[wrong], kind="stable")]),
        "worst": told(wrong[np.argsort(truth_p[wrong], kind="stable")]),
    }
