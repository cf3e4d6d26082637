"""Checkpoints: plain tensors and plain data in a .pt file, written whole or not at all.

Every checkpoint holds the weights, the recipe, the label space and the scores; `last.pt` also holds the
optimizer by parameter name and the position, from which the same command goes on. All load with
`torch.load(path, weights_only=True)`, which takes a flipped bit in a tensor without a word: so the SHA-256
of each lies beside it, in the form of `sha256sum -c`, and is compared first.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardtool import __version__
from shardtool.errors import ResumeRefused, UsageError
from shardtool.files import TEMPORARY, atomic, write_atomic
from shardtool.taxonomy import Taxonomy
from train.model import HEAD_STD, HierarchicalModel
from train.order import changes
from train.recipe import CheckpointFolder, differences, parse_recipe

FORMAT = 1
LAST = "last.pt"
DIGEST_SUFFIX = ".sha256"
BEST_SUFFIX = "-best.pt"
FREE_SETTINGS = (
    *("name", "optimizer.micro_batch", "optimizer.max_skipped"),
    *("model.compile", "model.fused_attention"),
)  # they do not decide what is learned


class Damaged(UsageError):
    """A checkpoint file whose bytes are not those that were written."""


@dataclass(frozen=True)
class Position:
    """What has been trained: `step` batches of epoch `epoch` of stage `stage`, all from zero."""

    stage: int = 0
    epoch: int = 0
    step: int = 0


@dataclass
class Checkpoint:
    """The contents of a checkpoint file."""

    model: dict[str, torch.Tensor]
    recipe: dict[str, Any]
    taxonomy: Taxonomy
    train_counts: NDArray[np.int64]
    dataset: str
    position: Position
    stage: str
    metrics: dict[str, float | None] = field(default_factory=dict)
    tail_f1: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # best score so far of each folder
    optimizer: dict[str, dict[str, torch.Tensor]] | None = None
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16, {} elsewhere
    heads: dict[str, torch.Tensor] = field(default_factory=dict)  # of HeadWatch
    ema: dict[str, torch.Tensor] = field(default_factory=dict)  # averaged weights, {} without them
    temperatures: dict[str, float] = field(default_factory=dict)  # of calibration, {} before it
    order: dict[str, Any] = field(default_factory=dict)  # of each stage, what decides the order of photos
    protocol: list[str] = field(default_factory=list)  # of the stage, in words
    finished: bool = False

    def save(self, path: Path) -> None:
        """Write atomically, and the digest beside it. Raises NoSpace; what stood at `path` stays then."""
        value = {
            "format": FORMAT,
            "tool": f"train-hier {__version__}",
            **vars(self),
            "taxonomy": self.taxonomy.to_json(),
            "train_counts": torch.from_numpy(self.train_counts),
            "position": asdict(self.position),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            try:
                torch.save(value, file)
            except RuntimeError as error:  # torch wraps a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            file.flush()
            new = _sha256(Path(file.name))
            # whatever happens between here and the rename, one of them is right
            _write_digests(path, [new, *_digests(path)])
        _write_digests(path, [new])

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint file. Raises Damaged if it is not what was written, UsageError for a file that
        is no checkpoint."""
        if not path.is_file():
            raise UsageError("no such checkpoint", where=path, cure="give a .pt file or a run folder")
        if (known := _digests(path)) and _sha256(path) not in known:
            raise Damaged("damaged (sha256 differs)", where=path, cure="use an earlier checkpoint")
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # the unpickler trips over foreign bytes in any way there is
            raise Damaged("not a checkpoint, or a damaged one", where=path) from None
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise UsageError("not a checkpoint of this program", where=path)
        try:
            del value["tool"]
            value["taxonomy"] = Taxonomy.from_json(value["taxonomy"])
            value["train_counts"] = value["train_counts"].numpy()
            value["position"] = Position(**value["position"])
            return cls(**value)
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError(f"not a checkpoint of this program: {error!r}", where=path) from None

    def build_model(self, averaged: bool = True) -> HierarchicalModel:
        """The network with these weights, or their running mean if there is one and it is wanted, in
        evaluation mode, on the CPU.

        Raises UsageError if the weights are not those of the recipe's network.
        """
        recipe = parse_recipe(self.recipe, "checkpoint")
        model = HierarchicalModel(recipe.model, self.taxonomy, pretrained=False)
        try:
            model.load_state_dict((averaged and self.ema) or self.model)
        except RuntimeError as error:
            raise UsageError(f"the checkpoint's weights do not fit: {str(error).splitlines()[-1]}") from None
        return model.eval()

    def remapped(self, taxonomy: Taxonomy) -> Checkpoint:
        """The same network for another label space: classes are found by name and keep what they have
        learned, new ones start as in a new network. Goes on from the start of the epoch, with a fresh
        optimizer."""
        species = _places(self.taxonomy.species, taxonomy.species)
        rows = _places(self.taxonomy.row_names, taxonomy.row_names)

        def moved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            fresh = torch.Generator().manual_seed(int(self.recipe["seed"]))  # the mean starts as its weights
            return {
                name: _moved(tensor, {"species_head": species, "disease_heads": rows}[part], fresh)
                if (part := name.partition(".")[0]) in ("species_head", "disease_heads")
                else tensor
                for name, tensor in weights.items()
            }

        position = Position(self.position.stage, self.position.epoch)
        return replace(
            self,
            model=moved(self.model),
            ema=moved(self.ema),
            taxonomy=taxonomy,
            position=position,
            optimizer=None,
            scaler={},
            heads={},
            best={},
        )

    def check_resumable(
        self, recipe: dict[str, Any], taxonomy: Taxonomy, dataset: str, order: dict[str, Any]
    ) -> None:
        """Raises ResumeRefused, with what differs, if a run would go on with something else."""
        changed = [
            line for line in differences(self.recipe, recipe) if line.split(" ", 1)[0] not in FREE_SETTINGS
        ]
        cure = "use the same settings, or another --out for a new run"
        if self.taxonomy.digest != taxonomy.digest:
            changed.append(f"classes: {self.taxonomy.difference(taxonomy) or 'another order'}")
            cure += "; --remap goes on with other classes, mapped by name"
        elif self.dataset != dataset:
            changed.append(f"data {self.dataset[:12]} -> {dataset[:12]}")
        elif not changed:  # they say more about the same change
            lines = (changes(before, order.get(stage, {})) for stage, before in self.order.items())
            changed += [f"order of photos: {line}" for line in dict.fromkeys(itertools.chain(*lines))]
        if changed:
            raise ResumeRefused(f"this run was started with something else: {'; '.join(changed)}", cure=cure)


def save_last(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write last.pt; the one before stays as last-1.pt and so on, `keep` files in all.

    `last.pt` is there at every moment: the old one gets a second name, then the new one takes its own.
    """
    names = [resume_name(age) for age in range(keep)]
    for newer, older in reversed(list(itertools.pairwise(names))):
        if (folder / newer).exists():
            _second_name(folder / newer, folder / older)
    checkpoint.save(folder / LAST)


def resume_name(age: int) -> str:
    """last.pt, last-1.pt, last-2.pt, …"""
    return f"last-{age}.pt" if age else LAST


def load_last(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint to go on from that is whole, and what there is to say about damaged ones.

    A damaged one is renamed, never deleted. None where there is no checkpoint at all; raises Damaged where
    none is whole.
    """
    notes: list[str] = []
    for path in _resumable(folder):
        try:
            found = Checkpoint.load(path)
        except Damaged as error:
            aside = path.with_name(f"damaged-{path.name}")
            os.replace(path, aside)
            _digest_path(path).unlink(missing_ok=True)
            notes.append(f"{path.name} is {error.what}, kept as {aside.name}")
            continue
        return found, notes
    if notes:
        raise Damaged(
            "; ".join(notes), where=folder, cure="no earlier checkpoint is left: the same command starts anew"
        )
    return None, notes


def _resumable(folder: Path) -> Iterator[Path]:
    """Newest first."""
    yield from (path for path in [folder / LAST] if path.exists())
    ages = (path.stem.removeprefix("last-") for path in folder.glob("last-*.pt"))
    for age in sorted(int(age) for age in ages if age.isdigit()):
        yield folder / resume_name(age)


def _second_name(path: Path, name: Path) -> None:
    """The file at `path` is at `name`, too; what was there is gone."""
    _write_digests(name, [*_digests(path), *_digests(name)])
    temporary = name.with_name(f"{TEMPORARY}{name.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
    _write_digests(name, _digests(path))


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + DIGEST_SUFFIX)


def _digests(path: Path) -> list[str]:
    """The digests that the file at `path` may have; none are known of a foreign file."""
    try:
        lines = _digest_path(path).read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    return [line.split()[0] for line in lines if line.strip()]


def _write_digests(path: Path, digests: list[str]) -> None:
    text = "".join(f"{digest}  {path.name}\n" for digest in digests)
    write_atomic(_digest_path(path), text.encode())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _places(old: Sequence[Any], new: Sequence[Any]) -> list[int]:
    """Where each new name stood among the old ones, -1 for one that is new."""
    place = {name: number for number, name in enumerate(old)}
    return [place.get(name, -1) for name in new]


def _moved(tensor: torch.Tensor, places: list[int], generator: torch.Generator) -> torch.Tensor:
    """Rows of a head in their new places; new rows as `HierarchicalModel` draws them."""
    result = torch.zeros(len(places), *tensor.shape[1:], dtype=tensor.dtype)
    if tensor.ndim > 1:
        torch.nn.init.trunc_normal_(result, std=HEAD_STD, generator=generator)
    for row, place in enumerate(places):
        if place >= 0:
            result[row] = tensor[place]
    return result


def stage_files(folder: CheckpointFolder, epoch: int, val_loss: float, last: bool) -> list[str]:
    """Names of the checkpoints at the end of a stage, as the source document has them."""
    if folder == "species_only":
        return [f"epoch={epoch:02d}-val_loss={val_loss:.2f}.pt"]
    if folder == "disease_heads":
        final = ["disease_heads_final.pt"] if last else []
        return [f"disease_heads_epoch={epoch:02d}.pt", *final]
    return [f"epoch={epoch:02d}.pt"]


def save_best(folder: Path, epoch: int, checkpoint: Checkpoint) -> None:
    """Write the best checkpoint of a folder, then remove the one that was best before."""
    path = folder / f"epoch={epoch:02d}{BEST_SUFFIX}"
    before = set(folder.glob(f"epoch=*{BEST_SUFFIX}"))
    checkpoint.save(path)
    for old in before - {path}:
        old.unlink()
        _digest_path(old).unlink(missing_ok=True)


def find_checkpoint(path: Path) -> Path:
    """A checkpoint file, or of a run folder the best end-to-end one, else last.pt."""
    if not path.is_dir():
        return path
    best = sorted((path / "hierarchical_full").glob(f"epoch=*{BEST_SUFFIX}"))
    return best[-1] if best else path / LAST
