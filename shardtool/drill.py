"""A fire drill: damages copies of a few photos of a dataset in every way known, and sees that verify tells.

The dataset itself is only read. The copy is two small shards in the same format, cut out of real ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shardtool import tar
from shardtool.errors import DatasetError, UsageError, UserError
from shardtool.index import (
    DATASET_FILE,
    Manifest,
    ShardEntry,
    open_manifest,
    open_sidecar,
    sidecar_bytes,
)
from shardtool.layout import Annotations
from shardtool.progress import OpenProgress, silent
from shardtool.taxonomy import Taxonomy
from shardtool.verify import verify

PIECE_BYTES = 2 << 20  # of a copied shard, about

Damage = Callable[["Copy"], object]


@dataclass(frozen=True)
class Trial:
    """One fault, and what verify said of it: "" if it saw nothing."""

    fault: str
    finding: str

    @property
    def caught(self) -> bool:
        return bool(self.finding)


@dataclass(frozen=True)
class Copy:
    """The dataset that is damaged: one split, two shards `one` and `two`, with the rows of their sidecars."""

    root: Path
    split: str
    one: ShardEntry
    two: ShardEntry
    rows: tuple[dict[str, Any], ...]  # of shard one

    def path(self, entry: ShardEntry, ending: str = ".tar") -> Path:
        return self.root / self.split / f"{entry.name}{ending}"


def drill(
    folder: Path, progress: OpenProgress = silent, faults: Mapping[str, Damage] | None = None
) -> tuple[Trial, ...]:
    """Try every fault (of FAULTS by default) on a copy of a small part of a packed, local dataset.

    Raises UsageError if the dataset is foreign or has not two photos, DatasetError if the part is damaged.
    """
    manifest = open_manifest(str(folder))
    if manifest.indexed:
        raise UsageError(
            "a foreign dataset cannot be drilled", where=folder, cure="pack one: its bytes are all known"
        )
    with tempfile.TemporaryDirectory(prefix="shardtool-drill-") as temporary:
        whole = _cut_out(folder, manifest, Path(temporary) / "whole")
        if findings := verify(whole.root).findings:
            raise DatasetError(
                f"damaged already: {findings[0].what}", where=findings[0].where, cure="verify it"
            )
        faults = FAULTS if faults is None else faults
        with progress("trying faults", len(faults)) as advance:
            trials = []
            for fault, damage in faults.items():
                trials.append(Trial(fault, _finding(whole, damage, Path(temporary) / "damaged")))
                advance(1)
    return tuple(trials)


def _finding(whole: Copy, damage: Damage, root: Path) -> str:
    shutil.copytree(whole.root, root)
    try:
        damage(replace(whole, root=root))
        findings = verify(root).findings
        return f"{findings[0].where}: {findings[0].what}" if findings else ""
    except UserError as error:
        return error.what
    finally:
        shutil.rmtree(root)


# --- The copy ------------------------------------------------------------------------------------


def _cut_out(folder: Path, manifest: Manifest, root: Path) -> Copy:
    """Two small shards of the split with most photos: of its first two, or of both halves of the only one."""
    split, entries = max(manifest.splits.items(), key=lambda item: manifest.samples(item[0]))
    tables = [open_sidecar(str(folder / split), entry) for entry in entries[:2]]
    if len(tables) == 1:
        middle = tables[0].num_rows // 2
        tables = [tables[0].slice(0, middle), tables[0].slice(middle)]
        entries = (entries[0], entries[0])
    if min(table.num_rows for table in tables) == 0:
        raise UsageError("a drill needs two photos in one split", where=folder)
    (root / split).mkdir(parents=True)
    shards = [folder / split / f"{entry.name}.tar" for entry in entries[:2]]
    annotate = Annotations(manifest.taxonomy)
    pieces = [_piece(*each, annotate, manifest.taxonomy) for each in zip(shards, tables, strict=True)]
    written = [_write_piece(root / split / f"shard-{n:06d}", *piece) for n, piece in enumerate(pieces)]
    taxonomy, rows = manifest.taxonomy, pa.concat_tables([table for _, table in pieces])
    labels = taxonomy.row(rows.column("species_id").to_numpy(), rows.column("disease_id").to_numpy())
    counts = {split: np.bincount(labels, minlength=taxonomy.rows)}
    part = Manifest.of(taxonomy, {split: tuple(written)}, counts, manifest.options)
    (root / DATASET_FILE).write_text(json.dumps(part.to_json()))
    return Copy(root, split, written[0], written[1], tuple(pieces[0][1].to_pylist()))


def _piece(shard: Path, table: pa.Table, annotate: Annotations, taxonomy: Taxonomy) -> tuple[bytes, pa.Table]:
    """The first samples of a shard's `table`, about PIECE_BYTES, as a shard of its own with its sidecar."""
    starts = table.column("offset").to_numpy() - tar.BLOCK
    table = table.slice(0, max(1, int(np.searchsorted(starts, starts[0] + PIECE_BYTES))))
    last = table.slice(table.num_rows - 1).to_pylist()[0]
    row = taxonomy.row(last["species_id"], last["disease_id"])
    notes = sum(tar.BLOCK + tar.padded(len(note)) for note in annotate(row, last["source"]))
    end = last["offset"] + tar.padded(last["size"]) + notes
    with shard.open("rb") as file:
        content = os.pread(file.fileno(), end - int(starts[0]), int(starts[0]))
    place = table.schema.get_field_index("offset")
    moved = table.set_column(place, "offset", pa.array(table.column("offset").to_numpy() - starts[0]))
    return content + tar.ending(len(content)), moved


def _write_piece(path: Path, content: bytes, table: pa.Table) -> ShardEntry:
    sha256 = hashlib.sha256(content).hexdigest()
    sidecar = sidecar_bytes(table, sha256)
    path.with_name(f"{path.name}.tar").write_bytes(content)
    path.with_name(f"{path.name}.parquet").write_bytes(sidecar)
    return ShardEntry(path.name, table.num_rows, len(content), sha256, hashlib.sha256(sidecar).hexdigest())


# --- The faults ----------------------------------------------------------------------------------


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def _flip_photo(copy: Copy) -> None:
    _flip(copy.path(copy.one), copy.rows[0]["offset"] + copy.rows[0]["size"] // 2)


def _flip_padding(copy: Copy) -> None:
    row = next(row for row in copy.rows if row["size"] % tar.BLOCK)
    _flip(copy.path(copy.one), row["offset"] + row["size"])


def _flip_label(copy: Copy) -> None:
    row = copy.rows[0]
    _flip(copy.path(copy.one), row["offset"] + tar.padded(row["size"]) + tar.BLOCK)


def _zero_header(copy: Copy) -> None:
    data = bytearray(copy.path(copy.one).read_bytes())
    data[: tar.BLOCK] = bytes(tar.BLOCK)
    copy.path(copy.one).write_bytes(data)


def _cut(copy: Copy, size: int) -> None:
    os.truncate(copy.path(copy.one), size)


def _end_of_photo(copy: Copy) -> int:
    return int(copy.rows[0]["offset"] + tar.padded(copy.rows[0]["size"]))


def _swap(one: Path, two: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)


def _swap_shards(copy: Copy, *endings: str) -> None:
    for ending in endings:
        _swap(copy.path(copy.one, ending), copy.path(copy.two, ending))


def _swap_photos(copy: Copy) -> None:
    """Shards with exchanged contents and sidecars; dataset.json knows of it, all but its digest."""
    _swap_shards(copy, ".tar", ".parquet")
    value = _manifest(copy)
    one, two = value["splits"][copy.split]["shards"]
    one["name"], two["name"] = two["name"], one["name"]
    value["splits"][copy.split]["shards"] = [two, one]
    _write_manifest(copy, value)


def _manifest(copy: Copy) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((copy.root / DATASET_FILE).read_bytes())
    return value


def _write_manifest(copy: Copy, value: dict[str, Any]) -> None:
    (copy.root / DATASET_FILE).write_text(json.dumps(value))


def _rename_class(copy: Copy) -> None:
    value = _manifest(copy)
    value["taxonomy"]["species"][0]["name"] += "?"
    _write_manifest(copy, value)


def _forget_shard(copy: Copy) -> None:
    value = _manifest(copy)
    value["splits"][copy.split]["shards"].pop()
    _write_manifest(copy, value)


def _miscount(copy: Copy) -> None:
    value = _manifest(copy)
    value["splits"][copy.split]["class_counts"][0] += 1
    _write_manifest(copy, value)


def _cut_manifest(copy: Copy) -> None:
    path = copy.root / DATASET_FILE
    os.truncate(path, path.stat().st_size // 2)


FAULTS: dict[str, Damage] = {
    "a bit flipped in a photo": _flip_photo,
    "a bit flipped in a label": _flip_label,
    "a bit flipped in a name": lambda copy: _flip(copy.path(copy.one), 3),
    "a bit flipped in a header's size": lambda copy: _flip(copy.path(copy.one), 133),
    "a bit flipped in a header's checksum": lambda copy: _flip(copy.path(copy.one), 150),
    "a bit flipped in the padding of a photo": _flip_padding,
    "a bit flipped in the zeros at the end": lambda copy: _flip(copy.path(copy.one), -1),
    "a header turned to zeros": _zero_header,
    "shard cut behind a photo": lambda copy: _cut(copy, _end_of_photo(copy)),
    "shard cut at another multiple of 512": lambda copy: _cut(copy, tar.BLOCK),
    "shard cut inside a block": lambda copy: _cut(copy, _end_of_photo(copy) - 13),
    "shard cut in the zeros at its end": lambda copy: _cut(copy, copy.one.bytes - tar.BLOCK),
    "shard empty": lambda copy: _cut(copy, 0),
    "shard longer than it was": lambda copy: _cut(copy, copy.one.bytes + tar.RECORD),
    "shard missing": lambda copy: copy.path(copy.one).unlink(),
    "sidecar missing": lambda copy: copy.path(copy.one, ".parquet").unlink(),
    "a bit flipped in a sidecar": lambda copy: _flip(copy.path(copy.one, ".parquet"), 99),
    "two shards swapped": lambda copy: _swap_shards(copy, ".tar"),
    "two sidecars swapped": lambda copy: _swap_shards(copy, ".parquet"),
    "two shards swapped with their sidecars": lambda copy: _swap_shards(copy, ".tar", ".parquet"),
    "two shards renamed in dataset.json, too": _swap_photos,
    "shard of somebody else among them": lambda copy: shutil.copy(
        copy.path(copy.one), copy.root / copy.split / "shard-999999.tar"
    ),
    "a class renamed in dataset.json": _rename_class,
    "a shard left out of dataset.json": _forget_shard,
    "a class count changed in dataset.json": _miscount,
    "dataset.json cut": _cut_manifest,
    "dataset.json missing": lambda copy: (copy.root / DATASET_FILE).unlink(),
}
