"""How fast, and in how much memory, photos are packed: beside GNU tar, webdataset, tarfile and the decoder.

All sides write the same members from files on one file system, page cache warm, in alternating rounds.

Example: python -m benchmarks.packing --photos data/organized --json packing.json
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.machine import Missing, filesystem_type, tool_versions
from benchmarks.memory import memory
from benchmarks.photos import check_folders, make_photos
from benchmarks.rivals import Contender, Lap, contenders, make_ready
from benchmarks.simulated import plan_simulated
from shardtool import terminal
from shardtool.errors import UsageError
from shardtool.text import counted
from train.machine import hardware, versions

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command("make-photos", context_settings=terminal.HELP_OPTIONS)(make_photos)

# name of a ratio -> the two figures whose photos/s it divides
RATIOS = {
    "pack_header_over_tar": ("pack header", "GNU tar"),
    "write_over_tar": ("write", "GNU tar"),
    "pack_header_over_webdataset": ("pack header", "webdataset"),
    "decode_over_decoder": ("pack decode", "decoder"),
}


# ---- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """The laps of one contender over `photos` photos; none, with the reason, if it is `missing`."""

    name: str
    how: str
    photos: int
    laps: tuple[Lap, ...]
    missing: str = ""

    @property
    def rates(self) -> tuple[float, ...]:
        """Photos/s of each lap."""
        return tuple(self.photos / lap.seconds for lap in self.laps)

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        if self.missing:
            return {"name": self.name, "how": self.how, "missing": self.missing}
        rates = {"min": min(self.rates), "median": median(self.rates), "max": max(self.rates)}
        return {
            "name": self.name,
            "how": self.how,
            "photos": self.photos,
            "bytes": self.laps[-1].bytes,
            "rounds": len(self.laps),
            "seconds": [round(lap.seconds, 6) for lap in self.laps],
            "photos_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        }


def race(rivals: Sequence[Contender], photos: int, rounds: int, scratch: Path) -> list[Figure]:
    """Time everybody once a round, each round beginning with another one."""
    runners = [rival for rival in rivals if not isinstance(rival.run, Missing)]
    laps: dict[str, list[Lap]] = {rival.name: [] for rival in rivals}
    gc.freeze()  # collecting what large libraries keep is no part of anybody's work
    for number in range(rounds):
        first = number % len(runners)
        for runner in runners[first:] + runners[:first]:
            laps[runner.name].append(_lap(runner, scratch))
        terminal.say(f"round {number + 1} of {rounds} done")
    gc.unfreeze()
    return [
        Figure(rival.name, rival.how, photos, tuple(laps[rival.name]), _reason(rival)) for rival in rivals
    ]


def _lap(runner: Contender, scratch: Path) -> Lap:
    assert not isinstance(runner.run, Missing)
    with tempfile.TemporaryDirectory(prefix="out-", dir=scratch) as out:
        gc.collect()
        return runner.run(Path(out))


def _reason(rival: Contender) -> str:
    return str(rival.run) if isinstance(rival.run, Missing) else ""


def ratios(figures: Sequence[Figure]) -> dict[str, float | None]:
    """Median photos/s over median photos/s, of the pairs in RATIOS; None if one is missing."""
    rates = {figure.name: median(figure.rates) for figure in figures if figure.laps}
    return {
        name: round(rates[ours] / rates[theirs], 3) if {ours, theirs} <= rates.keys() else None
        for name, (ours, theirs) in RATIOS.items()
    }


def table(title: str, figures: Sequence[Figure]) -> Table:
    """For people."""
    result = terminal.table(title, "", "photos/s", "low – high", "MB/s")
    for figure in figures:
        if figure.missing:
            result.add_row(figure.name, "missing", "", "")
            continue
        speed = median(lap.bytes / lap.seconds for lap in figure.laps) / 1e6
        spread = f"{min(figure.rates):,.0f} – {max(figure.rates):,.0f}"
        result.add_row(figure.name, f"{median(figure.rates):,.0f}", spread, f"{speed:,.0f}")
    return result


def show(title: str, figures: Sequence[Figure], found: dict[str, float | None]) -> None:
    """The table, what each line of it is, and the ratios."""
    terminal.console.print(table(title, figures))
    for figure in figures:
        missing = f"; missing: {terminal.clean(figure.missing)}" if figure.missing else ""
        terminal.say(f"[dim]{figure.name}: {figure.how}{missing}[/]")
    for name, value in found.items():
        terminal.say(f"{name}: {'n/a' if value is None else value}")


# ---- the command line ---------------------------------------------------------------------------


@app.callback(invoke_without_command=True, context_settings=terminal.HELP_OPTIONS)
def packing(
    context: typer.Context,
    photos: Annotated[list[Path] | None, typer.Option(help="A tree of photos; can be repeated.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go.")] = Path("packing.json"),
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody runs.")] = 5,
    scratch: Annotated[
        Path | None, typer.Option(help="Where to write: a disk or a tmpfs; beside --json by default.")
    ] = None,
    plan_count: Annotated[
        int, typer.Option("--plan-photos", min=0, help="Also plan so many simulated photos.")
    ] = 0,
) -> None:
    """Pack trees of photos beside other writers, and write the figures with hardware and versions.

    Example: python -m benchmarks.packing --photos data/organized --json packing.json
    """
    if context.invoked_subcommand:
        return
    trees, scratch = photos or [], scratch or json_file.absolute().parent
    if not trees and not plan_count:
        raise UsageError("nothing to measure", cure="give --photos or --plan-photos")
    check_folders(*trees, json_file.absolute().parent, scratch)
    result = {**_conditions(trees, json_file, rounds, plan_count, scratch), "trees": []}
    for tree in trees:
        result["trees"].append(measure(tree, rounds, scratch))
    if plan_count:
        result["plans"] = plan_simulated(plan_count)
    json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    terminal.say(f"{terminal.clean(json_file)} is written")


def measure(photos: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """All figures of one tree of photos."""
    workers = terminal.cpus()
    with tempfile.TemporaryDirectory(prefix="packing-", dir=scratch) as folder:
        ready = make_ready(photos, Path(folder))
        terminal.say(f"{terminal.clean(photos.name)}: {counted(len(ready.keys), 'photo')}")
        figures = race(contenders(ready, workers), len(ready.keys), rounds, Path(folder))
        found = ratios(figures)
        show(terminal.clean(photos.name), figures, found)
        used = memory(ready, max(workers, 2), Path(folder))  # with one worker there is no process of its own
        found |= _beyond_start(used, figures)
        jpegs = sum((ready.members / name).stat().st_size for name in ready.names(("jpg",)))
    return {
        "photos": photos.name,
        "samples": len(ready.keys),
        "jpeg_bytes": jpegs,
        "figures": [figure.to_json() for figure in figures],
        "ratios": found,
        "memory": used,
    }


def _beyond_start(used: dict[str, Any], figures: Sequence[Figure]) -> dict[str, float | None]:
    """The decoding pack, and its check of the photos alone, over the decoder, when neither waits for
    processes to start."""
    decoder = next(median(figure.rates) for figure in figures if figure.name == "decoder")
    return {
        f"decode_{name}_beyond_start_over_decoder": round(rate / decoder, 3) if rate else None
        for name, rate in used["photos_per_second_beyond_start"].items()
    }


def _conditions(
    trees: Sequence[Path], json_file: Path, rounds: int, plan_count: int, scratch: Path
) -> dict[str, Any]:
    """What the figures depend on; folders by their last name only."""
    import torch

    options = [f"--photos {tree.name}" for tree in trees]
    options += [f"--json {json_file.name}", f"--rounds {rounds}"]
    options += [f"--plan-photos {plan_count}"] if plan_count else []
    return {
        "hardware": hardware(torch.device("cpu")),
        "versions": {**versions(), **tool_versions()},
        "command": " ".join(["python -m benchmarks.packing", *options]),
        "scratch": filesystem_type(scratch),
    }


if __name__ == "__main__":
    terminal.run(app, as_json=False)
