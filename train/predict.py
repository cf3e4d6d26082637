"""Photos and a model -> species and disease with probabilities.

Hard routing: the likeliest species, then the diseases of that species' head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shardtool.photo import Refused, encode
from shardtool.source import read_source
from shardtool.taxonomy import Taxonomy
from train.augment import EvalTransform
from train.data import decode, decode_side, prepare
from train.model import HierarchicalModel


@dataclass(frozen=True)
class Guess:
    """A name and its probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What is seen on a photo: the likeliest species, and the diseases of the likeliest one."""

    photo: str
    species: tuple[Guess, ...]
    diseases: tuple[Guess, ...]


@dataclass(frozen=True)
class NotAPhoto:
    """Why a path could not be answered."""

    photo: str
    reason: str


def predict(
    model: HierarchicalModel,
    taxonomy: Taxonomy,
    photos: Sequence[Path],
    image_size: int,
    top: int,
    device: torch.device,
) -> Iterator[Prediction | NotAPhoto]:
    """Answers in the order of the photos; a photo goes through the same steps as in packing."""
    transform = EvalTransform(image_size)
    for path in photos:
        try:
            data = encode(read_source(str(path).encode("utf-8", "surrogateescape"))).data
        except Refused as error:
            yield NotAPhoto(str(path), str(error))
            continue
        pixels = transform(decode(data, decode_side(image_size)), 0, 0, 0)
        yield _ask(model, taxonomy, str(path), torch.from_numpy(pixels)[None], top, device)


@torch.inference_mode()
def _ask(
    model: HierarchicalModel,
    taxonomy: Taxonomy,
    photo: str,
    image: torch.Tensor,
    top: int,
    device: torch.device,
) -> Prediction:
    logits = model(prepare(image, device))
    species_p = logits.species.float().softmax(1)
    species = species_p.argmax(1)
    log_p, _ = model.segments.log_softmax(logits.diseases, species)
    names = taxonomy.diseases[int(species)]
    return Prediction(
        photo,
        _best(species_p[0], taxonomy.species, top),
        _best(log_p[0, : len(names)].exp(), names, top),
    )


def _best(probabilities: torch.Tensor, names: Sequence[str], top: int) -> tuple[Guess, ...]:
    values, places = probabilities.topk(min(top, len(names)))
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    return tuple(Guess(names[place], float(value)) for place, value in pairs)
