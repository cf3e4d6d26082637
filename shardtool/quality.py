"""What is judged of a dataset: the long tail of its classes, and the order inside the shards.

The order is judged by the species a batch, against a perfect shuffle: a reader that takes the photos as
they lie in the shards gets these batches. Pure: arrays in, numbers out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TAIL_PHOTOS = 80  # a class with at most as many training photos is in the long tail


@dataclass(frozen=True)
class ShuffleQuality:
    """Mean number of `distinct` species in a batch of `batch` photos, and what a random order `expected`."""

    batch: int
    distinct: float
    expected: float


def shuffle_quality(species: NDArray[np.integer], batch: int = 256) -> ShuffleQuality:
    """Judge `species` [photos], the species of the photos in the order in which they lie in the shards.

    `distinct` is the mean over the whole consecutive batches (a shorter rest is left out), `expected` the
    exact expectation for a uniformly random order. A split of fewer photos is one batch of its own size.
    """
    assert len(species) > 0, "an empty split has no order"
    batch = min(batch, len(species))
    whole = len(species) // batch
    batches = np.sort(species[: whole * batch].reshape(whole, batch), axis=1)
    distinct = whole + int(np.count_nonzero(np.diff(batches, axis=1)))
    return ShuffleQuality(batch, distinct / whole, _expected_distinct(species, batch))


def _expected_distinct(species: NDArray[np.integer], batch: int) -> float:
    """Sum over the species of 1 - C(n - c, batch) / C(n, batch): it is missing with that probability.

    As a sum of logarithms, since the binomials of 10 million photos overflow; a species of more than
    n - batch photos is in every batch.
    """
    counts, species_with = np.unique(np.unique(species, return_counts=True)[1], return_counts=True)
    left = len(species) - np.arange(batch)
    with np.errstate(divide="ignore"):  # log1p(-1): no way to miss it
        log_missing = np.log1p(-np.minimum(counts[:, None] / left, 1.0)).sum(axis=1)
    return float((species_with * -np.expm1(log_missing)).sum())
