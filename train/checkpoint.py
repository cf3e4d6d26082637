"""Checkpoints: plain tensors and plain data in a .pt file, written whole or not at all.

Every checkpoint holds the weights, the recipe, the label space and the scores; `last.pt` also holds the
optimizer by parameter name and the position, from which the same command goes on. All load with
`torch.load(path, weights_only=True)`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardtool import __version__
from shardtool.errors import ResumeRefused, UsageError
from shardtool.files import atomic
from shardtool.taxonomy import Taxonomy
from train.model import HierarchicalModel
from train.recipe import CheckpointFolder, differences, parse_recipe

FORMAT = 1
LAST = "last.pt"
BEST_SUFFIX = "-best.pt"
FREE_SETTINGS = ("name", "optimizer.micro_batch")  # they do not decide what is learned


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
    finished: bool = False

    def save(self, path: Path) -> None:
        """Write atomically. Raises NoSpace; what stood at `path` stays then."""
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

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint file. Raises UsageError for anything else."""
        if not path.is_file():
            raise UsageError("no such checkpoint", where=path, cure="give a .pt file or a run folder")
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # the unpickler trips over foreign bytes in any way there is
            raise UsageError("not a checkpoint, or a damaged one", where=path) from None
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

    def build_model(self) -> HierarchicalModel:
        """The network with these weights, in evaluation mode, on the CPU.

        Raises UsageError if the weights are not those of the recipe's network.
        """
        recipe = parse_recipe(self.recipe, "checkpoint")
        model = HierarchicalModel(recipe.model, self.taxonomy, pretrained=False)
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            raise UsageError(f"the checkpoint's weights do not fit: {str(error).splitlines()[-1]}") from None
        return model.eval()

    def check_resumable(self, recipe: dict[str, Any], taxonomy: Taxonomy, dataset: str) -> None:
        """Raises ResumeRefused, with what differs, if a run would go on with something else."""
        changed = [
            line for line in differences(self.recipe, recipe) if line.split(" ", 1)[0] not in FREE_SETTINGS
        ]
        if self.taxonomy.digest != taxonomy.digest:
            changed.append(f"classes: {self.taxonomy.difference(taxonomy) or 'another order'}")
        elif self.dataset != dataset:
            changed.append(f"data {self.dataset[:12]} -> {dataset[:12]}")
        if changed:
            raise ResumeRefused(
                f"this run was started with something else: {'; '.join(changed)}",
                cure="use the same settings, or another --out for a new run",
            )


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


def find_checkpoint(path: Path) -> Path:
    """A checkpoint file, or of a run folder the best end-to-end one, else last.pt."""
    if not path.is_dir():
        return path
    best = sorted((path / "hierarchical_full").glob(f"epoch=*{BEST_SUFFIX}"))
    return best[-1] if best else path / LAST
