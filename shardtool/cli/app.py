"""The `shardtool` command line: what all its commands share.

Heavy modules are imported inside the commands, so that --help is instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardtool import __version__, terminal
from shardtool.errors import UsageError

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


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print it.")] = False,
) -> None:
    if version:
        typer.echo(f"shardtool {__version__}")
        raise typer.Exit


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
