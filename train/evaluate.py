"""A model and a split -> predictions; the validation of every epoch and the evaluate command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from train.data import Batch, Loader, in_order, prepare
from train.losses import hierarchical_loss
from train.metrics import Predictions
from train.mix import Targets
from train.model import HierarchicalModel
from train.recipe import Level, LossSpec

TOP = 3


@dataclass(frozen=True)
class Evaluated:
    """Predictions for every photo, in the split's order, and the mean loss of each level."""

    predictions: Predictions
    losses: dict[Level, float]


@torch.inference_mode()
def evaluate(
    model: HierarchicalModel,
    loader: Loader,
    batch: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
    loss: LossSpec,
    progress: Callable[[int], None] = lambda count: None,
) -> Evaluated:
    """Ask `model` about every photo of the loader's split, once each."""
    model.eval()
    plain = loss.model_copy(update={"label_smoothing": 0.0})
    parts: list[list[torch.Tensor]] = []
    sums: dict[Level, torch.Tensor] = {}
    count = 0
    for photos in _batches(loader, batch):
        photos = photos.to(device)
        with autocast:
            logits = model(prepare(photos.images, device))
        targets = Targets(photos.species, photos.disease)
        losses = hierarchical_loss(logits, targets, model.segments, ("species", "disease"), plain)
        for level, value in losses.parts.items():
            sums[level] = sums.get(level, torch.zeros((), device=device)) + value * len(photos)
        log_p, _ = model.segments.log_softmax(logits.diseases, photos.species)
        best = log_p.topk(min(TOP, log_p.shape[1]), dim=1).indices
        in_top = (best == photos.disease[:, None]).any(1)
        species_hat = logits.species.argmax(1)
        parts.append([photos.species, photos.disease, species_hat, best[:, 0], in_top])
        count += len(photos)
        progress(len(photos))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    if not columns:
        columns = [np.zeros(0, dtype=np.int64)] * 4 + [np.zeros(0, dtype=bool)]
    return Evaluated(
        Predictions(*columns),
        {level: float(value) / max(count, 1) for level, value in sums.items()},
    )


def _batches(loader: Loader, batch: int) -> Iterator[Batch]:
    return loader.epoch(in_order(len(loader.split), batch), epoch=0)
