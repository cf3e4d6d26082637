"""Where files are: a local folder or a URL that fsspec understands, written all or nothing.

Only schemes that read and write files are let through: a URL never starts a program or unpacks an archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec

from shardtool.errors import DatasetError, StorageError, UsageError, UserError
from shardtool.files import (
    LOCK,
    Owner,
    atomic,
    busy,
    exclusive,
    lock_note,
    lock_owner,
    make_folder,
    remove_temporaries,
    sync_folder,
)

SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "sftp", "hf", "memory")
REAL_FOLDERS = ("file", "sftp")  # an object store has names with slashes instead
PATIENCE = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a storage that fails is asked again
UPLOAD_BYTES = 16 << 20  # a part of an upload; S3 takes 10,000 of them
READ_AHEAD = 1 << 20  # of a remote file: a round trip costs more than the photos between two headers

Answer = TypeVar("Answer")
# (offset, length) -> exactly these bytes of a file, fewer at its end
Read = Callable[[int, int], bytes]


def is_remote(url: str) -> bool:
    """Whether this is a URL, not a path of this machine."""
    return "://" in url


def plain_path(url: str) -> str:
    """A file:// URL as the path that it is; anything else as it is."""
    return urlsplit(url).path if url.startswith("file://") else url


def shown(url: str) -> str:
    """The URL without password and query: signed URLs and tokens never reach a screen or a log."""
    if not is_remote(url):
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path inside it.

    Raises UsageError for a scheme that is not in SCHEMES, or whose package is not installed, and for a
    password in the URL: libraries repeat URLs in their messages.
    """
    scheme = url.partition("://")[0] if is_remote(url) else "file"
    if scheme not in SCHEMES or "::" in url:
        raise UsageError(
            f"no way to read {scheme}:// URLs", where=shown(url), cure=f"use one of {', '.join(SCHEMES)}"
        )
    if is_remote(url) and urlsplit(url).password:
        raise UsageError(
            "a password in a URL gets into logs", where=shown(url), cure="put it in the environment"
        )
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error), where=shown(url), cure="install the package that it needs") from error
    _KEPT.add(found[0])
    return found


# Let go of in a forked child, a filesystem would close its connections there, and with them take the
# parent's from its event loop, which waits for them ever after (fsspec 2026.9, aiohttp 3.14).
_KEPT: set[Any] = set()


def patiently(ask: Callable[[], Answer], url: str) -> Answer:
    """What the storage answers; a network that fails is asked again, with growing pauses, this machine's
    disk is not.

    Raises StorageError in the end, or at once for what no patience helps; and, naming the URL, the OSError
    that says that something is not there or not allowed.
    """
    if not is_remote(url):
        return ask()
    for pause in (*PATIENCE, None):
        try:
            return ask()
        except _ANSWERS as error:
            error.filename = error.filename or shown(url)
            raise
        except Exception as error:
            if pause is None or not is_passing(error):
                raise StorageError(
                    f"the storage failed: {told(error)}",
                    where=shown(url),
                    cure="check the address and the credentials, then run the same command again",
                ) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


_ANSWERS = (FileNotFoundError, NotADirectoryError, PermissionError)


PASSING = (429, 500, 502, 503, 504)  # statuses of HTTP that may be over in a moment
# words in the names of what client libraries raise when a connection fails or ends in the middle
_PASSING_WORDS = ("Connection", "HTTPClient", "IncompleteRead", "Payload", "Timeout")


def is_passing(error: Exception) -> bool:
    """Whether this may be over in a moment; each client library has a tree of errors of its own."""
    if getattr(error, "status", 0) in PASSING:
        return True
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    return isinstance(error, OSError) or any(word in kinds for word in _PASSING_WORDS)


def told(error: Exception) -> str:
    """Kind and message of a library's error, without what may be a signature or a password in a URL."""
    bare = re.sub(r"(?<=\?)[^\s'\"]+|(?<=//)[^/\s@]+@", "", str(error))
    return f"{type(error).__name__}: {bare}"


def cat(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes `start` to `end` of a file at a path or URL. Raises FileNotFoundError."""
    files, path = filesystem(url)
    data: bytes = patiently(lambda: files.cat_file(path, start=start, end=end), url)
    return data


def exists(url: str) -> bool:
    """Whether there is something at a path or URL."""
    files, path = filesystem(url)
    return bool(patiently(lambda: files.exists(path), url))


def sizes(folder: str, names: Sequence[str]) -> dict[str, int | None]:
    """Name -> bytes of files in a folder at a path or URL, `names` among them if they are there.

    Raises FileNotFoundError and NotADirectoryError.
    """
    files, path = filesystem(folder)
    if folder.startswith(("http://", "https://")):  # no listing there, or one without sizes
        found = patiently(lambda: files.sizes([f"{path}/{name}" for name in names]), folder)
        return dict(zip(names, found, strict=True))
    listed = patiently(lambda: files.ls(path, detail=True), folder)
    return {_name(info): info["size"] for info in listed}


@contextlib.contextmanager
def reader(url: str) -> Iterator[tuple[Read, int]]:
    """Reads at any place of a file at a path or URL, and its size. Raises FileNotFoundError."""
    if is_remote(url):
        files, path = filesystem(url)
        size = patiently(lambda: files.size(path), url)
        with files.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead", size=size) as file:
            yield lambda offset, length: _read_remote(file, offset, length, url), int(size or 0)
    else:
        with open(url, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            yield lambda offset, length: os.pread(file.fileno(), length, offset), size


def _read_remote(file: Any, offset: int, length: int, url: str) -> bytes:
    def ask() -> bytes:
        file.seek(offset)
        data: bytes = file.read(length)
        return data

    data = patiently(ask, url)
    if len(data) > length:
        raise DatasetError("the server answers with other bytes than those asked for", where=shown(url))
    return data


def _name(info: dict[str, Any]) -> str:
    name: str = info["name"]
    return name.rpartition("/")[2]


def open_folder(url: str) -> Folder:
    """The folder at a path or URL, to be written to; it need not exist yet."""
    url = plain_path(url)
    return RemoteFolder(url.rstrip("/")) if is_remote(url) else LocalFolder(Path(url).resolve())


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine. Paths in it are relative, with slashes."""

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def __str__(self) -> str:
        return self.url

    def files(self, sub: str = "") -> dict[str, int]:
        """Name -> bytes of each file in a subfolder; empty if there is none."""
        try:
            return {path.name: path.stat().st_size for path in (self.root / sub).iterdir() if path.is_file()}
        except FileNotFoundError:
            return {}

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        return (self.root / name).read_bytes()

    def sha256(self, name: str) -> str | None:
        """Of what lies there now. Raises OSError."""
        with (self.root / name).open("rb") as file:
            return _sha256(file)

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that appears under its name, whole, when the block ends without error. Raises NoSpace."""
        make_folder((self.root / name).parent)
        return atomic(self.root / name)

    def remove(self, name: str) -> None:
        path = self.root / name
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)

    def tidy(self, subs: tuple[str, ...]) -> int:
        """Delete what killed writers left, and empty subfolders; returns the number of unfinished files."""
        left = remove_temporaries(self.root)
        for sub in (self.root / sub for sub in subs):
            if sub.is_dir():
                left += remove_temporaries(sub)
                with contextlib.suppress(OSError):  # not empty
                    sub.rmdir()
        return left

    def free(self) -> int | None:
        """Bytes that can still be written, also before the folder is made."""
        there = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(there).free

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the folder for one writer. Raises DestinationBusy."""
        return exclusive(self.root, purpose)

    def is_unclaimed(self) -> bool:
        """Whether files lie here that no writer of ours has made."""
        return self.root.is_dir() and any(self.root.iterdir()) and not (self.root / LOCK).exists()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL. An object appears whole, when its upload is completed, or not at all."""

    url: str

    def __str__(self) -> str:
        return shown(self.url)

    def files(self, sub: str = "") -> dict[str, int]:
        """Name -> bytes of each file in a subfolder; empty if there is none."""
        storage, path = self._at(sub)
        storage.invalidate_cache()
        try:
            found = patiently(lambda: storage.ls(path, detail=True), self.url)
        except FileNotFoundError:
            return {}
        return {_name(info): int(info["size"]) for info in found if info["type"] == "file"}

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        return cat(f"{self.url}/{name}")

    def sha256(self, name: str) -> str | None:
        """Unknown: it would have to be fetched."""
        return None

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file that appears under its name, whole, when the block ends without error."""
        storage, path = self._at(name)
        if urlsplit(self.url).scheme in REAL_FOLDERS:
            storage.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            file = storage.open(path, "wb", autocommit=False, block_size=UPLOAD_BYTES)
            try:
                yield file
                file.close()
                file.commit()
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    file.discard()
                raise
        except UserError:
            raise
        except Exception as error:  # each client library has its own tree of network errors
            raise StorageError(
                f"an upload failed: {told(error)}",
                where=f"{self}/{name}",
                cure="run the same command again",
            ) from error

    def remove(self, name: str) -> None:
        storage, path = self._at(name)
        with contextlib.suppress(FileNotFoundError):
            patiently(lambda: storage.rm_file(path), self.url)

    def tidy(self, subs: tuple[str, ...]) -> int:
        """Nothing to do: an upload that was not completed is not there."""
        return 0

    def free(self) -> int | None:
        """Unknown."""
        return None

    @contextlib.contextmanager
    def exclusive(self, purpose: str) -> Iterator[None]:
        """Hold the folder for one writer, as well as a storage without locks allows: by an object that
        names its owner. Raises DestinationBusy; an owner on this host that is dead is succeeded."""
        owner = self._owner()
        if owner and not _is_dead(owner):
            raise busy(purpose, owner, self, f"wait for it; if it is dead, delete {self}/{LOCK}")
        storage, path = self._at(LOCK)
        note = lock_note()
        patiently(lambda: storage.pipe_file(path, note), self.url)
        try:
            yield
        finally:
            patiently(lambda: storage.pipe_file(path, b""), self.url)  # stays as the mark of our folders

    def is_unclaimed(self) -> bool:
        """Whether files lie here that no writer of ours has made."""
        names = self.files()
        return bool(names) and LOCK not in names

    def _owner(self) -> Owner | None:
        try:
            return lock_owner(self.read(LOCK))
        except FileNotFoundError:
            return None

    def _at(self, name: str) -> tuple[Any, str]:
        storage, root = filesystem(self.url)
        return storage, f"{root.rstrip('/')}/{name}".rstrip("/")


Folder = LocalFolder | RemoteFolder


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(UPLOAD_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _is_dead(owner: Owner) -> bool:
    if owner.host != socket.gethostname():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # Our own pid, written by an earlier life: in a container the packer has the same pid at every start.
    return owner.pid == os.getpid()
