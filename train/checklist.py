"""The source document's Verification list: each item with its figure, its verdict and how it is judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shardtool.taxonomy import Taxonomy
from train.metrics import SYSTEMATIC, Confusion, Predictions, Score, Verdict, confusions, verdict

TAIL_F1 = 0.70  # the source document's table asks for 80 %, its list for 70 %
OUT_OF_MEMORY = "out of memory"  # kind of the event that training logs when it halves its micro-batch
NAMED = 5  # offenders in a figure

CONFUSION_NOTE = (
    f"a species is systematically taken for another if, with 95 % confidence, more than {SYSTEMATIC:.0%} of "
    "its photos are (Wilson's interval)"
)
INTERVAL_NOTE = "pass if the whole 95 % interval reaches the target, fail if none of it does"
LEARNED_NOTE = (
    "a head has learned if, with 95 % confidence, it is right more often than its commonest disease as the "
    "only answer would be"
)


class SpeciesResult(NamedTuple):
    """A species: shares of its `photos` with the right species and, in its own head, the right disease (with
    interval); the share of its commonest disease; the head's mean loss, None without photos."""

    name: str
    diseases: int
    photos: int
    right: float | None
    disease_top1: float | None
    low: float
    high: float
    commonest: float
    loss: float | None
    verdict: Verdict


def has_learned(diseases: int, loss: float | None, low: float, high: float, commonest: float) -> Verdict:
    """Whether a head with that mean loss, right in `low` to `high` of its photos, has learned anything."""
    if loss is None:
        return "n/a"
    if not math.isfinite(loss):
        return "fail"
    if diseases == 1:
        return "pass"
    return "pass" if low > commonest else "fail" if high <= commonest else "inconclusive"


def verification(
    metrics: Mapping[str, Score],
    seen: Predictions,
    taxonomy: Taxonomy,
    species: Sequence[SpeciesResult],
    events: Iterable[Mapping[str, Any]] | None,
) -> list[dict[str, str]]:
    """The seven items in the document's order: [{item, figure, verdict, how}], `events` as in results.py."""
    top1, top3, tail = (metrics[name] for name in ("species_top1", "disease_top3", "tail_macro_f1"))
    pairs = confusions(seen.species, seen.species_hat, len(taxonomy.species))
    return [
        _item("species top-1 ≥ 95 %", _figure(top1), top1.verdict, INTERVAL_NOTE),
        _item(
            "disease top-3 ≥ 94 %, in the head of the true species",
            _figure(top3),
            top3.verdict,
            INTERVAL_NOTE,
        ),
        _no_systematic_confusion(pairs, taxonomy, len(seen)),
        _heads_converge(species),
        _item(
            f"F1 of the tail classes ≥ {TAIL_F1:.0%}",
            f"{_figure(tail)}, {tail.classes} classes",
            "n/a" if tail.low is None or tail.high is None else verdict(tail.low, tail.high, TAIL_F1),
            f"{INTERVAL_NOTE}; the mean of these classes",
        ),
        _item(
            "the model can be loaded from its checkpoint and run",
            f"{len(seen):,} photos answered",
            "pass" if len(seen) else "n/a",
            "pass if it was",
        ),
        _no_memory_errors(events),
    ]


def _item(item: str, figure: str, outcome: Verdict, how: str) -> dict[str, str]:
    return {"item": item, "figure": figure, "verdict": outcome, "how": how}


def _figure(result: Score) -> str:
    if result.value is None:
        return "no photos"
    return f"{result.value:.1%} ({result.low:.1%} – {result.high:.1%})"


def _named(figure: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{figure}: {', '.join(names[:NAMED])}{more}" if names else figure


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of many verdicts, all of which must be "pass"."""
    found = set(verdicts)
    for outcome in ("fail", "inconclusive"):
        if outcome in found:
            return outcome
    return "pass"


def _no_systematic_confusion(pairs: Sequence[Confusion], taxonomy: Taxonomy, photos: int) -> dict[str, str]:
    counts = [sum(pair.verdict == outcome for pair in pairs) for outcome in ("fail", "inconclusive")]
    worst = _worst(pair.verdict for pair in pairs)
    names = [
        f"{taxonomy.species[pair.truth]} for {taxonomy.species[pair.answer]} ({pair.share:.1%})"
        for pair in pairs
        if pair.verdict == worst != "pass"
    ]
    return _item(
        "the confusion matrix shows no systematic misclassification of species",
        _named(f"{counts[0]} systematic pairs, {counts[1]} possible", names),
        worst if photos else "n/a",
        f"{CONFUSION_NOTE}; possible where the interval reaches above that",
    )


def _heads_converge(species: Sequence[SpeciesResult]) -> dict[str, str]:
    known = [entry for entry in species if entry.verdict != "n/a"]
    infinite = sum(entry.loss is not None and not math.isfinite(entry.loss) for entry in known)
    unproven = [entry.name for entry in known if entry.verdict != "pass"]
    figure = f"{infinite} of {len(known)} heads with a loss that is no number"
    return _item(
        "the disease classifiers of all species converge",
        _named(f"{figure}, {len(unproven)} not shown to have learned", unproven),
        _worst(entry.verdict for entry in known) if known else "n/a",
        f"{LEARNED_NOTE}; species without validation photos are left out",
    )


def _no_memory_errors(events: Iterable[Mapping[str, Any]] | None) -> dict[str, str]:
    item, how = "no out-of-memory errors during training", "counted in the run's events.jsonl"
    if events is None:
        return _item(item, "no log of the run at hand", "n/a", how)
    count = sum(event.get("event") == OUT_OF_MEMORY for event in events)
    return _item(item, f"{count} in the log", "fail" if count else "pass", how)
