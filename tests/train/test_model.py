from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shardtool.errors import UsageError
from shardtool.taxonomy import Taxonomy
from train.model import HierarchicalModel
from train.recipe import Recipe


def test_the_logits_have_one_column_a_species_and_one_a_class(tiny: Recipe, ragged: Taxonomy) -> None:
    logits = HierarchicalModel(tiny.model, ragged)(torch.zeros(2, 3, 32, 32))
    assert logits.species.shape == (2, 3)
    assert logits.diseases.shape == (2, 6)


def test_probabilities_of_a_species_add_up_over_its_own_diseases(tiny: Recipe, ragged: Taxonomy) -> None:
    segments = HierarchicalModel(tiny.model, ragged).segments
    log_p, valid = segments.log_softmax(torch.randn(3, 6), torch.tensor([0, 1, 2]))
    assert valid.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert torch.allclose(log_p.exp().sum(1), torch.ones(3))


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_backbone_weights_come_from_a_local_file(
    tiny: Recipe, ragged: Taxonomy, tmp_path: Path, ending: str
) -> None:
    source = HierarchicalModel(tiny.model, ragged).backbone.state_dict()
    path = tmp_path / f"weights.{ending}"
    # a classifier, and a buffer that Swin's authors stored
    with_classifier = {
        **source,
        "head.fc.weight": torch.zeros(1),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16),
    }
    (save_file if ending == "safetensors" else torch.save)(with_classifier, path)
    spec = tiny.model.model_copy(update={"pretrained": True, "weights": str(path)})
    loaded = HierarchicalModel(spec, ragged).backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in source.items())


def test_weights_of_another_network_are_refused(tiny: Recipe, ragged: Taxonomy, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    spec = tiny.model.model_copy(update={"pretrained": True, "weights": str(path)})
    with pytest.raises(UsageError, match="do not fit the backbone"):
        HierarchicalModel(spec, ragged)


def test_an_unreachable_hub_is_told_with_the_three_ways_out(
    tiny: Recipe, ragged: Taxonomy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = tiny.model.model_copy(
        update={"backbone": "swin_tiny_patch4_window7_224.ms_in22k", "pretrained": True, "arguments": {}}
    )
    spec = spec.model_copy(update={"image_size": 224})
    with pytest.raises(UsageError, match=r"model\.weights=.*HF_ENDPOINT.*--no-pretrained"):
        HierarchicalModel(spec, ragged)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_backbone_that_timm_does_not_know_is_named(
    tiny: Recipe, ragged: Taxonomy, pretrained: bool
) -> None:
    spec = tiny.model.model_copy(update={"backbone": "no_such_net", "pretrained": pretrained})
    with pytest.raises(UsageError, match="timm knows no model no_such_net"):
        HierarchicalModel(spec, ragged)


def test_damaged_weights_are_a_clear_error(tiny: Recipe, ragged: Taxonomy, tmp_path: Path) -> None:
    for ending in ("safetensors", "pt"):
        path = tmp_path / f"broken.{ending}"
        path.write_bytes(b"nothing of the kind")
        spec = tiny.model.model_copy(update={"pretrained": True, "weights": str(path)})
        with pytest.raises(UsageError, match="cannot be loaded"):
            HierarchicalModel(spec, ragged)
