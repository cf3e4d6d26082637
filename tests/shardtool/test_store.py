"""Folders, local and behind a URL: whole files or none, one writer, no secrets in messages."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from shardtool import store
from shardtool.errors import DestinationBusy, StorageError, UsageError
from shardtool.store import (
    Folder,
    LocalFolder,
    RemoteFolder,
    cat,
    exists,
    filesystem,
    is_passing,
    open_folder,
    patiently,
    reader,
    shown,
    sizes,
)


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """The same folder in both ways; fsspec's local files are the one remote kind that is always at hand."""
    return LocalFolder(tmp_path) if request.param == "local" else RemoteFolder(f"file://{tmp_path}")


@pytest.fixture
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", (0.0, 0.0))


def fail_after(folder: Folder, data: bytes) -> None:
    """Begin to write the file `a` and fail."""

    def write() -> None:
        with folder.create("a") as file:
            file.write(data)
            raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, StorageError)):
        write()


# --- Files -------------------------------------------------------------------------------------


def test_a_file_is_there_when_it_is_whole(folder: Folder) -> None:
    with folder.create("train/a.tar") as file:
        file.write(b"whole")
        assert folder.files("train").get("a.tar") is None
    assert folder.files("train") == {"a.tar": 5}
    assert folder.read("train/a.tar") == b"whole"
    # a remote file would have to be fetched for it
    known = hashlib.sha256(b"whole").hexdigest() if isinstance(folder, LocalFolder) else None
    assert folder.sha256("train/a.tar") == known


def test_a_file_whose_writing_fails_is_not_there(folder: Folder) -> None:
    fail_after(folder, b"half")
    assert folder.files() == {}


def test_the_old_file_stays_while_the_new_one_fails(folder: Folder) -> None:
    with folder.create("a") as file:
        file.write(b"old")
    fail_after(folder, b"new")
    assert folder.read("a") == b"old"


def test_what_is_not_there_has_no_files_and_removing_it_is_nothing(folder: Folder) -> None:
    assert folder.files("nowhere") == {}
    folder.remove("nowhere")
    with pytest.raises(FileNotFoundError):
        folder.read("nowhere")


def test_a_removed_file_is_gone(folder: Folder) -> None:
    with folder.create("a") as file:
        file.write(b"1")
    folder.remove("a")
    assert folder.files() == {}


def test_a_part_of_a_file_is_read_where_it_lies(folder: Folder) -> None:
    with folder.create("a") as file:
        file.write(b"0123456789")
    path = f"{folder.url}/a"
    assert (cat(path), cat(path, 2, 5)) == (b"0123456789", b"234")
    with reader(path) as (read, size):
        assert (size, read(7, 2), read(0, 1), read(8, 9)) == (10, b"78", b"0", b"89")
    assert exists(path)
    assert sizes(folder.url, ["a"])["a"] == 10


def test_reading_what_is_not_there_is_an_error_of_its_own(folder: Folder) -> None:
    path = f"{folder.url}/nowhere"
    assert not exists(path)
    with pytest.raises(FileNotFoundError):
        cat(path)
    with pytest.raises(FileNotFoundError):
        sizes(path, ["a"])
    with pytest.raises(FileNotFoundError), reader(path):
        pass


# --- One writer --------------------------------------------------------------------------------


def test_a_folder_of_ours_is_known_by_its_lock(folder: Folder) -> None:
    assert not folder.is_unclaimed()
    with folder.exclusive("test"), folder.create("a") as file:
        file.write(b"1")
    assert not folder.is_unclaimed()
    folder.remove(store.LOCK)
    assert folder.is_unclaimed()


def memory_folder(owner: dict[str, object]) -> Folder:
    url = f"memory://{uuid.uuid4().hex}/out"
    fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/.lock", json.dumps(owner).encode())
    return open_folder(url)


def test_a_second_writer_of_a_remote_folder_is_told_who_the_first_is() -> None:
    other = memory_folder({"pid": 7, "host": "elsewhere", "since": 0})
    with (
        pytest.raises(DestinationBusy, match=r"pid 7 on elsewhere .* delete memory://"),
        other.exclusive("pack"),
    ):
        pass


def test_a_dead_writer_on_this_host_is_succeeded() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = memory_folder({"pid": process.pid, "host": socket.gethostname(), "since": 0})
    with dead.exclusive("pack"):
        assert json.loads(dead.read(store.LOCK))["pid"] == os.getpid()
    with dead.exclusive("pack"):
        pass


def test_a_writer_that_was_restarted_under_the_same_pid_succeeds_itself() -> None:
    before = memory_folder({"pid": os.getpid(), "host": socket.gethostname(), "since": 0})
    with before.exclusive("pack"):
        pass


def test_a_living_writer_on_this_host_is_not() -> None:
    alive = memory_folder({"pid": os.getppid(), "host": socket.gethostname(), "since": 0})
    with pytest.raises(DestinationBusy), alive.exclusive("pack"):
        pass


def test_a_file_url_is_a_folder_of_this_machine(tmp_path: Path) -> None:
    assert open_folder(f"file://{tmp_path}") == LocalFolder(tmp_path)


# --- URLs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["pipe:cat", "github://a:b@c/d", "simplecache::s3://a/b", "zip://x::file:///y", "reference://x"]
)
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    if "://" not in url:
        assert isinstance(open_folder(url), LocalFolder)  # a path like any other, nothing is started
        return
    with pytest.raises(UsageError, match="no way to read"):
        filesystem(url)


def test_secrets_in_a_url_are_not_shown() -> None:
    assert shown("https://me:secret@host:8080/a/b?X-Signature=secret#secret") == "https://host:8080/a/b"
    assert shown("/data/a?b@c") == "/data/a?b@c"


def test_this_machines_disk_is_asked_once() -> None:
    with pytest.raises(OSError, match="503"):
        patiently(failing(1, OSError("503")), "/data/a")


def failing(times: int, error: Exception) -> Callable[[], int]:
    asked = []

    def ask() -> int:
        asked.append(1)
        if len(asked) <= times:
            raise error
        return len(asked)

    return ask


@pytest.mark.usefixtures("_hurry")
def test_a_storage_that_fails_twice_is_asked_a_third_time() -> None:
    assert patiently(failing(2, OSError("503")), "s3://a") == 3


@pytest.mark.usefixtures("_hurry")
@pytest.mark.parametrize(
    "error", [OSError("503 for https://me:secret@host/a?X-Signature=secret"), TimeoutError("slow")]
)
def test_a_storage_that_goes_on_failing_is_an_error_without_secrets(error: Exception) -> None:
    with pytest.raises(StorageError, match=r"the storage failed: .* credentials") as caught:
        patiently(failing(3, error), "https://me:secret@host/a?token=secret")
    assert "secret" not in str(caught.value)


def test_a_connection_that_ends_in_the_middle_is_tried_again_and_a_mistake_is_not() -> None:
    aiohttp = pytest.importorskip("aiohttp", reason="needs the package aiohttp")
    for error in (aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError(), TimeoutError()):
        assert is_passing(error)
    for error in (ValueError("no"), TypeError("no"), aiohttp.InvalidURL("http:/a")):
        assert not is_passing(error)


def test_what_is_not_there_is_not_asked_for_twice_and_is_named() -> None:
    ask = failing(1, FileNotFoundError("a"))
    with pytest.raises(FileNotFoundError) as caught:
        patiently(ask, "s3://key:secret@a")
    assert caught.value.filename == "s3://a"
    assert ask() == 2


def test_what_no_patience_helps_is_told_at_once() -> None:
    ask = failing(1, ValueError("no credentials"))
    with pytest.raises(StorageError, match="no credentials"):
        patiently(ask, "s3://a")
    assert ask() == 2
