"""A checkpoint in portable forms, for programs that do not know this one.

model.safetensors          all weights under their own names; `read_export` builds the model from them
disease_heads.safetensors  the head of species s as a linear layer of its own, "s.weight" and "s.bias":
                           what a ModuleList of as many nn.Linear loads
model.onnx                 uint8 photos in, logits out, the normalisation inside
labels.json                names, temperatures, how a photo becomes an input, what comes out, digests of
                           the files; it is written last, without it there is no export
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from shardtool import __version__
from shardtool.errors import TrainingError, UsageError
from shardtool.files import make_folder, write_atomic
from shardtool.index import Split
from shardtool.taxonomy import Taxonomy
from train.augment import EvalTransform
from train.calibration import Temperatures
from train.checkpoint import Checkpoint
from train.data import MEAN, STD
from train.model import HierarchicalModel
from train.recipe import ModelSpec, parse_recipe

FORMAT = 1
LABELS, WEIGHTS, HEADS, ONNX = "labels.json", "model.safetensors", "disease_heads.safetensors", "model.onnx"
TOLERANCE = 1e-3  # of a logit: in float32 another order of sums is no more than that
PHOTOS = 32  # on which the ONNX form is checked
INPUT, OUTPUTS = "photos", ("species", "diseases")

RESIZE_NOTE = (
    "the upright photo, whole, to this width and height whatever its shape, bilinear; a large JPEG may be "
    "decoded at the smallest size in eighths of which neither side is below that"
)
NORMALISATION_NOTE = (
    "(x / 255 - mean) / std of each colour; model.onnx does it itself, the weights alone expect it done, as "
    "float32 [batch, 3, height, width]"
)
OUTPUT_NOTES = {
    "species": "logits [batch, species]",
    "diseases": "logits [batch, disease_offsets[-1]]; species s owns columns disease_offsets[s] to "
    "disease_offsets[s + 1], the others say nothing about it",
    "probability": "of species s and its disease d: softmax(species / temperatures.species)[s] × softmax(the "
    "columns of s / temperatures.disease)[d]; the likeliest pair is the answer",
}


@dataclass(frozen=True)
class Exported:
    """What an export holds."""

    model: HierarchicalModel
    taxonomy: Taxonomy
    temperatures: Temperatures


@dataclass(frozen=True)
class Check:
    """How far the ONNX runtime's logits are from torch's: the largest difference on so many `photos`."""

    photos: int
    difference: float
    opset: int


class Portable(nn.Module):
    """uint8 photos [B, H, W, 3] -> logits of all species [B, S] and of all diseases [B, R]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: HierarchicalModel) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).mul(255).view(1, 3, 1, 1))

    def forward(self, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = (photos.permute(0, 3, 1, 2).float() - self.mean) / self.std
        features = self.model.backbone(images)
        return self.model.species_head(features), self.model.disease_heads(features)


def export(
    found: Checkpoint, temperatures: Temperatures, folder: Path, photos: torch.Tensor | None
) -> Check | None:
    """Write the export of a checkpoint into a folder.

    `photos` uint8 [n, H, W, 3] are what the ONNX form is checked on; None leaves that form out. Raises
    TrainingError where it differs from torch by more than TOLERANCE (nothing is written then), UsageError
    where the packages that make it are missing.
    """
    model = found.build_model()
    files = {
        WEIGHTS: _safetensors(model.state_dict()),
        HEADS: _safetensors(separate_heads(model, found.taxonomy)),
    }
    check = None
    if photos is not None:
        files[ONNX], check = onnx(model, photos)
    make_folder(folder)
    for name in (LABELS, ONNX):  # what belongs to an earlier export
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        write_atomic(folder / name, data)
    labels = labels_json(found, temperatures, files, check)
    write_atomic(folder / LABELS, json.dumps(labels, indent=2).encode() + b"\n")
    return check


def read_export(folder: Path) -> Exported:
    """The model of an export, in evaluation mode. Raises UsageError if there is none, or a damaged one."""
    try:
        labels = json.loads((folder / LABELS).read_bytes())
        taxonomy = Taxonomy.from_json(labels["taxonomy"])
        spec = ModelSpec.model_validate(labels["model"])
        model = HierarchicalModel(spec, taxonomy, pretrained=False)
        _check_digest(folder, labels, WEIGHTS)
        model.load_state_dict(load_file(folder / WEIGHTS))
        return Exported(model.eval(), taxonomy, Temperatures.from_json(labels["temperatures"]))
    except FileNotFoundError as error:
        raise UsageError("no export here", where=error.filename, cure="run train-hier export") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"not an export of this program: {error}", where=folder) from error


def some_photos(split: Split, size: int) -> torch.Tensor:
    """PHOTOS of a split, from all over it, as the network sees them: uint8 [n, size, size, 3]."""
    if not len(split):
        raise UsageError("no photos to check the ONNX form on", where=split.folder, cure="give another split")
    chosen = np.unique(np.linspace(0, len(split) - 1, PHOTOS).astype(np.int64))
    pixels = np.empty((len(chosen), size, size, 3), dtype=np.uint8)
    transform = EvalTransform(size)
    for photo, out in zip(split.read(chosen), pixels, strict=True):
        transform(photo, out)
    return torch.from_numpy(pixels)


def _check_digest(folder: Path, labels: dict[str, Any], name: str) -> None:
    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != labels["files"][name]:
        raise ValueError(f"{name} is not the file that {LABELS} lists")


def separate_heads(model: HierarchicalModel, taxonomy: Taxonomy) -> dict[str, torch.Tensor]:
    """The disease matrix as one linear layer for each species: {"0.weight": [n_0, D], "0.bias": [n_0], …}."""

    def parts() -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in model.disease_heads.named_parameters():
            for species, own in enumerate(parameter.detach().split(taxonomy.sizes.tolist())):
                yield f"{species}.{name}", own

    return dict(parts())


def _safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(whole, {"tool": f"train-hier {__version__}"})


def labels_json(
    found: Checkpoint, temperatures: Temperatures, files: dict[str, bytes], check: Check | None
) -> dict[str, Any]:
    """All that is to be known beside the weights."""
    spec = parse_recipe(found.recipe, "checkpoint").model
    return {
        "format": FORMAT,
        "tool": f"train-hier {__version__}",
        "taxonomy": found.taxonomy.to_json(),
        "disease_offsets": found.taxonomy.offsets.tolist(),
        "temperatures": vars(temperatures),
        "model": spec.model_dump(mode="json"),
        "input": {
            "name": INPUT,
            "type": "uint8",
            "shape": ["batch", spec.image_size, spec.image_size, 3],
            "colours": "RGB",
            "resize": RESIZE_NOTE,
            "mean": MEAN,
            "std": STD,
            "normalisation": NORMALISATION_NOTE,
        },
        "outputs": OUTPUT_NOTES,
        "metrics": found.metrics,
        "dataset": found.dataset,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "onnx": vars(check) if check else None,
    }


# ---- ONNX -----------------------------------------------------------------------------------------


def onnx(model: HierarchicalModel, photos: torch.Tensor) -> tuple[bytes, Check]:
    """The network as an ONNX file for any number of photos, checked on `photos` uint8 [n, H, W, 3].

    Raises TrainingError, UsageError.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"the ONNX form needs the package {package}",
                cure="pip install 'plant-disease-trainer[export]', or leave it out with --no-onnx",
            )
    portable = Portable(model).eval()
    data, opset = _converted(portable, photos)
    difference = _difference(portable, data, photos)
    if not difference <= TOLERANCE:
        raise TrainingError(
            f"the ONNX form differs from torch by {difference:.2g} in a logit, more than {TOLERANCE:g}",
            cure="leave it out with --no-onnx, and report this with the versions of torch and onnxruntime",
        )
    return data, Check(len(photos), difference, opset)


def _converted(portable: Portable, photos: torch.Tensor) -> tuple[bytes, int]:
    example = photos.new_zeros(2, *photos.shape[1:])  # an example of one photo would fix the batch at one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.onnx.export(
            portable,
            (example,),
            dynamo=True,
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=1 << 16)}},
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString(), int(program.model.opset_imports[""])


@torch.inference_mode()
def _difference(portable: Portable, data: bytes, photos: torch.Tensor) -> float:
    """The largest difference in a logit, of all photos at once and of the first alone; NaN if one is NaN."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in (photos, photos[:1]):
        theirs = session.run(list(OUTPUTS), {INPUT: batch.numpy()})
        for ours, other in zip(portable(batch), theirs, strict=True):
            largest = float(np.maximum(largest, np.abs(ours.numpy() - other).max()))  # maximum keeps NaN
    return largest
