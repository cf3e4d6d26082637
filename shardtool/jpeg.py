"""A JPEG file as its segments: what the header says, and the changes that leave every pixel as it is.

Source: ITU-T T.81, annex B. Nothing here decodes.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from shardtool.errors import UserError

END, SCAN, EXIF_OR_XMP, MULTI_PICTURE = 0xD9, 0xDA, 0xE1, 0xE2
PROGRESSIVE = 0xC2
COMMON = (0xC0, 0xC1, PROGRESSIVE)  # baseline, extended, progressive; all of Huffman coding
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # also lossless, hierarchical, arithmetic
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
# After a scan's data: a marker that is neither a stuffed zero, nor a restart, nor a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_ORIENTATION = 0x0112
_EXIF = re.compile(rb"Exif\0\0")  # a third faster than bytes.find, which costs more than all the rest
_BYTE_ORDERS = {b"Exif\0\0II*\0": "<", b"Exif\0\0MM\0*": ">"}  # the start of an EXIF segment
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_TURNED = re.compile(rb'tiff:Orientation(?:="|>)[^1]')
# A pointer to a GPS directory in any directory of EXIF (big or little end first), its thumbnail's too;
# XMP, in UTF-8 and 16; the place in the film that some phones append, and XMP that announces the film.
_PLACE = re.compile(
    rb"\x88\x25\0\x04\0\0\0\x01|\x25\x88\x04\0\x01\0\0\0|GPSL|G\0P\0S\0L|\xa9xyz|MotionPhoto|MicroVideo"
)


class Header(NamedTuple):
    """The frame of a JPEG: `kind` is its SOF marker, `sampling` the factors of its components.

    `tagged`: it may be turned or may tell a place, in its tags or in those of a picture behind it.
    """

    kind: int
    precision: int
    width: int
    height: int
    sampling: bytes
    tagged: bool

    @property
    def components(self) -> int:
        return len(self.sampling)

    @property
    def progressive(self) -> bool:
        return self.kind == PROGRESSIVE


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG up to its first scan; None for anything unusual, which others may judge."""
    if data[:2] != b"\xff\xd8":
        return None
    position, frame, tagged = 2, -1, False
    try:
        while True:
            if data[position] != 0xFF:
                return None
            marker = data[position + 1]
            if marker in _FRAMES:
                frame = position
            elif marker == EXIF_OR_XMP:
                tagged |= not _says_nothing(data, position)
            elif marker == SCAN:
                break
            elif marker == 0xFF:  # a fill byte
                position += 1
                continue
            elif marker in _BARE:
                return None
            position += 2 + (data[position + 2] << 8 | data[position + 3])
        if frame < 0:
            return None
        height = data[frame + 5] << 8 | data[frame + 6]
        width = data[frame + 7] << 8 | data[frame + 8]
        sampling = data[frame + 11 : frame + 10 + 3 * data[frame + 9] : 3]
        tagged |= _EXIF.search(data, position) is not None  # between scans, or in a picture behind this one
        return Header(data[frame + 1], data[frame + 4], width, height, sampling, tagged)
    except IndexError:
        return None


def located(data: bytes) -> bool:
    """Whether the tags of this JPEG, or what stands behind the picture, say where on Earth it was taken."""
    stop = 2
    for marker, start, stop in _segments(data):
        if marker == EXIF_OR_XMP and _PLACE.search(data, start, stop):
            return True
    return stop > 2 and _PLACE.search(data, stop) is not None


def without_tags(data: bytes) -> bytes:
    """The same picture without EXIF, XMP, further pictures and whatever else follows its end."""
    kept = [
        data[start:stop]
        for marker, start, stop in _segments(data)
        if marker not in (EXIF_OR_XMP, MULTI_PICTURE) or b"ICC_PROFILE" in data[start : start + 16]
    ]
    return b"\xff\xd8" + b"".join(kept)


def jpegtran() -> str | None:
    """The program that rewrites JPEGs without loss (Debian: libjpeg-turbo-progs), if it is there."""
    return shutil.which("jpegtran")


def as_baseline(data: bytes) -> bytes:
    """The same coefficients as a baseline JPEG. Raises ValueError when jpegtran cannot read it, and
    UserError when it is killed."""
    program = jpegtran()
    assert program is not None, "asked for at the start of a pack"
    done = subprocess.run([program, "-copy", "all"], input=data, capture_output=True, check=False)
    if done.returncode < 0:
        raise UserError(
            "jpegtran was killed", where=program, cure="give it more memory, or use fewer workers"
        )
    if done.returncode or not done.stdout:
        raise ValueError(done.stderr.decode(errors="replace").strip() or "jpegtran failed")
    return done.stdout


def _says_nothing(data: bytes, at: int) -> bool:
    """Whether the segment at `at` is EXIF or XMP that is readable and has neither a rotation nor a place."""
    stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if _PLACE.search(data, at, stop):
        return False
    if data.startswith(_XMP, at + 4):
        return not _TURNED.search(data, at, stop)
    base = at + 10
    order = _BYTE_ORDERS.get(data[at + 4 : base + 4])
    if order is None:
        return False
    try:
        (first,) = struct.unpack_from(order + "I", data, base + 4)
        (count,) = struct.unpack_from(order + "H", data, base + first)
        entries = struct.iter_unpack(order + "HHIHH", data[base + first + 2 : base + first + 2 + 12 * count])
        return all(tag != _ORIENTATION or value == 1 for tag, _, _, value, _ in entries)
    except struct.error:
        return False


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment after the start marker; scans with their data; up to the end."""
    position, size = 2, len(data)
    while position + 2 <= size:
        marker = data[position + 1]
        if data[position] != 0xFF:
            return
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == END:
            yield marker, position, position + 2
            return
        stop = (
            position
            + 2
            + (0 if marker in _BARE else int.from_bytes(data[position + 2 : position + 4], "big"))
        )
        if marker == SCAN:
            found = _NEXT_MARKER.search(data, stop)
            stop = found.start() if found else size
        yield marker, position, stop
        position = stop
