"""bench-io: which stage starves the model?

Heavy modules are imported inside the command, so that --help is instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardtool import __version__, terminal
from shardtool.errors import Status, UsageError

if TYPE_CHECKING:
    from benchmarks.probes import Bench, Measurement
    from benchmarks.report import Setting, Verdict
    from shardtool.quality import ShuffleQuality
    from train.recipe import Recipe

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=terminal.HELP_OPTIONS,
)

CPUS = terminal.cpus()
BUSY_LOAD = 0.75  # processes a core over the last minute


@app.callback()
def bench(
    context: typer.Context,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")] = 8,
    shards: Annotated[
        str, typer.Option(help="Packed split: data/shards/train; by default specimens are drawn.")
    ] = "",
    recipe: Annotated[
        str,
        typer.Option(help="swin_tiny, small, or a .toml file; by default swin_tiny on a GPU, else small."),
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Override a setting: --set optimizer.batch=128."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds in place of minutes, and rougher.")] = False,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Also write everything as JSON; - is stdout alone.")
    ] = "",
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print it.")] = False,
) -> None:
    """Measure disk, decode, augment, loader and model step on one scale, and name the bottleneck.

    Nothing is downloaded: the network has random weights, which are as fast as trained ones.

    Example: bench-io --workers 8 --shards data/shards/train

    --debug shows the traceback of an error.
    """
    if version:
        typer.echo(f"bench-io {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    _check_writable(json_file)
    quiet = json_file == "-"
    with contextlib.nullcontext(shards) if shards else _specimens(workers, quiet) as folder:
        prepared = _prepare(folder, recipe, overrides or (), device, workers, quick)
        _measure(prepared, shards or "drawn specimens", quick, json_file)


@app.command(context_settings=terminal.HELP_OPTIONS)
def doctor(
    shards: Annotated[
        str, typer.Option(help="Packed split, for its disk and its photos: data/shards/train.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
) -> None:
    """Look for what makes training fail or crawl on this machine, and say what cures it.

    Ends with status 1 if something is a problem. What cannot be read is unknown, with the reason.

    Example: bench-io doctor --shards data/shards/train
    """
    from benchmarks.doctor import as_json as findings_as_json
    from benchmarks.doctor import examine, table, worst

    findings = examine(shards)
    if as_json:
        terminal.emit(findings_as_json(findings))
    else:
        terminal.console.print(table(findings))
    raise typer.Exit(Status.FAILED if worst(findings) else Status.DONE)


@contextlib.contextmanager
def _specimens(workers: int, quiet: bool) -> Iterator[str]:
    """A packed split of drawn leaves, removed in the end."""
    from shardtool.pack import pack
    from shardtool.specimens import SpecimenPlan, class_images, write_specimens

    plan = SpecimenPlan(species=6, diseases=4, images=24, size=256, seed=0, val_share=0.0)
    total = sum(train + val for train, val in class_images(plan).values())
    processes = max(1, min(workers, CPUS))
    show = terminal.progress_unless(quiet)
    with tempfile.TemporaryDirectory(prefix="bench-io-") as folder:
        if not quiet:
            terminal.say(f"no --shards: {total:,} drawn leaves of {plan.size} px, in a temporary folder")
        with show("drawing leaves", total) as advance:
            write_specimens(plan, Path(folder, "organized"), processes, advance)
        pack(Path(folder, "organized"), Path(folder, "shards"), workers=processes)
        yield f"{folder}/shards/train"


def _prepare(
    folder: str, recipe: str, overrides: Sequence[str], device: str, workers: int, quick: bool
) -> Bench:
    from shardtool.index import open_split

    split = open_split(folder)  # first, since what follows takes seconds to import
    if not len(split):
        raise UsageError("no photos in this split", where=folder, cure="give another one")

    from benchmarks.probes import FULL, QUICK, Bench
    from train.device import choose_device

    where = choose_device(device)
    spec = _recipe(recipe or ("small" if where.type == "cpu" else "swin_tiny"), overrides)
    return Bench(spec, split, where, workers, QUICK if quick else FULL)


def _recipe(name: str, overrides: Sequence[str]) -> Recipe:
    from train.recipe import load_recipe

    return load_recipe(name, [*overrides, "model.pretrained=false"])


def _measure(bench: Bench, shards: str, quick: bool, json_file: str) -> None:
    from benchmarks.probes import measure
    from benchmarks.report import as_json, verdict
    from train.machine import hardware, versions

    quiet = json_file == "-"
    setting = _setting(bench, shards, quick)
    if not quiet:
        _introduce(bench, setting)
    measurements = measure(bench, _silent if quiet else _announce)
    found = verdict(measurements, setting)
    if json_file:
        _write(json_file, as_json(measurements, found, setting, hardware(bench.device), versions()))
    if not quiet:
        _show(measurements, found, setting)


def _setting(bench: Bench, shards: str, quick: bool) -> Setting:
    from benchmarks.report import Setting

    spec = bench.recipe
    return Setting(
        recipe=spec.name,
        shards=shards,
        photos=len(bench.split),
        photo_bytes=round(bench.photo_bytes, 1),
        workers=bench.workers,
        cores=CPUS,
        device=bench.device.type,
        batch=spec.optimizer.batch,
        augmented=(spec.augment.profile, spec.augment.rand_augment) != ("none", "off"),
        quick=quick,
        mixing=_mixing(bench),
    )


def _mixing(bench: Bench) -> ShuffleQuality:
    """How well the first epoch of a training mixes the species."""
    import numpy as np

    from train.order import blocks, epoch_order, order_quality

    split, once = bench.split, np.ones(len(bench.split), dtype=np.uint8)
    place = blocks(split.shard, split.offset)
    order = epoch_order(once, place, bench.recipe.seed, 0, bench.recipe.optimizer.batch)
    return order_quality(order, split.species)


def _introduce(bench: Bench, setting: Setting) -> None:
    from train.compat import import_torchvision
    from train.device import device_name

    if note := import_torchvision():
        terminal.say(f"[dim]{note}[/]")
    mixing = setting.mixing
    terminal.say(
        f"recipe {terminal.clean(setting.recipe)} on {terminal.clean(device_name(bench.device))}, "
        f"{setting.workers} workers on {setting.cores} cores, {setting.photos:,} photos; "
        f"{mixing.distinct:.1f} species meet in a batch of {mixing.batch}, "
        f"{mixing.expected:.1f} would by chance"
    )
    if (load := os.getloadavg()[0]) > BUSY_LOAD * setting.cores:
        terminal.say(
            f"[yellow]other programs may be at work (load average {load:.1f} on {setting.cores} cores): "
            "they would make the figures lower[/]"
        )


@contextlib.contextmanager
def _announce(name: str) -> Iterator[None]:
    """A spinner on a terminal, a line elsewhere."""
    if terminal.console.is_terminal:
        with terminal.console.status(f"measuring {name}"):
            yield
    else:
        terminal.say(f"measuring {name}")
        yield


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    yield


def _show(measurements: Sequence[Measurement], found: Verdict, setting: Setting) -> None:
    from benchmarks.report import explanations, table

    terminal.console.print(table(measurements, found, setting))
    for line in explanations(measurements):
        terminal.say(f"[dim]{terminal.clean(line)}[/]")
    terminal.say(f"[bold]{terminal.clean(found.text)}[/]")


def _check_writable(json_file: str) -> None:
    """Raises UsageError now, not after minutes of measuring."""
    path = Path(json_file)
    if json_file not in ("", "-") and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError("--json names no file", where=json_file, cure="give a file in a folder that exists")


def _write(json_file: str, value: dict[str, Any]) -> None:
    if json_file == "-":
        terminal.emit(value)
    else:
        Path(json_file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point of the `bench-io` command."""
    doctor_json = "doctor" in sys.argv and "--json" in sys.argv
    terminal.run(app, as_json=doctor_json or "-" in sys.argv)
