"""Bytes of samples from shards on this machine; `shardtool.remote` is the same for a URL."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Sequence
from typing import Any

from shardtool.errors import DatasetError

UNLIMITED_FILES = 1 << 16
Request = tuple[int, int, int]  # shard number, offset, bytes


class LocalShards:
    """The shards `names` in the folder `place`, which stay open: up to half of the files that a process may
    have open, the others are opened for each photo. Threads may share it."""

    def __init__(self, place: str, names: Sequence[str]) -> None:
        self._place, self._names = place, names
        self._open: dict[int, int] = {}
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_open = (UNLIMITED_FILES if limit == resource.RLIM_INFINITY else limit) // 2

    def read_many(self, requests: Sequence[Request]) -> list[bytes]:
        """The bytes of each request, in their order; fewer at the end of a shard.

        Raises DatasetError if a shard is missing.
        """
        return [self._read(*request) for request in requests]

    def announce(self, requests: Sequence[Request]) -> None:
        """Tell the system what will be read soon, so that the disk is busy with it meanwhile."""
        if hasattr(os, "posix_fadvise"):  # macOS has none
            for shard, offset, size in requests:
                if (descriptor := self._kept(shard)) is not None:
                    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        descriptor = self._kept(shard)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        descriptor = self._descriptor(shard)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _kept(self, shard: int) -> int | None:
        """The descriptor of a shard that stays open; None if there are too many."""
        if shard in self._open or len(self._open) >= self._most_open:
            return self._open.get(shard)
        descriptor = self._descriptor(shard)
        kept = self._open.setdefault(shard, descriptor)
        if kept != descriptor:  # another thread was faster
            os.close(descriptor)
        return kept

    def _descriptor(self, shard: int) -> int:
        path = os.path.join(self._place, self._names[shard] + ".tar")
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DatasetError("file is missing", where=path, cure="pack again") from error

    def __del__(self) -> None:
        for descriptor in self._open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        # descriptors belong to this process: another one opens its own
        return {**self.__dict__, "_open": {}}
