"""Which photo goes into which shard, decided before a byte is written. Pure: columns in, plans out.

A photo's place in its split is a hash of its path: a uniformly random permutation (so every shard and
every stretch of a shard holds all classes in proportion), in which adding, changing or removing one
photo touches one shard, not all of them, as long as the number of shards stays.

Nothing here keeps a Python object a photo: a plan of ten million photos takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shardtool import tar
from shardtool.paths import path_text
from shardtool.taxonomy import Taxonomy

KEY_DIGITS = 24
BATCH = 1 << 16  # rows looked at one by one, at a time

# JSON of a byte of ASCII: as it is, with a backslash, or as \u00XX. Others are asked of `json` itself.
_JSON_BYTES = np.array([len(json.dumps(chr(byte))) - 2 for byte in range(128)] + [0] * 128, dtype=np.int64)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: its photos in order (schema scan.PHOTOS and `key`), and its exact size."""

    split: str
    name: str
    photos: pa.Table
    size: int


class Layout:
    """The shards of one split: the rows `order` of `photos`, cut at `bounds` into shards of `sizes` bytes.

    Each shard is put together when it is asked for, so a huge plan stays small.
    """

    def __init__(
        self,
        split: str,
        photos: pa.Table,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> None:
        self.split = split
        self.sizes = sizes  # bytes of each shard
        self.counts = np.diff(bounds)  # photos of each shard
        self._photos, self._order, self._bounds = photos, order, bounds

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[ShardPlan]:
        return map(self.shard, range(len(self)))

    def shard(self, number: int) -> ShardPlan:
        """The plan of one shard."""
        photos = self._photos.take(self._order[self._bounds[number] : self._bounds[number + 1]])
        keyed = photos.append_column("key", pa.array(keys(photos.column("source"), photos.column("digest"))))
        return ShardPlan(self.split, shard_name(number), keyed, int(self.sizes[number]))

    def rows(self) -> NDArray[np.int32]:
        """The taxonomy row of each photo, in the order of the shards. int32 [photos]"""
        rows: NDArray[np.int32] = self._photos.column("row").to_numpy()[self._order]
        return rows


def shard_name(number: int) -> str:
    """The name of a shard's files, without their endings."""
    return f"shard-{number:06d}"


def same_bytes(digests: pa.ChunkedArray) -> NDArray[np.int64]:
    """Group number of each photo: equal numbers for equal digests (16 bytes each)."""
    halves = _words(digests)
    order = np.argsort(halves[:, 0])
    first = halves[order, 0]
    twin = np.zeros(len(order), dtype=bool)
    twin[1:] |= first[1:] == first[:-1]
    twin[:-1] |= first[1:] == first[:-1]
    few = order[twin]  # only these need their second half to be looked at
    order[twin] = few[np.lexsort((halves[few, 1], halves[few, 0]))]
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
    digests: pa.ChunkedArray, rows: NDArray[np.int32], val_share: float, seed: int
) -> NDArray[np.int8]:
    """Split 0 (train) or 1 (val) for a tree without split folders, stratified by class.

    Of each class round(share x groups) go to val; copies of one photo stay on one side. A class with
    two photos or more keeps at least one on each side. The side follows from a hash of the photo's
    content, so a photo that comes or goes moves at most one other per class.
    """
    if not val_share or not len(rows):
        return np.zeros(len(rows), dtype=np.int8)
    groups = same_bytes(digests)
    chance = np.empty(int(groups.max()) + 1, dtype=np.uint64)
    chance[groups] = positions(digests, seed)
    row, _ = _extremes(groups, rows)  # photos of one group stay together, whatever their labels
    order = np.lexsort((chance, row))  # groups by class, inside it by chance
    _, start, count = np.unique(row[order], return_index=True, return_counts=True)
    wanted = np.minimum(np.maximum(np.rint(val_share * count), 1), count - 1)
    chosen = np.empty(len(order), dtype=np.int8)
    chosen[order] = np.arange(len(order)) - np.repeat(start, count) < np.repeat(wanted, count)
    return chosen[groups]


def positions(values: pa.ChunkedArray, seed: int) -> NDArray[np.uint64]:
    """A number for each photo, uniform over 64 bits, from the given bytes and the seed alone."""
    digest = xxhash.xxh3_64_intdigest
    places = (digest(value, seed) for batch in _batches(values) for value in batch.to_pylist())
    return np.fromiter(places, dtype=np.uint64, count=len(values))


def keys(sources: pa.ChunkedArray, digests: pa.ChunkedArray) -> list[str]:
    """Sample keys, 24 hex digits: a changed photo gets a new key, a moved dataset keeps all of them."""
    digest = xxhash.xxh3_128_hexdigest
    pairs = zip(sources.to_pylist(), digests.to_pylist(), strict=True)
    return [digest(content + source)[:KEY_DIGITS] for source, content in pairs]


class Annotations:
    """The `.cls` and `.json` members of samples: species id; names, ids and the original path.

    A path that is not UTF-8 survives byte for byte: encoding the JSON string as UTF-8 with
    `surrogateescape` gives it back.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._rows: dict[int, tuple[bytes, bytes]] = {}

    def __call__(self, row: int, source: bytes) -> tuple[bytes, bytes]:
        cls, start = self._rows.get(row) or self._of_row(row)
        return cls, b"%b%b}" % (start, json.dumps(path_text(source)).encode())

    def sizes(self, rows: NDArray[np.int32], sources: pa.ChunkedArray) -> NDArray[np.int64]:
        """Bytes of both members together, each padded, without making them. int64 [n]"""
        cls, start = np.zeros((2, self._taxonomy.rows), dtype=np.int64)
        for row in np.unique(rows).tolist():
            of_row = self._of_row(row)
            cls[row], start[row] = tar.padded(len(of_row[0])), len(of_row[1]) + len('""}')
        return cls[rows] + tar.padded_all(start[rows] + _json_lengths(sources))

    def _of_row(self, row: int) -> tuple[bytes, bytes]:
        """`.cls` of a class, and `.json` up to the path; kept for the next photo of the class."""
        species, disease = self._taxonomy.row_names[row]
        species_id, disease_id = (int(number[0]) for number in self._taxonomy.ids(np.array([row])))
        names = {
            "species": species,
            "disease": disease,
            "species_id": species_id,
            "disease_id": disease_id,
        }
        start = json.dumps(names, separators=(",", ":")).encode()[:-1] + b',"source":'
        self._rows[row] = b"%d" % species_id, start
        return self._rows[row]


def plan(
    photos: pa.Table, taxonomy: Taxonomy, splits: Sequence[str], seed: int, shard_size: int
) -> dict[str, Layout]:
    """Shards of about `shard_size` bytes for each split that has photos, in their final order.

    `splits` are the names for the numbers in the column `split`.
    """
    sizes = sample_sizes(photos, taxonomy)
    place = positions(photos.column("source"), seed)
    number = photos.column("split").to_numpy()
    members = {name: np.flatnonzero(number == split) for split, name in enumerate(splits)}
    return {
        name: _plan_split(name, photos, inside, place[inside], sizes[inside], shard_size)
        for name, inside in members.items()
        if len(inside)
    }


def _plan_split(
    name: str,
    photos: pa.Table,
    inside: NDArray[np.int64],
    place: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    shard_size: int,
) -> Layout:
    order = np.argsort(place, kind="stable")  # the scan has an order of its own: it settles ties
    count = max(1, -(-int(sizes.sum()) // shard_size))
    shard_of = _interval(place[order], count)
    bounds = np.unique(np.searchsorted(shard_of, np.arange(count + 1)))  # an interval can be empty
    ends = np.concatenate([[0], np.cumsum(sizes[order])])[bounds]
    return Layout(name, photos, inside[order], bounds, tar.file_sizes(np.diff(ends)))


def sample_sizes(photos: pa.Table, taxonomy: Taxonomy) -> NDArray[np.int64]:
    """Bytes of each sample in its shard: three headers, three padded payloads. int64 [n]"""
    rows, jpegs = photos.column("row").to_numpy(), photos.column("size").to_numpy()
    others = Annotations(taxonomy).sizes(rows, photos.column("source"))
    return 3 * tar.BLOCK + tar.padded_all(jpegs) + others


def _json_lengths(sources: pa.ChunkedArray) -> NDArray[np.int64]:
    """Length of each path as the inside of a JSON string. int64 [n]"""
    return np.concatenate([np.zeros(0, np.int64), *(_batch_lengths(batch) for batch in _batches(sources))])


def _batch_lengths(sources: pa.Array) -> NDArray[np.int64]:
    packed = sources.cast(pa.large_binary())
    ends = np.frombuffer(packed.buffers()[1], np.int64)[packed.offset : packed.offset + len(packed) + 1]
    data = np.frombuffer(packed.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
    total = np.concatenate([[0], np.cumsum(_JSON_BYTES[data])])
    beyond = np.concatenate([[0], np.cumsum(data >= 128)])
    at = ends - ends[0]
    lengths: NDArray[np.int64] = np.diff(total[at])
    for number in np.flatnonzero(np.diff(beyond[at])).tolist():
        lengths[number] = len(json.dumps(path_text(sources[number].as_py()))) - 2
    return lengths


def _batches(values: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in values.chunks:
        for start in range(0, len(chunk), BATCH):
            yield chunk.slice(start, BATCH)


def _words(digests: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The digests as pairs of numbers, uint64 [n, 2]."""
    parts = (
        np.frombuffer(chunk.buffers()[1], np.uint64).reshape(-1, 2)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in digests.chunks
        if len(chunk)
    )
    return np.concatenate([np.zeros((0, 2), np.uint64), *parts])


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
