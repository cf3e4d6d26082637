from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from shardtool.errors import TrainingError, UsageError
from shardtool.index import Split, open_split
from shardtool.pack import PackOptions, pack
from train import export as module
from train.calibration import Temperatures
from train.checkpoint import Checkpoint, Position
from train.cli import app
from train.data import prepare
from train.export import HEADS, LABELS, ONNX, PHOTOS, WEIGHTS, Portable, export, read_export, some_photos
from train.model import HierarchicalModel
from train.recipe import Recipe

CPU = torch.device("cpu")
WARM = Temperatures(0.5, 0.8)


@pytest.fixture
def found(tiny: Recipe, split: Split) -> Checkpoint:
    """A checkpoint of a network that has learned nothing, but has opinions."""
    torch.manual_seed(3)
    network = HierarchicalModel(tiny.model, split.taxonomy)
    for head in (network.species_head, network.disease_heads):
        nn.init.normal_(head.weight, std=0.5)
        nn.init.normal_(head.bias)
    state, counts = network.state_dict(), split.class_counts
    return Checkpoint(state, tiny.as_dict(), split.taxonomy, counts, split.digest, Position(), "end")


@pytest.fixture
def photos(split: Split) -> torch.Tensor:
    return some_photos(split, 32)


def logits(model: HierarchicalModel, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        features = model.backbone(prepare(photos, CPU))
        return model.species_head(features), model.disease_heads(features)


def test_weights_that_are_read_back_give_identical_logits(
    found: Checkpoint, photos: torch.Tensor, tmp_path: Path
) -> None:
    export(found, WARM, tmp_path, None)
    back = read_export(tmp_path)
    assert back.taxonomy == found.taxonomy
    assert back.temperatures == WARM
    for ours, theirs in zip(logits(found.build_model(), photos), logits(back.model, photos), strict=True):
        assert torch.equal(ours, theirs)


def test_the_heads_load_as_separate_linear_layers_with_the_same_answers(
    found: Checkpoint, photos: torch.Tensor, tmp_path: Path
) -> None:
    export(found, WARM, tmp_path, None)
    model, sizes = found.build_model(), found.taxonomy.sizes.tolist()
    layers = nn.ModuleList(nn.Linear(model.backbone.num_features, size) for size in sizes)
    layers.load_state_dict(load_file(tmp_path / HEADS))
    with torch.inference_mode():
        features = model.backbone(prepare(photos, CPU))
        rows = model.disease_heads(features).split(sizes, dim=1)
        for layer, own in zip(layers, rows, strict=True):
            torch.testing.assert_close(layer(features), own, atol=1e-6, rtol=0)


def test_the_portable_network_normalises_as_training_does(found: Checkpoint, photos: torch.Tensor) -> None:
    model = found.build_model()
    with torch.inference_mode():
        for ours, theirs in zip(Portable(model)(photos), logits(model, photos), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_labels_tell_all_that_is_needed_to_ask_and_to_read_the_answer(
    found: Checkpoint, tmp_path: Path
) -> None:
    export(found, WARM, tmp_path, None)
    labels = json.loads((tmp_path / LABELS).read_text())
    assert labels["taxonomy"] == found.taxonomy.to_json()
    assert labels["disease_offsets"] == found.taxonomy.offsets.tolist()
    assert labels["temperatures"] == {"species": 0.5, "disease": 0.8}
    assert labels["input"]["shape"] == ["batch", 32, 32, 3]
    assert labels["input"]["mean"] == [0.485, 0.456, 0.406]
    assert labels["onnx"] is None
    for name, digest in labels["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert set(labels["files"]) == {WEIGHTS, HEADS}


def test_photos_to_check_on_come_from_all_over_the_split(split: Split, photos: torch.Tensor) -> None:
    assert photos.shape == (PHOTOS, 32, 32, 3)
    assert len(np.unique(photos.numpy().reshape(PHOTOS, -1), axis=0)) == PHOTOS
    few = some_photos(split, 16)
    assert few.shape == (PHOTOS, 16, 16, 3)


def test_a_damaged_export_is_refused(found: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no export here"):
        read_export(tmp_path)
    export(found, WARM, tmp_path, None)
    data = bytearray((tmp_path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(UsageError, match="not the file that"):
        read_export(tmp_path)
    (tmp_path / LABELS).write_text("{}")
    with pytest.raises(UsageError, match="not an export"):
        read_export(tmp_path)


def test_without_the_packages_the_onnx_form_is_refused_with_the_way_out(
    found: Checkpoint, photos: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name, *rest)
    )
    with pytest.raises(UsageError, match=r"onnxruntime.*--no-onnx"):
        export(found, WARM, tmp_path / "out", photos)
    assert not (tmp_path / "out").exists()


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the packages of the extra `export`",
)


def session_logits(path: Path, photos: torch.Tensor) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["species", "diseases"], {"photos": photos.numpy()})


@needs_onnx
def test_the_onnx_form_answers_any_number_of_photos_as_torch_does(
    found: Checkpoint, photos: torch.Tensor, tmp_path: Path
) -> None:
    check = export(found, WARM, tmp_path, photos)
    assert check is not None
    assert check.photos == PHOTOS
    assert 0 < check.difference <= 1e-3
    assert json.loads((tmp_path / LABELS).read_text())["onnx"] == vars(check)
    model = found.build_model()
    for count in (1, 3, PHOTOS):
        theirs = session_logits(tmp_path / ONNX, photos[:count])
        for ours, other in zip(logits(model, photos[:count]), theirs, strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-3)
    export(found, WARM, tmp_path, None)
    assert not (tmp_path / ONNX).exists(), "it belonged to the export before"


@needs_onnx
def test_an_onnx_form_that_differs_is_not_written(
    found: Checkpoint,
    photos: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    with pytest.raises(TrainingError, match="differs from torch"):
        export(found, WARM, tmp_path / "out", photos)
    assert not (tmp_path / "out").exists()


@needs_onnx
def test_the_command_checks_on_real_leaves(found: Checkpoint, real_leaves: Path, tmp_path: Path) -> None:
    few = tmp_path / "organized"
    for disease in sorted((real_leaves / "val" / "Potato").iterdir()):
        (few / "val" / "Potato" / disease.name).mkdir(parents=True)
        for photo in sorted(disease.iterdir())[:12]:
            (few / "val" / "Potato" / disease.name / photo.name).write_bytes(photo.read_bytes())
    pack(few, tmp_path / "shards", PackOptions())
    found.save(tmp_path / "trained.pt")
    arguments = ["export", str(tmp_path / "trained.pt"), "--to", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--shards", str(tmp_path / "shards" / "val")])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["onnx"]["photos"] == PHOTOS
    assert told["onnx"]["difference"] <= 1e-3
    photos = some_photos(open_split(str(tmp_path / "shards" / "val")), 32)
    for ours, other in zip(
        logits(found.build_model(), photos), session_logits(tmp_path / "out" / ONNX, photos), strict=True
    ):
        np.testing.assert_allclose(ours, other, atol=1e-3)
