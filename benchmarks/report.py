"""What the figures mean: the verdict, the table, the JSON. No disk, no device, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.table import Table

from shardtool import terminal
from shardtool.quality import ShuffleQuality

if TYPE_CHECKING:
    from benchmarks.probes import Measurement

WORKER_STAGES = ("shard read", "decode", "augment")
OVERHEAD = "overhead"  # what the loader takes beyond its stages
BAR_WIDTH = 12


@dataclass(frozen=True)
class Setting:
    """What was measured; `device` is a type ("cuda", "cpu"), `augmented` whether photos are changed,
    `mixing` how many species meet in a batch."""

    recipe: str
    shards: str
    photos: int
    photo_bytes: float
    workers: int
    cores: int
    device: str
    batch: int
    augmented: bool
    quick: bool
    mixing: ShuffleQuality

    @property
    def busy_cores(self) -> int:
        """Cores that the workers can use."""
        return min(max(self.workers, 1), self.cores)


@dataclass(frozen=True)
class Verdict:
    """The `bottleneck` is a measurement's name ("" if unknown), `cause` what takes most of the loader's
    time if that is the loader; `text` has two sentences."""

    bottleneck: str
    cause: str
    text: str


def verdict(measurements: Sequence[Measurement], setting: Setting) -> Verdict:
    """The stage that is short against what the model step eats, and the knob to turn."""
    rates = _rates(measurements)
    missing = [name for name in ("loader", "model step") if name not in rates]
    if missing:
        notes = "; ".join(m.note for m in measurements if m.name in missing)
        return Verdict("", "", f"No verdict: {' and '.join(missing)} not measured ({notes}). See the table.")
    # at equal rates the step comes first: a device that is just fed is no fault of the loader
    rivals = [name for name in ("model step", "loader", _disk_name(rates)) if name in rates]
    slowest = min(rivals, key=rates.__getitem__)
    busy = _busy_text(measurements, rates, slowest)
    if slowest == "model step":
        return Verdict(slowest, "", f"{_step_short(rates, setting)}, {busy}. {_step_knobs(rates, setting)}")
    if slowest == "loader":
        cause = _largest(loader_costs(rates, setting))
        knobs = _loader_knobs(rates, setting, cause)
        return Verdict(slowest, cause, f"{_loader_short(rates, setting)}, {busy}. {knobs}")
    return Verdict(slowest, "", f"{_disk_short(rates, slowest)}, {busy}. {_disk_knobs(rates, slowest)}")


def band(busy: float) -> str:
    """The source document's words for a device-busy share."""
    if busy > 0.95:
        return "over 95 %: optimal"
    if busy >= 0.9:
        return "90 % or more: good"
    return "70 to 90 %: fair" if busy >= 0.7 else "under 70 %: feed it more"


def loader_costs(rates: dict[str, float], setting: Setting) -> dict[str, float]:
    """Core-seconds of a photo in each part of the loader; what its stages do not explain is OVERHEAD."""
    costs = {name: 1 / rates[name] for name in WORKER_STAGES if name in rates}
    whole = setting.busy_cores / rates["loader"]
    return {**costs, OVERHEAD: max(whole - sum(costs.values()), 0.0)}


def _rates(measurements: Sequence[Measurement]) -> dict[str, float]:
    return {m.name: m.images_per_second for m in measurements if m.images_per_second is not None}


def _disk_name(rates: dict[str, float]) -> str:
    return "disk, cold" if "disk, cold" in rates else "disk, warm"


def _busy_text(measurements: Sequence[Measurement], rates: dict[str, float], slowest: str) -> str:
    for together in measurements:
        if together.device_busy is not None and together.images_per_second is not None:
            return (
                f"and in training together, at {together.images_per_second:,.0f} images/s, the device was "
                f"busy {together.device_busy:.0%} of the time ({band(together.device_busy)})"
            )
    busy = min(rates[slowest] / rates["model step"], 1.0)
    return f"so the device would be busy about {busy:.0%} of the time ({band(busy)})"


def _step_short(rates: dict[str, float], setting: Setting) -> str:
    return (
        f"The model step is the bottleneck: it eats {rates['model step']:,.0f} images/s and "
        f"{_workers(setting.workers)} {rates['loader']:,.0f}"
    )


def _step_knobs(rates: dict[str, float], setting: Setting) -> str:
    if setting.device == "cpu":
        return (
            f"On a CPU workers and step share the cores, about {_shared(rates, setting):,.0f} images/s by "
            "these figures: use a GPU, or a smaller network (model.image_size, model.arguments)."
        )
    enough = math.ceil(rates["model step"] / _a_worker(rates, setting))
    return (
        f"The device is fed: try a larger batch (optimizer.batch, now {setting.batch}), a lower precision or "
        f"a faster device; about {_count(enough, 'worker')} would be enough."
    )


def _loader_short(rates: dict[str, float], setting: Setting) -> str:
    return (
        f"The loader is the bottleneck: {_workers(setting.workers)} {rates['loader']:,.0f} images/s "
        f"where the model step eats {rates['model step']:,.0f}"
    )


def _largest(costs: dict[str, float]) -> str:
    return max(costs, key=costs.__getitem__)


def _loader_knobs(rates: dict[str, float], setting: Setting, cause: str) -> str:
    costs = loader_costs(rates, setting)
    share = costs[cause] / sum(costs.values())
    names = {"shard read": "Reading", "decode": "Decoding", "augment": "Augmentation", OVERHEAD: "Overhead"}
    return f"{names[cause]} takes {share:.0%} of a photo's time: {_more_workers(rates, setting)}; " + (
        _lighter(cause, rates, setting, share)
    )


def _more_workers(rates: dict[str, float], setting: Setting) -> str:
    cores = setting.cores
    if setting.busy_cores == cores:
        return f"{'the one core is' if cores == 1 else f'all {cores} cores are'} at work, so not more workers"
    enough = min(math.ceil(rates["model step"] / _a_worker(rates, setting)), cores)
    reach = enough * _a_worker(rates, setting)
    eaten = "" if reach >= rates["model step"] else f", {reach / rates['model step']:.0%} of the need"
    return f"about {_count(enough, 'worker')} on the {cores} cores would deliver {reach:,.0f} images/s{eaten}"


def _lighter(cause: str, rates: dict[str, float], setting: Setting, share: float) -> str:
    if cause == "augment" and setting.augmented:
        most = rates["loader"] / (1 - share)
        return (
            "a lighter profile (augment.profile, augment.rand_augment) helps, up to "
            f"{most:,.0f} images/s with none at all."
        )
    return {
        "shard read": "a faster disk, or memory to keep the shards in, helps.",
        "decode": "faster or more cores, or photos stored smaller, help.",
        "augment": "only faster or more cores, or a smaller model.image_size, help.",
        OVERHEAD: "it is hand-over between processes and cores that others use, so look what else runs.",
    }[cause]


def _disk_short(rates: dict[str, float], disk: str) -> str:
    return (
        f"The disk is the bottleneck ({disk.partition(', ')[2]}): it delivers {rates[disk]:,.0f} images/s "
        f"where the model step eats {rates['model step']:,.0f} and the loader takes {rates['loader']:,.0f}"
    )


def _disk_knobs(rates: dict[str, float], disk: str) -> str:
    most = rates[disk] / rates["model step"]
    return (
        f"Until the shards are in memory the device is busy {most:.0%} of the time at most, whatever the "
        "workers: a faster or local disk, or memory for all shards, helps."
    )


def _a_worker(rates: dict[str, float], setting: Setting) -> float:
    """What one worker with a core of its own delivers."""
    return rates["loader"] / setting.busy_cores


def _shared(rates: dict[str, float], setting: Setting) -> float:
    """Images/s if the workers and the step share all cores without loss."""
    return 1 / (1 / (_a_worker(rates, setting) * setting.cores) + 1 / rates["model step"])


def _workers(count: int) -> str:
    return (
        "one worker delivers"
        if count == 1
        else f"{count} workers deliver"
        if count
        else "the loader delivers"
    )


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


# ---- for people and for programs ----------------------------------------------------------------


def table(measurements: Sequence[Measurement], found: Verdict, setting: Setting) -> Table:
    """All measurements on one scale; the bottleneck is marked ◀, the largest part of a short loader ◁."""
    result = terminal.table("", "stage", "images/s", "low – high", "on", "× step", "log scale")
    result.columns[-1].justify = "left"
    rates = _rates(measurements)
    for measurement in measurements:
        mark = {found.bottleneck: " ◀", found.cause: " ◁"}.get(measurement.name, "")
        style = "bold red" if measurement.name == found.bottleneck else None
        cells = _cells(measurement, rates, setting)
        result.add_row(measurement.name + mark, *cells, style=style)
    return result


def _cells(measurement: Measurement, rates: dict[str, float], setting: Setting) -> tuple[Any, ...]:
    rate = measurement.images_per_second
    if rate is None:
        return ("not taken", "", measurement.on, "", "")
    return (
        _short(rate),
        f"{_short(min(measurement.trials))} – {_short(max(measurement.trials))}",
        measurement.on,
        _against_step(measurement, rates, setting),
        _bar(rate, list(rates.values())),
    )


def _against_step(measurement: Measurement, rates: dict[str, float], setting: Setting) -> str:
    """How many times what the model step eats; a stage of the workers counts on all of their cores."""
    if "model step" not in rates:
        return ""
    times = setting.busy_cores if measurement.on == "one core" else 1
    return _short(rates[measurement.name] * times / rates["model step"])


def _short(value: float) -> str:
    """1,408k, 81.1k, 5,089, 79.2, 1.25: three or four digits."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k" if value >= 100_000 else f"{value / 1000:.1f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bar(rate: float, rates: list[float]) -> Bar:
    """Logarithmic, from half the slowest rate: they differ by orders of magnitude."""
    low, high = min(rates) / 2, max(rates)
    return Bar(1.0, 0.0, math.log(rate / low) / math.log(high / low), width=BAR_WIDTH)


def explanations(measurements: Sequence[Measurement]) -> list[str]:
    """A line for each measurement: how it was taken, or why it was not."""
    lines = [f"{m.name}: {m.how or f'not taken, {m.note}'}" for m in measurements]
    lines.append(
        "× step: against what the model step eats; one-core stages are counted on all the workers' cores"
    )
    return lines + [f"device utilisation: {m.usage.text()}" for m in measurements if m.usage is not None]


def as_json(
    measurements: Sequence[Measurement],
    found: Verdict,
    setting: Setting,
    hardware: dict[str, Any],
    versions: dict[str, str],
) -> dict[str, Any]:
    """Everything that the report shows, every trial included."""
    return {
        "hardware": hardware,
        "versions": versions,
        "settings": asdict(setting),
        "measurements": [_measurement_json(measurement) for measurement in measurements],
        "verdict": asdict(found),
    }


def _measurement_json(measurement: Measurement) -> dict[str, Any]:
    value = asdict(measurement)
    for name in ("images_per_second", "low", "high", "device_busy"):
        value[name] = getattr(measurement, name)
    if measurement.usage is not None and measurement.usage.percent is None:
        value["usage"]["percent"] = "unknown"
    return value
