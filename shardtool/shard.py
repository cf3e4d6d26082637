"""One shard: its plan -> the tar and its sidecar; an independent job, the same bytes wherever it runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import pyarrow as pa

from shardtool import layout, tar
from shardtool.errors import DatasetError, SourceChanged
from shardtool.files import atomic, write_atomic
from shardtool.index import read_sidecar, sidecar_bytes
from shardtool.layout import ShardPlan
from shardtool.photo import Refused, encode
from shardtool.scan import column, content_digest, read_source
from shardtool.taxonomy import Taxonomy

WRITE_BYTES = 4 << 20


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to write one shard: where from, where to, the plan."""

    source: Path
    out: Path
    plan: ShardPlan
    taxonomy: Taxonomy

    @property
    def path(self) -> Path:
        """The shard without its ending."""
        return self.out / self.plan.split / self.plan.name


def write_shard(job: ShardJob) -> int:
    """Write one shard and its sidecar; returns the number of samples."""
    sha256 = hashlib.sha256()
    written = 0
    with atomic(job.path.with_suffix(".tar")) as file:
        for chunk in _chunks(job):
            file.write(chunk)
            sha256.update(chunk)
            written += len(chunk)
        assert written == job.plan.size, (written, job.plan.size)
    table = sidecar_table(job.plan, job.taxonomy)
    write_atomic(job.path.with_suffix(".parquet"), sidecar_bytes(table, sha256.hexdigest()))
    return int(job.plan.photos.num_rows)


def up_to_date(job: ShardJob) -> bool:
    """Whether shard and sidecar are, byte for byte, what this plan would write.

    Looking at the sidecar alone would keep a damaged shard, and one whose sidecar was not written yet.
    """
    try:
        if job.path.with_suffix(".tar").stat().st_size != job.plan.size:
            return False
        data = job.path.with_suffix(".parquet").read_bytes()
        sidecar = read_sidecar(data, str(job.path))
        table = sidecar_table(job.plan, job.taxonomy)
        if not sidecar.equals(table):
            return False
        sha256 = _sha256(job.path.with_suffix(".tar"))
    except (OSError, DatasetError):
        return False
    return data == sidecar_bytes(table, sha256)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(WRITE_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sidecar_table(plan: ShardPlan, taxonomy: Taxonomy) -> pa.Table:
    """The sidecar's rows, all known before the shard is written."""
    photos = plan.photos
    rows = column(photos, "row")
    species = taxonomy.row_species[rows]
    offsets, position = [], 0
    for source, row, size in zip(
        photos.column("source").to_pylist(), rows.tolist(), column(photos, "size"), strict=True
    ):
        offsets.append(position + tar.BLOCK)
        position += layout.sample_size(int(size), *layout.annotation(taxonomy, row, source))
    return pa.table(
        {
            "key": photos.column("key"),
            "offset": pa.array(offsets, pa.int64()),
            "size": photos.column("size"),
            "species_id": pa.array(species, pa.int32()),
            "disease_id": pa.array(rows - taxonomy.offsets[species], pa.int32()),
            "width": photos.column("width"),
            "height": photos.column("height"),
            "crc32c": photos.column("crc32c"),
            "source": photos.column("source"),
        }
    )


def _chunks(job: ShardJob) -> Iterator[bytes]:
    """The shard's bytes in pieces of about WRITE_BYTES."""
    buffer, size = [], 0
    pending = 0
    for piece in _members(job):
        buffer.append(piece)
        pending += len(piece)
        if pending >= WRITE_BYTES:
            yield b"".join(buffer)
            size += pending
            buffer, pending = [], 0
    yield b"".join(buffer) + tar.ending(size + pending)


def _members(job: ShardJob) -> Iterator[bytes]:
    photos = job.plan.photos
    names = ("source", "row", "key", "digest", "crc32c")
    for source, row, key, digest, crc32c in zip(
        *(photos.column(name).to_pylist() for name in names), strict=True
    ):
        jpeg = _read_again(job, source, digest, crc32c)
        cls, meta = layout.annotation(job.taxonomy, row, source)
        stem = key.encode()
        yield tar.member(stem + b".jpg", jpeg)
        yield tar.member(stem + b".cls", cls)
        yield tar.member(stem + b".json", meta)


def _read_again(job: ShardJob, source: bytes, digest: bytes, crc32c: int) -> bytes:
    """The JPEG of a photo that the scan has seen. Raises SourceChanged if it is another one now."""
    path = os.path.join(os.fsencode(job.source), source)
    for _ in range(2):  # a second look: the first may have met a file that is being copied
        try:
            data = read_source(path)
        except Refused:
            continue
        if content_digest(data) == digest:
            jpeg = encode(data, "header").data
            assert google_crc32c.value(jpeg) == crc32c, source
            return jpeg
    raise SourceChanged(
        "a photo changed while it was packed",
        where=os.fsdecode(source),
        cure="run the same command again when nothing writes to the source",
    )
