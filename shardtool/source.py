"""Where the photos lie: a folder or a URL. It is only ever read, and no link in it is followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shardtool.errors import UsageError
from shardtool.paths import path_bytes, path_text
from shardtool.photo import Refused
from shardtool.store import filesystem, is_remote, patiently, plain_path, shown

MAX_FILE_BYTES = 1 << 30
READ_AHEAD = 32  # photos asked for at once over a network: it hides the latency, and fits in memory

Kind = Literal["folder", "file", "link", "other"]


class Entry(NamedTuple):
    """One name in a folder; "other" is a device, a pipe or a socket."""

    name: bytes
    kind: Kind


def open_source(url: str) -> Source:
    """The source at a path or URL. Raises UsageError when no folder is there."""
    url = plain_path(url)
    # absolute, for the workers of a cluster have other working folders
    source = RemoteSource(url.rstrip("/")) if is_remote(url) else LocalSource(str(Path(url).absolute()))
    if not source.is_there():
        raise UsageError("no such folder", where=shown(url), cure="give the folder of the organized tree")
    return source


@dataclass(frozen=True)
class LocalSource:
    """A folder of this machine, or of a file system that all machines share."""

    url: str

    def is_there(self) -> bool:
        return os.path.isdir(self.url)

    def entries(self, path: bytes) -> list[Entry]:
        """What lies in a folder, in no order. Raises OSError."""
        with os.scandir(os.path.join(os.fsencode(self.url), path)) as found:
            return [Entry(entry.name, _kind(entry)) for entry in found]

    def read(self, path: bytes) -> bytes:
        """The bytes of a photo. Raises Refused."""
        with self._opened() as root:
            return read_source(path, root)

    def begins(self, path: bytes, count: int) -> bytes:
        """The first bytes of a file; none if it cannot be read."""
        try:
            with self._opened() as root, open(_open(path, root), "rb", buffering=0) as file:
                return file.read(count)
        except OSError:
            return b""

    def read_many(self, paths: Sequence[bytes]) -> Iterator[bytes | Refused]:
        """The bytes of each photo, or why it cannot be read."""
        with self._opened() as root:
            for path in paths:
                try:
                    yield read_source(path, root)
                except Refused as error:
                    yield error

    def fill_many(self, paths: Sequence[bytes], rooms: Sequence[memoryview]) -> list[bool]:
        """Read photos straight to where they belong; False where one has not exactly that many bytes."""
        with self._opened() as root:
            return [_fill(path, root, room) for path, room in zip(paths, rooms, strict=True)]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        root = os.open(self.url, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)


@dataclass(frozen=True)
class RemoteSource:
    """A folder behind a URL of any scheme that `store` lets through."""

    url: str

    def is_there(self) -> bool:
        files, root = filesystem(self.url)
        return bool(patiently(lambda: files.isdir(root), self.url))

    def entries(self, path: bytes) -> list[Entry]:
        files, _ = filesystem(self.url)
        folder = self._path(path)
        found = patiently(lambda: files.ls(folder, detail=True), self.url)
        # an object store can list a folder's own marker among what lies in it
        names = (
            (info["name"].rstrip("/").rpartition("/")[2], info)
            for info in found
            if info["name"].strip("/") != folder.strip("/")
        )
        return [Entry(path_bytes(name), _remote_kind(info)) for name, info in names]

    def begins(self, path: bytes, count: int) -> bytes:
        files, _ = filesystem(self.url)
        try:
            start: bytes = patiently(lambda: files.cat_file(self._path(path), start=0, end=count), self.url)
        except OSError:
            return b""
        return start[:count]

    def read(self, path: bytes) -> bytes:
        (data,) = self.read_many([path])
        if isinstance(data, Refused):
            raise data
        return data

    def read_many(self, paths: Sequence[bytes]) -> Iterator[bytes | Refused]:
        """The bytes of each photo, or why it cannot be read. Raises StorageError after an outage."""
        for start in range(0, len(paths), READ_AHEAD):
            wanted = [self._path(path) for path in paths[start : start + READ_AHEAD]]
            yield from patiently(partial(self._fetch, wanted), self.url)

    def fill_many(self, paths: Sequence[bytes], rooms: Sequence[memoryview]) -> list[bool]:
        """Nothing: what comes over a network comes as bytes of its own."""
        return [False] * len(paths)

    def _fetch(self, wanted: Sequence[str]) -> list[bytes | Refused]:
        files, _ = filesystem(self.url)
        whole = [None] * len(wanted)
        # not `cat`: it would expand the brackets and stars in people's file names
        return [_judged(answer) for answer in files.cat_ranges(list(wanted), whole, whole, on_error="return")]

    def _path(self, path: bytes) -> str:
        root = filesystem(self.url)[1].rstrip("/")
        inside = path_text(path)
        return f"{root}/{inside}" if inside else root


Source = LocalSource | RemoteSource

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_source(path: bytes, folder: int | None = None) -> bytes:
    """The bytes of a regular file, its path relative to an opened folder; links are not followed and a
    FIFO does not block. Raises Refused."""
    try:
        descriptor = _open(path, folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Refused("not a regular file", "a link or a socket is not followed") from None
        raise Refused("unreadable", error.strerror or str(error)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not a regular file", stat.filemode(status.st_mode))
        if status.st_size > MAX_FILE_BYTES:
            raise Refused("too large", f"{status.st_size} bytes")
        data = os.read(descriptor, status.st_size + 1)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size)):
            data += more  # a network file system may give less than was asked for
        return data
    except OSError as error:
        raise Refused("unreadable", error.strerror or str(error)) from None
    finally:
        os.close(descriptor)


def _open(path: bytes, folder: int | None) -> int:
    return os.open(path, _FLAGS, dir_fd=folder)


def _fill(path: bytes, folder: int, room: memoryview) -> bool:
    try:
        descriptor = _open(path, folder)
    except OSError:
        return False
    try:  # one byte more than there should be: a file that has grown is noticed
        return os.readv(descriptor, (room, bytearray(1))) == len(room)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _kind(entry: os.DirEntry[bytes]) -> Kind:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def _remote_kind(info: dict[str, Any]) -> Kind:
    if info.get("islink"):
        return "link"
    return "folder" if info["type"] == "directory" else "file"


def _judged(answer: bytes | Exception) -> bytes | Refused:
    """A photo that is gone or forbidden is refused; any other failure is the storage's, not the photo's."""
    if isinstance(answer, FileNotFoundError | PermissionError):
        return Refused("unreadable", str(answer) or type(answer).__name__)
    if isinstance(answer, Exception):
        raise answer
    if len(answer) > MAX_FILE_BYTES:
        return Refused("too large", f"{len(answer)} bytes")
    return answer
