"""How long a step of the disease heads takes, and in how much memory: five ways, from 40 to 96,000 rows.

A step is the forward pass from given features, the loss, the backward pass to features and heads, and the
optimizer. All ways learn from the same photos of random species, in alternating rounds. The memory is what a
process that does nothing else needs more than before, for heads, gradients and optimizer state, at its peak.
Legend: B photos, D features, S species, R rows of all disease heads, M diseases of the largest species.

Example: python -m benchmarks.heads --json heads.json
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from benchmarks.machine import peak_memory
from shardtool import terminal
from shardtool.taxonomy import Taxonomy
from shardtool.text import size_text
from train.losses import class_loss
from train.machine import hardware, versions
from train.recipe import LossSpec
from train.segments import DiseaseLogits, Segments, Unmultiplied, disease_logits
from train.stages import RowwiseAdamW

if TYPE_CHECKING:
    from rich.table import Table

FEATURES = 768  # of swin_tiny
MOST_DISEASES = 300
# species, rows
SIZES = ((8, 40), (40, 400), (100, 1_000), (100, 2_000), (320, 10_000), (320, 51_000), (320, 96_000))
BATCHES = (256, 64)
LR = 1e-3
LOSS = LossSpec()

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
LogSoftmax = tuple[torch.Tensor, torch.Tensor]  # log-probabilities and which exist, both [B, M]


# ---- the ways -----------------------------------------------------------------------------------


class Matrix(nn.Module):
    """All heads in one matrix; `multiply` says how logits come of it."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.segments = Segments(taxonomy)
        self.heads = nn.Linear(FEATURES, taxonomy.rows)

    def optimizer(self) -> torch.optim.Optimizer:
        group = {"params": list(self.heads.parameters()), "names": ["weight", "bias"], "scale": 1.0}
        return RowwiseAdamW([{**group, "weight_decay": 0.0, "rowwise": self.segments.bounds}], lr=LR)

    def multiply(self, features: torch.Tensor) -> DiseaseLogits:
        return disease_logits(features, self.heads)

    def forward(self, features: torch.Tensor, species: torch.Tensor) -> LogSoftmax:
        return self.segments.log_softmax(self.multiply(features), species)


class Walk(Matrix):
    """Only the rows of the species present are multiplied."""

    def multiply(self, features: torch.Tensor) -> DiseaseLogits:
        return Unmultiplied(features, self.heads.weight, self.heads.bias)


class Dense(Matrix):
    """Everything is multiplied, then each photo's own columns are picked."""

    def multiply(self, features: torch.Tensor) -> DiseaseLogits:
        logits: torch.Tensor = self.heads(features)
        return logits


class DenseMask(Matrix):
    """Everything is multiplied, and what belongs to other species is masked."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__(taxonomy)
        self.row_species = torch.from_numpy(taxonomy.row_species)

    def forward(self, features: torch.Tensor, species: torch.Tensor) -> LogSoftmax:
        foreign = self.row_species != species[:, None]
        log_p = self.heads(features).masked_fill(foreign, -torch.inf).log_softmax(1)
        return log_p.gather(1, self.segments.columns[species]), self.segments.valid[species]


class Gather(Matrix):
    """Each photo is multiplied with a copy of its own rows."""

    def forward(self, features: torch.Tensor, species: torch.Tensor) -> LogSoftmax:
        rows, valid = self.segments.columns[species], self.segments.valid[species]
        own = torch.baddbmm(self.heads.bias[rows][..., None], self.heads.weight[rows], features[..., None])
        return own.squeeze(2).masked_fill(~valid, -torch.inf).log_softmax(1), valid


class Linears(nn.Module):
    """A linear layer a species, asked one after the other if present."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.valid = Segments(taxonomy).valid
        self.heads = nn.ModuleList(nn.Linear(FEATURES, size) for size in taxonomy.sizes.tolist())

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.heads.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def forward(self, features: torch.Tensor, species: torch.Tensor) -> LogSoftmax:
        valid = self.valid[species]
        log_p = features.new_full(valid.shape, -torch.inf)
        for present in species.unique().tolist():
            photos = (species == present).nonzero().squeeze(1)
            own = self.heads[present](features[photos]).log_softmax(1)
            log_p[photos, : own.shape[1]] = own
        return log_p, valid


WAYS: dict[str, type[Matrix | Linears]] = {
    "walk": Walk,
    "dense, own columns": Dense,
    "dense, mask": DenseMask,
    "gather rows": Gather,
    "linears": Linears,
}


# ---- a step -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photos:
    """features [B, D]; species and disease int64 [B]."""

    features: torch.Tensor
    species: torch.Tensor
    disease: torch.Tensor


def draw(taxonomy: Taxonomy, batch: int, seed: int) -> Photos:
    """Photos of random species with random diseases."""
    generator = np.random.default_rng(seed)
    species = generator.integers(len(taxonomy.species), size=batch)
    disease = generator.integers(taxonomy.sizes[species])
    features = generator.standard_normal((batch, FEATURES), dtype=np.float32)
    return Photos(torch.from_numpy(features), torch.from_numpy(species), torch.from_numpy(disease))


def label_space(species: int, rows: int) -> Taxonomy:
    """Species with different numbers of diseases, at most MOST_DISEASES, that have `rows` together."""
    mean = rows / species
    most = min(MOST_DISEASES, 2 * mean - 1)
    ends = np.rint(np.cumsum(np.linspace(2 * mean - most, most, species))).astype(int)
    sizes = np.diff(ends, prepend=0).tolist()
    names = tuple(f"{number:03}" for number in range(MOST_DISEASES + 1))
    return Taxonomy(tuple(f"{number:03}" for number in range(species)), tuple(names[:size] for size in sizes))


class Learner:
    """Heads of one way with their optimizer."""

    def __init__(self, way: str, taxonomy: Taxonomy) -> None:
        self.heads = WAYS[way](taxonomy)
        self.optimizer = self.heads.optimizer()

    def step(self, photos: Photos) -> float:
        """The loss before it."""
        features = photos.features.clone().requires_grad_()
        log_p, valid = self.heads(features, photos.species)
        loss = class_loss(log_p, photos.disease, valid, LOSS).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


# ---- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """Seconds of the steps of one way at one size."""

    species: int
    rows: int
    batch: int
    way: str
    seconds: tuple[float, ...]
    peak_bytes: int
    default: bool

    @property
    def typical(self) -> float:
        """Median of the seconds."""
        return median(self.seconds)


def race(taxonomy: Taxonomy, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of one step a round and way, each round beginning with another way."""
    learners = {way: Learner(way, taxonomy) for way in WAYS}
    for learner in learners.values():
        learner.step(draw(taxonomy, batch, 0))  # makes the optimizer's state
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        photos = draw(taxonomy, batch, number + 1)
        first = number % len(learners)
        for way in [*WAYS][first:] + [*WAYS][:first]:
            start = time.perf_counter()
            learners[way].step(photos)
            seconds[way].append(time.perf_counter() - start)
    return seconds


def peak(way: str, taxonomy: Taxonomy, batch: int) -> int:
    """Bytes that heads and three steps need at their peak, in a process of their own: freed memory stays
    with a process, and would be reused unseen."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_here, way, taxonomy, batch).result()


def _peak_here(way: str, taxonomy: Taxonomy, batch: int) -> int:
    small = label_space(*SIZES[0])
    Learner(way, small).step(draw(small, batch, 0))  # libraries load and threads start on first use
    before = peak_memory(os.getpid())
    learner = Learner(way, taxonomy)
    for seed in range(3):
        learner.step(draw(taxonomy, batch, seed))
    return peak_memory(os.getpid()) - before


def default_way(taxonomy: Taxonomy) -> str:
    """The way that training takes on this device."""
    logits = Matrix(taxonomy).multiply(torch.zeros(1, FEATURES))
    return "walk" if isinstance(logits, Unmultiplied) else "dense, own columns"


def measure(species: int, rows: int, batch: int, rounds: int) -> list[Figure]:
    """Every way at one size."""
    taxonomy = label_space(species, rows)
    ours = default_way(taxonomy)
    return [
        Figure(species, rows, batch, way, tuple(seconds), peak(way, taxonomy, batch), way == ours)
        for way, seconds in race(taxonomy, batch, rounds).items()
    ]


def table(figures: Sequence[Figure]) -> Table:
    """One line a size, one column a way."""
    title = "disease heads, median ms a step (peak memory); * is what training uses"
    shown = terminal.table(title, "rows", "species", "batch", *WAYS)
    sizes = dict.fromkeys((figure.rows, figure.species, figure.batch) for figure in figures)
    for size in sizes:
        cells = {f.way: _cell(f) for f in figures if (f.rows, f.species, f.batch) == size}
        shown.add_row(*(f"{number:,}" for number in size), *(cells[way] for way in WAYS))
    return shown


def _cell(figure: Figure) -> str:
    star = "*" if figure.default else ""
    return f"{star}{figure.typical * 1000:,.1f} ({size_text(figure.peak_bytes)})"


@app.command(context_settings=terminal.HELP_OPTIONS)
def heads(
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go.")] = Path("heads.json"),
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each way that are timed.")] = 9,
    batches: Annotated[list[int] | None, typer.Option("--batch", help="Photos a step; 256 and 64.")] = None,
    most_rows: Annotated[int, typer.Option(help="Leave out larger matrices.")] = SIZES[-1][1],
) -> None:
    """Time all ways at all sizes, on the CPU.

    Example: python -m benchmarks.heads --json heads.json
    """
    figures: list[Figure] = []
    for species, rows in SIZES:
        if rows > most_rows:
            continue
        for batch in batches or BATCHES:
            figures += measure(species, rows, batch, rounds)
            terminal.say(f"{rows:,} rows, batch {batch}: done")
    terminal.console.print(table(figures))
    json_file.write_text(json.dumps(as_json(figures), indent=1) + "\n", encoding="utf-8")


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "features": FEATURES,
        "figures": [
            {
                **asdict(figure),
                "seconds": [round(value, 6) for value in figure.seconds],
                "median_seconds": round(figure.typical, 6),
            }
            for figure in figures
        ],
    }


if __name__ == "__main__":
    terminal.run(app, as_json=False)
