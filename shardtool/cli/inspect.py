"""Looking at a packed dataset: verify, info, cat, explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import terminal
from shardtool.cli.app import CPUS, Json, Workers
from shardtool.errors import UsageError, UserError, VerificationFailed
from shardtool.paths import path_text
from shardtool.store import is_remote, shown
from shardtool.text import size_text

if TYPE_CHECKING:
    from shardtool.drill import Trial
    from shardtool.index import Manifest
    from shardtool.lookup import Explained, Photo
    from shardtool.verify import Verified

LISTED = 20

Dataset = Annotated[str, typer.Argument(help="Dataset folder or URL.")]
Shards = Annotated[str, typer.Option(help="Dataset folder or URL.")]


def verify(
    folder: Dataset,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every photo.")] = False,
    sample: Annotated[
        str, typer.Option(help="Look at a share of the photos only, evenly spread: 5%. Works on URLs.")
    ] = "",
    drill: Annotated[
        bool, typer.Option("--drill", help="Damage a copy of a few photos in every way; see each one caught.")
    ] = False,
    workers: Workers = CPUS,
    as_json: Json = False,
) -> None:
    """Check every byte of a packed dataset against its sidecars and dataset.json.

    Example: shardtool verify data/shards --deep
    """
    if is_remote(folder) and not sample:
        raise UsageError(
            "only files of this machine are read whole", where=shown(folder), cure="use --sample 5%"
        )
    if drill:
        if deep or sample:
            raise UsageError("--drill goes alone", cure="leave --deep and --sample out")
        _drill(folder, as_json)
        return
    from shardtool.executor import processes
    from shardtool.verify import findings_json, verify_sample
    from shardtool.verify import verify as verify_folder

    share = parse_share(sample) if sample else 1.0
    show = terminal.progress_unless(as_json)
    with processes(workers) as executor:
        if sample:
            verified = verify_sample(folder, share, deep, executor, workers, show)
        else:
            verified = verify_folder(Path(folder), deep, executor, workers, show)
    if as_json:
        terminal.emit(findings_json(verified))
    _tell_verified(verified, folder)


def parse_share(text: str) -> float:
    """A share in (0, 1] from "5%" or "0.05". Raises UsageError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--sample {text!r}", cure="write 5% or 0.05")
    return share


def _tell_verified(verified: Verified, folder: str) -> None:
    for finding in verified.findings:
        terminal.say(f"[red]{terminal.clean(finding.where)}[/]: {terminal.clean(finding.what)}")
    for part in verified.not_checked:
        terminal.say(f"not checked: {terminal.clean(part)}")
    if verified.findings:
        terminal.finish(
            VerificationFailed(
                f"{len(verified.findings)} findings", where=folder, cure="pack again to mend them"
            )
        )
    terminal.say(
        f"[green]good[/]: {verified.samples:,} photos in {verified.shards} shards, "
        f"{size_text(verified.bytes)}"
    )


def _drill(folder: str, as_json: bool) -> None:
    from shardtool.drill import drill

    trials = drill(Path(folder), terminal.progress_unless(as_json))
    if as_json:
        terminal.emit({"trials": [{**vars(trial), "caught": trial.caught} for trial in trials]})
    else:
        _show_trials(trials)
    if missed := [trial.fault for trial in trials if not trial.caught]:
        terminal.finish(
            VerificationFailed(f"{len(missed)} of {len(trials)} faults were missed: {', '.join(missed)}")
        )
    terminal.say(f"[green]good[/]: all {len(trials)} faults were caught; the dataset was only read")


def _show_trials(trials: tuple[Trial, ...]) -> None:
    table = terminal.table("", "fault", "outcome")
    table.add_column("what verify says", overflow="fold")
    for trial in trials:
        outcome = "[green]caught[/]" if trial.caught else "[bold red]MISSED[/]"
        table.add_row(trial.fault, outcome, terminal.clean(trial.finding))
    terminal.console.print(table)


def cat(
    key: Annotated[str, typer.Argument(help="Key of a photo, or its beginning.")],
    shards: Shards = "data/shards",
) -> None:
    """The JPEG of a photo, on stdout; its checksum is looked at.

    Example: shardtool cat 68355d246c5b --shards data/shards > photo.jpg
    """
    if sys.stdout.isatty():
        raise UsageError(
            "a photo is no text for a terminal", cure=f"shardtool cat {key} --shards {shards} > photo.jpg"
        )
    from shardtool.lookup import find_key, photo_bytes

    sys.stdout.buffer.write(photo_bytes(shards, find_key(shards, key)))
    sys.stdout.buffer.flush()


def explain(
    what: Annotated[
        str, typer.Argument(metavar="KEY|PHOTO", help="A key, a path, or the end of either path.")
    ],
    shards: Shards = "data/shards",
    as_json: Json = False,
) -> None:
    """Where a photo went, or why it was refused.

    Example: shardtool explain Tomato/Late_Blight/IMG_0815.jpg --shards data/shards
    """
    from shardtool import lookup

    found = lookup.explain(shards, what, terminal.progress_unless(as_json))
    if not found.photos and not found.refused:
        raise UserError(
            f"{what!r} is not in this dataset, and was not refused",
            where=shards,
            cure="give the end of its path",
        )
    if as_json:
        terminal.emit(
            {
                "photos": [photo.as_json() for photo in found.photos],
                "refused": [vars(refusal) for refusal in found.refused],
            }
        )
    else:
        _tell_explained(found)


def _tell_explained(found: Explained) -> None:
    for photo in found.photos[:LISTED]:
        _tell_photo(photo)
    for refusal in found.refused[:LISTED]:
        terminal.say(f"{terminal.clean(refusal.source)}")
        terminal.say(f"  [yellow]refused[/]: {refusal.reason}, {terminal.clean(refusal.detail)}")
    if (more := len(found.photos) + len(found.refused) - LISTED) > 0:
        terminal.say(f"... and {more:,} more (--json lists all)")


def _tell_photo(photo: Photo) -> None:
    terminal.say(f"{terminal.clean(path_text(photo.source))}")
    terminal.say(
        f"  {terminal.clean(photo.species)} (species {photo.species_id}), "
        f"{terminal.clean(photo.disease)} (disease {photo.disease_id}), {photo.width} x {photo.height} pixels"
    )
    terminal.say(f"  {terminal.clean(photo.where)}, {photo.size:,} bytes")


def info(folder: Dataset, as_json: Json = False) -> None:
    """What is in a packed dataset.

    Example: shardtool info data/shards --json
    """
    from shardtool.index import open_manifest

    manifest = open_manifest(folder)
    if as_json:
        terminal.emit(info_json(manifest))
    else:
        show_info(manifest)


def info_json(manifest: Manifest) -> dict[str, object]:
    splits = {
        name: {
            "samples": manifest.samples(name),
            "shards": len(entries),
            "bytes": manifest.bytes(name),
        }
        for name, entries in manifest.splits.items()
    }
    return {
        "splits": splits,
        "species": len(manifest.taxonomy.species),
        "classes": manifest.taxonomy.rows,
        "digest": manifest.digest,
        **({"foreign": True, "bases": manifest.bases} if manifest.indexed else {}),
    }


def show_info(manifest: Manifest) -> None:
    table = terminal.table("", "split", "photos", "shards", "bytes", "classes", "smallest class")
    for name, entries in manifest.splits.items():
        counts = manifest.class_counts[name]
        table.add_row(
            terminal.clean(name),
            f"{manifest.samples(name):,}",
            f"{len(entries):,}",
            size_text(manifest.bytes(name)),
            f"{sum(count > 0 for count in counts):,} of {len(counts):,}",
            f"{min((count for count in counts if count), default=0):,}",
        )
    terminal.console.print(table)
    terminal.say(f"{len(manifest.taxonomy.species):,} species, digest {manifest.digest[:16]}…")
    for name, base in manifest.bases.items():
        terminal.say(f"shards of {terminal.clean(name)}: {terminal.clean(base)}")
    if manifest.indexed:
        known = manifest.options.get("checksums")
        terminal.say(f"foreign shards, indexed {'with' if known else 'without'} checksums")
