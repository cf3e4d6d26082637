"""One shard: its plan -> the tar and its sidecar; an independent job, the same bytes wherever it runs.

A plain photo is read from disk straight to its place behind its header, in a piece of the shard of about
PIECE bytes. While one piece is being filled, the one before is written and hashed, side by side.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa

from shardtool import tar
from shardtool.errors import DatasetError, SourceChanged, UserError
from shardtool.index import SIDECAR, ShardEntry, read_sidecar, sidecar_bytes
from shardtool.layout import Annotations, ShardPlan, sample_sizes
from shardtool.paths import path_text
from shardtool.photo import Refused, Rules, encode
from shardtool.scan import column, content_digest
from shardtool.source import Source
from shardtool.store import Folder, LocalFolder
from shardtool.taxonomy import Taxonomy

PIECE = 4 << 20
SYNC_BYTES = 32 << 20
_SHA256 = b"shardtool.sha256"


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to write one shard: where from, where to, the plan."""

    source: Source
    out: Folder
    plan: ShardPlan
    taxonomy: Taxonomy
    rules: Rules

    def __str__(self) -> str:
        return f"{self.plan.split}/{self.plan.name}"

    @property
    def tar(self) -> str:
        """The shard's path in the dataset folder."""
        return f"{self}.tar"

    @property
    def sidecar(self) -> str:
        """The sidecar's path in the dataset folder."""
        return f"{self}.parquet"


def write_shard(job: ShardJob) -> ShardEntry:
    """Write one shard and its sidecar. Raises SourceChanged, NoSpace, StorageError."""
    with job.out.create(job.tar) as file:
        sha256 = _write(file, _pieces(job), file.fileno() if isinstance(job.out, LocalFolder) else None)
        assert file.tell() == job.plan.size, (file.tell(), job.plan.size)
    sidecar = _sidecar(job, sha256)
    with job.out.create(job.sidecar) as file:
        file.write(sidecar)
    return _entry(job, sha256, sidecar)


def rehearse(job: ShardJob, pieces: int) -> int:
    """Make the first pieces of a shard and hash them, to see how long that takes; returns their bytes."""
    sha256, done = hashlib.sha256(), 0
    for piece in islice(_pieces(job), pieces):
        sha256.update(piece)
        done += len(piece)
    return done


def find_shard(job: ShardJob) -> ShardEntry | None:
    """The shard, if it and its sidecar are, byte for byte, what this plan would write.

    Looking at the sidecar alone would keep a damaged shard, and one whose sidecar was not written yet. A
    remote shard is not fetched for it: it is what was uploaded, and `verify` reads it.
    """
    try:
        sidecar = job.out.read(job.sidecar)
        found = read_sidecar(sidecar, str(job))
        sha256 = job.out.sha256(job.tar) or (found.schema.metadata or {}).get(_SHA256, b"").decode()
    except (OSError, DatasetError):
        return None
    return _entry(job, sha256, sidecar) if sidecar == _sidecar(job, sha256) else None


def _sidecar(job: ShardJob, sha256: str) -> bytes:
    labels = job.taxonomy.names_digest(column(job.plan.photos, "row").tolist())
    return sidecar_bytes(sidecar_table(job.plan, job.taxonomy), sha256, labels)


def _entry(job: ShardJob, sha256: str, sidecar: bytes) -> ShardEntry:
    photos, name = job.plan.photos.num_rows, job.plan.name
    return ShardEntry(name, photos, job.plan.size, sha256, hashlib.sha256(sidecar).hexdigest())


def sidecar_table(plan: ShardPlan, taxonomy: Taxonomy) -> pa.Table:
    """The sidecar's rows, all known before the shard is written."""
    photos = plan.photos
    species, disease = taxonomy.ids(column(photos, "row"))
    ends = np.cumsum(sample_sizes(photos, taxonomy))
    values = {
        "offset": pa.array(np.concatenate([[0], ends[:-1]]) + tar.BLOCK, pa.int64()),
        "species_id": pa.array(species, pa.int32()),
        "disease_id": pa.array(disease, pa.int32()),
        "source": photos.column("source").cast(pa.binary()),
    }
    return pa.table({name: values[name] if name in values else photos.column(name) for name in SIDECAR.names})


class _Sample(NamedTuple):
    """A row of the plan."""

    source: bytes
    row: int
    size: int
    key: str
    digest: bytes
    crc32c: int
    rule: str


def _write(file: BinaryIO, pieces: Iterable[memoryview], descriptor: int | None) -> str:
    """Write and hash all pieces, each while the next one is being filled; returns their SHA-256.

    What is written of a local file (`descriptor`) goes to the disk meanwhile, so that its last sync is short.
    """
    sha256, unsynced = hashlib.sha256(), 0
    earlier: list[Future[Any]] = []
    syncing: Future[None] | None = None
    # a thread for each: the order of the system's calls is then the same every time
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as syncer:
        for piece in pieces:
            for future in earlier:
                future.result()
            earlier = [writer.submit(file.write, piece), hasher.submit(sha256.update, piece)]
            unsynced += len(piece)
            if descriptor is not None and unsynced >= SYNC_BYTES and (syncing is None or syncing.done()):
                if syncing is not None:
                    syncing.result()  # a disk that has failed once is not asked again
                syncing, unsynced = syncer.submit(os.fdatasync, descriptor), 0
    for future in (*earlier, *filter(None, [syncing])):
        future.result()
    return sha256.hexdigest()


def _pieces(job: ShardJob) -> Iterator[memoryview]:
    """The shard's bytes. A piece is valid until the one after the next is asked for."""
    photos = job.plan.photos
    sizes = sample_sizes(photos, job.taxonomy)
    annotations = Annotations(job.taxonomy)
    rooms = [bytearray(), bytearray()]
    for number, (start, stop) in enumerate(_cuts(sizes.tolist())):
        wanted = int(sizes[start:stop].sum())
        room = rooms[number % 2]
        if len(room) < wanted:
            room = rooms[number % 2] = bytearray(max(wanted, PIECE))
        piece = memoryview(room)[:wanted]
        _fill(job, _samples(photos.slice(start, stop - start)), annotations, piece)
        yield piece
    yield memoryview(tar.ending(int(sizes.sum())))


def _samples(photos: pa.Table) -> list[_Sample]:
    columns = (photos.column(name).to_pylist() for name in _Sample._fields)
    return list(map(_Sample._make, zip(*columns, strict=True)))


def _cuts(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and stop of runs of samples that take at most PIECE bytes, or of one sample that takes more."""
    start = total = 0
    for number, size in enumerate(sizes):
        if total and total + size > PIECE:
            yield start, number
            start, total = number, 0
        total += size
    if total:
        yield start, len(sizes)


def _fill(job: ShardJob, samples: Sequence[_Sample], annotations: Annotations, piece: memoryview) -> None:
    """Put the members of these samples into a piece of the shard."""
    blocks_of_piece = np.frombuffer(piece, np.uint8).reshape(-1, tar.BLOCK)
    blocks_of_piece[:] = 0
    names: list[bytes] = []
    sizes: list[int] = []
    starts: list[int] = []
    places: list[memoryview] = []
    position = 0
    for sample in samples:
        stem = sample.key.encode()
        cls, meta = annotations(sample.row, sample.source)
        names += (stem + b".jpg", stem + b".cls", stem + b".json")
        sizes += (sample.size, len(cls), len(meta))
        jpeg_at = position + tar.BLOCK
        cls_at = jpeg_at + tar.padded(sample.size) + tar.BLOCK
        meta_at = cls_at + tar.padded(len(cls)) + tar.BLOCK
        starts += (position, cls_at - tar.BLOCK, meta_at - tar.BLOCK)
        places.append(piece[jpeg_at : jpeg_at + sample.size])
        piece[cls_at : cls_at + len(cls)] = cls
        piece[meta_at : meta_at + len(meta)] = meta
        position = meta_at + tar.padded(len(meta))
    headers = tar.headers(names, np.array(sizes, np.int64))
    blocks_of_piece[np.array(starts) // tar.BLOCK] = headers
    _place_photos(job, samples, places)


def _place_photos(job: ShardJob, samples: Sequence[_Sample], places: Sequence[memoryview]) -> None:
    """Read every photo to its place. Raises SourceChanged if one is no longer what the scan has seen."""
    filled = job.source.fill_many([sample.source for sample in samples], places)
    pending = [
        (sample, place)
        for sample, place, full in zip(samples, places, filled, strict=True)
        if sample.rule or not full or content_digest(place) != sample.digest
    ]
    for _ in range(2):  # a second look: the first may have met a file that is being copied
        found = job.source.read_many([sample.source for sample, _ in pending])
        answers = zip(pending, found, strict=True)
        pending = [pair for pair, data in answers if not _place(pair[0], pair[1], data, job.rules)]
    if pending:
        raise SourceChanged(
            "a photo changed while it was packed",
            where=path_text(pending[0][0].source),
            cure="run the same command again when nothing writes to the source",
        )


def _place(sample: _Sample, place: memoryview, data: bytes | Refused, rules: Rules) -> bool:
    """Put the JPEG of a source file into its place; False if it is another file now."""
    if isinstance(data, Refused) or content_digest(data) != sample.digest:
        return False
    try:
        jpeg = encode(data, "header", rules).data if sample.rule else data
    except Refused:
        jpeg = b""
    if google_crc32c.value(jpeg) != sample.crc32c:
        raise UserError(
            "a photo was converted to other bytes than when it was checked",
            where=path_text(sample.source),
            cure="use the same versions of Pillow and jpegtran on all workers",
        )
    place[:] = jpeg
    return True
