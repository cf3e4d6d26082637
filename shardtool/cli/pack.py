"""shardtool pack: from folders to shards, and what it says about it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import terminal
from shardtool.cli.app import CPUS, Json, Workers, parse_size, parse_split
from shardtool.cli.inspect import info_json, show_info
from shardtool.errors import Status, UsageError

if TYPE_CHECKING:
    from shardtool.pack import Packed, Plan
    from shardtool.scan import Scan

LISTED = 10


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


def _tell_packed(packed: Packed, out: Path, as_json: bool) -> None:
    if as_json:
        counts = {"written_shards": packed.written_shards, "kept_shards": packed.kept_shards}
        terminal.emit({**info_json(packed.manifest), **_left_out_json(packed.scan), **counts})
        return
    _show_refused(packed.scan)
    show_info(packed.manifest)
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
