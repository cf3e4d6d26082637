"""How well the shards are mixed is measured against the exact expectation."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardtool.quality import ShuffleQuality, shuffle_quality

labels = st.lists(st.integers(0, 4), min_size=1, max_size=9).map(np.array)


@given(labels, st.integers(1, 9))
def test_the_expectation_is_the_mean_over_all_possible_batches(species: np.ndarray, batch: int) -> None:
    quality = shuffle_quality(species, batch)
    draws = list(combinations(species.tolist(), min(batch, len(species))))
    assert quality.expected == pytest.approx(sum(len(set(draw)) for draw in draws) / len(draws))


def test_directory_order_shows_few_species_a_batch() -> None:
    in_folders = np.repeat(np.arange(40), 64)
    assert shuffle_quality(in_folders) == ShuffleQuality(256, 4.0, pytest.approx(39.95, abs=0.05))


def test_a_random_order_comes_close_to_the_expectation() -> None:
    species = np.random.default_rng(3).permutation(np.repeat(np.arange(300), 100))
    quality = shuffle_quality(species)
    assert quality.distinct == pytest.approx(quality.expected, rel=0.02)


def test_the_mean_is_over_whole_batches_only() -> None:
    assert shuffle_quality(np.array([0, 1, 0, 0, 7]), batch=2).distinct == 1.5


def test_a_split_smaller_than_a_batch_is_one_batch() -> None:
    assert shuffle_quality(np.array([2, 0, 2])) == ShuffleQuality(3, 2.0, pytest.approx(2.0))


def test_ten_million_photos_do_not_overflow_and_agree_with_exact_arithmetic() -> None:
    counts = [1, 10, 1_000, 100_000, 9_898_989]
    species = np.repeat(np.arange(5, dtype=np.int32), counts)
    exact = sum(1 - comb(sum(counts) - count, 256) / comb(sum(counts), 256) for count in counts)
    assert shuffle_quality(species).expected == pytest.approx(exact, rel=1e-9)
