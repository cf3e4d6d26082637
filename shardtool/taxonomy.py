"""The label space: species and disease names <-> ids.

Species `s` has `n_s` diseases ("healthy" counts as one). Names are in sorted order, so the ids follow
from the names alone. The flat row of (species, disease) is `offsets[species] + disease`; the disease
head is one matrix with these rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Taxonomy:
    """All species with their diseases; `diseases[s]` are the sorted disease names of `species[s]`."""

    species: tuple[str, ...]
    diseases: tuple[tuple[str, ...], ...]

    @classmethod
    def from_labels(cls, labels: Iterable[tuple[str, str]]) -> Taxonomy:
        """Build from (species, disease) pairs in any order, with repeats."""
        by_species: dict[str, set[str]] = {}
        for species, disease in labels:
            by_species.setdefault(species, set()).add(disease)
        names = tuple(sorted(by_species))
        return cls(names, tuple(tuple(sorted(by_species[name])) for name in names))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Taxonomy:
        """The inverse of `to_json`."""
        entries = value["species"]
        return cls(
            tuple(entry["name"] for entry in entries),
            tuple(tuple(entry["diseases"]) for entry in entries),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for dataset.json and for checkpoints."""
        entries = [
            {"name": name, "diseases": list(diseases)}
            for name, diseases in zip(self.species, self.diseases, strict=True)
        ]
        return {"digest": self.digest, "species": entries}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names in order; two label spaces are the same if their digests are."""
        names = [[name, *diseases] for name, diseases in zip(self.species, self.diseases, strict=True)]
        return hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of diseases of each species, int64 [species]."""
        return np.array([len(names) for names in self.diseases], dtype=np.int64)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First row of each species and, last, the number of rows: int64 [species + 1]."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @property
    def rows(self) -> int:
        """Number of (species, disease) classes."""
        return int(self.offsets[-1])

    @cached_property
    def row_species(self) -> NDArray[np.int64]:
        """Species of each row, int64 [rows]."""
        return np.repeat(np.arange(len(self.species)), self.sizes)

    @cached_property
    def row_names(self) -> tuple[tuple[str, str], ...]:
        """(species, disease) of each row."""
        return tuple(
            (species, disease)
            for species, diseases in zip(self.species, self.diseases, strict=True)
            for disease in diseases
        )

    @cached_property
    def row_of(self) -> dict[tuple[str, str], int]:
        """Row of each (species, disease) pair of names."""
        return {names: row for row, names in enumerate(self.row_names)}

    @overload
    def row(self, species: int, disease: int) -> int: ...
    @overload
    def row(self, species: NDArray[np.int32], disease: NDArray[np.int32]) -> NDArray[np.int64]: ...
    def row(
        self, species: int | NDArray[np.int32], disease: int | NDArray[np.int32]
    ) -> int | NDArray[np.int64]:
        """Row of species and disease ids: of one pair, or int64 [n] of many."""
        row: NDArray[np.int64] = self.offsets[species] + disease
        return int(row) if isinstance(species, int) else row

    def ids(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The inverse of `row` of many: species and disease ids, int64 [n] each."""
        species = self.row_species[rows]
        return species, rows - self.offsets[species]

    def names_digest(self, rows: Iterable[int]) -> str:
        """Digest of the ids and names of these rows: equal when they mean the same classes."""
        present = np.unique(np.fromiter(rows, np.int64))
        species, diseases = self.ids(present)
        names = [self.row_names[row] for row in present.tolist()]
        return hashlib.sha256(json.dumps([species.tolist(), diseases.tolist(), names]).encode()).hexdigest()

    def names(self, species: int, disease: int) -> tuple[str, str]:
        """Species and disease of a pair of ids."""
        return self.species[species], self.diseases[species][disease]

    def difference(self, other: Taxonomy) -> str:
        """What `other` has more or less than this label space, for people; "" if they are the same."""
        mine, theirs = set(self.row_names), set(other.row_names)
        parts = [
            f"{word} {', '.join('/'.join(names) for names in sorted(rows)[:5])}"
            + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
            for word, rows in (("added", theirs - mine), ("dropped", mine - theirs))
            if rows
        ]
        return "; ".join(parts)
