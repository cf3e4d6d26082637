"""What `bench-io doctor` reads off the machine: thin readers, which judge nothing.

Each raises Unread, with the reason, where its subject cannot be read.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Value = TypeVar("Value")

SYS = Path("/sys")
DEV = Path("/dev")
TORCH_SECONDS = 120  # the first use of a GPU may compile
READ_BYTES = 256 * 2**20
READ_SECONDS = 1.0
CHUNK = 4 * 2**20


class Unread(Exception):
    """Why something could not be read."""


class Device(NamedTuple):
    """A GPU as torch names it; `architecture` is gfx1151 (ROCm) or sm_86 (CUDA)."""

    name: str
    architecture: str


class Torch(NamedTuple):
    """What torch says in a process of its own. `hip`, `cuda`: what it is built for, else "";
    `died`: how that process ended, "" if well; `note`: what was wrong with torchvision."""

    version: str = ""
    torchvision: str = ""
    note: str = ""
    hip: str = ""
    cuda: str = ""
    architectures: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    died: str = ""


class Hardware(NamedTuple):
    """What the kernel shows: architectures of AMD cards, whether they may be opened, NVIDIA's driver."""

    amd: tuple[str, ...]
    amd_opens: bool
    nvidia: bool


class Drivers(NamedTuple):
    kernel: str
    nvidia: str


class Disk(NamedTuple):
    free: int
    total: int


class Gtt(NamedTuple):
    """Bytes: of system memory that an AMD GPU may map, its own, and what the machine has."""

    gtt: int
    vram: int
    memory: int


class Clock(NamedTuple):
    """cpufreq's governors and driver, and amdgpu's performance level ("" without such a card)."""

    governors: tuple[str, ...]
    driver: str
    gpu_level: str


def torch_facts() -> Torch:
    """Asked in a process of its own: a GPU that torch cannot use may kill it with a signal."""
    command = [sys.executable, "-c", "from benchmarks.vitals import tell_torch; tell_torch()"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Torch(died=f"silence for {TORCH_SECONDS} s")
    return parse_torch(done.stdout, done.returncode, done.stderr)


def parse_torch(out: str, status: int, error: str) -> Torch:
    """The last complete answer, as there is one before the GPUs are asked for and one after."""
    answers = [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    facts = answers[-1] if answers else {}
    died = ""
    if status < 0:
        died = signal.Signals(-status).name
    elif status:
        died = (error.strip().splitlines() or [f"status {status}"])[-1]
    devices = tuple(Device(*device) for device in facts.pop("devices", ()))
    architectures = tuple(facts.pop("architectures", ()))
    return Torch(**facts, architectures=architectures, devices=devices, died=died)


def tell_torch() -> None:
    """Two lines of JSON: what this torch is, then the same with its GPUs; then each of them computes."""
    import torch

    from train.compat import import_torchvision

    note = import_torchvision()
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "torchvision": importlib.import_module("torchvision").__version__,
        "note": note,
        "hip": torch.version.hip or "",
        "cuda": torch.version.cuda or "",
    }
    print(json.dumps(facts), flush=True)
    facts["architectures"] = torch.cuda.get_arch_list()
    facts["devices"] = [_device(number) for number in range(torch.cuda.device_count())]
    print(json.dumps(facts), flush=True)
    for number in range(torch.cuda.device_count()):
        torch.ones(8, device=f"cuda:{number}").sum().item()


def _device(number: int) -> tuple[str, str]:
    import torch

    properties = torch.cuda.get_device_properties(number)
    if torch.version.hip:
        return properties.name, properties.gcnArchName.partition(":")[0]
    return properties.name, f"sm_{properties.major}{properties.minor}"


def hardware() -> Hardware:
    """From the kernel, which no environment variable deceives."""
    kfd = DEV / "kfd"
    nodes = sorted(SYS.glob("class/kfd/kfd/topology/nodes/*/properties"))
    amd = tuple(name for node in nodes if (name := architecture(_text(node))))
    return Hardware(amd, os.access(kfd, os.R_OK | os.W_OK), (DEV / "nvidiactl").exists())


def architecture(properties: str) -> str:
    """gfx1151 for the line "gfx_target_version 110501" of a node of KFD's topology; "" for a CPU's 0."""
    values = dict(line.split(maxsplit=1) for line in properties.splitlines() if " " in line)
    number = int(values.get("gfx_target_version", 0))
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}" if number else ""


def drivers() -> Drivers:
    file = SYS / "module/nvidia/version"
    return Drivers(platform.release(), _text(file).strip() if file.exists() else "")


def extensions() -> dict[str, str]:
    """Compiled module of train -> why it does not load, "" if it does."""
    import train

    sources = Path(train.__file__).parent.glob("_*.c")  # an installed wheel has no sources
    names = {"_jpeg", *(source.stem for source in sources)}
    return {f"train.{name}": _load_error(f"train.{name}") for name in sorted(names)}


def _load_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return ""


def shared_memory() -> int:
    """Bytes of /dev/shm. Raises Unread."""
    return _read(lambda: shutil.disk_usage(DEV / "shm").total)


def open_files() -> int:
    """The soft limit (`ulimit -n`)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def disk(folder: Path) -> Disk:
    usage = _read(lambda: shutil.disk_usage(folder))
    return Disk(usage.free, usage.total)


def direct_read(folder: Path) -> float:
    """Bytes a second that come from the disk, past the page cache, for about a second. Raises Unread."""
    if not hasattr(os, "O_DIRECT"):
        raise Unread("this system has no O_DIRECT")
    tars = _read(lambda: sorted(folder.glob("*.tar"), key=lambda file: file.stat().st_size))
    if not tars or tars[-1].stat().st_size < CHUNK:
        raise Unread(f"{folder} has no shard of {CHUNK // 2**20} MiB or more")
    return _read(lambda: _direct_rate(tars[-1]))


def _direct_rate(file: Path) -> float:
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, CHUNK) as buffer:  # O_DIRECT wants memory on a page's border
            return _timed_read(descriptor, buffer)
    finally:
        os.close(descriptor)


def _timed_read(descriptor: int, buffer: mmap.mmap) -> float:
    done, start, seconds = 0, time.perf_counter(), 0.0
    while done < READ_BYTES and seconds < READ_SECONDS:
        count = os.preadv(descriptor, [buffer], done)
        seconds = time.perf_counter() - start
        done += count
        if count < CHUNK:
            break
    return done / seconds


def gtt() -> Gtt:
    """Of the first AMD card. Raises Unread."""
    files = sorted(SYS.glob("class/drm/card*/device/mem_info_gtt_total"))
    if not files:
        raise Unread("no AMD GPU: no /sys/class/drm/card*/device/mem_info_gtt_total")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Gtt(int(_text(files[0])), int(_text(files[0].with_name("mem_info_vram_total"))), memory)


def clock() -> Clock:
    """Raises Unread where the kernel shows no clock policy, as in most virtual machines."""
    files = sorted(SYS.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor"))
    if not files:
        raise Unread("the kernel shows no cpufreq here, as in most virtual machines")
    levels = sorted(SYS.glob("class/drm/card*/device/power_dpm_force_performance_level"))
    return Clock(
        tuple(sorted({_text(file).strip() for file in files})),
        _text(files[0].with_name("scaling_driver")).strip(),
        _text(levels[0]).strip() if levels else "",
    )


def _text(file: Path) -> str:
    return _read(file.read_text)


def _read(read: Callable[[], Value]) -> Value:
    try:
        return read()
    except OSError as error:
        raise Unread(
            f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
        ) from None
