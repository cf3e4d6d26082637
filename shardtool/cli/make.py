"""Making data sets and folders out of something else, or of nothing: index, export, specimens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import terminal
from shardtool.cli.app import CPUS, Json, Workers
from shardtool.cli.inspect import LISTED, Shards, info_json, show_info
from shardtool.errors import Status, UsageError

if TYPE_CHECKING:
    from shardtool.indexing import Indexed


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


def index(
    sources: Annotated[
        list[str],
        typer.Argument(help="Folder or URL of tars, or a pattern with {000..009}; SPLIT=… for several."),
    ],
    out: Annotated[
        str, typer.Option(help="Folder for sidecars and dataset.json; by default beside the tars.")
    ] = "",
    split: Annotated[str, typer.Option(help="Split of tars that lie in no train/, val/ or test/.")] = "train",
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read every byte, so that every later read is checked.")
    ] = False,
    workers: Workers = CPUS,
    as_json: Json = False,
) -> None:
    """Give a foreign WebDataset sidecars and dataset.json, so that all tools here can use it.

    Photos are .jpg or .jpeg; the label is "species" and "disease" of .json, or else .cls. The tars are only
    read, their headers alone.

    Example: shardtool index train=https://host/t-{000..099}.tar val=https://host/v-{0..9}.tar --out data/x
    """
    from shardtool.executor import processes
    from shardtool.indexing import default_out, find_shards, index_shards

    target = out or default_out(sources)
    places = [place for source in sources for place in find_shards(source, split)]
    with processes(workers) as executor:
        show = terminal.progress_unless(as_json)
        indexed = index_shards(places, target, checksums, executor, workers, show)
    if as_json:
        terminal.emit({**info_json(indexed.manifest), **_refused_json(indexed)})
    else:
        _tell_indexed(indexed, checksums)
    if indexed.refused:
        raise typer.Exit(Status.SOME_REFUSED)


def _refused_json(indexed: Indexed) -> dict[str, object]:
    return {
        "refused": dict(Counter(str(refusal.reason) for refusal in indexed.refused)),
        "refusals": [vars(refusal) for refusal in indexed.refused],
        "ignored": indexed.ignored,
    }


def _tell_indexed(indexed: Indexed, checksums: bool) -> None:
    for refusal in indexed.refused[:LISTED]:
        detail = f", {terminal.clean(refusal.detail)}" if refusal.detail else ""
        terminal.say(f"[yellow]refused[/] {terminal.clean(refusal.source)}: {refusal.reason}{detail}")
    if (more := len(indexed.refused) - LISTED) > 0:
        terminal.say(f"... and {more:,} more (--json and report.json list all)")
    show_info(indexed.manifest)
    reasons = Counter(str(refusal.reason) for refusal in indexed.refused)
    if reasons:
        terminal.say("refused: " + ", ".join(f"{name} {count:,}" for name, count in sorted(reasons.items())))
    if indexed.ignored:
        terminal.say(f"ignored: {indexed.ignored:,} members that belong to no sample")
    if not checksums:
        terminal.say("photos will be read unchecked: their checksums are unknown (--checksums reads them)")


def export(
    to: Annotated[Path, typer.Option(help="Folder to write split/species/disease/photo into.")],
    shards: Shards = "data/shards",
    split: Annotated[list[str], typer.Option(help="Only this split; may be given again.")] = [],  # noqa: B006
    workers: Workers = CPUS,
    as_json: Json = False,
) -> None:
    """Back to folders: packing them again gives the same photos in the same classes and splits.

    Run the same command again to go on; what is there is kept.

    Example: shardtool export --shards data/shards --to data/organized
    """
    from shardtool.executor import processes
    from shardtool.export import export as export_dataset

    show = terminal.progress_unless(as_json)
    with processes(workers) as executor:
        done = export_dataset(shards, to, tuple(split), executor, workers, show)
    if as_json:
        terminal.emit({**vars(done), "failures": [vars(failure) for failure in done.failures]})
    for failure in done.failures[:LISTED]:
        terminal.say(f"[yellow]left out[/] {terminal.clean(failure.where)}: {terminal.clean(failure.what)}")
    kept = f", {done.kept:,} were there" if done.kept else ""
    terminal.say(f"{done.written:,} photos written{kept}: {terminal.clean(to)}")
    if done.failures:
        raise typer.Exit(Status.SOME_REFUSED)
