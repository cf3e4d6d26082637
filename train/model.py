"""One Swin backbone, one species head, one disease matrix with the heads of all species as segments.

Legend: B photos, S species, R rows of all disease heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shardtool.errors import UsageError
from shardtool.taxonomy import Taxonomy
from train.compat import import_torchvision
from train.recipe import ModelSpec
from train.segments import DiseaseLogits, Segments, disease_logits

HEAD_STD = 0.02  # of the first weights of a head


@dataclass(frozen=True)
class Logits:
    """species [B, S]; diseases [B, R], of which only the rows of one species mean anything at once."""

    species: torch.Tensor
    diseases: DiseaseLogits


class HierarchicalModel(nn.Module):
    """`backbone`, `species_head`, `disease_heads`; the forward pass gives the logits of both levels."""

    def __init__(self, spec: ModelSpec, taxonomy: Taxonomy, pretrained: bool | None = None) -> None:
        """`pretrained=False` builds the network without weights, to be loaded from a checkpoint."""
        super().__init__()
        self.backbone = _backbone(spec, spec.pretrained if pretrained is None else pretrained)
        features = int(self.backbone.num_features)
        self.species_head = nn.Linear(features, len(taxonomy.species))
        self.disease_heads = nn.Linear(features, taxonomy.rows)
        self.segments = Segments(taxonomy)
        self.compiled_for = 0  # photos in a batch; 0: the backbone is not compiled (train.selftest)
        for head in (self.species_head, self.disease_heads):
            nn.init.trunc_normal_(head.weight, std=HEAD_STD)
            nn.init.zeros_(head.bias)

    def forward(self, images: torch.Tensor) -> Logits:
        """images float [B, 3, H, W], normalised as data.prepare does."""
        features = self._features(images)
        return Logits(self.species_head(features), disease_logits(features, self.disease_heads))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, D]. Only training batches of one size are compiled: each other size would take a compilation of
        its own, and validation computes what a later evaluation of the checkpoint will."""
        compiled = len(images) == self.compiled_for and torch.is_grad_enabled()
        features: torch.Tensor = self.backbone(images) if compiled else self.backbone.forward(images)
        return features


def _backbone(spec: ModelSpec, pretrained: bool) -> Any:
    import_torchvision()
    import timm

    if not timm.is_model(spec.backbone):
        raise UsageError(f"timm knows no model {spec.backbone}", cure="see timm.list_models('swin*')")
    arguments = {
        "num_classes": 0,
        "img_size": spec.image_size,
        "drop_path_rate": spec.drop_path,
        **spec.arguments,
    }
    try:
        backbone = timm.create_model(spec.backbone, pretrained=pretrained and not spec.weights, **arguments)
    except Exception as error:
        raise _cure(error, spec) from error
    if pretrained and spec.weights:
        _load_weights(backbone, Path(spec.weights))
    return backbone


def _cure(error: Exception, spec: ModelSpec) -> UsageError:
    """timm raises what its hub client, urllib or the constructor happen to raise."""
    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if not spec.pretrained or isinstance(error, (TypeError, AssertionError)):
        return UsageError(f"timm cannot build {spec.backbone}: {first}", cure="see [model]")
    return UsageError(
        f"the pretrained weights of {spec.backbone} cannot be fetched ({first})",
        cure="give a local file (--set model.weights=FILE.safetensors), a mirror "
        "(HF_ENDPOINT=https://…), or start from scratch (--no-pretrained)",
    )


def _load_weights(backbone: nn.Module, path: Path) -> None:
    """Load a state dict of timm's or of the Swin authors; its classifier is left aside.

    Raises UsageError naming what does not fit.
    """
    if not path.is_file():
        raise UsageError("no such weights file", where=path, cure="mend model.weights")
    from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

    try:
        state = _read_weights(path)
        # timm's own filter drops stored buffers, renames, and resizes position tables
        if isinstance(backbone, SwinTransformer):
            state = checkpoint_filter_fn(state, backbone)
        missing, unexpected = backbone.load_state_dict(state, strict=False)
    except Exception as error:  # safetensors, pickle and torch raise their own
        first = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise UsageError(f"weights cannot be loaded: {first[:200]}", where=path) from error
    foreign = [name for name in unexpected if not name.startswith("head.")]
    if missing or foreign:
        raise UsageError(
            f"weights do not fit the backbone: {len(missing)} missing, {len(foreign)} unknown, "
            f"first {(missing + foreign)[0]}",
            where=path,
            cure="use the weights of this timm model",
        )


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    weights: dict[str, torch.Tensor] = state.get("model", state)
    return weights
