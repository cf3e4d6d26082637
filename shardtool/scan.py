"""The organized tree -> a table of photos, and the refused ones with their reason.

`split/species/disease/photo`, or `species/disease/photo` when there is no split folder. Nothing is ever
written to the source, no symbolic link is followed, and every file is either in the table, refused
with a reason, or ignored by a rule that is counted.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import google_crc32c
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shardtool.errors import UsageError, UserError
from shardtool.executor import ordered
from shardtool.paths import path_text
from shardtool.photo import KEEP, Check, Reason, Refused, Rules, begins_like_an_image, encode
from shardtool.source import Entry, Source
from shardtool.taxonomy import Taxonomy

SPLITS = ("train", "val", "test")
IMAGE_ENDINGS = (
    *(b".jpg", b".jpeg", b".jpe", b".jfif", b".mpo", b".png", b".webp", b".gif"),
    *(b".bmp", b".tif", b".tiff", b".jp2", b".avif", b".ppm", b".heic", b".heif"),  # the last two: refused
)
MAGIC_BYTES = 16
PHOTOS_A_JOB = 256
TABLES_AT_ONCE = 512

# One row a photo. `size`, `width`, `height`, `crc32c`, `progressive` are of the JPEG that goes into the
# shard, `digest` (XXH3-128) is of the file as it is on disk, `rule` says what was changed ("" = kept byte
# for byte), `look` is the perceptual hash (empty without one).
PHOTOS = pa.schema(
    [
        ("source", pa.large_binary()),
        ("split", pa.int8()),
        ("row", pa.int32()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32c", pa.uint32()),
        ("digest", pa.binary(16)),
        ("rule", pa.string()),
        ("progressive", pa.bool_()),
        ("look", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Refusal:
    """A file that is not packed: its path under the source, the counted reason, and more words.

    `twin` is the path of a photo with the same bytes, for leaks and label conflicts.
    """

    source: bytes
    reason: Reason
    detail: str
    twin: bytes = b""


@dataclass(frozen=True)
class Folder:
    """One class folder: the photos `path/name` carry the label (species, disease)."""

    path: bytes
    split: int  # index into SPLITS, -1 when the tree has no split folders
    species: str
    disease: str
    names: tuple[bytes, ...]


@dataclass(frozen=True)
class Tree:
    """What lies in the source, before a photo is opened."""

    source: Source
    folders: tuple[Folder, ...]
    refused: tuple[Refusal, ...]
    ignored: Counter[str]

    @property
    def photos(self) -> int:
        return sum(len(folder.names) for folder in self.folders)


@dataclass(frozen=True)
class Scan:
    """All photos (schema PHOTOS, class folder by class folder) under one label space."""

    taxonomy: Taxonomy
    photos: pa.Table
    refused: tuple[Refusal, ...]
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> Counter[str]:
        """How many files were refused for each reason."""
        return Counter(str(refusal.reason) for refusal in self.refused)

    @property
    def converted(self) -> Counter[str]:
        """How many photos each rule of conversion applied to."""
        counts = self.photos.column("rule").value_counts().to_pylist()
        return Counter({entry["values"]: entry["counts"] for entry in counts if entry["values"]})

    @property
    def progressive(self) -> int:
        """Photos that stay progressive JPEGs: they decode 2.1-2.5 times slower."""
        return int(column(self.photos, "progressive").sum())


def content_digest(data: bytes | memoryview) -> bytes:
    """XXH3-128 of a file's bytes: equal photos have equal digests."""
    return xxhash.xxh3_128_digest(data)


def list_tree(source: Source, merge_twins: bool = False) -> Tree:
    """Walk the folders of `source` without opening a file.

    Raises UsageError when there is nothing to pack, or when two class names differ only in case or blanks;
    with `merge_twins` these become one class, under the name that more photos have.
    """
    walk = _Walk(source)
    top = walk.subfolders(b"")
    splits = [name for name in top if path_text(name) in SPLITS]
    if splits:
        walk.misplace(b"", [name for name in top if name not in splits])
        for name in splits:
            walk.split(name, SPLITS.index(path_text(name)))
    else:
        walk.classes(b"", top, -1)
    folders = tuple(sorted(walk.folders, key=lambda folder: folder.path))
    if not folders:
        raise UsageError("no photos in split/species/disease or species/disease folders", where=source.url)
    if merge_twins:
        folders = _merged(folders)
    _check_names(folders)
    return Tree(source, folders, tuple(walk.refused), walk.ignored)


def examine_tree(
    tree: Tree,
    check: Check = "decode",
    rules: Rules = KEEP,
    executor: Executor | None = None,
    workers: int = 1,
    progress: Callable[[int, Sequence[Refusal]], None] = lambda photos, refused: None,
) -> Scan:
    """Open and check every photo; `progress` gets the number of good ones and the refusals just found."""
    taxonomy = Taxonomy.from_labels((folder.species, folder.disease) for folder in tree.folders)
    jobs = _jobs(tree, taxonomy, check, rules)
    tables, refused = [PHOTOS.empty_table()], list(tree.refused)
    for table, refusals in ordered(executor, _examine, jobs, in_flight=4 * workers):
        tables.append(table)
        refused.extend(refusals)
        if len(tables) == TABLES_AT_ONCE:  # a row is then found among few chunks, and memory stays flat
            tables = [pa.concat_tables(tables).combine_chunks()]
        progress(table.num_rows, refusals)
    return Scan(taxonomy, pa.concat_tables(tables), tuple(refused), tree.ignored)


class _Walk:
    """Collects folders, refusals and ignored files of one tree."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.folders: list[Folder] = []
        self.refused: list[Refusal] = []
        self.ignored: Counter[str] = Counter()

    def subfolders(self, path: bytes) -> list[bytes]:
        """Names of the folders in `path`; photos that lie there are refused, they have no label."""
        folders, photos, _ = self._entries(path)
        self._misplaced(path, photos)
        return folders

    def split(self, path: bytes, split: int) -> None:
        self.classes(path, self.subfolders(path), split)

    def classes(self, base: bytes, species: list[bytes], split: int) -> None:
        for name in species:
            path = os.path.join(base, name)
            for disease in self.subfolders(path):
                self._class(os.path.join(path, disease), split, _label(name), _label(disease))

    def misplace(self, path: bytes, folders: list[bytes]) -> None:
        """Refuse every photo in these folders and below: none of them has a label."""
        for folder in folders:
            below = os.path.join(path, folder)
            deeper, photos, _ = self._entries(below)
            self._misplaced(below, photos)
            self.misplace(below, deeper)

    def _misplaced(self, path: bytes, photos: list[bytes]) -> None:
        for name in photos:
            detail = "not in a species/disease folder"
            self.refused.append(Refusal(os.path.join(path, name), "misplaced", detail))

    def _class(self, path: bytes, split: int, species: str, disease: str) -> None:
        deeper, photos, readable = self._entries(path)
        self.misplace(path, deeper)
        if photos or not readable:  # a class that cannot be read today keeps its id
            self.folders.append(Folder(path, split, species, disease, tuple(photos)))
        else:
            self.ignored["empty class folder"] += 1

    def _entries(self, path: bytes) -> tuple[list[bytes], list[bytes], bool]:
        """Sorted names of the subfolders and the candidate photos in `path`; and whether it can be read."""
        try:
            entries = self.source.entries(path)
        except OSError as error:
            self.refused.append(Refusal(path, "unreadable", error.strerror or str(error)))
            return [], [], False
        folders: list[bytes] = []
        photos: list[bytes] = []
        for entry in entries:
            if entry.kind == "folder" and not entry.name.startswith(b"."):
                folders.append(entry.name)
            elif self._is_candidate(path, entry):
                photos.append(entry.name)
            else:
                self.ignored[_why_ignored(entry)] += 1
        return sorted(folders), sorted(photos), True

    def _is_candidate(self, path: bytes, entry: Entry) -> bool:
        """Whether this may be a photo: by its name or, where that does not tell, by its first bytes."""
        hidden = entry.name.startswith(b".")
        if not hidden and (entry.kind == "link" or _ending(entry.name) in IMAGE_ENDINGS):
            return True
        return entry.kind == "file" and begins_like_an_image(
            self.source.begins(os.path.join(path, entry.name), MAGIC_BYTES)
        )


def _why_ignored(entry: Entry) -> str:
    if entry.name.startswith(b"."):
        return "hidden folder" if entry.kind == "folder" else "hidden"
    return f"{path_text(_ending(entry.name)) or 'no'} ending"


def _ending(name: bytes) -> bytes:
    return name[name.rfind(b".") :].lower() if b"." in name else b""


def _label(name: bytes) -> str:
    # macOS stores names decomposed; NFC makes the same class of the same word from two machines
    # (decoded as UTF-8 whatever the locale says: the label is in the shard's bytes)
    return unicodedata.normalize("NFC", path_text(name))


def _check_names(folders: tuple[Folder, ...]) -> None:
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for folder in folders:
        names = (folder.species, folder.disease)
        for depth in (1, 2):
            other = seen.setdefault(_alike(names[:depth]), names)
            if other[:depth] != names[:depth]:
                raise UsageError(
                    "two class folders differ only in case or blanks",
                    where=f"{'/'.join(other[:depth])!r} and {'/'.join(names[:depth])!r}",
                    cure="rename one of them, or make them one with --merge-twins",
                )


def _alike(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip().casefold() for name in names)


def _merged(folders: tuple[Folder, ...]) -> tuple[Folder, ...]:
    """The same folders, twins under one name: the one with the most photos, the first of equals."""
    names: dict[tuple[str, ...], Counter[str]] = {}
    for folder in folders:
        label = (folder.species, folder.disease)
        for depth in (1, 2):
            names.setdefault(_alike(label[:depth]), Counter())[label[depth - 1]] += len(folder.names)
    best = {alike: min(counts, key=lambda name: (-counts[name], name)) for alike, counts in names.items()}
    return tuple(
        replace(
            folder,
            species=best[_alike((folder.species,))],
            disease=best[_alike((folder.species, folder.disease))],
        )
        for folder in folders
    )


@dataclass(frozen=True)
class _Job:
    source: Source
    folder: bytes
    split: int
    row: int
    names: tuple[bytes, ...]
    check: Check
    rules: Rules

    def __str__(self) -> str:
        return f"{path_text(self.folder)}, {len(self.names)} photos from {path_text(self.names[0])}"


def _jobs(tree: Tree, taxonomy: Taxonomy, check: Check, rules: Rules) -> Iterator[_Job]:
    for folder in tree.folders:
        row = taxonomy.row_of[folder.species, folder.disease]
        for start in range(0, len(folder.names), PHOTOS_A_JOB):
            names = folder.names[start : start + PHOTOS_A_JOB]
            yield _Job(tree.source, folder.path, folder.split, row, names, check, rules)


def _examine(job: _Job) -> tuple[pa.Table, list[Refusal]]:
    found, refused = [], []
    sources = [job.folder + b"/" + name for name in job.names]
    for source, data in zip(sources, job.source.read_many(sources), strict=True):
        try:
            if isinstance(data, Refused):
                raise data
            photo = encode(data, job.check, job.rules)
        except Refused as error:
            refused.append(Refusal(source, error.reason, error.detail))
            continue
        except MemoryError as error:  # not the photo's fault: another machine would take it
            cure = "give it more, or use fewer workers"
            raise UserError("not enough memory for a photo", where=path_text(source), cure=cure) from error
        crc32c, digest = google_crc32c.value(photo.data), content_digest(data)
        sizes = (len(photo.data), photo.width, photo.height)
        found.append((source, *sizes, crc32c, digest, photo.rule, photo.progressive, photo.look))
    return _table(job, found), refused


def _table(job: _Job, found: list[tuple[Any, ...]]) -> pa.Table:
    source, *others = zip(*found, strict=True) if found else [()] * 9
    values = [source, [job.split] * len(found), [job.row] * len(found), *others]
    arrays = [pa.array(value, kind) for value, kind in zip(values, PHOTOS.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=PHOTOS)


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A numeric column as a numpy array of its own type."""
    values: NDArray[Any] = table.column(name).to_numpy()
    return values
