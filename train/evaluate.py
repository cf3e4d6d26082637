"""A model and a split -> predictions; the validation of every epoch and the evaluate command.

Legend: B photos of a batch, n of all, S species, M diseases of the largest species, K species of the beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shardtool.taxonomy import Taxonomy
from train.calibration import BEAM, Outputs, Temperatures, fit_temperatures, held_half
from train.data import Batch, Loader, Normaliser, in_order
from train.losses import hierarchical_loss
from train.metrics import TOP, Predictions
from train.mix import Targets
from train.model import HierarchicalModel, Logits
from train.recipe import Level, LossSpec
from train.segments import Segments


@dataclass(frozen=True)
class Evaluated:
    """Predictions for every photo that could be read, in the split's order, and the mean loss of each level.

    `samples` are their ids, `left_out` the ids of those that could not be read. `outputs` are the numbers
    behind the predictions, where they were asked for.
    """

    predictions: Predictions
    losses: dict[Level, float]
    samples: NDArray[np.int64]
    left_out: NDArray[np.int64]
    outputs: Outputs | None = None


class Heads(NamedTuple):
    """The likeliest species of each photo, int64 [B, K], and the log-probabilities of the diseases of each,
    float32 [B, K, M]."""

    beam: torch.Tensor
    log_p: torch.Tensor


@torch.inference_mode()
def evaluate(
    model: HierarchicalModel,
    loader: Loader,
    batch: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
    loss: LossSpec,
    progress: Callable[[int], None] = lambda count: None,
    samples: NDArray[np.int64] | None = None,
    outputs: bool = False,
) -> Evaluated:
    """Ask `model` about photos of the loader's split, once each: all, or those of the given ids.

    What takes the place of a photo that cannot be read is not looked at. `outputs` keeps (S + (K + 1) M) x 4
    bytes a photo, on the device until the end.
    """
    model.eval()
    asked = np.arange(len(loader.split)) if samples is None else samples
    order = in_order(asked, batch)
    normalise = Normaliser(device)
    tally = _Tally(model.segments, loss.model_copy(update={"label_smoothing": 0.0}), outputs)
    for photos in loader.epoch(order, epoch=0):
        wanted, _ = order.step(photos.step)
        readable = _readable(photos, wanted)
        if len(readable):
            on_device = readable.to(device)
            with autocast:
                logits = model(normalise(on_device.images))
            tally.add(on_device, logits)
        progress(len(photos))
    return tally.result(asked)


def calibrate(evaluated: Evaluated, taxonomy: Taxonomy) -> Temperatures:
    """The temperatures that fit half of the photos (`held_half`); `evaluated` holds its outputs."""
    assert evaluated.outputs is not None, "temperatures need the outputs"
    seen = evaluated.predictions
    held = held_half(taxonomy.offsets[seen.species] + seen.disease)
    return fit_temperatures(evaluated.outputs[held], seen.species[held], seen.disease[held])


def merged(parts: Sequence[Evaluated]) -> Evaluated:
    """One evaluation of disjoint parts of a split, such as those of the ranks."""
    seen = [part for part in parts if len(part.samples)] or parts[:1]  # nothing has no shape to join
    samples = np.concatenate([part.samples for part in seen])
    order = np.argsort(samples)

    def joined(pieces: list[Any]) -> Any:
        columns = (field.name for field in fields(pieces[0]))
        return type(pieces[0])(
            *(np.concatenate([getattr(piece, name) for piece in pieces])[order] for name in columns)
        )

    kept = [part.outputs for part in seen]
    levels = {level for part in seen for level in part.losses}
    return Evaluated(
        joined([part.predictions for part in seen]),
        {
            level: sum(part.losses[level] * len(part.samples) for part in seen) / len(samples)
            for level in sorted(levels, reverse=True)
        },
        samples[order],
        np.sort(np.concatenate([part.left_out for part in parts])),
        None if None in kept else joined(kept),
    )


def heads(logits: Logits, segments: Segments, beam: int) -> Heads:
    """The diseases of the `beam` likeliest species of each photo."""
    likeliest = logits.species.topk(min(beam, logits.species.shape[1])).indices
    return Heads(likeliest, segments.log_softmax(logits.diseases, likeliest)[0])


def _readable(photos: Batch, wanted: NDArray[np.int64]) -> Batch:
    """The batch without the photos that took the place of others."""
    right = photos.sample == torch.from_numpy(wanted)
    if bool(right.all()):
        return photos
    return replace(
        photos,
        images=photos.images[right],
        species=photos.species[right],
        disease=photos.disease[right],
        sample=photos.sample[right],
    )


_NOTHING = Outputs(np.zeros((0, 1)), np.zeros((0, 1)), np.zeros((0, 1), dtype=np.int64), np.zeros((0, 1, 1)))


class _Tally:
    """What is kept of each batch; on the device, so that no batch waits for the one before."""

    def __init__(self, segments: Segments, loss: LossSpec, outputs: bool) -> None:
        self._segments, self._loss, self._outputs = segments, loss, outputs
        self._predictions: list[tuple[torch.Tensor, ...]] = []
        self._numbers: list[tuple[torch.Tensor, ...]] = []
        self._samples: list[torch.Tensor] = []
        self._sums: dict[Level, torch.Tensor] = {}

    def add(self, photos: Batch, logits: Logits) -> None:
        species, disease = photos.species, photos.disease
        targets = Targets(species, disease)
        losses = hierarchical_loss(logits, targets, self._segments, ("species", "disease"), self._loss)
        for level, mean in losses.parts.items():
            self._sums[level] = self._sums.get(level, 0) + mean * len(photos)
        own, _ = self._segments.log_softmax(logits.diseases, species)
        seen = heads(logits, self._segments, BEAM if self._outputs else 1)
        best = own.topk(min(TOP, own.shape[1]), dim=1).indices
        in_top = (best == disease[:, None]).any(1)
        routed = seen.log_p[:, 0].argmax(1)
        self._predictions.append((species, disease, seen.beam[:, 0], best[:, 0], in_top, routed))
        if self._outputs:
            self._numbers.append((logits.species.float(), own, seen.beam, seen.log_p))
        self._samples.append(photos.sample)

    def result(self, asked: NDArray[np.int64]) -> Evaluated:
        (samples,) = _columns([(part,) for part in self._samples]) or [np.zeros(0, dtype=np.int64)]
        columns = _columns(self._predictions) or [
            np.zeros(0, dtype=bool if field.name == "in_top3" else np.int64) for field in fields(Predictions)
        ]
        return Evaluated(
            Predictions(*columns),
            {level: float(total) / len(samples) for level, total in self._sums.items()},
            samples,
            np.setdiff1d(asked, samples),
            (Outputs(*_columns(self._numbers)) if self._numbers else _NOTHING) if self._outputs else None,
        )


def _columns(parts: Sequence[tuple[torch.Tensor, ...]]) -> list[NDArray[Any]]:
    return [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
