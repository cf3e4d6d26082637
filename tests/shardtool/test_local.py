"""Shards of this machine: exactly the bytes that are there, few open files, threads side by side."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardtool.errors import DatasetError
from shardtool.local import LocalShards, Request

SHARDS = 12
REQUESTS: list[Request] = [(number, 100 * number, 50) for number in range(SHARDS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """SHARDS different files of 2,000 bytes."""
    for number in range(SHARDS):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 1000 + bytes(range(250)) * 4)
    return tmp_path


def shards(folder: Path) -> LocalShards:
    return LocalShards(str(folder), [str(number) for number in range(SHARDS)])


def expected(folder: Path, request: Request) -> bytes:
    shard, offset, size = request
    return (folder / f"{shard}.tar").read_bytes()[offset : offset + size]


def open_files(folder: Path) -> int:
    """Files in the folder that this process has open."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the listing itself
            found += Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent == folder
    return found


def test_the_bytes_are_those_of_the_files_in_the_order_of_the_requests(folder: Path) -> None:
    local, backwards = shards(folder), REQUESTS[::-1]
    assert local.read_many(backwards) == [expected(folder, request) for request in backwards]
    assert local.read_many([]) == []
    assert local.read_many([(0, 1990, 50), (0, 5000, 1)]) == [bytes(range(240, 250)), b""]


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "3.tar").unlink()
    with pytest.raises(DatasetError, match=r"3\.tar"):
        shards(folder).read_many(REQUESTS)


def test_more_shards_than_files_may_be_open_are_read_all_the_same(folder: Path) -> None:
    local = shards(folder)
    local._most_open = 2
    for _ in range(3):
        local.announce(REQUESTS)
        assert local.read_many(REQUESTS) == [expected(folder, request) for request in REQUESTS]
        assert open_files(folder) == 2


def test_half_of_the_files_that_a_process_may_open_are_left_to_others(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
        assert shards(folder)._most_open == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_threads_share_the_open_files(folder: Path) -> None:
    local = shards(folder)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: local.read_many(REQUESTS), range(200)))
    assert all(photos == [expected(folder, request) for request in REQUESTS] for photos in found)
    assert open_files(folder) == SHARDS


def test_another_process_opens_files_of_its_own(folder: Path) -> None:
    local = shards(folder)
    local.read_many(REQUESTS)
    again = pickle.loads(pickle.dumps(local))
    assert again._open == {}
    assert again.read_many(REQUESTS) == local.read_many(REQUESTS)


def test_files_are_closed_when_nobody_needs_them(folder: Path) -> None:
    local = shards(folder)
    local.read_many(REQUESTS)
    assert open_files(folder) == SHARDS
    del local
    assert open_files(folder) == 0


def test_what_is_announced_need_not_be_read(folder: Path) -> None:
    local = shards(folder)
    local.announce(REQUESTS)
    assert local.read_many(REQUESTS[:1]) == [expected(folder, REQUESTS[0])]
