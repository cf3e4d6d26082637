"""What the evaluation found: the verification list, the targets, the calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shardtool.report.markup import text
from shardtool.report.plot import Plot
from train.report.curves import legend
from train.report.document import Html, badge, heading, interval, paragraph, sentence, share, table

LEVELS = {
    "species": "Species",
    "disease": "Disease, in the head of the true species",
    "answer": "The answer given",
}


class Square(Plot):
    """As wide as high, for two shares."""

    WIDTH = HEIGHT = 300


def verification_section(results: Mapping[str, Any]) -> str:
    """Each item of the source document's list with its verdict and the figure behind it."""
    rows = [
        (
            badge(entry["verdict"]),
            Html(f"<b>{text(sentence(entry['item']))}</b><br><small>{text(entry['how'])}</small>"),
            Html(text(sentence(entry["figure"]))),
        )
        for entry in results["verification"]
    ]
    return table(("", "item", "figure"), rows, kind="verification")


def targets_section(results: Mapping[str, Any]) -> str:
    """Every metric with its interval, target and definition."""
    notes = "".join(paragraph(sentence(note) + ".", "soft") for note in results["notes"])
    rows = [_metric(results, name) for name in results["metrics"]]
    head = ("metric", "value", "verdict", "target", "95 % interval", "over")
    return table(head, rows, (1, 3, 4, 5), "targets") + notes


def _metric(results: Mapping[str, Any], name: str) -> tuple[object, ...]:
    target, classes = results["targets"].get(name), results["classes_counted"].get(name)
    over = f"{results['photos_counted'][name]:,} photos" if classes is None else f"{classes:,} classes"
    return (
        Html(f"<b>{text(name.replace('_', ' '))}</b><br><small>{text(results['definitions'][name])}</small>"),
        share(results["metrics"][name]),
        badge(results["verdicts"][name]) if target else "",
        f"≥ {target:.0%}" if target else "",
        interval(*results["intervals"][name]),
        over,
    )


def calibration_section(results: Mapping[str, Any]) -> str:
    """Whether probabilities mean what they say, before and after temperature scaling."""
    calibration, temperatures = results["calibration"], results["temperatures"]
    rows = [
        (
            name,
            calibration[level]["photos"],
            share(calibration[level]["before"]),
            share(calibration[level]["after"]),
            f"{temperatures[level]:.2f}" if level in temperatures else "",
        )
        for level, name in LEVELS.items()
    ]
    head = ("of", "photos", "error before", "after", "temperature")
    words = f"Calibration error: {calibration['definition']}. Scaling: {calibration['fit']}."
    charts = "".join(_reliability(name, calibration[level]) for level, name in LEVELS.items())
    return (
        f"{paragraph(words)}{table(head, rows, range(1, 5))}"
        f'{legend(("before", "after"))}<div class="charts three">{charts}</div>{_answers(results["answers"])}'
    )


def _reliability(name: str, level: Mapping[str, Any]) -> str:
    """Share of right answers over their mean probability; on the diagonal they are equal. The area of a dot
    grows with the number of its photos."""
    plot = Square(1, 1.0)
    ticks = [(value / 4, f"{value / 4:.0%}") for value in range(5)]
    parts = [
        plot.axes(ticks, ticks, "right", "probability"),
        f'<path class="limit" d="M{plot.x(0)} {plot.y(0)}L{plot.x(1)} {plot.y(1)}"/>',
        _bins(plot, level["bins_before"], 1, "before"),
        _bins(plot, level["bins_after"], 2, "after"),
    ]
    return f"<div>{heading(name)}{plot.svg(f'reliability, {text(name)}', parts)}</div>"


def _bins(plot: Plot, bins: Sequence[Mapping[str, Any]], number: int, name: str) -> str:
    points = [f"{plot.x(part['confidence'])} {plot.y(part['right'])}" for part in bins]
    if not points:
        return ""
    most = max(part["photos"] for part in bins)
    marks = "".join(
        f'<path class="bin l{number}" d="M{point}h0" '
        f'stroke-width="{3 + 9 * math.sqrt(part["photos"] / most):.1f}">'
        f"<title>{name}: {part['photos']:,} photos, probability "
        f"{part['confidence']:.1%}, right {part['right']:.1%}</title></path>"
        for point, part in zip(points, bins, strict=True)
    )
    return f'<path class="thin line l{number}" d="M{"L".join(points)}"/>{marks}'


def _answers(answers: Mapping[str, Any]) -> str:
    words = (
        f"Right pairs of species and disease, on the photos that calibration is measured on: "
        f"{share(answers['hard'])} if the species is settled first, {share(answers['joint'])} with a beam of "
        f"{answers['beam']} species. {share(answers['sure'])} of the answers have a probability of "
        f"{answers['sure_at']:.0%} or more; of these {share(answers['right_if_sure'])} are right, of the "
        f"others {share(answers['right_if_unsure'])}."
    )
    return paragraph(words)
