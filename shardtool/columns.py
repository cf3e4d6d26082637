"""What a split's sidecars say, as columns in memory: 14 bytes a sample where classes fit 16 bits.

Those of a large split are kept in a file that every process maps: workers and ranks share its pages, and the
next start decodes no Parquet. The file is only ever believed after its checksum; without it, all works.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import DTypeLike, NDArray

from shardtool.errors import DatasetError, NoSpace
from shardtool.files import atomic
from shardtool.tar import BLOCK
from shardtool.taxonomy import Taxonomy

FORMAT = 1  # of the file
ENDING = ".columns"
KEPT_PHOTOS = 1 << 20  # of fewer, the file is not worth its place
KEPT_SECONDS = 90 * 86400.0  # since a file was last used
NAMES = ("offset", "size", "species_id", "disease_id", "crc32c")  # columns of a sidecar that are looked at
CHUNK = 8 << 20


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Columns:
    """Of each sample, [n]: see Split. `checked`: all checksums are known; `digest` is over all of it."""

    start: NDArray[np.uint32]
    size: NDArray[np.int32]
    crc32c: NDArray[np.uint32]
    row: NDArray[np.integer[Any]]
    checked: bool
    digest: str

    @property
    def arrays(self) -> tuple[NDArray[np.integer[Any]], ...]:
        """The columns as they lie in the file."""
        return self.start, self.size, self.crc32c, self.row


def collect(tables: Iterable[tuple[str, pa.Table]], counts: Sequence[int], taxonomy: Taxonomy) -> Columns:
    """The columns of shards with so many samples; `tables` are their places, for messages, and sidecars.

    Raises DatasetError for a sidecar of another length, or whose numbers point to nothing.
    """
    total = sum(counts)
    start, size, crc32c, row = (np.empty(total, dtype=kind) for kind in _kinds(taxonomy))
    first, checked = 0, True
    for (place, table), count in zip(tables, counts, strict=True):
        part = slice(first, first + count)
        if table.num_rows != count:
            raise _wrong(place, f"it has {table.num_rows} rows, dataset.json says {count}")
        start[part], size[part] = _places(place, table)
        row[part] = _rows(place, table, taxonomy)
        known = table.column("crc32c").null_count == 0
        crc32c[part] = _numbers(place, table, "crc32c") if known else 0
        first, checked = first + count, checked and known
    pa.default_memory_pool().release_unused()  # it would keep what the sidecars took
    digest = xxhash.xxh3_128(bytes([checked]))
    for array in (start, size, crc32c, row):
        digest.update(array.data)
    return Columns(start, size, crc32c, row, checked, digest.hexdigest())


def _places(place: str, table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the photos start, in blocks of a tar, and their bytes."""
    offset, size = _numbers(place, table, "offset"), _numbers(place, table, "size")
    if (offset % BLOCK).any() or not _within(offset // BLOCK, 1 << 32) or not _within(size, 1 << 31):
        raise _wrong(place, "it has offsets or sizes that no member of a tar has")
    return offset // BLOCK, size


def _rows(place: str, table: pa.Table, taxonomy: Taxonomy) -> NDArray[np.int64]:
    species, disease = _numbers(place, table, "species_id"), _numbers(place, table, "disease_id")
    if not _within(species, len(taxonomy.species)) or not _within(disease, taxonomy.sizes[species]):
        raise _wrong(place, "it has ids of classes that dataset.json does not list")
    return taxonomy.row(species, disease)


def _numbers(place: str, table: pa.Table, name: str) -> NDArray[Any]:
    """A column; not by `to_numpy`, which imports pandas where it is installed: 0.2 s and 30 MB."""
    column = table.column(name)
    if column.null_count:
        raise _wrong(place, f"its {name} has gaps")
    return np.from_dlpack(column.combine_chunks())


def _within(values: NDArray[np.integer[Any]], limit: int | NDArray[np.int64]) -> bool:
    return bool((values >= 0).all() and (values < limit).all())


def _wrong(place: str, why: str) -> DatasetError:
    return DatasetError(f"wrong sidecar: {why}", where=place, cure="pack again or fetch it again")


def _kinds(taxonomy: Taxonomy) -> tuple[type[np.integer[Any]], ...]:
    """The types of start, size, crc32c and row."""
    return np.uint32, np.int32, np.uint32, np.uint16 if taxonomy.rows <= 1 << 16 else np.int32


# ---- the file ------------------------------------------------------------------------------------


def kept_at(sidecars: Sequence[str], taxonomy: Taxonomy) -> Path | None:
    """Where the columns of these sidecars (SHA-256) are kept, or would be; None for who has no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    except RuntimeError:
        return None
    folder = cache / "shardtool"
    name = hashlib.sha256(json.dumps([FORMAT, taxonomy.digest, *sidecars]).encode()).hexdigest()
    return folder / f"{name}{ENDING}"


def keep(path: Path, columns: Columns) -> None:
    """Write the file: the columns one after another, then a byte for `checked`, then the digest.

    Where that cannot be done, there is no file; files that nobody has used for long are removed.
    """
    with contextlib.suppress(OSError, NoSpace):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic(path, synced=False) as file:  # half written by a power cut, it fails its checksum
            for array in columns.arrays:
                file.write(array.data)
            file.write(bytes([columns.checked]) + bytes.fromhex(columns.digest))
        for other in path.parent.glob(f"*{ENDING}"):
            if other.stat().st_mtime < time.time() - KEPT_SECONDS:
                other.unlink(missing_ok=True)


def find_kept(path: Path, count: int, taxonomy: Taxonomy) -> Columns | None:
    """The columns of `count` samples in the file, mapped; None if it is not there, damaged or not ours."""
    kinds = [np.dtype(kind) for kind in _kinds(taxonomy)]
    ends = np.cumsum([count * kind.itemsize for kind in kinds]).tolist()
    try:
        with path.open("rb") as file:
            checked, digest = _trailer(file, ends[-1])
            places = zip(kinds, [0, *ends], strict=False)
            start, size, crc32c, row = (_mapped(file, kind, place, count) for kind, place in places)
            os.utime(file.fileno())  # it is in use
    except (OSError, ValueError):
        return None
    return Columns(start, size, crc32c, row, checked, digest)


def _trailer(file: BinaryIO, length: int) -> tuple[bool, str]:
    """What follows the columns. Raises ValueError unless it fits them, and the file is this person's.

    They are read, not mapped: a process has mapped only what it has used.
    """
    state = os.fstat(file.fileno())
    if state.st_uid != os.geteuid() or state.st_size != length + 17:
        raise ValueError("another one's, or of another size")
    file.seek(length)
    checked, digest = file.read(1), file.read(16)
    found = xxhash.xxh3_128(checked)
    file.seek(0)
    for first in range(0, length, CHUNK):
        found.update(file.read(min(CHUNK, length - first)))
    if found.digest() != digest:
        raise ValueError("damaged")
    return checked != b"\0", digest.hex()


def _mapped(file: BinaryIO, kind: DTypeLike, offset: int, count: int) -> NDArray[Any]:
    return np.memmap(file, dtype=kind, mode="r", offset=offset, shape=(count,))


@dataclass(frozen=True)
class Mapping:
    """A column in a file, as another process is told of it."""

    path: str
    kind: str
    offset: int
    count: int


def dismount(value: Any) -> Any:
    """A mapped column as a Mapping; anything else as it is."""
    if not isinstance(value, np.memmap):
        return value
    return Mapping(str(value.filename), value.dtype.str, value.offset, len(value))


def mount(value: Any) -> Any:
    """The inverse of `dismount`. Raises DatasetError if the file has been removed."""
    if not isinstance(value, Mapping):
        return value
    try:
        with open(value.path, "rb") as file:
            return _mapped(file, value.kind, value.offset, value.count)
    except OSError as error:
        raise DatasetError(
            "the index was removed while it was in use", where=value.path, cure="run the same command again"
        ) from error
