"""The members of a tar that any program wrote: old, GNU and PAX headers, trusting none of them.

Every size is checked before anything is read or skipped, and headers that do not lead from the first
byte to the end are an error, never a shorter list. (`tarfile` itself ends silently at a damaged header, and
can be led into endless loops and huge reads; its parser of one header is used here.)
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shardtool import tar
from shardtool.errors import DatasetError
from shardtool.store import Read

MAX_NOTES = 1 << 20  # bytes of a PAX header or a long name; programs write a few kB
MAX_ENDING = 16 << 20  # zeros after the last member; the largest record of GNU tar in use is 1 MB

_SPARSE = b"S"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_PAX, _SOLARIS_PAX, _GLOBAL_PAX = b"x", b"X", b"g"
_NOTES = (_LONG_NAME, _LONG_LINK, _PAX, _SOLARIS_PAX, _GLOBAL_PAX)
_MAX_NOTES_A_MEMBER = 8
_PAX_LENGTH = re.compile(rb"(\d{1,8}) ")


@dataclass(frozen=True)
class Member:
    """A member of a tar; `offset` is where its payload starts."""

    name: str
    kind: Literal["file", "folder", "other"]
    offset: int
    size: int


def walk(read: Read, end: int, where: str) -> Iterator[Member]:
    """The members of a tar of `end` bytes, whatever program wrote it; of payloads only long names are read.

    Raises DatasetError naming the offset for a damaged header, a member that runs past the end, headers
    that are too large, and a tar that is cut or goes on after its end.
    """
    position, notes = 0, _Notes()
    while True:
        info = _header(read, position, where)
        if info is None:
            break
        offset = position + tar.BLOCK
        if info.type == _SPARSE:
            offset = _after_sparse_map(read, offset, where)
        size = _payload(info, notes)
        if not 0 <= size <= end - offset:
            raise _damaged(f"member of {size} bytes runs past the end", where, position)
        if info.type in _NOTES:
            notes.take(info.type, read, offset, size, where)
        else:
            yield Member(notes.name or info.name, _kind(info, notes), offset, size)
            notes = _Notes()
        position = offset + tar.padded(size)
    if notes.count:
        raise _damaged("a long name without its member", where, position)
    _check_ending(read, position, end, where)


def walk_packed(read: Read, end: int, where: str) -> Iterator[Member]:
    """`walk` of a shard that we have packed: every header, and the size, is what `tar` writes.

    Raises DatasetError naming the offset.
    """
    position = 0
    for member in walk(read, end, where):
        name = member.name.encode("utf-8", "surrogateescape")
        if tar.parse(read(position, tar.BLOCK)) != (name, member.size):
            raise _damaged("damaged tar header", where, position)
        yield member
        position = member.offset + tar.padded(member.size)
    if end != tar.file_size(position):
        raise _damaged("shard is cut or longer than its members", where, position)


class _Notes:
    """What PAX and GNU headers say of the member that follows them."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self.size: int | None = None
        self.sparse = False

    def take(self, kind: bytes, read: Read, offset: int, size: int, where: str) -> None:
        self.count += 1
        if size > MAX_NOTES or self.count > _MAX_NOTES_A_MEMBER:
            raise _damaged("headers without end", where, offset)
        data = read(offset, size)
        if kind == _LONG_NAME:
            self.name = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind != _LONG_LINK:
            self._take_records(kind, data, offset, where)

    def _take_records(self, kind: bytes, data: bytes, offset: int, where: str) -> None:
        records = _pax_records(data, where, offset)
        telling = {"path", "size"} & records.keys()
        if kind == _GLOBAL_PAX and telling:
            raise _damaged("a global header names every member alike", where, offset)
        self.name = records.get("GNU.sparse.name") or records.get("path", self.name)
        self.sparse = self.sparse or any(keyword.startswith("GNU.sparse") for keyword in records)
        if "size" in records:
            if not re.fullmatch(r"[0-9]{1,19}", records["size"]):
                raise _damaged("a size that is no number", where, offset)
            self.size = int(records["size"])


def _header(read: Read, position: int, where: str) -> tarfile.TarInfo | None:
    block = read(position, tar.BLOCK)
    if len(block) < tar.BLOCK:
        raise _damaged("shard is cut", where, position)
    if not any(block):
        return None
    if ours := tar.parse(block):  # tarfile takes five times as long
        info = tarfile.TarInfo(ours[0].decode("utf-8", "surrogateescape"))
        info.size = ours[1]
        return info
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise _damaged(f"damaged tar header: {error}", where, position) from None


def _payload(info: tarfile.TarInfo, notes: _Notes) -> int:
    """Bytes in the tar behind this header; links, folders and devices have none, whatever they say."""
    if info.type in tarfile.SUPPORTED_TYPES and info.type not in (*tarfile.REGULAR_TYPES, *_NOTES):
        return 0
    return info.size if info.type in _NOTES or notes.size is None else notes.size


def _kind(info: tarfile.TarInfo, notes: _Notes) -> Literal["file", "folder", "other"]:
    if info.type == tarfile.DIRTYPE:
        return "folder"
    regular = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
    return "file" if regular and not notes.sparse else "other"


def _after_sparse_map(read: Read, offset: int, where: str) -> int:
    """Where the payload of a sparse member of GNU tar starts: its map may go on in further blocks."""
    more = read(offset - tar.BLOCK, tar.BLOCK)[482]
    while more:
        block = read(offset, tar.BLOCK)
        if len(block) < tar.BLOCK:
            raise _damaged("shard is cut", where, offset)
        more = block[504]
        offset += tar.BLOCK
    return offset


def _check_ending(read: Read, position: int, end: int, where: str) -> None:
    rest = end - position
    if rest < 2 * tar.BLOCK:
        raise _damaged("shard is cut", where, position)
    if rest > MAX_ENDING or any(read(position, rest)):
        raise _damaged("something follows the end of the tar", where, position)


def _pax_records(data: bytes, where: str, offset: int) -> dict[str, str]:
    records, position = {}, 0
    end = len(data.rstrip(b"\0"))
    while position < end:
        length = _PAX_LENGTH.match(data, position)
        stop = position + int(length[1]) if length else 0
        if length is None or not length.end() < stop <= end or data[stop - 1] != ord("\n"):
            raise _damaged("damaged PAX header", where, offset + position)
        keyword, _, value = data[length.end() : stop - 1].partition(b"=")
        records[keyword.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        position = stop
    return records


def _damaged(what: str, where: str, offset: int) -> DatasetError:
    return DatasetError(what, where=f"{where} at {offset}", cure="fetch the shard again")
