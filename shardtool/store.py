"""Where files are: a local folder or a URL that fsspec understands, written all or nothing.

Only schemes that read and write files are let through: a URL never starts a program or unpacks an archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec

from shardtool.errors import DestinationBusy, StorageError, UsageError, UserError
from shardtool.files import atomic, exclusive, remove_temporaries, sync_folder

SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "sftp", "hf", "memory")
REAL_FOLDERS = ("file", "sftp")  # an object store has names with slashes instead
LOCK = ".lock"
PATIENCE = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a storage that fails is asked again
UPLOAD_BYTES = 16 << 20  # a part of an upload; S3 takes 10,000 of them

Answer = TypeVar("Answer")


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
    if is_remote(url) and urlsplit(url).password:
        raise UsageError(
            "a password in a URL gets into logs", where=shown(url), cure="put it in the environment"
        )
    scheme = url.partition("://")[0] if is_remote(url) else "file"
    if scheme not in SCHEMES or "::" in url:
        raise UsageError(
            f"no way to read {scheme}:// URLs", where=shown(url), cure=f"use one of {', '.join(SCHEMES)}"
        )
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error), where=shown(url), cure="install the package that it needs") from error
    return found


def patiently(ask: Callable[[], Answer], url: str) -> Answer:
    """What the storage answers; a network that fails is asked again, with growing pauses.

    Raises StorageError in the end, or at once for what no patience helps; and, naming the URL, the OSError
    that says that something is not there or not allowed.
    """
    for pause in (*PATIENCE, None):
        try:
            return ask()
        except _ANSWERS as error:
            error.filename = error.filename or shown(url)
            raise
        except Exception as error:
            if pause is None or not _is_passing(error):
                raise StorageError(
                    f"the storage failed: {type(error).__name__}: {_bare(error)}",
                    where=shown(url),
                    cure="check the address and the credentials, then run the same command again",
                ) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


_ANSWERS = (FileNotFoundError, NotADirectoryError, PermissionError)


def _is_passing(error: Exception) -> bool:
    """Whether this may be over in a moment; each client library has a tree of errors of its own."""
    kind = type(error).__name__
    if getattr(error, "status", 0) in (429, 500, 502, 503, 504):  # of HTTP
        return True
    return isinstance(error, OSError) or any(word in kind for word in ("Connection", "HTTPClient", "Timeout"))


def _bare(error: Exception) -> str:
    """The message without what may be a signature or a password in a URL."""
    return re.sub(r"(?<=\?)[^\s'\"]+|(?<=//)[^/\s@]+@", "", str(error))


def open_folder(url: str) -> Folder:
    """The folder at a path or URL, to be written to; it need not exist yet."""
    url = plain_path(url)
    return RemoteFolder(url.rstrip("/")) if is_remote(url) else LocalFolder(Path(url).absolute())


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

    def sha256(self, name: str) -> str:
        """Of what lies there now. Raises OSError."""
        with (self.root / name).open("rb") as file:
            return _sha256(file)

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that appears under its name, whole, when the block ends without error. Raises NoSpace."""
        (self.root / name).parent.mkdir(exist_ok=True)
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
        """Bytes that can still be written."""
        return shutil.disk_usage(self.root).free

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the folder for one writer. Raises DestinationBusy."""
        return exclusive(self.root, purpose)

    def is_foreign(self) -> bool:
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
        return {
            info["name"].rpartition("/")[2]: int(info["size"]) for info in found if info["type"] == "file"
        }

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        storage, path = self._at(name)
        data: bytes = patiently(lambda: storage.cat_file(path), self.url)
        return data

    def sha256(self, name: str) -> str:
        """Of what lies there now; it is downloaded for it. Raises OSError."""
        storage, path = self._at(name)
        with storage.open(path, "rb", block_size=UPLOAD_BYTES) as file:
            return _sha256(file)

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
                f"an upload failed: {type(error).__name__}: {_bare(error)}",
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
            raise DestinationBusy(
                f"another {purpose} is writing here, pid {owner['pid']} on {owner['host']} "
                f"for {time.time() - owner['since']:.0f} s",
                where=self,
                cure=f"wait for it; if it is dead, delete {self}/{LOCK}",
            )
        storage, path = self._at(LOCK)
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        patiently(lambda: storage.pipe_file(path, json.dumps(mine).encode()), self.url)
        try:
            yield
        finally:
            patiently(lambda: storage.pipe_file(path, b""), self.url)  # stays as the mark of our folders

    def is_foreign(self) -> bool:
        """Whether files lie here that no writer of ours has made."""
        names = self.files()
        return bool(names) and LOCK not in names

    def _owner(self) -> dict[str, Any] | None:
        try:
            owner: dict[str, Any] = json.loads(self.read(LOCK))
        except (FileNotFoundError, ValueError):
            return None
        return owner

    def _at(self, name: str) -> tuple[Any, str]:
        storage, root = filesystem(self.url)
        return storage, f"{root.rstrip('/')}/{name}".rstrip("/")


Folder = LocalFolder | RemoteFolder


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(UPLOAD_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _is_dead(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(owner["pid"] == os.getpid())
