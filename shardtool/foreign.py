"""One foreign shard: a tar without sidecar -> its photos with their labels, reading headers only.

Nothing in it is trusted: no name is ever used as a path, and a sample that cannot be used is refused with
its reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import numpy as np
import pyarrow as pa
import simplejpeg

from shardtool import jpeg
from shardtool.headers import Member, walk
from shardtool.index import Refusal
from shardtool.photo import MAX_PIXELS, MAX_SIDE, MIN_SIDE
from shardtool.source import MAX_FILE_BYTES
from shardtool.store import Read

Reason = Literal[
    "no photo",
    "two photos",
    "no label",
    "not a JPEG",
    "damaged",
    "not RGB or grey",
    "too large",
    "too small",
    "unsafe name",
    "not a regular file",
    "key twice in a shard",
]

PHOTOS = ("jpg", "jpeg")
DISEASE = "unlabelled"  # of a sample whose label is a class alone
MAX_NAME = 4096
MAX_LABEL = 1 << 20
HEADS = (4 << 10, 64 << 10, 1 << 20)  # bytes of a photo that are looked at for its header
CHUNK = 4 << 20

_META = re.compile(r"__[^/]*__($|/)")

FOUND = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("species", pa.string()),
        ("disease", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32c", pa.uint32()),
        ("source", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """What was found in one shard: its photos (schema FOUND), refused samples, names left alone."""

    photos: pa.Table
    refused: tuple[Refusal, ...]
    ignored: int
    bytes: int
    sha256: str


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason: Reason = reason
        self.detail = detail


def scan_shard(read: Read, end: int, split: str, name: str, checksums: bool = False) -> Shard:
    """All photos of a shard that have a label, read from its headers and labels, and why others have not.

    With `checksums` every byte is read. Raises DatasetError.
    """
    where = f"{split}/{name}.tar"
    members = [member for member in walk(read, end, where) if member.kind != "folder"]
    keyed = [(key, ending, member) for member in members for key, ending in [split_name(member.name)] if key]
    rows, refused, seen = [], [], set()
    for key, group in itertools.groupby(keyed, lambda entry: entry[0]):
        parts = [(ending, member) for _, ending, member in group]
        try:
            if key in seen:
                raise _Refused("key twice in a shard", "the first one counts")
            rows.append(_sample(read, key, parts))
        except _Refused as error:
            refused.append(Refusal(f"{where}/{parts[0][1].name}", error.reason, error.detail))
        seen.add(key)
    photos = pa.Table.from_pylist(rows, schema=FOUND)
    sha256 = ""
    if checksums:
        sha256, photos = _with_checksums(read, end, photos)
    return Shard(photos, tuple(refused), len(members) - len(keyed), end, sha256)


def split_name(name: str) -> tuple[str, str]:
    """Key and ending of a member, as WebDataset has it: at the first dot of the last part.

    ("", "") for a name that belongs to no sample.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem or not ending or _META.match(name):
        return "", ""
    return f"{folder}{slash}{stem}", ending.lower()


def _sample(read: Read, key: str, parts: Sequence[tuple[str, Member]]) -> dict[str, Any]:
    """The row (schema FOUND) of a sample, given its members with their endings."""
    for _, member in parts:
        if member.name.startswith("/") or ".." in member.name.split("/") or len(member.name) > MAX_NAME:
            raise _Refused("unsafe name", "absolute, too long, or with ..")
        if member.kind != "file":
            raise _Refused("not a regular file", "a link, a device or a sparse file")
    photos = [member for ending, member in parts if ending in PHOTOS]
    if len(photos) != 1:
        endings = ", ".join(ending for ending, _ in parts[:5])
        raise _Refused("two photos" if photos else "no photo", f"members: {endings}")
    species, disease = _label(read, dict(parts))
    width, height = _dimensions(read, photos[0])
    return {
        "key": _text(key),
        "offset": photos[0].offset,
        "size": photos[0].size,
        "species": species,
        "disease": disease,
        "width": width,
        "height": height,
        "crc32c": None,
        "source": photos[0].name.encode("utf-8", "surrogateescape"),
    }


def _label(read: Read, parts: dict[str, Member]) -> tuple[str, str]:
    """Species and disease: by name from `.json`, else `.cls` is the species."""
    if "json" in parts and (names := _named(_small(read, parts["json"]))):
        return names
    if "cls" not in parts:
        raise _Refused("no label", 'neither .cls nor .json with "species" and "disease"')
    text = _name(_small(read, parts["cls"]).decode("utf-8", "replace"))
    if not text or re.fullmatch(r"-[0-9]+", text):
        raise _Refused("no label", f".cls is {text!r}")
    return (f"class-{int(text):06d}" if re.fullmatch(r"[0-9]{1,9}", text) else text), DISEASE


def _named(data: bytes) -> tuple[str, str] | None:
    try:
        value = json.loads(data)
        species, disease = _name(value["species"]), _name(value["disease"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (species, disease) if species and disease else None


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return unicodedata.normalize("NFC", _text(value)).strip()


def _text(value: str) -> str:
    """Without lone halves of surrogate pairs, which no file can hold."""
    return value.encode("utf-8", "replace").decode()


def _small(read: Read, member: Member) -> bytes:
    if member.size > MAX_LABEL:
        raise _Refused("no label", f"{member.size} bytes of label")
    return read(member.offset, member.size)


def _dimensions(read: Read, photo: Member) -> tuple[int, int]:
    """Width and height in pixels, from as little of the photo as they stand in."""
    if photo.size > MAX_FILE_BYTES:
        raise _Refused("too large", f"{photo.size} bytes")
    for length in HEADS:
        data = read(photo.offset, min(length, photo.size))
        if not data.startswith(b"\xff\xd8"):
            raise _Refused("not a JPEG", f"starts with {data[:12]!r}" if data else "0 bytes")
        if header := jpeg.read_header(data):
            width, height, plain = header.width, header.height, header.precision == 8
            return _checked(width, height, plain and header.components in (1, 3))
    try:  # a header that is unusual but not wrong
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _Refused("damaged", str(error)) from None
    return _checked(width, height, colours in ("YCbCr", "Gray", "RGB"))


def _checked(width: int, height: int, plain: bool) -> tuple[int, int]:
    size = f"{width} x {height} pixels"
    if not plain:
        raise _Refused("not RGB or grey", "four colours, or 12 bits")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _Refused("too large", size)
    if min(width, height) < MIN_SIDE:
        raise _Refused("too small", size)
    return width, height


def _with_checksums(read: Read, end: int, photos: pa.Table) -> tuple[str, pa.Table]:
    """The shard's SHA-256, and its photos with their CRC-32C; every byte is read once, in order."""
    sha256, sums = hashlib.sha256(), np.zeros(photos.num_rows, np.uint32)
    offsets, sizes = photos.column("offset").to_numpy(), photos.column("size").to_numpy()
    for start in range(0, end, CHUNK):
        data = read(start, min(CHUNK, end - start))
        sha256.update(data)
        first = np.searchsorted(offsets + sizes, start, side="right")
        last = np.searchsorted(offsets, start + len(data))
        for photo in range(first, last):
            piece = data[max(offsets[photo] - start, 0) : offsets[photo] + sizes[photo] - start]
            sums[photo] = google_crc32c.extend(int(sums[photo]), piece)
    place = photos.schema.get_field_index("crc32c")
    return sha256.hexdigest(), photos.set_column(place, "crc32c", pa.array(sums))
