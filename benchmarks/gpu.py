"""How busy the device says it is, and who says so; "unknown" is an answer, 0 is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Utilisation:
    """Percent of the time in which the device had work, None when nobody knows."""

    percent: float | None
    source: str

    def __str__(self) -> str:
        return "unknown" if self.percent is None else f"{self.percent:.0f} % ({self.source})"


def utilisation(device: torch.device, sysfs: Path = Path("/sys/class/drm")) -> Utilisation:
    """Ask the vendor's library (NVML, amdsmi), else the kernel driver's file."""
    if device.type != "cuda":
        return Utilisation(None, "no GPU")
    try:
        return Utilisation(float(torch.cuda.utilization(device)), "amdsmi" if torch.version.hip else "NVML")
    except Exception:  # the vendor's library is missing, too old, or without permission
        return _from_sysfs(sysfs)


def _from_sysfs(sysfs: Path) -> Utilisation:
    for file in sorted(sysfs.glob("card*/device/gpu_busy_percent")):
        try:
            return Utilisation(float(file.read_text()), str(file))
        except (OSError, ValueError):
            continue
    return Utilisation(None, "neither NVML, amdsmi nor sysfs")


def peak_memory(device: torch.device) -> int | None:
    """Bytes of the device's memory at the highest point so far, None without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
