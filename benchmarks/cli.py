"""bench-io: who is starving whom between the disk, the decoder, the augmentation and the model.

Heavy modules are imported inside the command, so that --help is instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import terminal

if TYPE_CHECKING:
    from benchmarks.probes import Bench, Measurement, Together

app = typer.Typer(
    name="bench-io",
    help="Measure each stage of a photo's way in images a second, and name the one that is short.",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=terminal.HELP_OPTIONS,
)

QUICK, FULL = (0.9, 2), (6.0, 5)  # seconds and trials of a probe
SPECIMENS = (4, 3, 40, 256)  # species, diseases, photos of a class, pixels


@app.command()
def bench(
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")] = 8,
    shards: Annotated[
        str, typer.Option(help="Packed split; without one, specimens are drawn and packed.")
    ] = "",
    recipe: Annotated[
        str, typer.Option(help="swin_tiny, small or a .toml; by default what fits the device.")
    ] = "",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override a setting of the recipe.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Shorter trials, wider spread.")] = False,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Also write everything to FILE; - is stdout.")
    ] = "",
) -> None:
    """Measure each stage of a photo's way in images a second, and name the one that is short.

    Example: bench-io --workers 8 --shards data/shards/train --json bench.json
    """
    from benchmarks.probes import Bench
    from benchmarks.report import as_json, judge, table
    from shardtool.index import open_split
    from train.device import choose_device, device_name
    from train.recipe import load_recipe

    where = choose_device(device)
    name = recipe or ("swin_tiny" if where.type == "cuda" else "small")
    spec = load_recipe(name, [*(overrides or []), "model.pretrained=false"])
    seconds, trials = QUICK if quick else FULL
    with _specimens() if not shards else contextlib.nullcontext(shards) as folder:
        subject = Bench(open_split(folder), spec, where, workers, seconds, trials)
        terminal.say(
            f"{terminal.clean(device_name(where))}, {os.cpu_count()} cores, "
            f"recipe {terminal.clean(spec.name)}, {len(subject.split):,} photos of {subject.split.size.mean() / 1000:.1f} kB"
        )
        measurements, side_by_side = _measure(subject)
    rates = {measurement.name: measurement.rate for measurement in measurements}
    cores = os.cpu_count() or 1
    verdict = judge(rates, side_by_side.busy_share, workers, cores, where.type == "cpu")
    terminal.console.print(table(measurements, verdict))
    for measurement in measurements:
        terminal.say(f"[dim]{measurement.name}: {terminal.clean(measurement.taken)}[/]")
    terminal.say(f"device busy {side_by_side.busy_share:.0%}, utilisation {side_by_side.utilisation}")
    terminal.say(verdict.text)
    for knob in verdict.knobs:
        terminal.say(f"  turn: {terminal.clean(knob)}")
    if json_file:
        _write(json_file, as_json(subject, measurements, side_by_side, verdict))


def _measure(subject: Bench) -> tuple[list[Measurement], Together]:
    from benchmarks import probes

    local = "://" not in subject.split.folder
    stages = [
        *((lambda b: probes.disk(b, cold=True), lambda b: probes.disk(b, cold=False)) if local else ()),
        *(probes.shard_read, probes.decoder, probes.augment, probes.loader, probes.step),
    ]
    with terminal.progress("measuring stages", len(stages) + 1) as advance:
        measurements = []
        for probe in stages:
            measurements.append(probe(subject))
            advance(1)
        side_by_side = probes.together(subject)
        advance(1)
    return [*measurements, side_by_side.measurement], side_by_side


@contextlib.contextmanager
def _specimens() -> Iterator[str]:
    """Draw and pack leaves into a temporary folder; gives the train split."""
    from shardtool.pack import PackOptions, pack
    from shardtool.specimens import SpecimenPlan, write_specimens

    species, diseases, images, size = SPECIMENS
    terminal.say(f"no --shards: drawing and packing {species * diseases * images:,} specimens of {size} px")
    with tempfile.TemporaryDirectory(prefix="bench-io-") as folder:
        organized, packed = Path(folder, "organized"), Path(folder, "shards")
        cores = os.cpu_count() or 1
        write_specimens(SpecimenPlan(species, diseases, images, size, seed=0), organized, cores)
        pack(organized, packed, PackOptions(check="header"))
        yield str(packed / "train")


def _write(path: str, value: object) -> None:
    if path == "-":
        terminal.emit(value)
    else:
        Path(path).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point of the `bench-io` command."""
    terminal.run(app)
