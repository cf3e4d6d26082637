"""The documents say what the program does: tables are generated, commands parse, names exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.cli import app as bench_app
from shardtool.cli import app as shardtool_app
from shardtool.errors import Status
from shardtool.index import SIDECAR
from shardtool.taxonomy import Taxonomy
from train.cli import app as train_app
from train.model import HierarchicalModel
from train.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FORMAT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
NUMBERS = ("no", "one", "two", "three")
APPS = {"shardtool": shardtool_app, "train-hier": train_app, "bench-io": bench_app}


def results_table(results: dict[str, Any]) -> str:
    """The README's table from the JSON that `train-hier evaluate --json` prints."""
    lines = ["| metric | value | 95 % interval | target | |", "|---|---:|---:|---:|---|"]
    for name in results["metrics"]:
        low, high = results["intervals"][name]
        target = results["targets"].get(name)
        lines.append(
            f"| {results['definitions'][name]} | {results['metrics'][name]:.1%} | {low:.1%} – {high:.1%} | "
            f"{f'{target:.0%}' if target else ''} | {results['verdicts'][name]} |"
        )
    return "\n".join(lines)


def test_the_readme_table_is_the_measured_one() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "leaves-small.json").read_text())
    shown = re.search(r"<!-- table:begin.*?-->\n(.*?)\n?<!-- table:end -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == results_table(results["evaluation"])
    assert results["data"]["photos"] == {"train": 9786, "val": 1478}
    minutes = round(results["training"]["seconds"] / 60)
    assert f"about {minutes} minutes on two CPU cores" in README
    assert results["hardware"]["cores"] == 2
    tail = results["evaluation"]["classes_counted"]["tail_macro_f1"]
    assert f"the tail is {NUMBERS[tail]} classes" in README
    assert {"hardware", "versions", "commands"} <= set(results)


PACKING_ROWS = {
    "write": "shardtool: shards, sidecars, checksums, fsync",
    "GNU tar": "GNU tar, the same members, fsync",
    "tarfile": "Python's tarfile, the same",
    "webdataset": "webdataset's writer, the same",
    "pack header": "`pack --check header`, planning and all",
    "pack decode": "`pack --check decode`, two workers, their start and all",
}


def packing_table(results: dict[str, Any]) -> str:
    """The README's table of packing speed from the JSON of `python -m benchmarks.packing`."""
    trees = results["trees"]
    sizes = [f"{tree['jpeg_bytes'] / tree['samples'] / 1000:.0f} kB" for tree in trees]
    lines = [f"| photos/s | {' | '.join(sizes)} |", "|---|---:|---:|"]
    figures = [{figure["name"]: figure for figure in tree["figures"]} for tree in trees]
    for name, words in PACKING_ROWS.items():
        rates = (each[name]["photos_per_second"]["median"] for each in figures)
        lines.append(f"| {words} | {' | '.join(f'{rate:,.0f}' for rate in rates)} |")
    return "\n".join(lines)


def test_the_packing_table_is_the_measured_one() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "packing.json").read_text())
    shown = re.search(r"<!-- packing:begin.*?-->\n(.*?)\n?<!-- packing:end -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == packing_table(results)
    words = " ".join(README.split())
    small, large = (tree["ratios"] for tree in results["trees"])
    assert f"{large['write_over_tar']:.1f} to {small['write_over_tar']:.1f} times" in words
    checks = [ratios["decode_check_beyond_start_over_decoder"] for ratios in (small, large)]
    assert f"{checks[0]:.2f} and {checks[1]:.2f} of the decoder's own speed" in words
    peak = max(run["worker_peak_bytes"] for tree in results["trees"] for run in tree["memory"]["trees"])
    assert f"{peak / 1e6:.0f} MB a worker" in words
    slowest = max(plan["seconds"] for plan in results["plans"])
    most = max(plan["peak_bytes"] for plan in results["plans"])
    assert f"ten million photos in {slowest:.0f} seconds and {most / 1e9:.1f} GB" in words


def peers_table(results: Sequence[dict[str, Any]]) -> str:
    """The README's table of loaders from the JSONs of `python -m benchmarks.peers`: leaves, large photos."""
    columns = [(rows["rows"], work) for rows in results for work in ("core", "full")]
    names = dict.fromkeys(row["name"] for rows in results for row in rows["rows"])
    lines = [
        "| images/s | leaves, core | full | 1024 × 768, core | full |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in names:
        cells = []
        for rows, work in columns:
            found = [row for row in rows if (row["name"], row["work"]) == (name, work)]
            rate = found[0].get("images_per_second") if found else None
            cells.append(f"{rate['median']:,.0f}" if rate else "not run" if found else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_loaders_is_the_measured_one() -> None:
    files = [ROOT / "benchmarks" / "results" / f"peers-{photos}.json" for photos in ("leaves", "large")]
    results = [json.loads(file.read_text()) for file in files]
    shown = re.search(r"<!-- peers:begin.*?-->\n(.*?)\n?<!-- peers:end -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == peers_table(results)
    words, (small, large) = " ".join(README.split()), (value["ratios"] for value in results)
    seed = [[ratios[f"{work}_over_seed_snippet"] for work in ("core", "full")] for ratios in (small, large)]
    assert f"ours is {seed[0][0]:.1f} (core) and {seed[0][1]:.1f} times (full) the document's" in words
    assert f"{seed[1][0]:.1f} and {seed[1][1]:.1f} on large photos" in words
    best = [ratios["core_over_best_peer"] for ratios in (small, large)]
    assert f"{best[0]:.2f} and {best[1]:.2f} times the best of the others" in words


def test_the_small_recipe_has_as_many_parameters_as_the_readme_says() -> None:
    taxonomy = Taxonomy(("A", "B"), (("x",), ("x", "y")))
    model = HierarchicalModel(load_recipe("small").model, taxonomy)
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters" in README


def commands() -> list[str]:
    text = README + (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(rf"^\s*((?:{'|'.join(APPS)}) .*)$", text, re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in found]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_and_the_makefile_has_options_that_exist(command: str) -> None:
    plain = re.sub(r'"\$\$\(.*\)"|\$\(\w+\)', "", command)
    name, *arguments = shlex.split(plain)
    group = typer.main.get_command(APPS[name])
    known = set(group.params)
    subcommands = getattr(group, "commands", {})
    if arguments and arguments[0] in subcommands:
        known = set(subcommands[arguments[0]].params)
    options = {option for parameter in known for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= options


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) < 200


def test_paths_in_the_readme_exist() -> None:
    for path in re.findall(r"`((?:docs|train|benchmarks)/[\w./]*|\w+\.(?:md|txt))`", README):
        assert (ROOT / path).exists(), path


def test_the_format_page_lists_the_sidecars_columns_and_types() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", FORMAT, re.MULTILINE)
    assert rows == [(field.name, str(field.type)) for field in SIDECAR]


def test_the_format_page_lists_every_exit_status() -> None:
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", FORMAT, re.MULTILINE)}
    assert listed == {int(status) for status in Status}


@pytest.mark.parametrize("name", APPS)
def test_every_help_has_an_example(name: str) -> None:
    runner = CliRunner()
    group = typer.main.get_command(APPS[name])
    for arguments in [[], *([sub] for sub in getattr(group, "commands", {}))]:
        result = runner.invoke(APPS[name], [*arguments, "--help"])
        assert result.exit_code == 0
        assert f"Example: {name}" in result.output
