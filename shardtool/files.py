"""Writing that is all or nothing: a file appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shardtool.errors import DestinationBusy, NoSpace

TEMPORARY = ".tmp-"
LOCK = ".lock"  # names the writer of a folder; it stays as the mark of our folders


@contextlib.contextmanager
def atomic(path: Path, synced: bool = True, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` by a rename when the block ends without error.

    `synced`: it is on the disk then, too, which takes longer than writing a small file. `temporary` is its
    name until then; by default it lies beside `path`. Raises NoSpace if the disk is full; the temporary
    file is removed then, as after any error.
    """
    temporary = temporary or path.with_name(f"{TEMPORARY}{os.getpid()}-{_host()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if synced:
            sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (full := no_space(error, path)):
            raise full from error
        raise


def _host() -> str:
    """This machine, for names of files: workers in two containers can have the same pid."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def no_space(error: OSError, where: object) -> NoSpace | None:
    """The error to raise if the system says that the disk, or the person's share of it, is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return NoSpace("no space left", where=where, cure="free some and run the same command again")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole small file at once."""
    with atomic(path) as file:
        file.write(data)


def remove_temporaries(folder: Path) -> int:
    """Delete what a killed writer left behind; returns how many. The caller holds the lock."""
    leftovers = list(folder.glob(f"{TEMPORARY}*"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


@contextlib.contextmanager
def exclusive(folder: Path, purpose: str) -> Iterator[None]:
    """Hold `folder` for one writer; the lock goes with the process, so a dead owner blocks nobody.

    Raises DestinationBusy naming the owner's pid, host and age.
    """
    make_folder(folder)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            # lockf, not flock: forked data workers that outlive a killed trainer must not inherit it
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = lock_owner(os.pread(descriptor, 4096, 0))
            raise busy(purpose, owner, folder, "wait for it or choose another folder") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, lock_note(), 0)
        yield
    finally:
        os.close(descriptor)


class Owner(NamedTuple):
    """The process that holds a folder, `since` seconds after the epoch."""

    pid: int
    host: str
    since: float


def lock_note() -> bytes:
    """What this process writes into LOCK."""
    owner = Owner(os.getpid(), socket.gethostname(), time.time())
    return json.dumps(owner._asdict()).encode()


def lock_owner(note: bytes) -> Owner | None:
    """The inverse of `lock_note`; None for an owner that has not yet written its name, or is gone."""
    try:
        owner = json.loads(note)
        return Owner(int(owner["pid"]), str(owner["host"]), float(owner["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def busy(purpose: str, owner: Owner | None, where: object, cure: str) -> DestinationBusy:
    """The error that tells who holds a folder."""
    named = f", pid {owner.pid} on {owner.host} for {time.time() - owner.since:.0f} s" if owner else ""
    return DestinationBusy(f"another {purpose} is writing here{named}", where=where, cure=cure)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that outlive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed or removed in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
