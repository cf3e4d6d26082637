"""shardtool pack: from folders to shards, and what it says about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardtool import terminal
from shardtool.cli.app import CPUS, Json, Workers, parse_size, parse_split
from shardtool.cli.inspect import info_json, show_info
from shardtool.errors import Status, UsageError
from shardtool.paths import path_text
from shardtool.text import counted, size_text, time_text

if TYPE_CHECKING:
    from shardtool.pack import DryRun, Packed
    from shardtool.plan import MaxRefused
    from shardtool.scan import Scan
    from shardtool.similar import NearPair

LISTED = 10


def pack(
    source: Annotated[str, typer.Argument(help="split/species/disease/photo, or species/disease/photo.")],
    out: Annotated[str, typer.Option(help="Folder or URL of the packed dataset.")] = "data/shards",
    shard_size: Annotated[str, typer.Option(help="Size of a shard, about: 1GB, 64MB.")] = "1GB",
    workers: Workers = CPUS,
    cluster: Annotated[
        str, typer.Option(help="Pack on a Dask cluster: tcp://scheduler:8786; the same bytes.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the shuffle.", min=0)] = 0,
    check: Annotated[
        str, typer.Option(help="decode: refuse what does not decode; header: trust the pixels.")
    ] = "decode",
    max_side: Annotated[
        int, typer.Option(help="Shrink photos whose longer side has more pixels; 0: none.", min=0)
    ] = 0,
    quality: Annotated[int, typer.Option(help="JPEG quality of converted and shrunk photos.")] = 95,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Rewrite progressive JPEGs, without loss: they decode slowly.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="Train/val shares of a tree without split folders: 0.9/0.1.")
    ] = None,
    merge_twins: Annotated[
        bool, typer.Option("--merge-twins", help="One class for folders that differ only in case or blanks.")
    ] = False,
    keep_conflicts: Annotated[
        bool, typer.Option("--keep-conflicts", help="Keep photos whose copies bear another label.")
    ] = False,
    keep_leaks: Annotated[
        bool, typer.Option("--keep-leaks", help="Keep photos whose copies stand in a later split.")
    ] = False,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="List look-alikes inside a split, too.")
    ] = False,
    max_refused: Annotated[
        str | None, typer.Option(help="Pack nothing when more files are refused: 100, or 1%.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="The same as --max-refused 0.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and plan, to the byte; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pack a folder tree into shards; run it again to go on or to take in changes.

    Exit status 3 means: done, but some photos were refused (listed here and in report.html).

    Example: shardtool pack data/organized --out data/shards --workers 8
    """
    from shardtool import pack as packing

    if check not in ("decode", "header"):
        raise UsageError(f"--check {check}", cure="use decode or header")
    if strict and max_refused is not None:
        raise UsageError("--strict is --max-refused 0", cure="give one of them")
    if cluster and workers != CPUS:
        raise UsageError("--workers are local processes", cure="leave it out with --cluster")
    options = packing.PackOptions(
        shard_size=parse_size(shard_size),
        seed=seed,
        check=check,  # type: ignore[arg-type]
        val_share=None if split is None else parse_split(split),
        max_side=max_side,
        quality=quality,
        baseline=baseline,
        merge_twins=merge_twins,
        keep_conflicts=keep_conflicts,
        keep_leaks=keep_leaks,
    )
    conduct: dict[str, Any] = {
        "workers": workers,
        "cluster": cluster,
        "max_refused": parse_max_refused("0" if strict else max_refused),
        "near_within": near_duplicates,
        "progress": terminal.progress_unless(as_json),
    }
    if dry_run:
        rehearsed = packing.dry_run(source, out, options, **conduct)
        _tell_dry_run(rehearsed, as_json)
        scan = rehearsed.plan.scan
    else:
        packed = packing.pack(source, out, options, **conduct, tell=terminal.say)
        _tell_packed(packed, out, as_json)
        scan = packed.scan
    if scan.refused:
        raise typer.Exit(Status.SOME_REFUSED)


def parse_max_refused(text: str | None) -> MaxRefused | None:
    """A number of files, or with % a share of them. Raises UsageError."""
    from shardtool.plan import MaxRefused

    if text is None:
        return None
    try:
        limit = MaxRefused(share=float(text[:-1]) / 100) if text.endswith("%") else MaxRefused(int(text))
    except ValueError:
        raise UsageError(f"--max-refused {text!r}", cure="write 100 or 1%") from None
    if limit.count < 0 or not 0 <= limit.share <= 1:
        raise UsageError(f"--max-refused {text}", cure="write 100 or 1%")
    return limit


def _tell_packed(packed: Packed, out: str, as_json: bool) -> None:
    from shardtool.store import shown

    if as_json:
        counts = {
            "near_duplicates": len(packed.near),
            "written_shards": len(packed.written),
            "kept_shards": packed.kept,
            "written": packed.written,
            "removed": packed.removed,
        }
        terminal.emit({**info_json(packed.manifest), **_left_out_json(packed.scan), **counts})
        return
    _show_refused(packed.scan)
    show_info(packed.manifest)
    _show_left_out(packed.scan)
    _show_near(packed.near)
    kept = f", {packed.kept} were up to date" if packed.kept else ""
    terminal.say(f"{counted(len(packed.written), 'shard')} written{kept}: {terminal.clean(shown(out))}")
    if packed.kept:
        _show_names("written anew", packed.written)
    _show_names("removed", packed.removed)


def _show_near(near: Sequence[NearPair]) -> None:
    if near:
        terminal.say(f"look-alikes, kept: {counted(len(near), 'pair')} (side by side in report.html)")


def _show_names(label: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        terminal.say(f"{label}: {', '.join(names[:LISTED])}{more}")


def _tell_dry_run(done: DryRun, as_json: bool) -> None:
    plan, scan = done.plan, done.plan.scan
    splits = {
        name: {"samples": int(shards.counts.sum()), "shards": len(shards), "bytes": int(shards.sizes.sum())}
        for name, shards in plan.layouts.items()
    }
    names = [plan.name(place) for place in done.stale]
    if as_json:
        writing = {"bytes": plan.bytes(done.stale), "seconds": done.seconds, "shards": names}
        near = {"near_duplicates": len(plan.near)}
        terminal.emit({"splits": splits, "to_write": writing, **_left_out_json(scan), **near})
        return
    _show_refused(scan)
    table = terminal.table("", "split", "photos", "shards", "bytes")
    for name, counts in splits.items():
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    terminal.console.print(table)
    _show_left_out(scan)
    _show_near(plan.near)
    size = size_text(plan.bytes(done.stale))
    time = time_text(done.seconds)
    terminal.say(f"{scan.taxonomy.rows:,} classes")
    terminal.say(f"to write: {counted(len(names), 'shard')}, {size}, about {time} without disk and network")
    if len(names) < len(plan.places):
        _show_names("to write anew", names)
    terminal.say("nothing was written")


def _left_out_json(scan: Scan) -> dict[str, object]:
    from shardtool.select import duplicates

    return {
        "refused": dict(scan.reasons),
        "refusals": [
            {"source": path_text(r.source), "reason": r.reason, "detail": r.detail} for r in scan.refused
        ],
        "ignored": dict(scan.ignored),
        "converted": dict(scan.converted),
        "progressive": scan.progressive,
        "duplicates": duplicates(scan),
    }


def _show_refused(scan: Scan) -> None:
    for refusal in scan.refused[:LISTED]:
        name = terminal.clean(path_text(refusal.source))
        terminal.say(f"[yellow]refused[/] {name}: {refusal.reason}, {terminal.clean(refusal.detail)}")
    if len(scan.refused) > LISTED:
        terminal.say(f"... and {len(scan.refused) - LISTED:,} more (--json and report.html list all)")


def _show_left_out(scan: Scan) -> None:
    from shardtool.select import duplicates

    for label, counts in (
        ("refused", scan.reasons),
        ("converted", scan.converted),
        ("ignored", scan.ignored),
    ):
        if counts:
            parts = ", ".join(f"{terminal.clean(name)} {n:,}" for name, n in sorted(counts.items()))
            terminal.say(f"{label}: {parts}")
    if scan.progressive:
        terminal.say(f"progressive JPEGs, slow to decode: {scan.progressive:,} (--baseline rewrites them)")
    if copies := duplicates(scan):
        terminal.say(f"duplicates, kept: {copies:,}")
