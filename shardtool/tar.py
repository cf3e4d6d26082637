"""One shard file: POSIX ustar, byte for byte what `tarfile` writes with USTAR_FORMAT.

A header is 512 bytes, a payload is padded to 512, the file ends with zeros up to a multiple of 10,240.
Everything that could differ between two machines (owner, mode, time) is fixed, so a shard's bytes
follow from its members alone, and its size is known before a byte is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
RECORD = 20 * BLOCK
MAX_NAME = 100  # bytes
MAX_PAYLOAD = 8**11 - 1  # eleven octal digits

# mode 0644, uid 0, gid 0 | mtime 0 | regular file, ustar magic and version, no owner names, no device
_MODE_OWNER = b"0000644\x000000000\x000000000\x00"
_MTIME = b"00000000000\x00"
_TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
_TEMPLATE = np.frombuffer(bytes(100) + _MODE_OWNER + bytes(12) + _MTIME + bytes(8) + _TAIL, dtype=np.uint8)
_FIXED_SUM = sum(_MODE_OWNER) + sum(_MTIME) + sum(_TAIL) + 8 * ord(" ")


def padded(size: int) -> int:
    """Bytes that a payload of `size` takes in the file."""
    return -(-size // BLOCK) * BLOCK


def padded_all(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """`padded` of many payloads. int64 [n]"""
    return -(-sizes // BLOCK) * BLOCK


def header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a payload; `name` is ASCII, at most MAX_NAME bytes (our keys always are)."""
    assert len(name) <= MAX_NAME, name
    assert 0 <= size <= MAX_PAYLOAD, size
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(digits))
    return b"".join((name.ljust(100, b"\0"), _MODE_OWNER, digits, _MTIME, checksum, _TAIL))


def parse(block: bytes) -> tuple[bytes, int] | None:
    """Name and payload size of a `header`; None for a block that `header` never gives."""
    name = block[:MAX_NAME].rstrip(b"\0")
    try:
        size = int(block[124:135], 8)
    except ValueError:
        return None
    return (name, size) if size >= 0 and block == header(name, size) else None


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
