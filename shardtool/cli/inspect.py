"""Looking at a packed dataset: verify, info."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import terminal
from shardtool.cli.app import CPUS, Folder, Json, Workers
from shardtool.errors import VerificationFailed

if TYPE_CHECKING:
    from shardtool.index import Manifest


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


def info(
    folder: Annotated[str, typer.Argument(help="Dataset folder or URL.")], as_json: Json = False
) -> None:
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


def show_info(manifest: Manifest) -> None:
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
