"""The index of packed shards: Parquet sidecars on disk, numpy columns in memory, checked reads.

`Split` holds 14 bytes a sample (see shardtool.columns) and no Python object a sample; workers inherit it or
are sent it, and share its memory. `Split.read` gives exactly the bytes that were packed or raises
CorruptSample.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shardtool import __version__, columns
from shardtool.columns import Columns
from shardtool.errors import CorruptSample, DamagedManifest, DatasetError, UsageError
from shardtool.executor import ordered
from shardtool.local import LocalShards
from shardtool.quality import ShuffleQuality
from shardtool.remote import RemoteShards
from shardtool.store import cat, exists, is_remote, shown, sizes
from shardtool.tar import BLOCK
from shardtool.taxonomy import Taxonomy

FORMAT = 1
DATASET_FILE = "dataset.json"
REPORT_FILE = "report.json"
PROBE_TRIES = 3
PROBED = 1000  # shards of which a photo is read when a split is opened
# Sidecars read side by side: behind a URL each is a round trip; here, a thread costs some 15 MB that stay.
REMOTE_SIDECARS, LOCAL_SIDECARS = 8, 2

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


def read_sidecar(data: bytes, where: str, names: Sequence[str] | None = None) -> pa.Table:
    """The inverse of `sidecar_bytes`, or only the columns `names` of it.

    Raises DatasetError for a damaged or foreign file.
    """
    try:
        # not read_table: its thread pool now and then aborts a process that ends right afterwards
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        if file.schema_arrow.names != SIDECAR.names:
            raise DatasetError("not a shardtool sidecar", where=where, cure="pack again")
        return file.read(names, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError("damaged sidecar", where=where, cure="pack again") from error


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
    relative to the split's folder, or a URL. `shuffle` says how well the photos of each split are mixed as
    they lie; datasets of earlier versions and indexes of foreign shards do not say it.
    """

    taxonomy: Taxonomy
    splits: dict[str, tuple[ShardEntry, ...]]
    class_counts: dict[str, list[int]]  # samples of each taxonomy row
    options: dict[str, Any]
    tool: str
    digest: str
    bases: dict[str, str] = field(default_factory=dict)
    shuffle: dict[str, ShuffleQuality] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        taxonomy: Taxonomy,
        splits: dict[str, tuple[ShardEntry, ...]],
        class_counts: Mapping[str, NDArray[np.int64]],
        options: dict[str, Any],
        bases: dict[str, str] | None = None,
        shuffle: Mapping[str, ShuffleQuality] | None = None,
    ) -> Manifest:
        """The manifest of shards that this version has just written or indexed."""
        counts = {split: rows.tolist() for split, rows in class_counts.items()}
        digest, tool = dataset_digest(taxonomy, splits), f"shardtool {__version__}"
        # the last digits of logarithms differ between processors, dataset.json must not
        mixed = {
            split: replace(quality, distinct=round(quality.distinct, 2), expected=round(quality.expected, 2))
            for split, quality in (shuffle or {}).items()
        }
        return cls(taxonomy, splits, counts, options, tool, digest, bases or {}, mixed)

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
                **({"shuffle": vars(self.shuffle[name])} if name in self.shuffle else {}),
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
            {
                name: ShuffleQuality(**split["shuffle"])
                for name, split in value["splits"].items()
                if "shuffle" in split
            },
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

    firsts     int64  [shards + 1]  first sample of each of `shards`, and last the number of samples
    start      uint32 [n]  where the JPEG starts in its shard, in blocks of 512 bytes
    size       int32  [n]  bytes of the JPEG
    crc32c     uint32 [n]  looked at only with `check`
    row        uint16 [n]  taxonomy row of (species, disease); int32 where there are more rows

    `index_digest` is over the columns: with the same one, a sample id is the same photo. `folder` holds the
    sidecars, `place` the shards: see Dataset.
    """

    folder: str
    place: str
    name: str
    shards: tuple[str, ...]
    firsts: NDArray[np.int64]
    start: NDArray[np.uint32]
    size: NDArray[np.int32]
    crc32c: NDArray[np.uint32]
    row: NDArray[np.integer[Any]]
    taxonomy: Taxonomy
    digest: str
    index_digest: str
    files: LocalShards | RemoteShards = field(repr=False)
    check: bool = True

    def __len__(self) -> int:
        return len(self.start)

    # Whole columns that follow from the others, made at each use: for a batch use `labels`.

    @property
    def shard(self) -> NDArray[np.int32]:
        """Index into `shards` of each sample, int32 [n]."""
        return np.repeat(np.arange(len(self.shards), dtype=np.int32), np.diff(self.firsts))

    @property
    def offset(self) -> NDArray[np.int64]:
        """Byte at which each JPEG starts in its shard, int64 [n]."""
        return self.start.astype(np.int64) * BLOCK

    @property
    def species(self) -> NDArray[np.int32]:
        """Species id, int32 [n]."""
        species: NDArray[np.int32] = self.taxonomy.row_species.astype(np.int32)[self.row]
        return species

    @property
    def disease(self) -> NDArray[np.int64]:
        """Disease id inside the species, int64 [n]."""
        return self.taxonomy.ids(self.row)[1]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Samples of each taxonomy row, int64 [rows]."""
        return np.bincount(self.row, minlength=self.taxonomy.rows)

    def labels(
        self, samples: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Species ids and disease ids (inside the species) of the given sample ids, int64 both."""
        return self.taxonomy.ids(self.row[np.asarray(samples, dtype=np.int64)])

    def where(self, sample: int) -> str:
        """Shard, key and offset of a sample, for messages."""
        shard, offset, _ = self._requests([sample])[0]
        return where(self.name, self.shards[shard], self.entry(sample)["key"], offset)

    def entry(self, sample: int) -> dict[str, Any]:
        """The sidecar's row of a sample; reads the sidecar again, so not for the hot path."""
        shard = self._requests([sample])[0][0]
        path, place = f"{self.folder}/{self.shards[shard]}.parquet", sample - int(self.firsts[shard])
        row: dict[str, Any] = read_sidecar(_fetch(path), path).slice(place, 1).to_pylist()[0]
        return row

    def read(self, samples: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """JPEG bytes of the given sample ids, in their order.

        Raises CorruptSample; DatasetError and StorageError for shards that are gone or cannot be reached.
        """
        requests = self._requests(samples)
        photos = self.files.read_many(requests)
        checksums = self.crc32c[np.asarray(samples, dtype=np.int64)].tolist()
        for sample, (_, _, size), checksum, data in zip(samples, requests, checksums, photos, strict=True):
            if wrong := photo_fault(data, size, checksum if self.check else None):
                raise CorruptSample(wrong, where=self.where(int(sample)), cure=_CURE)
        return photos

    def announce(self, samples: Sequence[int] | NDArray[np.int64]) -> None:
        """Say that these samples will be read soon: a disk fetches them meanwhile."""
        if isinstance(self.files, LocalShards):
            self.files.announce(self._requests(samples))

    def _requests(self, samples: Sequence[int] | NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """Shard number, offset and bytes of each sample."""
        ids = np.asarray(samples, dtype=np.int64)
        shard = np.searchsorted(self.firsts, ids, side="right") - 1
        offset = self.start[ids].astype(np.int64) * BLOCK
        return list(zip(shard.tolist(), offset.tolist(), self.size[ids].tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        # another process maps the file that this one has mapped
        return {name: columns.dismount(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: columns.mount(value) for name, value in state.items()})


def open_split(folder: str, check: bool = True) -> Split:
    """Open DATASET/SPLIT, local or any fsspec URL; every shard is checked to be there in its size, every
    sidecar to be the one that dataset.json lists.

    Photos without a known checksum are read unchecked. Raises UsageError (nothing there) and DatasetError
    (missing, cut or exchanged shards: of each, or of PROBED evenly spread ones, a photo is read).
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
    shards, found = tuple(entry.name for entry in entries), _columns(folder, entries, manifest.taxonomy)
    split = Split(
        folder=folder,
        place=place,
        name=name,
        shards=shards,
        firsts=np.cumsum([0, *(entry.samples for entry in entries)], dtype=np.int64),
        start=found.start,
        size=found.size,
        crc32c=found.crc32c,
        row=found.row,
        taxonomy=manifest.taxonomy,
        digest=manifest.digest,
        index_digest=found.digest,
        files=(
            RemoteShards(place, shards, [entry.bytes for entry in entries])
            if is_remote(place)
            else LocalShards(place, shards)
        ),
        check=check and found.checked,
    )
    _probe(split)
    return split


def _probe(split: Split) -> None:
    """Read a photo of each shard, or of PROBED of them: the first ones of an exchanged shard are all wrong.
    Raises DatasetError."""
    samples = _probes(split.firsts)
    try:
        split.read(samples)
    except CorruptSample:
        for sample in samples.tolist():
            _any_of(split, sample)


def _any_of(split: Split, first: int) -> None:
    """Raises CorruptSample if PROBE_TRIES photos from one on, of its shard, are bad."""
    end = int(split.firsts[np.searchsorted(split.firsts, first, side="right")])
    for sample in range(first, min(first + PROBE_TRIES, end)):
        try:
            split.read([sample])
        except CorruptSample as error:
            fault = error
        else:
            return
    raise fault


def _probes(firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first sample of each shard that has one, or of PROBED of them: shards are whole records, so one of
    another generation often has the same size, but hardly the same photo at the same place."""
    filled = firsts[:-1][np.diff(firsts) > 0]
    return filled[:: -(-len(filled) // PROBED) or 1]


def _columns(folder: str, entries: Sequence[ShardEntry], taxonomy: Taxonomy) -> Columns:
    """The columns of a split: decoded from its sidecars, or from the file in which they were kept.

    The sidecars are checked in both cases. Raises DatasetError.
    """
    counts = [entry.samples for entry in entries]
    total = sum(counts)
    path = None
    if total >= columns.KEPT_PHOTOS:
        path = columns.kept_at([entry.sidecar_sha256 for entry in entries], taxonomy)
    kept = columns.find_kept(path, total, taxonomy) if path else None
    at_once = REMOTE_SIDECARS if is_remote(folder) else LOCAL_SIDECARS
    with ThreadPoolExecutor(at_once) as threads:
        each = partial(ordered, threads, jobs=entries, in_flight=2 * at_once)
        if kept is not None:
            for _ in each(partial(_sidecar_data, folder)):
                pass
            return kept
        found = columns.collect(each(partial(_index_columns, folder)), counts, taxonomy)
    if path:
        columns.keep(path, found)
        found = columns.find_kept(path, total, taxonomy) or found
    return found


def _index_columns(folder: str, entry: ShardEntry) -> tuple[str, pa.Table]:
    """The place of a sidecar, for messages, and the columns of it that the index holds."""
    where = shown(f"{folder}/{entry.name}.parquet")
    return where, read_sidecar(_sidecar_data(folder, entry), where, columns.NAMES)


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
    return read_sidecar(_sidecar_data(folder, entry), shown(f"{folder}/{entry.name}.parquet"))


def _sidecar_data(folder: str, entry: ShardEntry) -> bytes:
    """Its bytes. Raises DatasetError if they are not those that are listed."""
    path = f"{folder}/{entry.name}.parquet"
    data = _fetch(path)
    if hashlib.sha256(data).hexdigest() != entry.sidecar_sha256:
        raise DatasetError(
            f"sidecar is not the one that {DATASET_FILE} lists",
            where=shown(path),
            cure="pack again or fetch it again",
        )
    return data


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
