"""What packing figures depend on, and what a process takes; nothing here loads torch, which would count in
the `peak_memory` of a process without use for it."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from pathlib import Path


class Missing(Exception):
    """A program that this machine does not have, and why."""


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
