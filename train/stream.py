"""Foreign WebDataset shards -> batches, without an index: what `--shards` does with URLs of plain tars.

A survey reads the headers and labels of all shards, as `shardtool index` does, so the label space and the
photos of each shard are known before the first step. Then every lane (a worker's part of the shards) is
read from front to end by webdataset's tar reader through a shuffle buffer. Only photos that the survey saw
are taken out of a shard, and a shard that gives fewer of them than it held is an error: the reader itself
ends a damaged shard without a word. No member but a photo is ever decoded.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import posixpath
import random
import re
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice, pairwise
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardtool.errors import CorruptSample, DatasetError, TrainingError, UsageError, UserError
from shardtool.executor import ordered
from shardtool.foreign import Shard, scan_shard
from shardtool.index import DATASET_FILE, Refusal
from shardtool.indexing import find_shards
from shardtool.progress import OpenProgress, silent
from shardtool.store import SCHEMES, Read, exists, is_remote, open_folder, plain_path, reader, shown
from shardtool.taxonomy import Taxonomy
from train.augment import Transform
from train.data import BAD_SHARE, FEW_BAD, Batch
from train.fill import Replaced

SHUFFLE_PHOTOS = 10_000  # in the buffer of each worker, where SHUFFLE_BYTES allow it
SHUFFLE_BYTES = 1 << 30  # of JPEGs in the buffers of all workers together
READ_BYTES = 1 << 20  # asked for at once; tar readers ask for 10 kB
KEPT_BLOCKS = 4  # of READ_BYTES, of each shard that is surveyed
SURVEY_THREADS = 8  # shards whose headers are read at once: over a network it is waiting
PREFETCH_BATCHES = 4
SHARDS_STREAM = 4  # of a (seed, epoch); the order, steps, augmentation and substitutes draw from 0 to 3

_GLOB = re.compile(r"[*?\[]")
_CURE = "see that the shard did not change, and fetch it again; shardtool index tells more"


# --- What is there ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Survey:
    """What the headers of all shards say; sample ids count the photos in the order of the shards.

    source  the pattern or folder that was asked for
    urls    of the shards that hold photos
    photos  of each of these: table with the members' names (`source`, binary) and `size` in bytes
    classes (species, disease) pairs in no order
    label   int32 [n]  of each photo the place of its pair in `classes`
    """

    source: str
    urls: tuple[str, ...]
    photos: tuple[pa.Table, ...]
    classes: tuple[tuple[str, str], ...]
    label: NDArray[np.int32]
    refused: tuple[Refusal, ...]

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names, sizes and labels of all photos, wherever they are; not over their bytes."""
        shards = [[len(table), *table.column("size").to_pylist()] for table in self.photos]
        content = hashlib.sha256(json.dumps([self.classes, shards]).encode())
        for table in self.photos:
            content.update(b"\0".join(table.column("source").to_pylist()))
        content.update(self.label.tobytes())
        return content.hexdigest()

    def where(self, sample: int) -> str:
        """Shard and member of a sample, for messages."""
        first = np.cumsum([0, *(table.num_rows for table in self.photos)])
        shard = int(np.searchsorted(first, sample, side="right")) - 1
        name = self.photos[shard].column("source")[sample - int(first[shard])].as_py()
        return f"{shown(self.urls[shard])}/{name.decode('utf-8', 'replace')}"

    @property
    def note(self) -> str:
        """One line for people: what is lost without an index, and how to get one."""
        refused = f", {len(self.refused):,} samples refused" if self.refused else ""
        return (
            f"streaming {len(self):,} photos from tars without an index{refused}: rare classes are not "
            "repeated, bytes not checked, batches of unequal size and mixed a buffer at a time, and a resume "
            f"reads the epoch again and needs the same --workers; to have all that: {self._cure}"
        )

    @property
    def _cure(self) -> str:
        folder = posixpath.dirname(self.urls[0])
        if is_remote(folder):
            return f"shardtool index '{shown(self.source)}' --out DIR"
        return f"shardtool index '{folder}'"


def is_streamed(shards: str) -> bool:
    """Whether `--shards` names tars without our index: a .tar, a pattern of them, or a folder of them."""
    if shards.endswith(".tar") or _is_foreign_address(shards):
        return True
    folder = shards.rstrip("/") or "/"
    if shards.startswith(("http://", "https://")) or not exists(folder):
        return False
    if any(exists(f"{place}/{DATASET_FILE}") for place in (folder, posixpath.dirname(folder) or ".")):
        return False
    try:
        names = open_folder(shards).files()
    except NotADirectoryError:
        return False
    # a sidecar without dataset.json is of a pack that has not finished, which open_split tells
    tars = [name.removesuffix(".tar") for name in names if name.endswith(".tar")]
    return bool(tars) and not any(f"{name}.parquet" in names for name in tars)


def survey(source: str, split: str = "train", progress: OpenProgress = silent) -> Survey:
    """Read the headers and labels of all shards at a folder, tar, URL or pattern.

    Raises UsageError (nothing there, no way to read it), DatasetError for a shard that is missing or
    damaged, UserError when no sample has a photo and a label.
    """
    urls = shard_urls(source, split)
    found: list[tuple[str, pa.Table]] = []
    refused: list[Refusal] = []
    classes: dict[tuple[str, str], int] = {}
    labels = [np.zeros(0, np.int32)]
    with (
        ThreadPoolExecutor(SURVEY_THREADS) as pool,
        progress("reading headers of shards", len(urls)) as advance,
    ):
        for url, shard in zip(urls, ordered(pool, _scan, urls, 2 * SURVEY_THREADS), strict=True):
            refused.extend(shard.refused)
            if shard.photos.num_rows:
                found.append((url, shard.photos.select(["source", "size"])))
                labels.append(_labels(shard.photos, classes))
            advance(1)
    if not classes:
        first = f"; the first: {refused[0].source}, {refused[0].reason}" if refused else ""
        raise UserError(f"no sample with a JPEG and a label{first}", where=shown(source))
    shards, photos = zip(*found, strict=True)
    return Survey(source, shards, photos, tuple(classes), np.concatenate(labels), tuple(refused))


def shard_urls(source: str, split: str = "train") -> list[str]:
    """Paths or URLs of the shards that a folder, tar, URL, brace pattern or local glob names, in its order.

    Raises UsageError.
    """
    if _is_foreign_address(source):
        raise UsageError(
            "an address with pipe: or :: is a command or a chain, which is never run",  # it may hold secrets
            cure=f"use a path or a URL with {', '.join(SCHEMES)}",
        )
    places = find_shards(plain_path(source), split)
    place = next((place for place in places if place.split == split), None)
    if place is None:
        raise UsageError(f"no tars of {split}", where=shown(source), cure="name the folder of its shards")
    urls = [url for name in place.names for url in _globbed(f"{place.folder}/{name}.tar")]
    if not urls:
        raise UsageError("no shard matches", where=shown(source), cure="see what lies there")
    return urls


def _is_foreign_address(source: str) -> bool:
    """Whether webdataset or fsspec would take this for a command or a chain of file systems."""
    return source.startswith("pipe:") or "::" in source


def _globbed(path: str) -> list[str]:
    if is_remote(path) or not _GLOB.search(path) or os.path.exists(path):
        return [path]
    return sorted(glob.glob(path))


def _scan(url: str) -> Shard:
    folder, _, name = url.removesuffix(".tar").rpartition("/")
    try:
        with reader(url) as (read, size):
            return scan_shard(_blockwise(read, size), size, shown(folder), name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            "shard is missing", where=shown(url), cure="see that the address is right"
        ) from error


def _blockwise(read: Read, end: int) -> Read:
    """The same reads from whole blocks, of which the latest are kept: a survey goes back and forth between
    headers, labels and the starts of photos, and each step back would be a request."""

    @lru_cache(maxsize=KEPT_BLOCKS)
    def block(number: int) -> bytes:
        return read(number * READ_BYTES, min(READ_BYTES, end - number * READ_BYTES))

    def read_blocks(offset: int, length: int) -> bytes:
        stop = min(offset + length, end)
        first = offset // READ_BYTES
        data = b"".join(map(block, range(first, -(-stop // READ_BYTES))))
        return data[offset - first * READ_BYTES : stop - first * READ_BYTES]

    return read_blocks


def _labels(photos: pa.Table, classes: dict[tuple[str, str], int]) -> NDArray[np.int32]:
    """The number of each photo's class, int32 [n]; new classes are added to `classes`."""
    pairs = zip(photos.column("species").to_pylist(), photos.column("disease").to_pylist(), strict=True)
    return np.array([classes.setdefault(pair, len(classes)) for pair in pairs], np.int32)


# --- Who reads what: pure -----------------------------------------------------------------------


@dataclass(frozen=True)
class Lane:
    """A worker's part of an epoch: its shards in reading order, photos in all, batches to make of them,
    and how many of these are not wanted any more (`skip`)."""

    shards: tuple[int, ...]
    photos: int
    batches: int
    skip: int = 0

    def sizes(self) -> list[int]:
        """Photos of each batch, equal up to one."""
        bounds = [number * self.photos // self.batches for number in range(self.batches + 1)]
        return [end - start for start, end in pairwise(bounds)]


def deal(photos: Sequence[int], shards: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Deal `shards` in their order, each to the part that has the fewest photos so far: in turn where all
    shards are alike. `photos` are those of each shard, one at least."""
    dealt: list[list[int]] = [[] for _ in range(parts)]
    totals = [0] * parts
    for shard in shards:
        part = totals.index(min(totals))
        dealt[part].append(shard)
        totals[part] += photos[shard]
    return [tuple(part) for part in dealt]


def plan_steps(photos: Sequence[int], workers: int, batch: int, ranks: int) -> int:
    """Batches of an epoch, the same on every rank and in every epoch, given the photos of each shard.

    However its shards are dealt, a rank's lanes need no more: each has at most one batch that is not full.
    Raises UsageError if the shards are too few for the ranks, or too unlike.
    """
    if ranks > len(photos):
        raise UsageError(
            f"{len(photos)} shards are too few for {ranks} ranks",
            cure="with shardtool index any number will do",
        )
    parts = deal(photos, range(len(photos)), ranks)
    counts = [sum(photos[shard] for shard in part) for part in parts]
    needed = [
        min(count, -(-count // batch) + _lanes(workers, part) - 1)
        for count, part in zip(counts, parts, strict=True)
    ]
    if max(needed) > min(counts):
        raise UsageError(
            f"some rank's shards hold only {min(counts)} photos", cure="use fewer ranks, or shardtool index"
        )
    return max(needed)


def plan_lanes(
    photos: Sequence[int], shards: Sequence[int], workers: int, batch: int, steps: int
) -> list[Lane]:
    """Deal a rank's `shards` to its workers, and `steps` batches of up to `batch` photos among them."""
    parts = deal(photos, shards, _lanes(workers, shards))
    counts = np.array([sum(photos[shard] for shard in part) for part in parts])
    batches = -(-counts // batch)
    for _ in range(steps - int(batches.sum())):
        batches[np.argmax(counts / batches)] += 1
    return [Lane(*row) for row in zip(parts, counts.tolist(), batches.tolist(), strict=True)]


def _lanes(workers: int, shards: Sequence[int]) -> int:
    return min(max(workers, 1), len(shards))


def resumed(lanes: Sequence[Lane], start: int) -> list[Lane]:
    """What is left after `start` batches; the lane whose turn it is comes first.

    DataLoader takes a batch from each of its workers in turn and passes over those that have no more.
    """
    turns = [lane for turn in range(max(lane.batches for lane in lanes)) for lane in _having(lanes, turn)]
    if start >= len(turns):
        return []
    left = [
        Lane(lane.shards, lane.photos, lane.batches, turns[:start].count(number))
        for number, lane in enumerate(lanes)
    ]
    return left[turns[start] :] + left[: turns[start]]


def _having(lanes: Sequence[Lane], turn: int) -> list[int]:
    return [number for number, lane in enumerate(lanes) if turn < lane.batches]


def buffer_photos(sizes: NDArray[np.int64], budget: int) -> int:
    """Photos that fit a shuffle buffer of `budget` bytes even if the largest come together."""
    largest = np.sort(sizes)[::-1][:SHUFFLE_PHOTOS]
    return max(1, int(np.searchsorted(np.cumsum(largest), budget, side="right")))


def substitute(
    species: NDArray[np.int64], disease: NDArray[np.int64], place: int, good: NDArray[np.int64]
) -> int:
    """Which of the `good` places of a batch to show at a bad one: of the same class, else of the same
    species, else the first."""
    same_species = species[good] == species[place]
    same_class = same_species & (disease[good] == disease[place])
    return int(good[np.argmax(same_species.astype(int) + same_class)])


# --- Reading ------------------------------------------------------------------------------------


class _Photo(NamedTuple):
    data: bytes
    sample: int


class _Loaded(NamedTuple):
    """The columns of a Batch on their way out of a worker, and the photos that were replaced in it."""

    images: torch.Tensor
    species: torch.Tensor
    disease: torch.Tensor
    sample: torch.Tensor
    replaced: tuple[Replaced, ...]


@dataclass(frozen=True, eq=False)
class _Epoch(IterableDataset["_Loaded | Exception"]):
    """One epoch's lanes, one for each worker; all that a worker needs."""

    lanes: Sequence[Lane]
    epoch: int
    survey: Survey
    first: NDArray[np.int64]  # sample id of each shard's first photo
    species: NDArray[np.int64]
    disease: NDArray[np.int64]
    transform: Transform
    buffer: int  # photos; 0: in the order of the shards
    seed: int

    def __iter__(self) -> Iterator[_Loaded | Exception]:
        info = get_worker_info()
        lane = self.lanes[info.id if info else 0]
        photos = self._shuffled(lane)
        try:
            for number, size in enumerate(lane.sizes()):
                batch = list(islice(photos, size))
                if number >= lane.skip:
                    yield self._load(batch)
        except (UserError, OSError) as error:
            yield error  # raised here, DataLoader would turn it into a traceback as text

    def _shuffled(self, lane: Lane) -> Iterator[_Photo]:
        photos = (photo for shard in lane.shards for photo in self._photos(shard))
        if not self.buffer:
            return photos
        rng = random.Random(f"{self.seed} {self.epoch} {lane.shards[0]}")
        from webdataset.filters import shuffle  # takes seconds: not for those who have an index

        mixed: Iterator[_Photo] = shuffle(self.buffer, initial=self.buffer, rng=rng)(photos)
        return mixed

    def _photos(self, shard: int) -> Iterator[_Photo]:
        """Every photo of a shard that the survey saw, once. Raises DatasetError if one does not come."""
        from webdataset.tariterators import tar_file_iterator

        table, url = self.survey.photos[shard], self.survey.urls[shard]
        names = (name.decode("utf-8", "surrogateescape") for name in table.column("source").to_pylist())
        sizes = table.column("size").to_pylist()
        awaited = {name: (place, size) for place, (name, size) in enumerate(zip(names, sizes, strict=True))}
        with _opened(url) as file:
            # nothing else is even read: what claims to be a photo may be a sparse file without end
            for member in tar_file_iterator(file, select_files=awaited.__contains__):
                place, size = awaited.pop(member["fname"])
                if len(member["data"]) != size:
                    raise DatasetError(f"{member['fname']} has changed", where=shown(url), cure=_CURE)
                yield _Photo(member["data"], int(self.first[shard]) + place)
        if awaited:
            raise DatasetError(
                f"only {len(sizes) - len(awaited):,} of {len(sizes):,} photos came, then the shard ended",
                where=shown(url),
                cure=_CURE,
            )

    def _load(self, photos: Sequence[_Photo]) -> _Loaded:
        size, samples = self.transform.size, np.array([photo.sample for photo in photos])
        images = np.empty((len(photos), size, size, 3), dtype=np.uint8)
        bad: dict[int, str] = {}
        for place, (data, sample) in enumerate(photos):
            try:
                self.transform(data, images[place], self.epoch, sample, 0)
            except ValueError as error:
                bad[place] = f"not decodable: {error}"
        if len(bad) == len(photos):
            raise CorruptSample(
                "no photo of a batch decodes", where=self.survey.where(photos[0].sample), cure=_CURE
            )
        replaced = tuple(self._replace(images, samples, bad))
        return _Loaded(
            torch.from_numpy(images),
            torch.from_numpy(self.species[samples]),
            torch.from_numpy(self.disease[samples]),
            torch.from_numpy(samples),
            replaced,
        )

    def _replace(
        self, images: NDArray[np.uint8], samples: NDArray[np.int64], bad: dict[int, str]
    ) -> Iterator[Replaced]:
        """Put others of the batch into bad places of `images` and `samples`."""
        good = np.array([place for place in range(len(samples)) if place not in bad])
        for place, reason in bad.items():
            sample = int(samples[place])
            other = substitute(self.species[samples], self.disease[samples], place, good)
            images[place], samples[place] = images[other], samples[other]
            yield Replaced(sample, int(samples[other]), self.survey.where(sample), reason)


class _Sequential(io.RawIOBase):
    """A file that is read from front to end, as tar readers want it, by `store.reader`: patiently, and
    never with other bytes than those asked for."""

    def __init__(self, read: Read, end: int) -> None:
        self._read, self._end, self._position = read, end, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._read(self._position, min(len(view), self._end - self._position))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    """A shard to be read from front to end. Raises DatasetError."""
    try:
        with reader(url) as (read, size):
            yield io.BufferedReader(_Sequential(read, size), READ_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError("shard is missing", where=shown(url), cure=_CURE) from error
    except tarfile.TarError as error:
        raise DatasetError(f"damaged shard: {error}", where=shown(url), cure=_CURE) from error


# --- What the training loop sees ----------------------------------------------------------------


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is read; `shuffle` off for evaluation."""

    batch: int
    workers: int
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    ranks: int = 1


class Stream:
    """Batches of a surveyed dataset, every photo once an epoch on one of the ranks.

    `taxonomy` is the label space, of this survey or of several. `on_replaced` hears of each photo that does
    not decode once. Raises UsageError for a class that `taxonomy` lacks, and for too few shards.
    """

    def __init__(
        self,
        survey: Survey,
        taxonomy: Taxonomy,
        transform: Transform,
        options: StreamOptions,
        on_replaced: Callable[[Replaced], None] = lambda replaced: None,
    ) -> None:
        if unknown := sorted(set(survey.classes) - taxonomy.row_of.keys()):
            raise UsageError(
                f"{len(unknown)} classes that the label space lacks, the first: {'/'.join(unknown[0])}",
                where=shown(survey.source),
                cure="index both splits together with shardtool index",
            )
        self.survey, self.taxonomy, self.transform, self.options = survey, taxonomy, transform, options
        self.row = np.array([taxonomy.row_of[pair] for pair in survey.classes])[survey.label]
        self.replaced: dict[int, Replaced] = {}  # by sample
        self.on_replaced = on_replaced
        self._photos = [table.num_rows for table in survey.photos]
        self.steps = plan_steps(self._photos, options.workers, options.batch, options.ranks)

    def __len__(self) -> int:
        return len(self.survey)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Photos of each taxonomy row, int64 [rows]."""
        return np.bincount(self.row, minlength=self.taxonomy.rows)

    def where(self, sample: int) -> str:
        """Shard and member of a sample, for messages."""
        return self.survey.where(sample)

    def lanes(self, epoch: int) -> list[Lane]:
        """This rank's shards of an epoch, dealt to its workers."""
        options = self.options
        shards = deal(self._photos, range(len(self._photos)), options.ranks)[options.rank]
        if options.shuffle:
            key = [options.seed, epoch]
            generator = np.random.Generator(np.random.Philox(key=key, counter=[0, SHARDS_STREAM, 0, 0]))
            shards = tuple(generator.permutation(shards).tolist())
        return plan_lanes(self._photos, shards, options.workers, options.batch, self.steps)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, start + 1, … of an epoch; those before are read again, not decoded.

        Photos that do not decode are replaced and listed in `replaced`. Raises DatasetError when they are
        too many, UserError or OSError for what a worker met, TrainingError if one dies.
        """
        lanes = resumed(self.lanes(epoch), start)
        if not lanes:
            return
        step = start
        for images, species, disease, sample, replaced in _raising(iter(self._loader(lanes, epoch))):
            for each in replaced:
                self._note(each)
            yield Batch(images, species, disease, sample, step)
            step += 1
        if step != self.steps:
            raise DatasetError(f"{step} of {self.steps} batches came", where=shown(self.survey.source))

    def _dataset(self, lanes: Sequence[Lane], epoch: int) -> _Epoch:
        sizes = np.concatenate([table.column("size").to_numpy() for table in self.survey.photos])
        species, disease = self.taxonomy.ids(self.row)
        first = np.cumsum([0, *self._photos[:-1]])
        buffer = buffer_photos(sizes, SHUFFLE_BYTES // len(lanes)) if self.options.shuffle else 0
        return _Epoch(
            lanes, epoch, self.survey, first, species, disease, self.transform, buffer, self.options.seed
        )

    def _loader(self, lanes: Sequence[Lane], epoch: int) -> DataLoader[_Loaded | Exception]:
        workers = len(lanes) if self.options.workers else 0
        return DataLoader(
            self._dataset(lanes, epoch),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCH_BATCHES if workers else None,
            # what the survey found is inherited, not copied
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_start_worker,
        )

    def _note(self, replaced: Replaced) -> None:
        """Raises DatasetError when too many photos do not decode."""
        if replaced.sample in self.replaced:
            return
        self.replaced[replaced.sample] = replaced
        self.on_replaced(replaced)
        if len(self.replaced) > max(FEW_BAD, BAD_SHARE * len(self)):
            raise DatasetError(
                f"{len(self.replaced):,} of {len(self):,} photos are bad, the last: {replaced.reason}",
                where=replaced.where,
                cure=_CURE,
            )


def _raising(batches: Iterator[_Loaded | Exception]) -> Iterator[_Loaded]:
    """The batches, until a worker hands over an error or dies."""
    while True:
        try:
            loaded = next(batches, None)
        except (ConnectionError, EOFError, RuntimeError) as error:
            dead = "exited unexpectedly" in str(error) or "killed by signal" in str(error)
            if isinstance(error, RuntimeError) and not dead:
                raise
            raise TrainingError(
                f"a data worker died: {(str(error) or type(error).__name__).splitlines()[0]}",
                cure="often want of memory or of /dev/shm (docker: --ipc=host); run again to go on",
            ) from error
        if loaded is None:
            return
        if isinstance(loaded, Exception):
            raise loaded
        yield loaded


def _start_worker(worker: int) -> None:
    # the main process decides how to stop; its own handlers came along with the fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
