"""A recipe is the whole training protocol as data: model, augmentation, sampling, losses, stages.

Recipes are TOML files (`train/recipes/*.toml` come with the program). Every setting is validated, a
misspelt or unknown one is an error, and two recipes are the same if their `as_dict` is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shardtool.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Trains = Literal["species head", "species", "disease heads", "all"]
Level = Literal["species", "disease"]
Switch = Literal["off", "auto", "on"]
CheckpointFolder = Literal["species_only", "disease_heads", "hierarchical_full"]


NOT_SHAPE = {
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
    *("num_classes", "img_size", "drop_path_rate"),
}
LEARNS_FROM: dict[Trains, set[Level]] = {
    "species head": {"species"},
    "species": {"species"},
    "disease heads": {"disease"},
    "all": {"species", "disease"},
}
Decay = Annotated[float, Field(ge=0, lt=1)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSpec(_Spec):
    """The backbone: a timm model by name, or its shape through `arguments` of its constructor."""

    backbone: str = Field(pattern=r"^[a-z0-9_.]+$")  # a name of timm's: no address, no path
    pretrained: bool = True
    weights: str = ""  # a local .safetensors/.pt file in place of timm's hub
    image_size: int = Field(ge=16)
    drop_path: float = Field(0.1, ge=0, lt=1)
    # "auto": where a check on the device finds the same numbers, faster (train.selftest)
    compile: Switch = "auto"
    fused_attention: Switch = "auto"
    arguments: dict[str, Any] = {}

    @field_validator("arguments")
    @classmethod
    def _shape_only(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        # a checkpoint brings its recipe along: it must not make timm open files or addresses
        for name in sorted(set(arguments) & NOT_SHAPE):
            raise ValueError(f"{name} is no part of the network's shape")
        return arguments


class AugmentSpec(_Spec):
    """What is done to each training photo (docs/design.md lists the profiles)."""

    profile: Literal["seed", "table", "light", "core", "none"] = "seed"
    engine: Literal["fused", "albumentations", "device"] = "fused"
    rand_augment: Literal["off", "all", "lesion-safe"] = "off"
    rand_augment_ops: int = Field(2, ge=1)
    rand_augment_magnitude: int = Field(9, ge=0, le=10)

    @model_validator(mode="after")
    def _rand_augment_comes_last(self) -> AugmentSpec:
        if self.engine == "device" and self.rand_augment != "off":
            raise ValueError("engine device needs rand_augment off: it follows the rest, and runs on the CPU")
        return self


class MixSpec(_Spec):
    """MixUp and CutMix: `probability` that a batch is mixed, half of those by each."""

    probability: float = Field(0.5, ge=0, le=1)
    mixup_alpha: float = Field(0.2, gt=0)
    cutmix_alpha: float = Field(1.0, gt=0)


class LossSpec(_Spec):
    """One loss family for both levels; `disease_weight` is the 0.7 of L_species + 0.7 L_disease."""

    kind: Literal["focal", "cross entropy"] = "focal"
    gamma: float = Field(2.0, ge=0)
    alpha: float = Field(0.25, gt=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    disease_weight: float = Field(0.7, ge=0)


class OptimizerSpec(_Spec):
    """AdamW; `weight_decay` spares norms, biases, position tables and heads."""

    batch: int = Field(256, ge=1)
    micro_batch: int = Field(0, ge=0)  # photos at a time on the device, 0 = the whole batch
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    clip: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    ema: float = Field(0.0, ge=0, lt=1)  # running mean of the weights that is scored; 0 = none
    max_skipped: int = Field(10, ge=0)  # steps with a loss that is not finite, before the run stops


class Tier(_Spec):
    """Classes with fewer than `below` training photos: each of their photos `repeat` times."""

    below: int = Field(ge=1)
    repeat: int = Field(ge=1)


class StageSpec(_Spec):
    """One step of the protocol. Checkpoints of stages with one `folder` count their epochs on."""

    name: str
    folder: CheckpointFolder
    epochs: int = Field(ge=0)
    trains: Trains
    lr: float = Field(gt=0)
    lr_end: float = Field(0.0, ge=0)  # cosine from lr to here; 0 keeps lr
    warmup_epochs: float = Field(0.0, ge=0)  # linear from zero
    backbone_lr_scale: float = Field(1.0, gt=0)
    sampler: str = "uniform"  # or a name in Recipe.samplers
    mixing: bool = True
    mixing_off_epochs: int = Field(0, ge=0)  # unmixed epochs at the end of the stage
    losses: tuple[Level, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _losses_reach_what_trains(self) -> StageSpec:
        if not set(self.losses) <= LEARNS_FROM[self.trains]:
            raise ValueError(f"{self.trains} cannot learn from the loss of {', '.join(self.losses)}")
        return self


class Recipe(_Spec):
    """Everything that shapes the trained weights."""

    name: str
    seed: int = Field(0, ge=0, lt=1 << 63)
    model: ModelSpec
    augment: AugmentSpec = AugmentSpec()
    mix: MixSpec = MixSpec()
    loss: LossSpec = LossSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    samplers: dict[str, tuple[Tier, ...]] = {}
    stages: tuple[StageSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_samplers(self) -> Recipe:
        for stage in self.stages:
            if stage.sampler != "uniform" and stage.sampler not in self.samplers:
                raise ValueError(f"stage {stage.name!r} names no sampler: {stage.sampler!r}")
        return self

    def tiers(self, stage: StageSpec) -> tuple[Tier, ...]:
        """The repeat rule of a stage, empty for uniform sampling."""
        return self.samplers.get(stage.sampler, ())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints and comparison."""
        return self.model_dump(mode="json")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program."""
    folder = resources.files("train") / "recipes"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".toml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path, with overrides such as "stages.1.epochs=3" applied.

    Raises UsageError naming the setting that is wrong.
    """
    text = _recipe_text(name)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML: {error}", where=name) from error
    value.setdefault("name", Path(name).stem)
    for override in overrides:
        _override(value, override)
    return parse_recipe(value, name)


def parse_recipe(value: dict[str, Any], where: str) -> Recipe:
    """Validate plain data, from a TOML file or a checkpoint. Raises UsageError."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"]) or "recipe"
        unknown = first["type"] == "extra_forbidden"
        problem = "there is no such setting" if unknown else first["msg"]
        raise UsageError(f"{setting}: {problem}", where=where) from None


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ between two recipes as plain data: ["optimizer.batch 256 -> 128"]."""
    lines = []
    for key in sorted(set(old) | set(new)):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, name + ".")
        elif isinstance(before, list) and isinstance(after, list):
            as_items = [dict(zip(map(str, range(len(v))), v, strict=True)) for v in (before, after)]
            lines += differences(as_items[0], as_items[1], name + ".")
        elif before != after:
            lines.append(f"{name} {before} -> {after}")
    return lines


def _recipe_text(name: str) -> str:
    if name in recipe_names():
        return (resources.files("train") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path.read_text(encoding="utf-8")
    raise UsageError("no such recipe", where=name, cure=f"use {', '.join(recipe_names())} or a .toml file")


def _override(value: dict[str, Any], override: str) -> None:
    """Apply "a.b=c"; lists are indexed by number, `c` is a TOML value or else a bare string."""
    path, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override}", cure="write --set optimizer.batch=128")
    *parents, last = path.strip().split(".")
    target: Any = value
    for part in parents:
        if isinstance(target, list):
            target = target[_index(target, part, override)]
        else:
            target = target.setdefault(part, {})
        if not isinstance(target, dict | list):
            raise UsageError(f"--set {override}: {part} has no parts")
    target[_index(target, last, override) if isinstance(target, list) else last] = _toml_value(text)


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise UsageError(f"--set {override}: {part} is no number under {len(items)}")
    return int(part)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
