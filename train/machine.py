"""What figures depend on: the machine and the versions; in words, without names of hosts or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from shardtool.terminal import cpus
from train.device import device_name

DISTRIBUTIONS = ("torch", "torchvision", "timm", "albumentations", "numpy", "simplejpeg")


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine: processor, cores, memory, device."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cpus(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": round(os.getloadavg()[0], 2),
        "device": device_name(device),
    }
    if device.type == "cuda":
        found["device_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return found


def versions() -> dict[str, str]:
    """Versions of what the stages run on."""
    import cv2
    import PIL

    found = {name: _version(name) for name in DISTRIBUTIONS}
    # these two come as one of several distributions
    return {
        "python": platform.python_version(),
        **found,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
