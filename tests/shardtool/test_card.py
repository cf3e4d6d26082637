"""The card makes the folder a Hugging Face WebDataset, Croissant tools read it, no name disturbs either."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from shardtool.index import Manifest, ShardEntry, open_manifest, open_split
from shardtool.report.card import SPECIES_LISTED, croissant, dataset_card, markdown
from shardtool.taxonomy import Taxonomy
from shardtool.text import plain

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a | b |",
    "two\nlines\n---\nlicense: mit",
    "[click](http://x.example) ![](x)",
    "`code` *star* __bold__ ~~gone~~ &amp; \\",
    "\u202egnp.evil",
    "# title",
    "yes: no",
    os.fsdecode(b"caf\xe9"),
]

# A separate process, since mlcroissant fixes the place of its cache when it is imported, and finds
# unpacked shards in it by their relative path alone: another dataset's would do.
READ_CROISSANT = """
import json, sys, mlcroissant
dataset = mlcroissant.Dataset(jsonld=sys.argv[1])
issues = dataset.metadata.ctx.issues
found = {"errors": sorted(issues.errors), "warnings": sorted(issues.warnings)}
for name in sys.argv[2:]:
    found[name] = [
        {key.split("/")[1]: value.size if "image" in key else value for key, value in record.items()}
        for record in dataset.records(name)
    ]
json.dump(found, sys.stdout, default=bytes.decode)
"""


@pytest.fixture
def described(packed: Path, packed_copy: Path) -> Path:
    """The packed specimens with both descriptions."""
    manifest = open_manifest(str(packed))
    (packed_copy / "README.md").write_text(dataset_card(manifest))
    (packed_copy / "croissant.json").write_text(json.dumps(croissant(manifest)))
    return packed_copy


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    value: dict[str, Any] = yaml.safe_load(matter)
    return value


def with_names(names: list[str]) -> Manifest:
    taxonomy = Taxonomy.from_labels((species, disease) for species in names for disease in names)
    shards = (ShardEntry("shard-000000", taxonomy.rows, 10_240, "0" * 64, "1" * 64),)
    return Manifest(taxonomy, {"train": shards}, {"train": [1] * taxonomy.rows}, {}, "shardtool 1", "2" * 64)


def tokens(text: str) -> Iterator[Token]:
    """All tokens of a page as GitHub and Hugging Face read it: tables, struck text, bare links."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for token in parser.parse(text):
        yield token
        yield from token.children or ()


def read_croissant(path: Path, cache: Path, *record_sets: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mlcroissant", reason="needs mlcroissant, one of the dev dependencies")
    return subprocess.run(
        [sys.executable, "-c", READ_CROISSANT, path, *record_sets],
        env={**os.environ, "CROISSANT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- The card ----------------------------------------------------------------------------------


def test_every_shard_belongs_to_its_split_by_the_globs_of_the_card(described: Path) -> None:
    (config,) = front_matter((described / "README.md").read_text())["configs"]
    globs = {entry["split"]: entry["path"] for entry in config["data_files"]}
    files = [str(path.relative_to(described)) for path in described.rglob("*") if path.is_file()]
    assert {
        split: sorted(name for name in files if fnmatch(name, glob)) for split, glob in globs.items()
    } == {
        split: sorted(name for name in files if name.startswith(f"{split}/") and name.endswith(".tar"))
        for split in ("train", "val")
    }


@pytest.mark.parametrize(
    ("photos", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (10**9 - 1, "100M<n<1B"), (10**12, "n>1T")],
)
def test_the_size_category_is_the_hubs(photos: int, category: str) -> None:
    manifest = with_names(["A"])
    shard = replace(manifest.splits["train"][0], samples=photos)
    value = front_matter(dataset_card(replace(manifest, splits={"train": (shard,)})))
    assert value["size_categories"] == [category]


def test_the_licence_is_left_to_the_owner(described: Path) -> None:
    card = (described / "README.md").read_text()
    assert "license" not in front_matter(card)
    assert "Unknown: the owner of the photos has to fill it in" in card


def test_splits_and_species_stand_in_tables(described: Path) -> None:
    card, manifest = (described / "README.md").read_text(), open_manifest(str(described))
    assert "| train | 36 | " in card
    assert "| val | 18 | " in card
    assert all(
        f"| {number} | {markdown(name)} | 3 | 18 |" in card
        for number, name in enumerate(manifest.taxonomy.species)
    )
    assert manifest.digest in card


def test_a_long_label_space_is_cut_in_the_card(described: Path) -> None:
    card = dataset_card(with_names([f"plant {number:03}" for number in range(SPECIES_LISTED + 10)]))
    assert card.count("| plant ") == SPECIES_LISTED
    assert f"The first {SPECIES_LISTED} of {SPECIES_LISTED + 10} species." in card


def test_no_name_changes_the_card_or_its_yaml() -> None:
    tame, hostile = (dataset_card(with_names(names)) for names in ([f"n{i}" for i in range(9)], HOSTILE))
    assert front_matter(hostile) == front_matter(tame)
    kinds = [token.type for token in tokens(hostile.split("---\n", 2)[2]) if token.type != "text"]
    assert sorted(set(kinds)) == sorted(
        {token.type for token in tokens(tame.split("---\n", 2)[2])} - {"text"}
    )
    assert hostile.encode().decode() == hostile


@given(st.text(st.characters(exclude_categories=["Zs"]), min_size=1))
def test_a_name_in_a_table_cell_reads_as_it_is(name: str) -> None:
    table = f"| a | b |\n|---|---|\n| {markdown(name)} | end |\n"
    cells = [token.content for token in tokens(table) if token.type == "inline"]
    shown = "".join(token.content for token in tokens(table) if token.type in ("text", "text_special"))
    assert len(cells) == 4
    assert shown == f"ab{plain(name)}end"


# --- Croissant ---------------------------------------------------------------------------------


def test_croissant_lists_every_shard_with_size_and_digest(packed: Path) -> None:
    manifest = open_manifest(str(packed))
    parts = croissant(manifest)["distribution"]
    files = {part["contentUrl"]: part for part in parts if part["@type"] == "cr:FileObject"}
    assert {
        f"{split}/{entry.name}.tar": (f"{entry.bytes} B", entry.sha256)
        for split, entries in manifest.splits.items()
        for entry in entries
    } == {url: (part["contentSize"], part["sha256"]) for url, part in files.items()}


def test_a_croissant_tool_finds_no_error_and_reads_every_photo_with_its_labels(
    described: Path, tmp_path: Path
) -> None:
    done = read_croissant(
        described / "croissant.json", tmp_path / "cache", "train", "val", "species", "diseases"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == []
    # what only the owner knows is left open, and nothing else
    assert {warning.split('"')[1].rpartition("/")[2] for warning in found["warnings"]} == {
        *("citeAs", "datePublished", "license", "version"),
    }
    assert "not standard" not in done.stderr
    for name in ("train", "val"):
        split = open_split(str(described / name))
        entries = [split.entry(sample) for sample in range(len(split))]
        assert sorted(found[name], key=lambda record: str(record["key"])) == [
            {
                "key": entry["key"],
                "image": [entry["width"], entry["height"]],
                "species": entry["species_id"],
                "disease": entry["disease_id"],
            }
            for entry in sorted(entries, key=lambda entry: str(entry["key"]))
        ]
    taxonomy = open_manifest(str(described)).taxonomy
    assert [record["name"] for record in found["species"]] == list(taxonomy.species)
    assert [
        (taxonomy.species[record["species"]], taxonomy.diseases[record["species"]][record["id"]])
        for record in found["diseases"]
    ] == list(taxonomy.row_names)


def test_a_croissant_tool_refuses_a_shard_with_a_flipped_bit(described: Path, tmp_path: Path) -> None:
    shard = next((described / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[2_000] ^= 1
    shard.write_bytes(data)
    done = read_croissant(described / "croissant.json", tmp_path / "cache", "train")
    assert done.returncode != 0
    assert "is not identical with the reference in the Croissant JSON-LD" in done.stderr


def test_croissant_takes_any_name(tmp_path: Path) -> None:
    path = tmp_path / "croissant.json"
    path.write_text(json.dumps(croissant(with_names(HOSTILE))))
    done = read_croissant(path, tmp_path / "cache", "species")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == []
    names = [record["name"] for record in found["species"]]
    assert sorted(names) == sorted([*HOSTILE[:-1], r"caf\udce9"])


def test_the_descriptions_follow_from_the_manifest_alone(packed: Path, tmp_path: Path) -> None:
    manifest = open_manifest(str(packed))
    again = open_manifest(str(shutil.copytree(packed, tmp_path / "elsewhere")))
    assert dataset_card(manifest) == dataset_card(again)
    assert croissant(manifest) == croissant(again)
