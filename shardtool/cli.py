"""shardtool: photos in folders -> shards that stream.

Heavy modules are imported inside the commands, so that --help is instant.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import __version__, terminal
from shardtool.errors import Status, UsageError, VerificationFailed

if TYPE_CHECKING:
    from shardtool.index import Manifest
    from shardtool.pack import Packed, Plan
    from shardtool.scan import Scan

app = typer.Typer(
    name="shardtool",
    help="Pack photos in species/disease folders into WebDataset shards, and check them.\n\n"
    "Example: shardtool pack data/organized --out data/shards\n\n"
    "Add --debug to any command for the traceback of an error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=terminal.HELP_OPTIONS,
)

Workers = Annotated[int, typer.Option(min=1, help="Processes; the bytes do not depend on it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a packed dataset.")]
CPUS = terminal.cpus()

LISTED = 10


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print it.")] = False,
) -> None:
    if version:
        typer.echo(f"shardtool {__version__}")
        raise typer.Exit


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(help="split/species/disease/photo, or species/disease/photo.")],
    out: Annotated[Path, typer.Option(help="Folder of the packed dataset.")] = Path("data/shards"),
    shard_size: Annotated[str, typer.Option(help="Size of a shard, about: 1GB, 64MB.")] = "1GB",
    workers: Workers = CPUS,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle.", min=0)] = 0,
    check: Annotated[
        str, typer.Option(help="decode: refuse what does not decode; header: trust the pixels.")
    ] = "decode",
    split: Annotated[
        str, typer.Option(help="Train/val shares for a tree without split folders.")
    ] = "0.9/0.1",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a refused photo.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and plan, to the byte; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pack a folder tree into shards; run it again to go on or to take in changes.

    Exit status 3 means: done, but some photos were refused (listed here and in report.html).

    Example: shardtool pack data/organized --out data/shards --workers 8
    """
    from shardtool.executor import processes
    from shardtool.pack import PackOptions, plan_pack
    from shardtool.pack import pack as pack_tree

    if check not in ("decode", "header"):
        raise UsageError(f"--check {check}", cure="use decode or header")
    options = PackOptions(parse_size(shard_size), seed, check, parse_split(split))  # type: ignore[arg-type]
    show = terminal.silent if as_json else terminal.progress
    if dry_run:
        with processes(workers) as executor:
            plan = plan_pack(source, options, executor, workers, strict, show)
        _tell_plan(plan, as_json)
        scan = plan.scan
    else:
        packed = pack_tree(source, out, options, workers, strict, show)
        _tell_packed(packed, out, as_json)
        scan = packed.scan
    if scan.refused:
        raise typer.Exit(Status.SOME_REFUSED)


@app.command()
def verify(
    folder: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every photo.")] = False,
    workers: Workers = CPUS,
    as_json: Json = False,
) -> None:
    """Check every byte of a packed dataset against its sidecars and dataset.json.

    Example: shardtool verify data/shards --deep
    """
    from shardtool.executor import processes
    from shardtool.verify import findings_json
    from shardtool.verify import verify as verify_folder

    show = terminal.silent if as_json else terminal.progress
    with processes(workers) as executor:
        verified = verify_folder(folder, deep, executor, workers, show)
    if as_json:
        terminal.emit(findings_json(verified))
    for finding in verified.findings:
        terminal.say(f"[red]{terminal.clean(finding.where)}[/]: {terminal.clean(finding.what)}")
    if verified.findings:
        terminal.finish(
            VerificationFailed(
                f"{len(verified.findings)} findings", where=folder, cure="pack again to mend them"
            )
        )
    terminal.say(
        f"[green]good[/]: {verified.samples:,} photos in {verified.shards} shards, "
        f"{terminal.size_text(verified.bytes)}"
    )


@app.command()
def info(
    folder: Annotated[str, typer.Argument(help="Dataset folder or URL.")], as_json: Json = False
) -> None:
    """What is in a packed dataset.

    Example: shardtool info data/shards --json
    """
    from shardtool.index import open_manifest

    manifest = open_manifest(folder)
    if as_json:
        terminal.emit(_info_json(manifest))
    else:
        _show_info(manifest)


@app.command()
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


def parse_size(text: str) -> int:
    """Bytes from "1GB", "64 MB", "10485760" (decimal units). Raises UsageError."""
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "": 1}
    number = text.strip().rstrip("bBkKmMgGtT ").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        return int(float(number) * units[unit])
    except (KeyError, OverflowError, ValueError):
        raise UsageError(f"not a size: {text!r}", cure="write 1GB, 64MB or bytes") from None


def parse_split(text: str) -> float:
    """The validation share of "0.9/0.1". Raises UsageError."""
    try:
        train, val = (float(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--split {text!r}", cure="write 0.9/0.1") from None
    if not (train >= 0 and val >= 0 and abs(train + val - 1) <= 1e-9):
        raise UsageError(f"--split {text}: the shares do not add up to 1")
    return val


def _tell_packed(packed: Packed, out: Path, as_json: bool) -> None:
    if as_json:
        counts = {"written_shards": packed.written_shards, "kept_shards": packed.kept_shards}
        terminal.emit({**_info_json(packed.manifest), **_left_out_json(packed.scan), **counts})
        return
    _show_refused(packed.scan)
    _show_info(packed.manifest)
    _show_left_out(packed.scan)
    kept = f", {packed.kept_shards} were up to date" if packed.kept_shards else ""
    terminal.say(f"{packed.written_shards} shards written{kept}: {terminal.clean(out)}")


def _tell_plan(plan: Plan, as_json: bool) -> None:
    splits = {
        name: {
            "samples": sum(shard.photos.num_rows for shard in shards),
            "shards": len(shards),
            "bytes": sum(shard.size for shard in shards),
        }
        for name in dict.fromkeys(shard.split for shard in plan.shards)
        for shards in [[shard for shard in plan.shards if shard.split == name]]
    }
    if as_json:
        terminal.emit({"splits": splits, **_left_out_json(plan.scan)})
        return
    _show_refused(plan.scan)
    table = terminal.table("", "split", "photos", "shards", "bytes")
    for name, counts in splits.items():
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    terminal.console.print(table)
    _show_left_out(plan.scan)
    terminal.say(f"{plan.scan.taxonomy.rows:,} classes; nothing was written")


def _left_out_json(scan: Scan) -> dict[str, object]:
    from shardtool.select import duplicates

    return {
        "refused": dict(Counter(str(refusal.reason) for refusal in scan.refused)),
        "refusals": [
            {"source": os.fsdecode(r.source), "reason": r.reason, "detail": r.detail} for r in scan.refused
        ],
        "ignored": dict(scan.ignored),
        "converted": dict(scan.converted),
        "duplicates": duplicates(scan),
    }


def _info_json(manifest: Manifest) -> dict[str, object]:
    splits = {
        name: {
            "samples": sum(entry.samples for entry in entries),
            "shards": len(entries),
            "bytes": sum(entry.bytes for entry in entries),
        }
        for name, entries in manifest.splits.items()
    }
    return {
        "splits": splits,
        "species": len(manifest.taxonomy.species),
        "classes": manifest.taxonomy.rows,
        "digest": manifest.digest,
    }


def _show_refused(scan: Scan) -> None:
    for refusal in scan.refused[:LISTED]:
        name = terminal.clean(os.fsdecode(refusal.source))
        terminal.say(f"[yellow]refused[/] {name}: {refusal.reason}, {terminal.clean(refusal.detail)}")
    if len(scan.refused) > LISTED:
        terminal.say(f"... and {len(scan.refused) - LISTED:,} more (--json and report.html list all)")


def _show_left_out(scan: Scan) -> None:
    from shardtool.select import duplicates

    reasons = Counter(str(refusal.reason) for refusal in scan.refused)
    for label, counts in (("refused", reasons), ("converted", scan.converted), ("ignored", scan.ignored)):
        if counts:
            parts = ", ".join(f"{terminal.clean(name)} {n:,}" for name, n in sorted(counts.items()))
            terminal.say(f"{label}: {parts}")
    if copies := duplicates(scan):
        terminal.say(f"duplicates inside a class, kept: {copies:,}")


def _show_info(manifest: Manifest) -> None:
    table = terminal.table("", "split", "photos", "shards", "bytes", "classes", "smallest class")
    for name, entries in manifest.splits.items():
        counts = manifest.class_counts[name]
        table.add_row(
            name,
            f"{sum(entry.samples for entry in entries):,}",
            f"{len(entries):,}",
            terminal.size_text(sum(entry.bytes for entry in entries)),
            f"{sum(count > 0 for count in counts):,} of {len(counts):,}",
            f"{min((count for count in counts if count), default=0):,}",
        )
    terminal.console.print(table)
    terminal.say(f"{len(manifest.taxonomy.species):,} species, digest {manifest.digest[:16]}…")


def main() -> None:
    """Entry point of the `shardtool` command."""
    terminal.run(app)
