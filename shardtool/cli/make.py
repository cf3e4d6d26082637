"""Making a data set out of nothing: specimens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardtool import terminal
from shardtool.cli.app import CPUS, Workers
from shardtool.errors import UsageError


def specimens(
    out: Annotated[Path, typer.Argument(help="Folder for the drawn tree.")],
    species: Annotated[int, typer.Option(min=1, help="Number of species.")] = 6,
    diseases: Annotated[int, typer.Option(min=1, help="Classes per species, health counted.")] = 4,
    images: Annotated[int, typer.Option(min=1, help="Training photos of a class.")] = 120,
    size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 224,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other plants.")] = 0,
    long_tail: Annotated[
        bool, typer.Option("--long-tail", help="Few photos of most classes, as in nature.")
    ] = False,
    workers: Workers = CPUS,
) -> None:
    """Draw leaves with known species and diseases: a data set for trials, out of nothing.

    Example: shardtool specimens data/demo --species 6 --diseases 4 --images 120 --long-tail
    """
    from shardtool.specimens import SpecimenPlan, class_images, write_specimens

    try:
        plan = SpecimenPlan(species, diseases, images, size, seed, long_tail)
        total = sum(train + val for train, val in class_images(plan).values())
        with terminal.progress("drawing leaves", total) as advance:
            written = write_specimens(plan, out, workers, advance)
    except ValueError as error:
        raise UsageError(str(error)) from error
    terminal.say(f"{written:,} of {total:,} photos drawn into {terminal.clean(out)}")
