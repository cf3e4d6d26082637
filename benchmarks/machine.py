"""What figures depend on: the machine and the versions; in words, without names of hosts or people.

Large libraries are loaded where they are needed: none counts in the `peak_memory` of a process without use
for it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardtool.terminal import cpus

if TYPE_CHECKING:
    import torch

DISTRIBUTIONS = ("torch", "torchvision", "timm", "albumentations", "numpy", "pillow", "simplejpeg")


class Missing(Exception):
    """A program that this machine does not have, and why."""


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine: processor, cores, memory, device."""
    import torch

    from train.device import device_name

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cpus(),
        "memory_bytes": memory,
        "load_average": round(os.getloadavg()[0], 2),
        "device": device_name(device),
    }
    if device.type == "cuda":
        found["device_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return found


def versions() -> dict[str, str]:
    """Versions of what the stages run on."""
    import cv2

    found = {name: _version(name) for name in DISTRIBUTIONS}
    # OpenCV comes as one of several distributions
    return {"python": platform.python_version(), **found, "opencv": cv2.__version__}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # a fork that goes by another name, as Pillow-SIMD
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def tool_versions() -> dict[str, str]:
    """Versions of what packs photos beside us."""
    try:
        tar = _version_line(find_gnu_tar())
    except Missing as reason:
        tar = str(reason)
    libraries = ("webdataset", "pyarrow", "xxhash", "google-crc32c")
    return {"tar": tar, **{name: importlib.metadata.version(name) for name in libraries}}


def find_gnu_tar() -> str:
    """The program. Raises Missing."""
    for name in ("tar", "gtar"):  # macOS and the BSDs have a tar of their own
        program = shutil.which(name)
        if program and "GNU tar" in _version_line(program):
            return program
    raise Missing("no GNU tar on the PATH")


def _version_line(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


def filesystem_type(folder: Path) -> str:
    """tmpfs, ext4, ...: of the file system that holds the folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(around)[1]


def peak_memory(pid: int) -> int:
    """Bytes that the process had in memory at its peak; 0 if it has ended.

    Not `ru_maxrss`: that one keeps what the parent had when the process was started.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
