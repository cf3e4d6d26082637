"""A thin seam between a program and the system: the n-th call that changes files fails, or is the last.

`Forge` is a process of one thread that has imported everything; each run is a fork of it, so a run takes
milliseconds, and thousands of them are cheap. The forked child wraps the functions of `os` that change
files, and opens files with Python's own `_pyio`, which writes through `os.write`: a call that gets past
the seam (by a library in C) shows in the comparison with strace in tests/contract/test_sweep.py.
"""

from __future__ import annotations

import _pyio  # type: ignore[import-not-found]
import builtins
import contextlib
import errno
import fcntl
import importlib
import io
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

Fault = Literal["none", "kill", "torn", "power", "reordered", "full", "error", "short"]

# kill:  the process is killed before the call;
# torn:  half of the bytes of a write arrive, then the process is killed;
# power: what was written and not synced is lost, names in folders as well as bytes of files, then the
#        process is killed; past the last call: the power goes when the command has ended;
# reordered: as power, but the newest change of a folder has reached the disk before the older ones;
# full:  half of a write arrives, and from then on nothing that needs space succeeds;
# error: the call fails once with EIO;
# short: every write takes only half of what it is given.

WRITES = ("write", "pwrite", "writev", "pwritev")
SYNCS = ("fsync", "fdatasync")
ON_DESCRIPTORS = (*WRITES, *SYNCS, "ftruncate", "close")
ON_PATHS = ("open", "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "symlink", "truncate")
RENAMES = ("rename", "replace")
ON_NAMES = ("open", "mkdir", "rmdir", "unlink", "remove", *RENAMES)
NEED_SPACE = (*WRITES, *SYNCS, "open", "mkdir", "rename", "replace", "link", "symlink")
POWER_CUTS = ("power", "reordered")
SECONDS = 120  # a run takes milliseconds on an idle machine


@dataclass(frozen=True)
class Call:
    """A call that changes files: its name in `os`, and the path under the watched folder."""

    name: str
    path: str


@dataclass(frozen=True)
class Run:
    """How a command ended (negative: the signal that killed it), what it said, which calls it made."""

    status: int
    said: str
    calls: tuple[Call, ...]


class Forge:
    """Runs `shardtool` commands, each with at most one fault, in forks of one prepared process."""

    def __init__(self, folder: Path) -> None:
        self._log, self._said = folder / "calls.jsonl", folder / "said.txt"
        start = "from tests.seam import serve; serve()"
        self._server = subprocess.Popen(
            [sys.executable, "-c", start],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Forge:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.communicate()

    def run(self, watched: Path, *arguments: object, fault: Fault = "none", at: int = -1) -> Run:
        """Run a command; the `at`-th call (from 0) that changes something in `watched` meets the fault.

        `watched` itself, as a name in its parent, outlives a power cut.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = _Order(
            [str(argument) for argument in arguments],
            str(watched),
            fault,
            at,
            str(self._log),
            str(self._said),
        )
        self._log.write_bytes(b"")
        self._server.stdin.write(json.dumps(asdict(order)) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        calls = tuple(Call(*json.loads(line)) for line in self._log.read_text().splitlines())
        return Run(status, self._said.read_text(), calls)


@dataclass(frozen=True)
class _Order:
    arguments: list[str]
    watched: str
    fault: Fault
    at: int
    log: str
    said: str


def serve() -> None:
    """Read orders, a JSON line each, from stdin; answer each with the exit status."""
    import shardtool.cli

    for line in sys.stdin:
        assert threading.active_count() == 1
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _obey(_Order(**json.loads(line)), shardtool.cli.main, writer)
        os.close(writer)
        with open(reader, "rb") as news:
            for name in news.read().decode().split():  # what this run had to import, the next ones need not
                with contextlib.suppress(ImportError):  # some are made, not imported
                    importlib.import_module(name)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _obey(order: _Order, main: Callable[[], None], news: int) -> NoReturn:
    status, known = 70, set(sys.modules)
    seam = _Seam(order)
    try:
        signal.alarm(SECONDS)
        said = os.open(order.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = ["shardtool", *order.arguments]
        seam.install()
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        if order.fault in POWER_CUTS:
            seam.lose()
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(news, "\n".join(sorted(set(sys.modules) - known)).encode())
        os._exit(status)


Entry = bytes | Literal["folder"] | None  # what a name in a folder stands for; None: nothing


class _Seam:
    def __init__(self, order: _Order) -> None:
        self._order = order
        self._real: dict[str, Callable[..., Any]] = {
            name: getattr(os, name) for name in (*ON_DESCRIPTORS, *ON_PATHS)
        }
        self._log = os.open(order.log, os.O_WRONLY | os.O_APPEND)
        self._count = 0
        self._full = False
        self._unsynced: dict[tuple[int, int], int] = {}  # (device, inode) -> a descriptor of our own
        self._durable: dict[str, Entry] = {}  # path -> what a power cut brings back
        self._newest: tuple[str, ...] = ()  # paths that the last change of a folder has touched
        self._lost = False
        self._lock = threading.RLock()

    def install(self) -> None:
        for name in ON_DESCRIPTORS:
            setattr(os, name, self._on_descriptor(name))
        for name in ON_PATHS:
            setattr(os, name, self._on_path(name))
        builtins.open = io.open = _pyio.open
        if sys.version_info < (3, 11):  # there pathlib holds functions of its own
            for name in ON_PATHS:
                if hasattr(pathlib._NormalAccessor, name):
                    function = io.open if name == "open" else getattr(os, name)
                    setattr(pathlib._NormalAccessor, name, staticmethod(function))

    def _on_descriptor(self, name: str) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            path = self._watched(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path is None or (name == "close" and not _only_written(descriptor)):
                return self._real[name](descriptor, *rest)
            return self._meet(Call(name, path), (descriptor, *rest))

        return call

    def _on_path(self, name: str) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, dir_fd: int | None = None, **named: Any) -> Any:
            options = named if dir_fd is None else {"dir_fd": dir_fd, **named}
            base = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            inside = None if isinstance(path, int) else self._watched(os.path.join(base, os.fsdecode(path)))
            changes = name != "open" or bool(rest and rest[0] & (os.O_CREAT | os.O_TRUNC))
            if inside is None or not changes:
                return self._real[name](path, *rest, **options)
            return self._meet(Call(name, inside), (path, *rest), options)

        return call

    def _watched(self, path: str) -> str | None:
        """The path under the watched folder; "." for itself, None for others."""
        inside = os.path.relpath(path, self._order.watched)
        return None if self._lost or inside.startswith("..") else inside

    def _meet(self, call: Call, arguments: tuple[Any, ...], named: dict[str, Any] | None = None) -> Any:
        with self._lock:
            self._real["write"](self._log, json.dumps([call.name, call.path]).encode() + b"\n")
            number, self._count = self._count, self._count + 1
            arguments = self._fail(call, arguments, number == self._order.at)
            if self._order.fault in POWER_CUTS:
                self._remember(call, arguments)
            if call.name in SYNCS:
                return None  # takes milliseconds of a disk, and no fault here depends on it
            return self._real[call.name](*arguments, **(named or {}))

    def _fail(self, call: Call, arguments: tuple[Any, ...], now: bool) -> tuple[Any, ...]:
        """What is left of the arguments once the fault has had its share. Raises OSError, or kills."""
        fault, writes = self._order.fault, call.name in WRITES
        if now and fault == "torn" and writes:
            self._real[call.name](*_half(call.name, arguments))
        if now and fault in POWER_CUTS:
            self.lose()
        if now and fault in ("kill", "torn", *POWER_CUTS):
            os.kill(os.getpid(), signal.SIGKILL)
        if now and fault == "error":
            if call.name == "close":  # the descriptor is gone even so
                self._real["close"](*arguments)
            raise OSError(errno.EIO, os.strerror(errno.EIO), call.path)
        if fault == "full" and (now or self._full) and call.name in NEED_SPACE:
            begins, self._full = not self._full, True
            if begins and writes:
                return _half(call.name, arguments)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call.path)
        return _half(call.name, arguments) if fault == "short" and writes else arguments

    def _remember(self, call: Call, arguments: tuple[Any, ...]) -> None:
        """What a power cut will lose: take note before a change, strike it off with a sync."""
        if call.name in ON_NAMES:
            self._remember_names(call.name, arguments)
        if call.name not in (*WRITES, *SYNCS):
            return
        status = os.fstat(arguments[0])
        file = (status.st_dev, status.st_ino)
        if call.name in WRITES:
            self._unsynced.setdefault(file, os.dup(arguments[0]))
        elif stat.S_ISDIR(status.st_mode):
            folder = os.path.normpath(os.path.join(self._order.watched, call.path))
            self._durable = {
                path: entry for path, entry in self._durable.items() if os.path.dirname(path) != folder
            }
        else:
            self._unsynced.pop(file, None)

    def _remember_names(self, name: str, arguments: tuple[Any, ...]) -> None:
        paths = [os.path.abspath(os.fsdecode(path)) for path in arguments[: 1 + (name in RENAMES)]]
        if os.path.lexists(paths[0]) == (name in ("open", "mkdir")):
            return  # nothing changes
        self._newest = tuple(path for path in paths if self._watched(path) not in (None, "."))
        for path in self._newest:
            self._durable.setdefault(path, self._entry(path))

    def _entry(self, path: str) -> Entry:
        if not os.path.isfile(path):
            return "folder" if os.path.isdir(path) else None
        status = os.stat(path)
        return b"" if (status.st_dev, status.st_ino) in self._unsynced else Path(path).read_bytes()

    def lose(self) -> None:
        """Bring every file and folder back to its last sync."""
        self._lost = True  # what follows is no call of the program
        for descriptor in self._unsynced.values():
            os.ftruncate(descriptor, 0)
        kept = self._newest if self._order.fault == "reordered" else ()
        for path in sorted(self._durable.keys() - set(kept)):
            _restore(path, self._durable[path])


def _restore(path: str, entry: Entry) -> None:
    """Make the name stand for this again; within a folder that is gone nothing comes back."""
    if os.path.isdir(path) and entry != "folder":
        shutil.rmtree(path)
    elif os.path.lexists(path) and entry is None:
        os.unlink(path)
    if entry == "folder":
        os.makedirs(path, exist_ok=True)
    elif entry is not None and os.path.isdir(os.path.dirname(path)):
        Path(path).write_bytes(entry)


def _only_written(descriptor: int) -> bool:
    # not the lock, which is held open for both; and nothing is lost when a file that was read is closed
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY


def _half(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a write of half as many bytes, one at least."""
    descriptor, data, *rest = arguments
    if name in ("writev", "pwritev"):
        return descriptor, [b"".join(data)[: max(sum(map(len, data)) // 2, 1)]], *rest
    view = memoryview(data).cast("B")
    return descriptor, view[: max(len(view) // 2, 1)], *rest
