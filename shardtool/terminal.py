"""What people see: progress, tables and one-line errors on stderr; data alone goes to stdout."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from shardtool.errors import Interrupted, NoSpace, Status, UsageError, UserError
from shardtool.progress import Advance, OpenProgress, silent
from shardtool.text import plain

console = Console(stderr=True, soft_wrap=True, highlight=False)

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
PLAIN_LINE_SECONDS = 5.0

# typer carries a copy of click in newer releases, so the class is taken from where typer shows it
_CommandLineError: type[Any] = typer.BadParameter.__bases__[0]


def clean(text: object) -> str:
    """`plain` text with rich's markup escaped, for `say` and tables."""
    return escape(plain(text))


def say(text: str) -> None:
    """One line for people; rich markup allowed, so names go through `clean` first."""
    console.print(text)


def emit(value: Any) -> None:
    """Data for programs: JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def cpus() -> int:
    """Cores that this process may use: a container or taskset may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def table(title: str, *columns: str) -> Table:
    """An empty table: the first column holds names, the others numbers."""
    result = Table(title=title, title_justify="left", header_style="bold")
    for place, column in enumerate(columns):
        result.add_column(column, justify="left" if place == 0 else "right")
    return result


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """A bar with rate and time left on a terminal, a plain line every few seconds elsewhere."""
    if not console.is_terminal:
        yield from _plain_progress(label, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, rate="")
        start = time.monotonic()

        def advance(count: int) -> None:
            done = bar.tasks[0].completed + count
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:,.0f}/s")

        yield advance


def progress_unless(quiet: bool) -> OpenProgress:
    """What shows the progress of a command; nothing does with --json."""
    return silent if quiet else progress


def _plain_progress(label: str, total: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= PLAIN_LINE_SECONDS:
            last = now
            left = (total - done) * (now - start) / max(done, 1)
            rate = done / (now - start)
            say(f"{label}: {done:,} of {total:,}, {rate:,.0f}/s, {left:.0f} s left")

    yield advance
    say(f"{label}: {done:,} in {time.monotonic() - start:.1f} s")


def run(app: typer.Typer, as_json: bool | None = None) -> NoReturn:
    """Run a command line: errors become one line and an exit status, `--debug` adds the traceback.

    With `as_json` (by default: if `--json` is given) an error is an object on stdout, too.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    as_json = "--json" in arguments if as_json is None else as_json
    if sys.stdout is None:  # it was closed by whoever started this
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    try:
        status = app(args=arguments, standalone_mode=False)
        if status == Status.INTERRUPTED:  # typer turns Ctrl-C into this status without a word
            raise KeyboardInterrupt
    except _CommandLineError as error:
        error.show()
        status = Status.USAGE
        if as_json:
            emit(UsageError(error.format_message()).as_dict())
    except BrokenPipeError:
        status = Status.DONE  # the reader of a pipe has seen enough
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        told = _told(error)
        if as_json:
            with contextlib.suppress(OSError):  # it may be stdout that has failed
                emit(told.as_dict())
                sys.stdout.flush()
        status = _fail(str(told), told.status)
    sys.exit(int(status or Status.DONE))


def _told(error: BaseException) -> UserError:
    """What a person can read of any error."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return Interrupted("interrupted", cure="run the same command again")
    return UserError(
        f"this is a bug: {type(error).__name__}: {error}", cure="report it with what --debug prints"
    )


def _system_error(error: OSError) -> UserError:
    what = error.strerror or str(error)
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(what, where=where, cure="free some and run the same command again")
    if error.errno == errno.EIO:
        return UserError(what, where=where, cure="the disk fails: see what the system logged (dmesg)")
    return UserError(what, where=where, cure="see that it is there and allowed")


def finish(error: UserError) -> NoReturn:
    """End a command whose result has been shown: the error's line and status, no second JSON."""
    raise typer.Exit(_fail(str(error), error.status))


def _fail(message: str, status: Status) -> Status:
    console.print(f"[bold red]error:[/] {clean(message)}")
    return status
