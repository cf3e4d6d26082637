"""Writing that is all or nothing: a file appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shardtool.errors import DestinationBusy, NoSpace

TEMPORARY = ".tmp-"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` (fsync, rename) when the block ends without error.

    Raises NoSpace if the disk is full; the temporary file is removed then, as after any error.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                "no space left", where=path, cure="free some and run the same command again"
            ) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            # lockf, not flock: forked data workers that outlive a killed trainer must not inherit it
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise DestinationBusy(
                f"another {purpose} is writing here{_owner(descriptor)}",
                where=folder,
                cure="wait for it or choose another folder",
            ) from error
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        age = time.time() - owner["since"]
        return f", pid {owner['pid']} on {owner['host']} for {age:.0f} s"
    except (ValueError, KeyError, TypeError):
        return ""  # it has locked but not yet written its name


def sync_folder(folder: Path) -> None:
    """Make what was renamed or removed in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
