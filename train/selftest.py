"""Faster ways through the network, each used only after it gave the same numbers on this device.

Fused attention is torch's scaled_dot_product_attention in place of timm's explicit product, softmax, product;
compiling turns the backbone into kernels of its own. Both have been wrong without a word on some device, so
the training step is tried on the real shapes, forward and backward, against plain float32; then both ways are
timed in turn. That trial is also where a lack of memory shows, before anything is trained.
Legend: B photos.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any, Literal, Protocol

import torch

from shardtool.errors import TrainingError, UsageError
from train.data import prepare
from train.device import autocast
from train.losses import hierarchical_loss
from train.mix import Targets
from train.model import HierarchicalModel
from train.ranks import Ranks
from train.recipe import Recipe, StageSpec, Switch
from train.stages import PARTS, freeze

Kind = Literal["cpu", "cuda", "rocm"]
Tensors = dict[str, torch.Tensor]  # gradients by name, and LOGITS of the species

LOGITS = "the logits"

TOLERANCE = 1e-4  # relative, of float32; two right ways differ by a hundredth of it
ROUNDING = 4.0  # under another dtype: so many times the distance that the plain way has from float32
FAINT = 1e-4  # of the whole gradient: what lies far below is rounding noise
WORTHWHILE = 1.02  # times the speed, lest noise decides
ROUNDS = 5  # of timing, both ways in turn
LOSS_SCALE = 65536.0  # as GradScaler's: else float16 has no gradient to compare
SEED = 0  # of the made-up photos and of stochastic depth


@dataclass(frozen=True)
class Finding:
    """What became of one option: `error` is relative to plain float32, `speedup` of the whole step."""

    option: str
    used: bool
    reason: str
    error: float | None = None
    speedup: float | None = None
    seconds: float = 0.0

    def line(self) -> str:
        """For people: "fused attention: equal within 2e-06, step 1.30x: on"."""
        return f"{self.option}: {self.reason}: {'on' if self.used else 'off'}"

    def event(self) -> dict[str, Any]:
        """For the log."""
        return vars(self).copy()


@dataclass(frozen=True)
class Prepared:
    """`micro_batch` is how many photos at a time fit; at most what was asked for."""

    micro_batch: int
    findings: list[Finding] = field(default_factory=list)


def prepare_model(
    model: HierarchicalModel,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    micro_batch: int,
    ranks: Ranks | None = None,
) -> Prepared:
    """Try a training step of `micro_batch` photos and switch on what is equal and faster, on all ranks alike.

    The weights and the names in the state dict stay; whatever is frozen is the next stage's business. A CPU
    without an option that is "on" has nothing to try. Raises TrainingError if not even one photo fits or the
    plain step fails, UsageError if an option that is "on" fails its check.
    """
    ranks = ranks or Ranks()
    kind = kind_of(device)
    options: tuple[Option, ...] = (FusedAttention(model), Compiled(model))
    settings: tuple[Switch, ...] = (recipe.model.fused_attention, recipe.model.compile)
    untried = [refusal(setting, kind) for setting in settings]
    findings: list[Finding] = []
    with unchanged(model):
        if kind != "cpu" or not all(untried):
            micro_batch = min(ranks.gather(_fitting(model, recipe, device, dtype, micro_batch)))
        trial = Trial(model, recipe, device, dtype, micro_batch)
        for option, setting, reason in zip(options, settings, untried, strict=True):
            finding = (
                Finding(option.name, False, reason) if reason else examine(trial, option, setting == "on")
            )
            findings.append(_agreed(finding, option, ranks))
            _insist(findings[-1], setting)
    return Prepared(micro_batch, findings)


@contextlib.contextmanager
def unchanged(model: HierarchicalModel) -> Iterator[None]:
    """Afterwards nothing is frozen, no gradient is left, and buffers are as before: the running means of a
    batch norm must not be those of made-up photos."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        freeze(model, "all")
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)


def kind_of(device: torch.device) -> Kind:
    """CUDA and ROCm have one name in torch, and kernels of different standing."""
    if device.type != "cuda":
        return "cpu"
    return "rocm" if torch.version.hip else "cuda"


def refusal(setting: Switch, kind: Kind) -> str:
    """Why an option is not even tried; empty if it is.

    On a CPU a choice by the clock would make two runs differ in their last bits.
    """
    if setting == "off":
        return "not wanted"
    if setting == "auto" and kind == "cpu":
        return "not tried on a CPU, whose runs repeat bit for bit"
    if setting == "auto" and kind == "rocm":
        return 'not tried on ROCm unless the recipe says "on"'
    return ""


# ---- the options ----------------------------------------------------------------------------------------


class Option(Protocol):
    """A faster way through the network that can be switched."""

    name: str

    def available(self) -> bool:
        """Whether this network has it."""

    def use(self, on: bool, photos: int) -> None:
        """Switch it, for batches of so many photos."""


class FusedAttention:
    """timm decides once for all networks of a process, by environment; each layer keeps a flag of its own."""

    name = "fused attention"

    def __init__(self, model: HierarchicalModel) -> None:
        self._layers: list[Any] = [
            layer for layer in model.backbone.modules() if hasattr(layer, "fused_attn")
        ]

    def available(self) -> bool:
        return bool(self._layers)

    def use(self, on: bool, photos: int) -> None:
        for layer in self._layers:
            layer.fused_attn = on


class Compiled:
    """The backbone compiled in place: a wrapper would rename the weights in every checkpoint."""

    name = "compile"

    def __init__(self, model: HierarchicalModel) -> None:
        self._model, self._asked = model, False

    def available(self) -> bool:
        return True

    def use(self, on: bool, photos: int) -> None:
        if on and not self._asked:
            # torch's own random numbers: stochastic depth draws what it would draw uncompiled
            self._model.backbone.compile(dynamic=False, options={"fallback_random": True})
            self._asked = True
        self._model.compiled_for = photos if on else 0


def examine(trial: Trial, option: Option, must: bool = False) -> Finding:
    """Try an option and leave it switched on if it is equal and faster, or equal and a `must`."""
    if not option.available():
        return Finding(option.name, False, "this network has none")
    start = time.monotonic()
    try:
        finding = _measured(trial, option, must)
    except Exception as error:  # torch raises whatever its compilers and kernels raise
        finding = Finding(option.name, False, f"fails ({_first_line(error)})")
    option.use(finding.used, trial.photos)
    return replace(finding, seconds=round(time.monotonic() - start, 3))


def _measured(trial: Trial, option: Option, must: bool) -> Finding:
    option.use(False, trial.photos)
    plain = [trial.gradients(stage) for stage, _ in trial.stages]
    exact = plain if trial.dtype == torch.float32 else [trial.exact(stage) for stage, _ in trial.stages]
    option.use(True, trial.photos)
    ours = [trial.gradients(stage) for stage, _ in trial.stages]
    error = max(map(distance, exact, ours))
    wrong = next(filter(None, map(disagreement, exact, plain, ours)), "")
    if wrong:
        return Finding(option.name, False, wrong, error)
    speedup = trial.speedup(option)
    return Finding(
        option.name,
        must or speedup >= WORTHWHILE,
        f"equal within {error:.0e}, step {speedup:.2f}x",
        error,
        round(speedup, 4),
    )


def _agreed(finding: Finding, option: Option, ranks: Ranks) -> Finding:
    """Ranks that compute in different ways would wait for each other, and differ in their last bits."""
    if all(ranks.gather(finding.used)) or not finding.used:
        return finding
    option.use(False, 0)
    return replace(finding, used=False, reason=f"{finding.reason}, but not on every rank")


def _insist(finding: Finding, setting: Switch) -> None:
    if setting == "on" and not finding.used:
        raise UsageError(
            f"{finding.option} is on and cannot be used here: {finding.reason}",
            cure=f"--set model.{finding.option.replace(' ', '_')}=auto",
        )


# ---- equal? ---------------------------------------------------------------------------------------------


def disagreement(exact: Tensors, plain: Tensors, ours: Tensors) -> str:
    """What is wrong with `ours`, empty if nothing: it must be finite, and as near to float32 (`exact`) as the
    plain way in the same dtype, a few roundings more allowed."""
    allowed, found = distances(exact, plain), distances(exact, ours)
    for name, distance in found.items():
        limit = TOLERANCE + ROUNDING * allowed[name]
        if not distance <= limit:  # so that NaN is wrong, too
            return f"differs, {name} by {distance:.1e} (allowed {limit:.1e})"
    return ""


def distances(exact: Tensors, other: Tensors) -> dict[str, float]:
    """Relative distance of each tensor, by the Euclidean norm."""
    floor = FAINT * _norm(tensor for name, tensor in exact.items() if name != LOGITS)
    return {
        name: float((other[name] - tensor).norm() / (tensor.norm() + floor)) for name, tensor in exact.items()
    }


def distance(exact: Tensors, other: Tensors) -> float:
    """That of the whole gradient, or of the logits if they are farther apart."""
    gradients = [name for name in exact if name != LOGITS]
    gap = _norm(other[name] - exact[name] for name in gradients)
    whole = float(gap / _norm(exact[name] for name in gradients))
    return max(whole, distances(exact, other)[LOGITS])


def _norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    norms: torch.Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return norms


# ---- the step that is tried -----------------------------------------------------------------------------


class Trial:
    """A training step on made-up photos; nothing is learned from it.

    `stages` are one of each kind, backbone learning or frozen, and the epochs of that kind.
    """

    def __init__(
        self,
        model: HierarchicalModel,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype,
        photos: int,
    ) -> None:
        self.model, self.recipe, self.device = model, recipe, device
        self.dtype, self.photos, self.stages = dtype, photos, kinds(recipe.stages)

    def gradients(self, stage: StageSpec) -> Tensors:
        """Logits and gradients of a step, the same random numbers each time; in float32, whatever it computes
        in."""
        return self._gradients(stage, self.dtype)

    def exact(self, stage: StageSpec) -> Tensors:
        """The same computed in float32, whose activations would not fit where those of the step just do."""
        self.model.backbone.set_grad_checkpointing(True)
        try:
            return self._gradients(stage, torch.float32)
        finally:
            self.model.backbone.set_grad_checkpointing(False)

    def speedup(self, option: Option) -> float:
        """Time of the epochs of all kinds without an option over that with it."""
        seconds = {False: 0.0, True: 0.0}
        for stage, epochs in self.stages:
            taken: dict[bool, list[float]] = {False: [], True: []}
            for on in [False, True] * ROUNDS:
                option.use(on, self.photos)
                taken[on].append(self._seconds(stage))
            for on, times in taken.items():
                seconds[on] += max(epochs, 1) * median(times)
        return seconds[False] / seconds[True]

    def _gradients(self, stage: StageSpec, dtype: torch.dtype) -> Tensors:
        found = {LOGITS: self._step(stage, dtype)}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found[f"the gradient of {name}"] = gradient / LOSS_SCALE
        self.model.zero_grad(set_to_none=True)
        return found

    def _seconds(self, stage: StageSpec) -> float:
        self._wait()
        start = time.perf_counter()
        self._step(stage, self.dtype)
        self._wait()
        return time.perf_counter() - start

    def _step(self, stage: StageSpec, dtype: torch.dtype) -> torch.Tensor:
        """Forward and backward; returns the logits of the species."""
        images, targets = self._batch
        freeze(self.model, stage.trains)
        self.model.zero_grad(set_to_none=True)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(SEED)
            with autocast(self.device, dtype):
                logits = self.model(images)
            losses = hierarchical_loss(logits, targets, self.model.segments, stage.losses, self.recipe.loss)
            (losses.total * LOSS_SCALE).backward()
        species: torch.Tensor = logits.species.detach().float()
        return species

    @cached_property
    def _batch(self) -> tuple[torch.Tensor, Targets]:
        side, species = self.recipe.model.image_size, self.model.species_head.out_features
        generator = torch.Generator().manual_seed(SEED)
        shape = (self.photos, side, side, 3)
        levels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        whose = torch.arange(self.photos, device=self.device) % species
        return prepare(levels, self.device), Targets(whose, torch.zeros_like(whose))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def kinds(stages: Sequence[StageSpec]) -> list[tuple[StageSpec, int]]:
    """The stage with the most losses among those whose backbone learns, and among those where it is frozen;
    each with the epochs of its kind."""
    found = []
    for learns in (True, False):
        same = [stage for stage in stages if ("backbone" in PARTS[stage.trains]) == learns]
        if same:
            fullest = max(same, key=lambda stage: len(stage.losses))
            found.append((fullest, sum(stage.epochs for stage in same)))
    return found


def _fitting(
    model: HierarchicalModel, recipe: Recipe, device: torch.device, dtype: torch.dtype, photos: int
) -> int:
    """How many photos at a time the memory allows: `photos`, or half of it as often as needed."""
    while True:
        trial = Trial(model, recipe, device, dtype, photos)
        try:
            for stage, _ in trial.stages:
                trial.gradients(stage)
            return photos
        except torch.OutOfMemoryError as error:
            if photos == 1:
                raise TrainingError(
                    f"not even one photo fits into the memory: {_first_line(error)}",
                    cure="use a smaller --set model.image_size, or a smaller network",
                ) from error
        except RuntimeError as error:
            raise TrainingError(
                f"the device cannot do a training step: {_first_line(error)}",
                cure="see whether torch fits the driver, or train with --device cpu",
            ) from error
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        photos //= 2


def _first_line(error: BaseException) -> str:
    """What an error says first; torch's compilers begin with "backend='inductor' raised:"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.endswith(":")]
    return (told or lines or [type(error).__name__])[0][:200]
