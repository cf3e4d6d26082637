"""The disease heads of all species as rows of one matrix, and the rows of each photo's own species.

Species s owns rows offsets[s] to offsets[s + 1]. The rows of other species have nothing to say about a
photo, so their product with its features is wasted. A GPU multiplies everything at once faster than it
picks; a CPU, beyond WALK_ROWS, walks over the species present instead.
Legend: B photos, D features, S species, R rows of all disease heads, M diseases of the largest species,
K species asked about for each photo (two in a mixed batch), N = B x K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shardtool.taxonomy import Taxonomy

WALK_ROWS = 400  # where the two cost about the same: benchmarks/heads.py


@dataclass(frozen=True)
class Unmultiplied:
    """Disease logits that are multiplied out where they are needed: features [B, D], weight [R, D],
    bias [R]."""

    features: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


DiseaseLogits = torch.Tensor | Unmultiplied  # [B, R]


def disease_logits(features: torch.Tensor, heads: nn.Linear) -> DiseaseLogits:
    """Logits of the diseases of all species [B, R], in the form that is fastest to learn from here."""
    if features.device.type == "cpu" and heads.out_features > WALK_ROWS:
        return Unmultiplied(features, heads.weight, heads.bias)
    logits: torch.Tensor = heads(features)
    return logits


class Segments(nn.Module):
    """The rows of each species inside the disease matrix."""

    columns: torch.Tensor  # int64 [S, M], clipped to R - 1 where a species has fewer diseases
    valid: torch.Tensor  # bool [S, M]
    species_of_row: torch.Tensor  # int64 [R]

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.bounds: list[int] = taxonomy.offsets.tolist()
        sizes = torch.from_numpy(taxonomy.sizes)
        offsets = torch.from_numpy(taxonomy.offsets[:-1])
        place = torch.arange(int(sizes.max()))
        valid = place < sizes[:, None]
        columns = (offsets[:, None] + place).clamp(max=taxonomy.rows - 1)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("valid", valid, persistent=False)
        self.register_buffer("species_of_row", torch.from_numpy(taxonomy.row_species), persistent=False)

    def log_softmax(
        self, diseases: DiseaseLogits, species: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the diseases of the given species, [B, M] with -inf behind the last one, and
        which exist, bool [B, M]. species int64 [B], or [B, K] for results [B, K, M]. In float32 at least,
        whatever the network computes in."""
        valid = self.valid[species]
        if isinstance(diseases, Unmultiplied):
            own = self._walk(diseases, species)
        else:
            own = at_least_float32(diseases).gather(1, self.columns[species].flatten(1)).view(valid.shape)
        return own.masked_fill(~valid, -torch.inf).log_softmax(-1), valid

    def _walk(self, diseases: Unmultiplied, species: torch.Tensor) -> torch.Tensor:
        """Logits of the given species, [*species.shape, M]; what stands behind the last one means nothing."""
        flat = species.flatten()
        order = flat.argsort(stable=True)
        photos = order // (len(flat) // len(diseases.features))
        runs = species_runs(flat[order].cpu().numpy(), self.bounds)
        weight, bias = at_least_float32(diseases.weight), at_least_float32(diseases.bias)
        features, width = diseases.features[photos].to(weight.dtype), self.columns.shape[1]
        with torch.autocast(features.device.type, enabled=False):
            own: torch.Tensor = _OwnRows.apply(features, weight, bias, runs, width)  # type: ignore[no-untyped-call]
        return own[order.argsort()].view(*species.shape, -1)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """bfloat16 and float16 as float32, anything else as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Run(NamedTuple):
    """Photos `start` to `stop`, sorted by species, whose species owns rows `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int


def species_runs(species: NDArray[np.int64], bounds: list[int]) -> list[Run]:
    """The runs of equal species in sorted ids [N]."""
    present, starts = np.unique(species, return_index=True)
    stops = [*starts[1:].tolist(), len(species)]
    return [
        Run(start, stop, bounds[s], bounds[s + 1])
        for s, start, stop in zip(present.tolist(), starts.tolist(), stops, strict=True)
    ]


class _OwnRows(torch.autograd.Function):
    """Each photo times the rows of its own species, and the gradients of just these."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        runs: list[Run],
        width: int,
    ) -> torch.Tensor:
        """features [N, D] sorted by species -> logits [N, width]."""
        ctx.save_for_backward(features, weight)
        ctx.runs = runs
        logits = features.new_zeros(len(features), width)
        for start, stop, first, last in runs:
            own = torch.addmm(bias[first:last], features[start:stop], weight[first:last].T)
            logits[start:stop, : last - first] = own
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slope,) = gradients
        features, weight = ctx.saved_tensors
        of_features, of_heads = ctx.needs_input_grad[:2]
        by_features = torch.empty_like(features) if of_features else None
        by_weight = _lazy_zeros(weight) if of_heads else None
        by_bias = torch.zeros_like(weight[:, 0]) if of_heads else None
        for start, stop, first, last in ctx.runs:
            own = slope[start:stop, : last - first]
            if by_features is not None:
                torch.mm(own, weight[first:last], out=by_features[start:stop])
            if by_weight is not None and by_bias is not None:
                torch.mm(own.T, features[start:stop], out=by_weight[first:last])
                torch.sum(own, 0, out=by_bias[first:last])
        return by_features, by_weight, by_bias, None, None


def _lazy_zeros(like: torch.Tensor) -> torch.Tensor:
    """Zeros of which only the pages that are written cost time: the rows of absent species stay untouched.
    numpy asks the system for zeroed pages, torch would write them all."""
    if like.device.type != "cpu":
        return torch.zeros_like(like)
    return torch.from_numpy(np.zeros(like.shape, dtype=like.detach()[:0].numpy().dtype))
