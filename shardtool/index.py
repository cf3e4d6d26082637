"""The index of packed shards: Parquet sidecars on disk, numpy columns in memory, checked reads.

`Split` holds 28 bytes a sample and no Python object a sample; it is pickled to workers or inherited by
them. `Split.read` gives exactly the bytes that were packed or raises CorruptSample.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shardtool import __version__
from shardtool.errors import CorruptSample, DamagedManifest, DatasetError, UsageError
from shardtool.store import cat, exists, is_remote, shown, sizes
from shardtool.taxonomy import Taxonomy

FORMAT = 1
DATASET_FILE = "dataset.json"
REPORT_FILE = "report.json"

_CURE = "run shardtool verify, then pack again or fetch it again"

# One row a sample, in the order of the shard. `offset` and `size` are of the JPEG's bytes in the tar,
# `crc32c` is over exactly these bytes (null: unknown), `source` is the original path under the packed folder.
SIDECAR = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("species_id", pa.int32()),
        ("disease_id", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32c", pa.uint32()),
        ("source", pa.binary()),
    ]
)


def sidecar_bytes(table: pa.Table, sha256: str, labels: str = "") -> bytes:
    """The Parquet file of one shard's samples (schema SIDECAR); `sha256` is the tar's, `labels` a digest
    of the class names in it, which a table of ids does not tell."""
    out = io.BytesIO()
    facts = {"shardtool.format": str(FORMAT), "shardtool.sha256": sha256, "shardtool.labels": labels}
    schema = SIDECAR.with_metadata(facts)
    pq.write_table(table.cast(schema), out, compression="zstd")
    return out.getvalue()


def read_sidecar(data: bytes, where: str) -> pa.Table:
    """The inverse of `sidecar_bytes`. Raises DatasetError for a damaged or foreign file."""
    try:
        # not read_table: its thread pool now and then aborts a process that ends right afterwards
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError("damaged sidecar", where=where, cure="pack again") from error
    if table.schema.names != SIDECAR.names:
        raise DatasetError("not a shardtool sidecar", where=where, cure="pack again")
    return table


@dataclass(frozen=True)
class ShardEntry:
    """A shard as dataset.json lists it; `sha256` is of the tar ("" if unknown), the other of the Parquet."""

    name: str
    samples: int
    bytes: int
    sha256: str
    sidecar_sha256: str


@dataclass(frozen=True)
class Manifest:
    """dataset.json: what is in a packed dataset. It is written last; without it there is no dataset.

    `bases` says of each split whose shards do not lie beside their sidecars where they are: a path,
    relative to the split's folder, or a URL.
    """

    taxonomy: Taxonomy
    splits: dict[str, tuple[ShardEntry, ...]]
    class_counts: dict[str, list[int]]  # samples of each taxonomy row
    options: dict[str, Any]
    tool: str
    digest: str
    bases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        taxonomy: Taxonomy,
        splits: dict[str, tuple[ShardEntry, ...]],
        class_counts: Mapping[str, NDArray[np.int64]],
        options: dict[str, Any],
        bases: dict[str, str] | None = None,
    ) -> Manifest:
        """The manifest of shards that this version has just written or indexed."""
        counts = {split: rows.tolist() for split, rows in class_counts.items()}
        digest = dataset_digest(taxonomy, splits)
        return cls(taxonomy, splits, counts, options, f"shardtool {__version__}", digest, bases or {})

    @property
    def indexed(self) -> bool:
        """Whether the shards are foreign: not packed by us, only indexed."""
        return bool(self.options.get("foreign"))

    def samples(self, split: str | None = None) -> int:
        """Photos in one split, or in all."""
        return sum(entry.samples for entry in self._entries(split))

    def bytes(self, split: str | None = None) -> int:
        """Bytes of the shards of one split, or of all."""
        return sum(entry.bytes for entry in self._entries(split))

    def _entries(self, split: str | None) -> Iterator[ShardEntry]:
        chosen = self.splits.values() if split is None else [self.splits[split]]
        return itertools.chain.from_iterable(chosen)

    def to_json(self) -> dict[str, Any]:
        splits = {
            name: {
                "samples": self.samples(name),
                "bytes": self.bytes(name),
                "class_counts": self.class_counts[name],
                **({"base": self.bases[name]} if name in self.bases else {}),
                "shards": [vars(shard) for shard in shards],
            }
            for name, shards in self.splits.items()
        }
        return {
            "format": FORMAT,
            "tool": self.tool,
            "digest": self.digest,
            "options": self.options,
            "splits": splits,
            "taxonomy": self.taxonomy.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Manifest:
        return cls(
            Taxonomy.from_json(value["taxonomy"]),
            {
                name: tuple(ShardEntry(**shard) for shard in split["shards"])
                for name, split in value["splits"].items()
            },
            {name: split["class_counts"] for name, split in value["splits"].items()},
            value["options"],
            value["tool"],
            value["digest"],
            {name: split["base"] for name, split in value["splits"].items() if "base" in split},
        )


def dataset_digest(taxonomy: Taxonomy, splits: dict[str, tuple[ShardEntry, ...]]) -> str:
    """SHA-256 over the label space and every shard's SHA-256: the same digest, the same data.

    A shard of which only the headers were read is known by its sidecar's SHA-256.
    """
    content = [
        FORMAT,
        taxonomy.digest,
        [
            [name, [[entry.name, entry.sha256 or entry.sidecar_sha256] for entry in splits[name]]]
            for name in sorted(splits)
        ],
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def open_manifest(folder: str) -> Manifest:
    """Read dataset.json of a local or remote dataset folder.

    Raises UsageError when it is not there, DatasetError when it is not one of ours.
    """
    path = f"{folder.rstrip('/')}/{DATASET_FILE}"
    where = shown(path)
    try:
        value = json.loads(cat(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"no {DATASET_FILE}: this is no packed dataset, or its packing has not finished",
            where=shown(folder),
            cure="run shardtool pack, or give another folder",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DamagedManifest(f"{DATASET_FILE} is damaged", where=where, cure="pack again") from error
    if not isinstance(value, dict) or not isinstance(value.get("options", {}), dict):
        raise DamagedManifest(f"{DATASET_FILE} is damaged", where=where, cure="pack again")
    if value.get("format") != FORMAT:
        raise DatasetError(
            f"{DATASET_FILE} has another format than {FORMAT}",
            where=where,
            cure="use the version that packed it, or pack again",
        )
    try:
        return Manifest.from_json(value)
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedManifest(f"{DATASET_FILE} is damaged", where=where, cure="pack again") from error


@dataclass(frozen=True)
class Refusal:
    """A photo that is not in the dataset, as report.json tells it: its path under the packed folder, or
    SPLIT/SHARD.tar/MEMBER of a foreign shard, and why."""

    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Dataset:
    """A packed dataset, local or behind a URL."""

    folder: str
    manifest: Manifest

    def sidecar_folder(self, split: str) -> str:
        """Folder or URL of the sidecars of a split."""
        return f"{self.folder.rstrip('/')}/{split}"

    def shards(self, split: str) -> str:
        """Folder or URL of the shards of a split, the same but for indexed foreign ones.

        Raises DatasetError if a dataset behind a URL wants files of this machine to be read.
        """
        return shards_folder(self.sidecar_folder(split), self.manifest.bases.get(split, ""))

    def sidecars(self) -> Iterator[tuple[str, ShardEntry, pa.Table]]:
        """Split, shard and sidecar of all shards, one after another. Raises DatasetError."""
        for split, entries in self.manifest.splits.items():
            for entry in entries:
                yield split, entry, open_sidecar(self.sidecar_folder(split), entry)


def open_dataset(folder: str) -> Dataset:
    """Open a local or remote dataset folder. Raises what `open_manifest` raises."""
    return Dataset(folder, open_manifest(folder))


def where(split: str, shard: str, key: str, offset: int) -> str:
    """The place of a sample, for messages; `offset` is of its JPEG in the shard."""
    return f"{split}/{shard}.tar, key {key}, offset {offset}"


@dataclass(frozen=True, eq=False)  # columns do not compare to one truth value
class Split:
    """The samples of one split, as columns; sample ids are positions in these columns.

    shard      int32  [n]  index into `shards`
    offset     int64  [n]  of the JPEG in its shard
    size       int32  [n]  bytes of the JPEG
    crc32c     uint32 [n]  looked at only with `check`
    species    int32  [n]  species id
    row        int32  [n]  taxonomy row of (species, disease)

    `folder` holds the sidecars, `place` the shards: see Dataset.
    """

    folder: str
    place: str
    name: str
    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    crc32c: NDArray[np.uint32]
    species: NDArray[np.int32]
    row: NDArray[np.int32]
    taxonomy: Taxonomy
    digest: str
    check: bool = True
    _files: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def disease(self) -> NDArray[np.int64]:
        """Disease id inside the species, int64 [n]."""
        return self.row - self.taxonomy.offsets[self.species]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Samples of each taxonomy row, int64 [rows]."""
        return np.bincount(self.row, minlength=self.taxonomy.rows)

    def where(self, sample: int) -> str:
        """Shard, key and offset of a sample, for messages."""
        shard = self.shards[self.shard[sample]]
        return where(self.name, shard, self.entry(sample)["key"], int(self.offset[sample]))

    def entry(self, sample: int) -> dict[str, Any]:
        """The sidecar's row of a sample; reads the sidecar again, so not for the hot path."""
        path = f"{self.folder}/{self.shards[self.shard[sample]]}.parquet"
        first = int(np.searchsorted(self.shard, self.shard[sample]))
        row: dict[str, Any] = read_sidecar(_fetch(path), path).slice(sample - first, 1).to_pylist()[0]
        return row

    def read(self, samples: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """JPEG bytes of the given sample ids, in their order. Raises CorruptSample."""
        return [self._read(int(sample)) for sample in samples]

    def _read(self, sample: int) -> bytes:
        shard, size, offset = int(self.shard[sample]), int(self.size[sample]), int(self.offset[sample])
        if is_remote(self.place):
            data = _fetch(f"{self.place}/{self.shards[shard]}.tar", offset, offset + size)
        else:
            data = os.pread(self._descriptor(shard), size, offset)
        if wrong := photo_fault(data, size, int(self.crc32c[sample]) if self.check else None):
            raise CorruptSample(wrong, where=self.where(sample), cure=_CURE)
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            path = os.path.join(self.place, self.shards[shard] + ".tar")
            try:
                self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise DatasetError("file is missing", where=path, cure="pack again") from error
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        # descriptors belong to this process: another one opens its own
        return {**self.__dict__, "_files": {}}


def open_split(folder: str, check: bool = True) -> Split:
    """Open DATASET/SPLIT, local or any fsspec URL; every shard is checked to be there in its size.

    Photos without a known checksum are read unchecked. Raises UsageError (nothing there) and DatasetError
    (missing, cut or exchanged shards).
    """
    folder = folder.rstrip("/")
    root, _, name = folder.rpartition("/")
    if exists(f"{folder}/{DATASET_FILE}"):
        raise UsageError(
            "this is a whole dataset", where=shown(folder), cure=f"name a split: {shown(folder)}/train"
        )
    dataset = open_dataset(root or ("/" if folder.startswith("/") else "."))
    manifest = dataset.manifest
    if name not in manifest.splits:
        raise UsageError(
            f"no split {name!r} in this dataset",
            where=shown(root),
            cure=f"it has {', '.join(manifest.splits)}",
        )
    entries, place = manifest.splits[name], dataset.shards(name)
    check_shards(place, entries)
    tables = [open_sidecar(folder, entry) for entry in entries]
    table = pa.concat_tables(tables) if tables else SIDECAR.empty_table()
    species = table.column("species_id").to_numpy()
    crc32c = table.column("crc32c")
    return Split(
        folder=folder,
        place=place,
        name=name,
        shards=tuple(entry.name for entry in entries),
        shard=np.repeat(np.arange(len(entries), dtype=np.int32), [entry.samples for entry in entries]),
        offset=table.column("offset").to_numpy(),
        size=table.column("size").to_numpy().astype(np.int32),
        crc32c=pc.fill_null(crc32c, 0).to_numpy(),
        species=species,
        row=manifest.taxonomy.row(species, table.column("disease_id").to_numpy()).astype(np.int32),
        taxonomy=manifest.taxonomy,
        digest=manifest.digest,
        check=check and crc32c.null_count == 0,
    )


def shards_folder(folder: str, base: str) -> str:
    """Where the shards of a split are whose sidecars lie in `folder` (see Manifest.bases).

    Raises DatasetError if a dataset behind a URL wants files of this machine to be read.
    """
    if not is_remote(folder):
        return base if is_remote(base) else os.path.normpath(os.path.join(folder, base)) if base else folder
    if base.startswith(("/", "file:")):
        raise DatasetError("a remote dataset names shards of this machine", where=shown(folder))
    if not base or is_remote(base):
        return base or folder
    scheme, _, path = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, base))}"


def check_shards(place: str, entries: Sequence[ShardEntry]) -> None:
    """Raises DatasetError unless every shard lies in the folder or URL `place` in its size."""
    try:
        found = sizes(place, [f"{entry.name}.tar" for entry in entries])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            "folder or file is missing", where=shown(str(error.filename or error)), cure=_CURE
        ) from error
    for entry in entries:
        size = found.get(f"{entry.name}.tar")
        if size != entry.bytes:
            state = "is missing" if size is None else f"has {size} bytes, not {entry.bytes}"
            raise DatasetError(f"{entry.name}.tar {state}", where=shown(place), cure=_CURE)


def open_sidecar(folder: str, entry: ShardEntry) -> pa.Table:
    """The sidecar of a shard (schema SIDECAR). Raises DatasetError if it is not the one that is listed."""
    path = f"{folder}/{entry.name}.parquet"
    data = _fetch(path)
    if hashlib.sha256(data).hexdigest() != entry.sidecar_sha256:
        raise DatasetError(
            f"sidecar is not the one that {DATASET_FILE} lists",
            where=shown(path),
            cure="pack again or fetch it again",
        )
    return read_sidecar(data, shown(path))


def read_photo(shard: str, offset: int, size: int, crc32c: int | None, where: str) -> bytes:
    """The bytes of one photo of the tar at a path or URL; `where` is for messages. Raises CorruptSample."""
    data = _fetch(shard, offset, offset + size)
    if wrong := photo_fault(data, size, crc32c):
        raise CorruptSample(wrong, where=where, cure=_CURE)
    return data


def photo_fault(data: bytes, size: int, crc32c: int | None) -> str:
    """What is wrong with the bytes of a photo, "" if nothing; without `crc32c` only their number is seen."""
    if len(data) != size:  # a storage that ignores ranges answers with other bytes, a cut shard with fewer
        return f"{len(data)} bytes came, not the photo's {size}"
    if crc32c is not None and google_crc32c.value(data) != crc32c:
        return "the photo's bytes are not those that were packed"
    return ""


def _fetch(path: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes of a file of a dataset. Raises DatasetError if it is not there."""
    try:
        return cat(path, start, end)
    except FileNotFoundError as error:
        raise DatasetError("file is missing", where=shown(path), cure=_CURE) from error
