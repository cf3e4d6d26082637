"""The organized tree -> a table of photos, and the refused ones with their reason.

`split/species/disease/photo`, or `species/disease/photo` when there is no split folder. Nothing is ever
written to the source, no symbolic link is followed, and every file is either in the table, refused
with a reason, or ignored by a rule that is counted.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shardtool.errors import UsageError
from shardtool.executor import ordered
from shardtool.photo import Check, Reason, Refused, encode
from shardtool.taxonomy import Taxonomy

SPLITS = ("train", "val", "test")
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif"),
    *(".bmp", ".tif", ".tiff", ".jp2", ".avif", ".ppm"),
)
MAX_FILE_BYTES = 1 << 30
PHOTOS_A_JOB = 256

# One row a photo. `size`, `width`, `height`, `crc32c` are of the JPEG that goes into the shard, `digest`
# (XXH3-128) is of the file as it is on disk, `rule` says what was converted ("" = kept byte for byte).
PHOTOS = pa.schema(
    [
        ("source", pa.binary()),
        ("split", pa.int8()),
        ("row", pa.int32()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32c", pa.uint32()),
        ("digest", pa.binary(16)),
        ("rule", pa.string()),
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

    root: Path
    folders: tuple[Folder, ...]
    refused: tuple[Refusal, ...]
    ignored: Counter[str]

    @property
    def photos(self) -> int:
        return sum(len(folder.names) for folder in self.folders)


@dataclass(frozen=True)
class Scan:
    """All photos (schema PHOTOS, class folder by class folder) under one label space."""

    root: Path
    taxonomy: Taxonomy
    photos: pa.Table
    refused: tuple[Refusal, ...]
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def converted(self) -> Counter[str]:
        """How many photos each rule of conversion applied to."""
        return Counter(rule for rule in self.photos.column("rule").to_pylist() if rule)


def content_digest(data: bytes) -> bytes:
    """XXH3-128 of a file's bytes: equal photos have equal digests."""
    return xxhash.xxh3_128_digest(data)


def list_tree(root: Path) -> Tree:
    """Walk the folders of `root` without opening a file.

    Raises UsageError when there is nothing to pack or two class names differ only in case or blanks.
    """
    walk = _Walk(root)
    top = walk.subfolders(b"")
    splits = [name for name in top if os.fsdecode(name) in SPLITS]
    if splits:
        walk.misplace(b"", [name for name in top if name not in splits])
        for name in splits:
            walk.split(name, SPLITS.index(os.fsdecode(name)))
    else:
        walk.classes(b"", top, -1)
    folders = tuple(sorted(walk.folders, key=lambda folder: folder.path))
    if not folders:
        raise UsageError("no photos in split/species/disease or species/disease folders", where=root)
    _check_names(folders)
    return Tree(root, folders, tuple(walk.refused), walk.ignored)


def examine_tree(
    tree: Tree,
    check: Check,
    executor: Executor | None = None,
    workers: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> Scan:
    """Open and check every photo; `progress` gets the number of photos just done."""
    classes = [(folder.species, folder.disease) for folder in tree.folders]
    taxonomy = Taxonomy.from_labels(classes)
    jobs = _jobs(tree, taxonomy, check)
    tables, refused = [], list(tree.refused)
    for table, refusals in ordered(executor, _examine, jobs, in_flight=4 * workers):
        tables.append(table)
        refused.extend(refusals)
        progress(table.num_rows + len(refusals))
    photos = pa.concat_tables(tables) if tables else PHOTOS.empty_table()
    return Scan(tree.root, taxonomy, photos, tuple(refused), tree.ignored)


def read_source(path: bytes) -> bytes:
    """The bytes of a regular file; links are not followed and a FIFO does not block. Raises Refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Refused("not a regular file", "a link or a socket is not followed") from None
        raise Refused("unreadable", error.strerror or str(error)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not a regular file", stat.filemode(status.st_mode))
        if status.st_size > MAX_FILE_BYTES:
            raise Refused("too large", f"{status.st_size} bytes")
        return os.read(descriptor, status.st_size + 1)
    except OSError as error:
        raise Refused("unreadable", error.strerror or str(error)) from None
    finally:
        os.close(descriptor)


class _Walk:
    """Collects folders, refusals and ignored files of one tree."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.folders: list[Folder] = []
        self.refused: list[Refusal] = []
        self.ignored: Counter[str] = Counter()

    def subfolders(self, path: bytes) -> list[bytes]:
        """Names of the folders in `path`; photos that lie there are refused, they have no label."""
        folders, photos = self._entries(path)
        self.misplace(path, photos)
        return folders

    def split(self, path: bytes, split: int) -> None:
        self.classes(path, self.subfolders(path), split)

    def classes(self, base: bytes, species: list[bytes], split: int) -> None:
        for name in species:
            path = os.path.join(base, name)
            for disease in self.subfolders(path):
                self._class(os.path.join(path, disease), split, _label(name), _label(disease))

    def misplace(self, path: bytes, names: list[bytes]) -> None:
        for name in names:
            detail = "not in a species/disease folder"
            self.refused.append(Refusal(os.path.join(path, name), "misplaced", detail))

    def _class(self, path: bytes, split: int, species: str, disease: str) -> None:
        deeper, photos = self._entries(path)
        self.misplace(path, deeper)
        if photos:
            self.folders.append(Folder(path, split, species, disease, tuple(photos)))
        else:
            self.ignored["empty class folder"] += 1

    def _entries(self, path: bytes) -> tuple[list[bytes], list[bytes]]:
        """Sorted names of the subfolders and of the candidate photos in `path`."""
        folders: list[bytes] = []
        photos: list[bytes] = []
        try:
            entries = os.scandir(os.path.join(self.root, path))
        except OSError as error:
            self.refused.append(Refusal(path, "unreadable", error.strerror or str(error)))
            return folders, photos
        with entries:
            for entry in entries:
                ending = os.fsdecode(os.path.splitext(entry.name)[1]).lower()
                if entry.name.startswith(b"."):
                    self.ignored["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif ending in IMAGE_ENDINGS or entry.is_symlink():
                    photos.append(entry.name)
                else:
                    self.ignored[f"{ending or 'no'} ending"] += 1
        return sorted(folders), sorted(photos)


def _label(name: bytes) -> str:
    # macOS stores names decomposed; NFC makes the same class of the same word from two machines
    # (decoded as UTF-8 whatever the locale says: the label is in the shard's bytes)
    return unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))


def _check_names(folders: tuple[Folder, ...]) -> None:
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for folder in folders:
        names = (folder.species, folder.disease)
        for depth in (1, 2):
            alike = tuple(name.strip().casefold() for name in names[:depth])
            other = seen.setdefault(alike, names)
            if other[:depth] != names[:depth]:
                raise UsageError(
                    "two class folders differ only in case or blanks",
                    where=f"{'/'.join(other[:depth])!r} and {'/'.join(names[:depth])!r}",
                    cure="rename one of them",
                )


@dataclass(frozen=True)
class _Job:
    root: bytes
    folder: bytes
    split: int
    row: int
    names: tuple[bytes, ...]
    check: Check


def _jobs(tree: Tree, taxonomy: Taxonomy, check: Check) -> Iterator[_Job]:
    root = os.fsencode(tree.root)
    for folder in tree.folders:
        row = taxonomy.row_of[folder.species, folder.disease]
        for start in range(0, len(folder.names), PHOTOS_A_JOB):
            names = folder.names[start : start + PHOTOS_A_JOB]
            yield _Job(root, folder.path, folder.split, row, names, check)


def _examine(job: _Job) -> tuple[pa.Table, list[Refusal]]:
    rows, refused = [], []
    for name in job.names:
        source = os.path.join(job.folder, name)
        try:
            data = read_source(os.path.join(job.root, source))
            photo = encode(data, job.check)
        except Refused as error:
            refused.append(Refusal(source, error.reason, error.detail))
            continue
        rows.append(
            {
                "source": source,
                "split": job.split,
                "row": job.row,
                "size": len(photo.data),
                "width": photo.width,
                "height": photo.height,
                "crc32c": google_crc32c.value(photo.data),
                "digest": content_digest(data),
                "rule": photo.rule,
            }
        )
    return pa.Table.from_pylist(rows, schema=PHOTOS), refused


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A numeric column as a numpy array of its own type."""
    values: NDArray[Any] = table.column(name).to_numpy()
    return values
