"""Which photo goes into which shard, decided before a byte is written. Pure: arrays in, plans out.

A photo's place in its split is a hash of its path: a uniformly random permutation (so every shard and
every stretch of a shard holds all classes in proportion), in which adding, changing or removing one
photo touches one shard, not all of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shardtool import tar
from shardtool.taxonomy import Taxonomy

KEY_DIGITS = 24


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: its photos in order (schema scan.PHOTOS and `key`), and its exact size."""

    split: str
    name: str
    photos: pa.Table
    size: int


def same_bytes(digests: Sequence[bytes]) -> NDArray[np.int64]:
    """Group number of each photo: equal numbers for equal digests (16 bytes each)."""
    halves = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    new = np.ones(len(order), dtype=np.int64)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    groups = np.empty(len(order), dtype=np.int64)
    groups[order] = np.cumsum(new) - 1
    return groups


def conflicting(groups: NDArray[np.int64], rows: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Photos whose bytes also stand under another label: nobody knows which label is true."""
    lowest, highest = _extremes(groups, rows)
    return np.not_equal(lowest[groups], highest[groups])


def leaking(groups: NDArray[np.int64], splits: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Photos whose bytes also stand in a later split (train < val < test): they would be learned by
    heart before they are asked for."""
    _, highest = _extremes(groups, splits)
    return splits < highest[groups]


def make_splits(
    digests: Sequence[bytes], rows: NDArray[np.int32], val_share: float, seed: int
) -> NDArray[np.int8]:
    """Split 0 (train) or 1 (val) for a tree without split folders, stratified by class.

    Of each class round(share x groups) go to val; copies of one photo stay on one side. A class with
    two photos or more keeps at least one on each side. The side follows from a hash of the photo's
    content, so a photo that comes or goes moves at most one other per class.
    """
    splits = np.zeros(len(digests), dtype=np.int8)
    groups = same_bytes(digests)
    chance = np.empty(int(groups.max(initial=-1)) + 1, dtype=np.uint64)
    chance[groups] = positions(digests, seed)
    for row in np.unique(rows):
        inside = np.flatnonzero(rows == row)
        distinct = np.unique(groups[inside])
        wanted = round(val_share * len(distinct))
        count = min(max(wanted, 1), len(distinct) - 1) if val_share else 0
        chosen = distinct[np.argsort(chance[distinct], kind="stable")[:count]]
        splits[inside[np.isin(groups[inside], chosen)]] = 1
    return splits


def positions(sources: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """A number for each photo, uniform over 64 bits, from the given bytes and the seed alone."""
    digest = xxhash.xxh3_64_intdigest
    return np.array([digest(source, seed) for source in sources], dtype=np.uint64)


def keys(sources: Sequence[bytes], digests: Sequence[bytes]) -> list[str]:
    """Sample keys, 24 hex digits: a changed photo gets a new key, a moved dataset keeps all of them."""
    digest = xxhash.xxh3_128_hexdigest
    return [digest(content + source)[:KEY_DIGITS] for source, content in zip(sources, digests, strict=True)]


def annotation(taxonomy: Taxonomy, row: int, source: bytes) -> tuple[bytes, bytes]:
    """The `.cls` and `.json` members of a sample: species id; names, ids and the original path.

    A path that is not UTF-8 survives byte for byte: encoding the JSON string as UTF-8 with
    `surrogateescape` gives it back.
    """
    species_id = int(taxonomy.row_species[row])
    species, disease = taxonomy.row_names[row]
    names = {
        "species": species,
        "disease": disease,
        "species_id": species_id,
        "disease_id": int(row - taxonomy.offsets[species_id]),
        "source": source.decode("utf-8", "surrogateescape"),
    }
    return b"%d" % species_id, json.dumps(names, separators=(",", ":")).encode()


def sample_size(jpeg: int, cls: bytes, meta: bytes) -> int:
    """Bytes of a sample in its shard: three headers, three padded payloads."""
    return 3 * tar.BLOCK + tar.padded(jpeg) + tar.padded(len(cls)) + tar.padded(len(meta))


def plan(photos: pa.Table, taxonomy: Taxonomy, split: str, seed: int, shard_size: int) -> list[ShardPlan]:
    """Shards of about `shard_size` bytes for the photos of one split, in their final order."""
    if photos.num_rows == 0:
        return []
    sources = photos.column("source").to_pylist()
    place = positions(sources, seed)
    order = np.argsort(place, kind="stable")  # the scan has an order of its own: it settles ties
    sizes = _sample_sizes(photos, taxonomy, sources)
    count = max(1, -(-int(sizes.sum()) // shard_size))
    keyed = photos.append_column("key", pa.array(keys(sources, photos.column("digest").to_pylist())))
    shard_of = _interval(place[order], count)
    bounds = np.searchsorted(shard_of, np.arange(count + 1))
    plans: list[ShardPlan] = []
    for start, stop in itertools.pairwise(bounds):
        if start < stop:  # a hash interval can be empty when shards hold a handful of photos
            size = tar.file_size(int(sizes[order[start:stop]].sum()))
            name = f"shard-{len(plans):06d}"
            # take, not slice: a slice is pickled with the whole table, once a job
            plans.append(ShardPlan(split, name, keyed.take(order[start:stop]), size))
    return plans


def _sample_sizes(photos: pa.Table, taxonomy: Taxonomy, sources: Sequence[bytes]) -> NDArray[np.int64]:
    columns = (photos.column("size").to_pylist(), photos.column("row").to_pylist(), sources)
    return np.array(
        [
            sample_size(size, *annotation(taxonomy, row, source))
            for size, row, source in zip(*columns, strict=True)
        ],
        dtype=np.int64,
    )


def _interval(place: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Which of `count` equal intervals of the 64-bit line each place lies in."""
    high = place >> np.uint64(32)
    return ((high * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def _extremes(
    groups: NDArray[np.int64], values: NDArray[np.int32] | NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    count = int(groups.max(initial=-1)) + 1
    lowest = np.full(count, np.iinfo(np.int64).max)
    highest = np.full(count, np.iinfo(np.int64).min)
    np.minimum.at(lowest, groups, values)
    np.maximum.at(highest, groups, values)
    return lowest, highest
