"""The photos that were answered wrong, each with a thumbnail that is part of the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from shardtool.errors import UserError
from shardtool.index import Split
from shardtool.photo import Refused
from shardtool.report.markup import name
from shardtool.report.thumbnail import thumbnail
from train.report.document import heading, paragraph

KINDS = {
    "confident": "Wrong, and most sure of it",
    "worst": "Wrong, and the truth was given the least probability",
}


def thumbnails(split: Split, results: Mapping[str, Any]) -> dict[str, str]:
    """Small JPEGs as base64, by sample id, of the photos of the validation `split` that `results` names;
    those that cannot be read have none."""
    samples = {entry["sample"] for kind in KINDS for entry in results["wrong"][kind]}
    pictures = {sample: _picture(split, sample) for sample in sorted(samples)}
    return {str(sample): base64.b64encode(data).decode() for sample, data in pictures.items() if data}


def _picture(split: Split, sample: int) -> bytes:
    def read(_: bytes) -> bytes:
        try:
            return split.read([sample])[0]
        except UserError as error:
            raise Refused("unreadable", str(error)) from None

    return thumbnail(read, b"")


def photos_section(results: Mapping[str, Any]) -> str:
    """Both kinds of mistakes."""
    pictures = results.get("thumbnails", {})
    return "".join(
        heading(title) + _figures(results["wrong"][kind], pictures) for kind, title in KINDS.items()
    )


def _figures(entries: Sequence[Mapping[str, Any]], pictures: Mapping[str, str]) -> str:
    if not entries:
        return paragraph("None.")
    return f'<ul class="photos">{"".join(_figure(entry, pictures) for entry in entries)}</ul>'


def _figure(entry: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    data = pictures.get(str(entry["sample"]))
    picture = (
        f'<img alt="" src="data:image/jpeg;base64,{data}">'
        if data
        else '<span class="none">no picture</span>'
    )
    truth, answer = (" / ".join(entry[side]) for side in ("truth", "answer"))
    return (
        f"<li>{picture}<div>{name(truth)}<br><small>taken for</small> {name(answer)}<br>"
        f"<small>sure to {_share(entry['probability'])}; the truth was given "
        f"{_share(entry['truth_probability'])}; "
        f"sample {entry['sample']}</small></div></li>"
    )


def _share(probability: float | None) -> str:
    """None is what a network gives whose weights are no numbers."""
    return "unknown" if probability is None else f"{probability:.1%}"
