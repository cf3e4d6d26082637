"""The label space: ids follow from the names, and the digest tells two label spaces apart."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardtool.taxonomy import Taxonomy

LABELS = [("Rose", "Rust"), ("Apple", "Scab"), ("Rose", "Healthy"), ("Apple", "Healthy"), ("Apple", "Rot")]
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
label_lists = st.lists(st.tuples(words, words), min_size=1, max_size=30)


def test_ids_are_positions_in_sorted_names() -> None:
    taxonomy = Taxonomy.from_labels(LABELS)
    assert taxonomy.species == ("Apple", "Rose")
    assert taxonomy.diseases == (("Healthy", "Rot", "Scab"), ("Healthy", "Rust"))
    assert taxonomy.sizes.tolist() == [3, 2]
    assert taxonomy.offsets.tolist() == [0, 3, 5]
    assert taxonomy.rows == 5
    assert taxonomy.row_species.tolist() == [0, 0, 0, 1, 1]
    assert taxonomy.row_names[3] == ("Rose", "Healthy")
    assert taxonomy.row_of["Rose", "Rust"] == 4


@given(label_lists)
def test_the_order_and_the_repeats_of_labels_change_nothing(labels: list[tuple[str, str]]) -> None:
    taxonomy = Taxonomy.from_labels(labels)
    again = Taxonomy.from_labels(reversed(labels + labels))
    assert taxonomy == again
    assert taxonomy.digest == again.digest
    assert set(taxonomy.row_names) == set(labels)
    assert list(taxonomy.row_names) == sorted(set(labels))


@given(label_lists)
def test_a_row_is_its_species_offset_plus_its_disease_id(labels: list[tuple[str, str]]) -> None:
    taxonomy = Taxonomy.from_labels(labels)
    for row, (species, disease) in enumerate(taxonomy.row_names):
        s = taxonomy.species.index(species)
        assert taxonomy.row_species[row] == s
        assert row == taxonomy.row(s, taxonomy.diseases[s].index(disease))
        assert taxonomy.names(s, taxonomy.diseases[s].index(disease)) == taxonomy.row_names[row]
    rows = np.arange(taxonomy.rows)
    assert taxonomy.row(*taxonomy.ids(rows)).tolist() == rows.tolist()
    assert taxonomy.offsets.dtype == taxonomy.sizes.dtype == np.int64


@given(label_lists)
def test_json_gives_the_same_label_space_back(labels: list[tuple[str, str]]) -> None:
    taxonomy = Taxonomy.from_labels(labels)
    value = json.loads(json.dumps(taxonomy.to_json()))
    assert Taxonomy.from_json(value) == taxonomy
    assert value["digest"] == taxonomy.digest


@given(label_lists, label_lists)
def test_two_label_spaces_have_the_same_digest_only_if_they_are_the_same(
    some: list[tuple[str, str]], others: list[tuple[str, str]]
) -> None:
    same = set(some) == set(others)
    mine, theirs = Taxonomy.from_labels(some), Taxonomy.from_labels(others)
    assert (mine.digest == theirs.digest) == same
    assert (mine.difference(theirs) == "") == same


def test_names_cannot_be_shifted_between_species_and_disease_without_another_digest() -> None:
    flat = Taxonomy(("a", "b"), (("c",), ("d",)))
    assert flat.digest != Taxonomy(("a",), (("b", "c", "d"),)).digest
    assert flat.digest != Taxonomy(('a","c"],["b', "b"), (("c",), ("d",))).digest


def test_names_that_are_not_utf_8_survive_json() -> None:
    taxonomy = Taxonomy.from_labels([("caf\udce9", "x")])
    assert Taxonomy.from_json(json.loads(json.dumps(taxonomy.to_json()))) == taxonomy


def test_a_difference_names_what_was_added_and_what_was_dropped() -> None:
    old = Taxonomy.from_labels([("Rose", "Rust"), ("Rose", "Healthy")])
    new = Taxonomy.from_labels([("Rose", "Mildew"), ("Rose", "Healthy")])
    assert old.difference(new) == "added Rose/Mildew; dropped Rose/Rust"
    assert old.difference(old) == ""


def test_a_long_difference_is_cut_and_says_how_much_is_missing() -> None:
    old = Taxonomy.from_labels([("Rose", "Rust")])
    new = Taxonomy.from_labels([("Rose", "Rust"), *(("Rose", f"d{i}") for i in range(9))])
    assert old.difference(new) == "added Rose/d0, Rose/d1, Rose/d2, Rose/d3, Rose/d4 and 4 more"
