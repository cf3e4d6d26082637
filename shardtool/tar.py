"""One shard file: POSIX ustar, byte for byte what `tarfile` writes with USTAR_FORMAT.

A header is 512 bytes, a payload is padded to 512, the file ends with zeros up to a multiple of 10,240.
Everything that could differ between two machines (owner, mode, time) is fixed, so a shard's bytes
follow from its members alone, and its size is known before a byte is written.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shardtool.errors import DatasetError

BLOCK = 512
RECORD = 20 * BLOCK
MAX_PAYLOAD = 8**11 - 1  # eleven octal digits

# mode 0644, uid 0, gid 0 | mtime 0 | regular file, ustar magic and version, no owner names, no device
_MODE_OWNER = b"0000644\x000000000\x000000000\x00"
_MTIME = b"00000000000\x00"
_TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
_TEMPLATE = np.frombuffer(bytes(100) + _MODE_OWNER + bytes(12) + _MTIME + bytes(8) + _TAIL, dtype=np.uint8)
_FIXED_SUM = sum(_MODE_OWNER) + sum(_MTIME) + sum(_TAIL) + 8 * ord(" ")


@dataclass(frozen=True)
class Member:
    """A regular member: `offset` is where its payload starts, `size` the payload's bytes."""

    name: str
    offset: int
    size: int


def padded(size: int) -> int:
    """Bytes that a payload of `size` takes in the file."""
    return -(-size // BLOCK) * BLOCK


def padded_all(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """`padded` of many payloads. int64 [n]"""
    return -(-sizes // BLOCK) * BLOCK


def header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a payload; `name` is ASCII, at most 100 bytes (our keys always are)."""
    assert len(name) <= 100, name
    assert 0 <= size <= MAX_PAYLOAD, size
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(digits))
    return b"".join((name.ljust(100, b"\0"), _MODE_OWNER, digits, _MTIME, checksum, _TAIL))


def member(name: bytes, payload: bytes) -> bytes:
    """Header, payload and padding of one member."""
    return b"".join((header(name, len(payload)), payload, bytes(-len(payload) % BLOCK)))


def ending(size: int) -> bytes:
    """The zeros after `size` bytes of members: two blocks at least, then up to a whole record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)


def file_size(members_size: int) -> int:
    """Size of a whole shard whose members take `members_size` bytes."""
    return members_size + len(ending(members_size))


def file_sizes(members_sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """`file_size` of many shards. int64 [n]"""
    return -(-(members_sizes + 2 * BLOCK) // RECORD) * RECORD


def headers(names: Sequence[bytes], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`header` of many members at once. uint8 [n, BLOCK]"""
    assert len(names) == len(sizes)
    assert sizes.max(initial=0) <= MAX_PAYLOAD, sizes.max()
    blocks = np.tile(_TEMPLATE, (len(names), 1))
    blocks[:, :100] = np.array(names, dtype="S100").view(np.uint8).reshape(-1, 100)
    blocks[:, 124:135] = _octal_digits(sizes, 11)
    sums = blocks.sum(axis=1, dtype=np.int64) + 8 * ord(" ")  # the checksum's own field counts as blanks
    blocks[:, 148:154] = _octal_digits(sums, 6)
    blocks[:, 155] = ord(" ")
    return blocks


def _octal_digits(numbers: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    shifts = np.arange(3 * (count - 1), -1, -3)
    return ((numbers[:, None] >> shifts & 7) + ord("0")).astype(np.uint8)


def members(file: BinaryIO, where: str) -> Iterator[Member]:
    """Walk the headers of a shard, reading no payload.

    Only what `header` writes is accepted: regular ustar members with a right checksum that lie inside
    the file, then zeros. Raises DatasetError naming the offset for anything else.
    """
    end = file.seek(0, io.SEEK_END)
    position = 0
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise DatasetError("shard is cut", where=f"{where} at {position}", cure="pack it again")
        if not any(block):
            rest = file.read(end - file.tell())
            if end != file_size(position) or any(rest):
                raise DatasetError(
                    "shard is cut or longer than its members",
                    where=f"{where} at {position}",
                    cure="pack it again",
                )
            return
        name = block[:100].rstrip(b"\0")
        size = _octal(block[124:136])
        if size is None or block != header(name, size):
            raise DatasetError("damaged tar header", where=f"{where} at {position}", cure="pack it again")
        position += BLOCK
        if position + size > end:
            raise DatasetError(
                "member runs past the end", where=f"{where} at {position}", cure="pack it again"
            )
        yield Member(name.decode("ascii", "replace"), position, size)
        position += padded(size)


def _octal(field: bytes) -> int | None:
    digits = field[:11]
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None
