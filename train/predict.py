"""Photos and a model -> species and disease with probabilities.

The answer is the likeliest pair of species and disease among the few likeliest species; with a beam of 1
the species is settled first (hard routing). Photos are read and decoded by threads while the network
looks at the batch before.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardtool.photo import Refused, begins_like_an_image, encode
from shardtool.scan import IMAGE_ENDINGS, MAGIC_BYTES
from shardtool.source import read_source
from shardtool.taxonomy import Taxonomy
from train.augment import EvalTransform
from train.calibration import BEAM, SURE, Outputs, Temperatures, answers, log_softmax
from train.data import prepare
from train.evaluate import heads
from train.model import HierarchicalModel

BATCH = 64
BATCHES_AHEAD = 2
Pixels = NDArray[np.uint8]  # H, W, 3


@dataclass(frozen=True)
class Guess:
    """A name and its probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What is seen on a photo.

    `answer` is the likeliest (species, disease), `probability` that of the pair, `sure` whether it is enough.
    `species` are the likeliest ones; `diseases` those of the answered species, should it be that one.
    """

    photo: str
    answer: tuple[str, str]
    probability: float
    sure: bool
    species: tuple[Guess, ...]
    diseases: tuple[Guess, ...]


@dataclass(frozen=True)
class NotAPhoto:
    """Why a path could not be answered."""

    photo: str
    reason: str


@dataclass(frozen=True)
class Rule:
    """How an answer is found: species in the beam, guesses to list, the probability from which it is sure."""

    beam: int = BEAM
    top: int = 3
    sure: float = SURE
    temperatures: Temperatures = field(default_factory=Temperatures)


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """The files that are meant: a folder is all photos below it, sorted; *, ? and [ ] outside of names that
    exist are a pattern, ** any folders. What is not there is kept: it will be answered as such."""
    return list(dict.fromkeys(itertools.chain.from_iterable(map(_meant, paths))))


def _meant(path: Path) -> Sequence[Path]:
    if path.is_dir():
        return _below(path) or [path]
    if glob.has_magic(str(path)) and not os.path.lexists(path):
        found = sorted(map(Path, glob.glob(str(path), recursive=True)))
        return [photo for match in found for photo in (_below(match) if match.is_dir() else [match])] or [
            path
        ]
    return [path]


def _below(folder: Path) -> list[Path]:
    """Photos by name or content; hidden files and links stay out, as in packing."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(parent, name) for name in names if not name.startswith("."))
        found += [path for path in files if path.is_file() and not path.is_symlink() and _like_a_photo(path)]
    return sorted(found)


def _like_a_photo(path: Path) -> bool:
    if os.fsencode(path.suffix.lower()) in IMAGE_ENDINGS:
        return True
    try:
        with path.open("rb", buffering=0) as file:
            return begins_like_an_image(file.read(MAGIC_BYTES))
    except OSError:
        return False


def predict(
    model: HierarchicalModel,
    taxonomy: Taxonomy,
    photos: Sequence[Path],
    image_size: int,
    device: torch.device,
    rule: Rule,
    threads: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction | NotAPhoto]:
    """Answers in the order of the photos; a photo goes through the same steps as in packing."""
    read = partial(_pixels, EvalTransform(image_size))
    with ThreadPoolExecutor(threads) as pool:
        for group in _ahead(pool, read, photos):
            ready = [(str(path), future.result()) for path, future in group]
            good = [(name, image) for name, image in ready if not isinstance(image, str)]
            answered = iter(_ask(model, taxonomy, good, device, rule))
            for name, image in ready:
                yield NotAPhoto(name, image) if isinstance(image, str) else next(answered)
            progress(len(group))


Group = list[tuple[Path, "Future[Pixels | str]"]]


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Path], Pixels | str], photos: Sequence[Path]
) -> Iterator[Group]:
    """Groups of photos being read: a few ahead, not all, for they would not fit in memory."""
    waiting: deque[Group] = deque()
    for start in range(0, len(photos), BATCH):
        waiting.append([(path, pool.submit(read, path)) for path in photos[start : start + BATCH]])
        if len(waiting) > BATCHES_AHEAD:
            yield waiting.popleft()
    yield from waiting


def _pixels(transform: EvalTransform, path: Path) -> Pixels | str:
    """The network's view of a photo, or why there is none."""
    if path.is_dir():
        return "no photos in this folder"
    try:
        data = encode(read_source(os.fsencode(path))).data
        out = np.empty((transform.size, transform.size, 3), dtype=np.uint8)
        transform(data, out)
    except (Refused, ValueError) as error:
        return str(error)
    return out


@torch.inference_mode()
def _ask(
    model: HierarchicalModel,
    taxonomy: Taxonomy,
    photos: Sequence[tuple[str, Pixels]],
    device: torch.device,
    rule: Rule,
) -> list[Prediction]:
    """The answers to a batch of photos, given with their names."""
    if not photos:
        return []
    logits = model(prepare(torch.from_numpy(np.stack([image for _, image in photos])), device))
    seen = heads(logits, model.segments, rule.beam)
    species, log_p = logits.species.float().cpu().numpy(), seen.log_p.cpu().numpy()
    outputs = Outputs(species, log_p[:, 0], seen.beam.cpu().numpy(), log_p)
    given = answers(outputs, rule.temperatures, rule.beam)
    species_p = np.exp(log_softmax(species, rule.temperatures.species))
    disease_p = np.exp(log_softmax(log_p, rule.temperatures.disease))
    place = (outputs.beam == given.species[:, None]).argmax(1)
    return [
        Prediction(
            name,
            taxonomy.names(given.species[photo], given.disease[photo]),
            float(given.probability[photo]),
            bool(given.probability[photo] >= rule.sure),
            _best(species_p[photo], taxonomy.species, rule.top),
            _best(disease_p[photo, place[photo]], taxonomy.diseases[given.species[photo]], rule.top),
        )
        for photo, (name, _) in enumerate(photos)
    ]


def _best(probabilities: NDArray[np.floating[Any]], names: Sequence[str], top: int) -> tuple[Guess, ...]:
    places = np.argsort(-probabilities[: len(names)], kind="stable")[:top].tolist()
    return tuple(Guess(names[place], float(probabilities[place])) for place in places)
