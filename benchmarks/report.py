"""Measurements -> verdict, table, JSON. Pure but for the question what machine this is."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

from benchmarks.probes import Bench, Measurement, Together
from shardtool import __version__, terminal
from train.device import device_name

LIBRARIES = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless"),
    *("simplejpeg", "albumentations", "pyarrow"),
)
BAR, DECADES = 35, 5  # characters, and factors of ten, of the longest bar
ENOUGH = 1.05  # the loader must be this much faster than the step to count as keeping up
GOOD, FEED_MORE, OPTIMAL = 0.90, 0.70, 0.95  # device-busy bands of the source document


@dataclass(frozen=True)
class Verdict:
    """`bottleneck` is the name of a measurement; `text` says it in two sentences; `knobs` what to turn,
    the largest gain first."""

    bottleneck: str
    band: str
    text: str
    knobs: tuple[str, ...]


def judge(rates: dict[str, float], busy_share: float, workers: int, cores: int, on_cpu: bool) -> Verdict:
    """Who is starving whom. `rates` are images a second by measurement name; pure."""
    supply, demand = rates["loader"], rates["step"]
    band = band_of(busy_share)
    busy = f"the device was busy {busy_share:.0%} of the time ({band})"
    if supply >= ENOUGH * demand:
        text = (
            f"The model is the bottleneck: the loader delivers {supply:,.0f} images/s, the step eats "
            f"{demand:,.0f}. Side by side they reach {rates['together']:,.0f}, and {busy}."
        )
        return Verdict("step", band, text, _device_knobs(rates, on_cpu))
    costs = {name: 1 / rates[name] for name in ("read", "decode", "augment")}
    disk = rates.get("disk, cold", float("inf"))
    short = "disk, cold" if disk < ENOUGH * supply else max(costs, key=costs.__getitem__)
    text = (
        f"The data is the bottleneck: the step would eat {demand:,.0f} images/s, {workers} workers deliver "
        f"{supply:,.0f}, and most of their time goes into {short}. Side by side they reach "
        f"{rates['together']:,.0f}, and {busy}."
    )
    return Verdict(short, band, text, _data_knobs(rates, costs, workers, cores, short))


def band_of(busy_share: float) -> str:
    """The source document's words for a device-busy share."""
    if busy_share > OPTIMAL:
        return "optimal"
    if busy_share >= GOOD:
        return "good"
    return "feed more" if busy_share < FEED_MORE else "fair"


def _device_knobs(rates: dict[str, float], on_cpu: bool) -> tuple[str, ...]:
    spare = rates["loader"] / rates["step"]
    knobs = [f"nothing on the data side: the loader could feed {spare:.1f} such devices"]
    if on_cpu:
        knobs.append("fewer --workers: on a CPU they take cores from the model")
    return tuple(knobs)


def _data_knobs(
    rates: dict[str, float], costs: dict[str, float], workers: int, cores: int, short: str
) -> tuple[str, ...]:
    """What to turn, with the figure that the measured costs predict."""
    supply, demand = rates["loader"], rates["step"]
    knobs = []
    if short == "disk, cold":
        knobs.append(f"a faster disk: it delivers {rates['disk, cold']:,.0f} images/s when cold")
    if workers < cores:
        wanted = min(cores, max(workers + 1, -(-int(demand * workers) // max(int(supply), 1))))
        gain = min(supply * wanted / max(workers, 1), demand)
        knobs.append(f"workers {workers} → {wanted}: {supply:,.0f} → {gain:,.0f} images/s")
    without = sum(costs.values()) - costs["augment"]
    gain = min(supply * sum(costs.values()) / without, demand)
    if gain > 1.1 * supply:
        knobs.append(
            f"a lighter augmentation (--set augment.profile=light, augment.rand_augment=off): "
            f"{supply:,.0f} → at most {gain:,.0f} images/s"
        )
    return tuple(knobs)


def table(measurements: Sequence[Measurement], verdict: Verdict) -> Table:
    """One row a stage, all on one logarithmic scale, the bottleneck marked."""
    result = terminal.table("", "stage", "images/s", "spread")
    result.add_column(f"logarithmic, {BAR // DECADES} blocks for every factor of ten")
    lowest = min(measurement.rate for measurement in measurements)
    for measurement in measurements:
        here = measurement.name == verdict.bottleneck
        spread = (max(measurement.trials) - min(measurement.trials)) / measurement.rate
        bar = bar_of(measurement.rate, lowest)
        result.add_row(
            f"[bold red]{measurement.name} ◀[/]" if here else measurement.name,
            f"{measurement.rate:,.0f}",
            f"±{spread / 2:.0%}",
            f"[red]{bar}[/]" if here else bar,
        )
    return result


def bar_of(rate: float, lowest: float) -> str:
    """Blocks for a rate; the lowest rate of the table gets one decade's worth."""
    decades = 1 + math.log10(rate / lowest)
    return "█" * round(min(decades, DECADES) * BAR / DECADES)


def as_json(
    bench: Bench, measurements: Sequence[Measurement], together: Together, verdict: Verdict
) -> dict[str, Any]:
    """Everything measured, with hardware, versions and settings."""
    return {
        "tool": f"bench-io {__version__}",
        "hardware": hardware(bench.device),
        "versions": versions(),
        "settings": {
            "shards": bench.split.folder,
            "photos": len(bench.split),
            "mean_bytes": float(bench.split.size.mean()),
            "recipe": bench.recipe.as_dict(),
            "workers": bench.workers,
        },
        "measurements": [measurement.as_dict() for measurement in measurements],
        "together": {
            "busy_share": together.busy_share,
            "wait_share": together.wait_share,
            "utilisation": together.utilisation.percent
            if together.utilisation.percent is not None
            else "unknown",
            "utilisation_source": together.utilisation.source,
            "peak_memory": together.peak_memory,
        },
        "verdict": asdict(verdict),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine in words: no host name."""
    return {
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python and the libraries that decide the figures."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
