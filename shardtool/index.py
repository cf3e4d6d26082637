"""The index of packed shards: Parquet sidecars on disk, numpy columns in memory, checked reads.

`Split` holds 28 bytes a sample and no Python object a sample; it is pickled to workers or inherited by
them. `Split.read` gives exactly the bytes that were packed or raises CorruptSample.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shardtool.errors import CorruptSample, DamagedManifest, DatasetError, UsageError
from shardtool.store import filesystem
from shardtool.taxonomy import Taxonomy

FORMAT = 1
DATASET_FILE = "dataset.json"

# One row a sample, in the order of the shard. `offset` and `size` are of the JPEG's bytes in the tar,
# `crc32c` is over exactly these bytes, `source` is the original path under the packed folder.
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


def sidecar_bytes(table: pa.Table, sha256: str) -> bytes:
    """The Parquet file of one shard's samples (schema SIDECAR); `sha256` is the tar's."""
    out = io.BytesIO()
    schema = SIDECAR.with_metadata({"shardtool.format": str(FORMAT), "shardtool.sha256": sha256})
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
    """A shard as dataset.json lists it; `sha256` is of the tar, `sidecar_sha256` of the Parquet."""

    name: str
    samples: int
    bytes: int
    sha256: str
    sidecar_sha256: str


@dataclass(frozen=True)
class Manifest:
    """dataset.json: what is in a packed dataset. It is written last; without it there is no dataset."""

    taxonomy: Taxonomy
    splits: dict[str, tuple[ShardEntry, ...]]
    class_counts: dict[str, list[int]]  # samples of each taxonomy row
    options: dict[str, Any]
    tool: str
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        splits = {
            name: {
                "samples": sum(shard.samples for shard in shards),
                "bytes": sum(shard.bytes for shard in shards),
                "class_counts": self.class_counts[name],
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
        )


def dataset_digest(taxonomy: Taxonomy, splits: dict[str, tuple[ShardEntry, ...]]) -> str:
    """SHA-256 over the label space and every shard's SHA-256: the same digest, the same data."""
    content = [
        FORMAT,
        taxonomy.digest,
        [[name, [[e.name, e.sha256] for e in splits[name]]] for name in sorted(splits)],
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def open_manifest(folder: str) -> Manifest:
    """Read dataset.json of a local or remote dataset folder.

    Raises UsageError when it is not there, DatasetError when it is not one of ours.
    """
    files, root = filesystem(folder)
    path = f"{root.rstrip('/')}/{DATASET_FILE}"
    try:
        value = json.loads(files.cat_file(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"no {DATASET_FILE}: this is no packed dataset, or its packing has not finished",
            where=folder,
            cure="run shardtool pack, or give another folder",
        ) from error
    except ValueError as error:
        raise DamagedManifest(f"{DATASET_FILE} is damaged", where=path, cure="pack again") from error
    if not isinstance(value, dict):
        raise DamagedManifest(f"{DATASET_FILE} is damaged", where=path, cure="pack again")
    if value.get("format") != FORMAT:
        raise DatasetError(
            f"{DATASET_FILE} has another format than {FORMAT}",
            where=path,
            cure="use the version that packed it, or pack again",
        )
    try:
        return Manifest.from_json(value)
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedManifest(f"{DATASET_FILE} is damaged", where=path, cure="pack again") from error


@dataclass(frozen=True, eq=False)  # columns do not compare to one truth value
class Split:
    """The samples of one split, as columns; sample ids are positions in these columns.

    shard      int32  [n]  index into `shards`
    offset     int64  [n]  of the JPEG in its shard
    size       int32  [n]  bytes of the JPEG
    crc32c     uint32 [n]
    species    int32  [n]  species id
    row        int32  [n]  taxonomy row of (species, disease)
    """

    folder: str
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
        key = self.entry(sample)["key"]
        shard = self.shards[self.shard[sample]]
        return f"{self.name}/{shard}.tar, key {key}, offset {self.offset[sample]}"

    def entry(self, sample: int) -> dict[str, Any]:
        """The sidecar's row of a sample; reads the sidecar again, so not for the hot path."""
        path = f"{self.folder}/{self.shards[self.shard[sample]]}.parquet"
        first = int(np.searchsorted(self.shard, self.shard[sample]))
        row: dict[str, Any] = read_sidecar(_cat(path), path).slice(sample - first, 1).to_pylist()[0]
        return row

    def read(self, samples: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """JPEG bytes of the given sample ids, in their order. Raises CorruptSample."""
        return [self._read(int(sample)) for sample in samples]

    def _read(self, sample: int) -> bytes:
        shard, size, offset = self.shard[sample], int(self.size[sample]), int(self.offset[sample])
        if _is_local(self.folder):
            data = os.pread(self._descriptor(int(shard)), size, offset)
        else:
            path = f"{self.folder}/{self.shards[shard]}.tar"
            data = _cat(path, offset, offset + size)
        if self.check and google_crc32c.value(data) != self.crc32c[sample]:
            raise CorruptSample(
                "the photo's bytes are not those that were packed",
                where=self.where(sample),
                cure="run shardtool verify, then pack again or fetch the shard again",
            )
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            path = os.path.join(self.folder, self.shards[shard] + ".tar")
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

    Raises UsageError (nothing there) and DatasetError (missing, cut or exchanged shards).
    """
    folder = folder.rstrip("/")
    root, _, name = folder.rpartition("/")
    if _exists(f"{folder}/{DATASET_FILE}"):
        raise UsageError("this is a whole dataset", where=folder, cure=f"name a split: {folder}/train")
    manifest = open_manifest(root or ("/" if folder.startswith("/") else "."))
    if name not in manifest.splits:
        raise UsageError(
            f"no split {name!r} in this dataset",
            where=root,
            cure=f"it has {', '.join(manifest.splits)}",
        )
    entries = manifest.splits[name]
    _check_shards(folder, entries)
    tables = [_sidecar(folder, entry) for entry in entries]
    table = pa.concat_tables(tables) if tables else SIDECAR.empty_table()
    species = table.column("species_id").to_numpy()
    row = manifest.taxonomy.offsets[species] + table.column("disease_id").to_numpy()
    return Split(
        folder,
        name,
        tuple(entry.name for entry in entries),
        np.repeat(np.arange(len(entries), dtype=np.int32), [entry.samples for entry in entries]),
        table.column("offset").to_numpy(),
        table.column("size").to_numpy().astype(np.int32),
        table.column("crc32c").to_numpy(),
        species,
        row.astype(np.int32),
        manifest.taxonomy,
        manifest.digest,
        check,
    )


def _check_shards(folder: str, entries: Sequence[ShardEntry]) -> None:
    files, path = filesystem(folder)
    try:
        listed = files.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError("folder is missing", where=folder, cure="pack again or fetch it again") from error
    found = {
        info["name"].rpartition("/")[2]: info["size"] for info in listed if info["name"].endswith(".tar")
    }
    for entry in entries:
        size = found.get(f"{entry.name}.tar")
        if size != entry.bytes:
            state = "is missing" if size is None else f"has {size} bytes, not {entry.bytes}"
            raise DatasetError(f"{entry.name}.tar {state}", where=folder, cure="pack again or fetch it again")


def _sidecar(folder: str, entry: ShardEntry) -> pa.Table:
    path = f"{folder}/{entry.name}.parquet"
    data = _cat(path)
    if hashlib.sha256(data).hexdigest() != entry.sidecar_sha256:
        raise DatasetError(
            f"sidecar is not the one that {DATASET_FILE} lists",
            where=path,
            cure="pack again or fetch it again",
        )
    return read_sidecar(data, path)


def _is_local(folder: str) -> bool:
    return "://" not in folder


def _exists(path: str) -> bool:
    files, inside = filesystem(path)
    return bool(files.exists(inside))


def _cat(path: str, start: int | None = None, end: int | None = None) -> bytes:
    files, inside = filesystem(path)
    try:
        data: bytes = files.cat_file(inside, start=start, end=end)
    except FileNotFoundError as error:
        raise DatasetError("file is missing", where=path, cure="pack again") from error
    return data
