"""bench-io doctor: is this machine fit to train, and if not, what cures it?

The `judge_` functions are pure: a reading in; state, value and cure out. What cannot be read is unknown,
never ok.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from rich.table import Table

from benchmarks import vitals
from benchmarks.pillow import Pillow, active_pillow, decode_rates
from benchmarks.vitals import Clock, Disk, Drivers, Gtt, Hardware, Torch, Unread
from shardtool import terminal
from shardtool.index import open_split

State = Literal["ok", "warning", "problem", "unknown"]
Judged = tuple[State, str, str]  # state, value, cure
Reading = TypeVar("Reading")

GB = 10**9
FIXED_PILLOW = 13
PHOTOS = 64  # for the decoders
SMALL_SHM = GB  # a container has 64 MB unless told otherwise
FEW_FILES, TOO_FEW_FILES = 1024, 256
LITTLE_SPACE = 10 * GB
SLOW_DISK = 100 * 10**6  # bytes a second: some 1,200 photos of 80 kB
SMALL_GTT = 0.45  # of memory; the kernel gives about half
COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "problem": "bold red", "unknown": "dim"}

# ---- what is known to be good: none of it was measured here, each row stands on its source --------------

RDNA35 = "https://rocm.docs.amd.com/en/latest/reference/system-optimization/rdna3-5.html"
CUDA_DRIVERS = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"
STRIX_HALO = "gfx1151"


class Releases(NamedTuple):
    """ROCm from `first` to before `end` on Strix Halo."""

    first: tuple[int, int]
    end: tuple[int, int]
    works: bool
    source: str


STRIX_HALO_ROCM = (
    Releases((0, 0), (7, 2), False, f"{RDNA35} and https://github.com/pytorch/pytorch/issues/173367"),
    Releases((7, 2), (7, 9), True, f"{RDNA35} and https://github.com/warpfront/hipfire/pull/81"),
    Releases((7, 9), (7, 11), False, RDNA35),  # previews, in spite of their numbers
    Releases((7, 11), (7, 13), True, RDNA35),
)
# Kernels with the fixes that Strix Halo needs, by the end of their names: Ubuntu patches older ones. RDNA35
STRIX_HALO_KERNELS = {"oem": (6, 14, 0, 1018), "generic": (6, 17, 0, 19), "": (6, 18, 4)}
CUDA_DRIVER = {11: 450, 12: 525, 13: 580}  # CUDA's major release: the driver's least one. CUDA_DRIVERS
FAMILIES = {"gfx11": "gfx11-generic", "gfx12": "gfx12-generic"}  # one code for many: LLVM's AMDGPU guide


# ---- examining ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One line for people; `cure` is "" where nothing has to be done."""

    name: str
    state: State
    value: str
    cure: str = ""


def examine(shards: str) -> list[Finding]:
    """Everything, in the order of the table; takes seconds, most of them torch's."""
    torch, hardware, environment = vitals.torch_facts(), vitals.hardware(), os.environ
    folder = Path(shards) if Path(shards).is_dir() else Path()
    findings = [
        Finding("torch and torchvision", *judge_torch(torch)),
        Finding("GPU", *judge_gpu(torch, hardware)),
        Finding("ROCm", *judge_rocm(torch, hardware)),
        check("driver", vitals.drivers, lambda found: judge_driver(found, torch, hardware)),
        check("Pillow", active_pillow, lambda found: judge_pillow(found, sys.version_info[:2])),
        check("JPEG decoders", lambda: _decode_rates(shards), judge_rates),
        check("compiled modules", vitals.extensions, judge_extensions),
        check("/dev/shm", vitals.shared_memory, judge_shm),
        check("open files", vitals.open_files, judge_files),
        check("disk space", lambda: vitals.disk(folder), judge_space),
        check("disk speed", lambda: _disk_speed(shards), judge_speed),
        check("GTT", vitals.gtt, lambda found: judge_gtt(found, hardware)),
        check("clock", vitals.clock, judge_clock),
        Finding(
            "HSA_OVERRIDE_GFX_VERSION",
            *judge_override(environment.get("HSA_OVERRIDE_GFX_VERSION"), hardware),
        ),
        Finding("TIMM_FUSED_ATTN", *judge_fused(environment.get("TIMM_FUSED_ATTN"), torch)),
        Finding("OMP_NUM_THREADS", *judge_threads(environment.get("OMP_NUM_THREADS"), terminal.cpus())),
    ]
    amd = bool(hardware.amd or torch.hip)
    absent = {"ROCm": not amd, "GTT": not amd, "driver": not (amd or hardware.nvidia)}
    return [finding for finding in findings if not absent.get(finding.name)]


def check(name: str, read: Callable[[], Reading], judge: Callable[[Reading], Judged]) -> Finding:
    """The reading judged, or unknown with the reason why there is none."""
    try:
        reading = read()
    except (Unread, ImportError) as reason:
        return Finding(name, "unknown", str(reason))
    return Finding(name, *judge(reading))


def _decode_rates(shards: str) -> dict[str, float]:
    if not shards:
        raise Unread("no --shards to take photos from")
    split = open_split(shards)
    step = max(1, len(split) // PHOTOS)
    return decode_rates(split.read(range(0, len(split), step)[:PHOTOS]))


def _disk_speed(shards: str) -> float:
    if not Path(shards).is_dir() or not shards:
        raise Unread("--shards names no folder of this machine" if shards else "no --shards to read")
    return vitals.direct_read(Path(shards))


def worst(findings: Sequence[Finding]) -> bool:
    """Whether there is a problem, for the exit status."""
    return any(finding.state == "problem" for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"findings": [asdict(finding) for finding in findings]}


def table(findings: Sequence[Finding]) -> Table:
    """For people: the cure stands under what it cures."""
    result = terminal.table("bench-io doctor", "check", "state", "found")
    for column in result.columns:
        column.justify, column.overflow = "left", "fold"
    for finding in findings:
        told = terminal.clean(finding.value)
        if finding.cure:
            told += f"\n[bold]→[/] {terminal.clean(finding.cure)}"
        colour = COLOURS[finding.state]
        result.add_row(terminal.clean(finding.name), f"[{colour}]{finding.state}[/]", told)
    return result


# ---- torch and its GPU ----------------------------------------------------------------------------------


def judge_torch(torch: Torch) -> Judged:
    """Both of one release and one build?"""
    both = f"torch {torch.version}, torchvision {torch.torchvision}"
    cure = "install torch and torchvision together, from one index (README, Install)"
    if not torch.version:
        return "problem", f"torch or torchvision does not load: {torch.died}", cure
    fits = torchvision_of(torch.version)
    if not fits:
        return "unknown", f"{both}: no release of ours to compare with", ""
    if not torch.torchvision.startswith(fits):
        return "problem", f"{both}: this torch goes with torchvision {fits}x", cure
    if torch.note or len({_vendor(torch.version), _vendor(torch.torchvision)} - {""}) > 1:
        return "warning", f"{both}: two builds, torchvision's own operators may be missing", cure
    return "ok", both, ""


def torchvision_of(torch: str) -> str:
    """How the torchvision of a torch release begins: "0.28." for "2.13.0+cpu"; "" if that is unknown."""
    release = re.match(r"2\.(\d+)\.", torch)
    return f"0.{int(release[1]) + 15}." if release else ""


def _vendor(version: str) -> str:
    tag = re.search(r"\+(cpu|cu|rocm|xpu)", version)
    return tag[1] if tag else ""


def judge_gpu(torch: Torch, hardware: Hardware) -> Judged:
    """Is there one, does torch see it, and was torch built for it?"""
    if not torch.version:
        return "unknown", "torch does not load", ""
    if not torch.devices:
        return _no_gpu(torch, hardware)
    names = ", ".join(f"{device.name} ({device.architecture})" for device in torch.devices)
    foreign = [d.architecture for d in torch.devices if not supported(d.architecture, torch.architectures)]
    if foreign:
        built = " ".join(torch.architectures)
        return "problem", f"{names}: this torch is built for {built}", f"install a torch for {foreign[0]}"
    if torch.died:
        return "problem", f"{names}: torch ended with {torch.died} on it", "see ROCm and driver below"
    return "ok", names, ""


def _no_gpu(torch: Torch, hardware: Hardware) -> Judged:
    if torch.died:
        told = f"torch {torch.version} ended with {torch.died} when asked for GPUs"
        return "problem", told, "see ROCm and driver below"
    seen = ", ".join(hardware.amd) or ("an NVIDIA card" if hardware.nvidia else "")
    build = torch.hip if hardware.amd else torch.cuda
    if not seen:
        return "ok", "none seen: training runs on the CPU", ""
    if not build:
        cure = f"install torch's {'ROCm' if hardware.amd else 'CUDA'} build to use it"
        return "warning", f"{seen}, but torch {torch.version} is built for another device", cure
    if hardware.amd and not hardware.amd_opens:
        cure = "sudo usermod -aG render,video $USER; in a container the README's docker run line"
        return "problem", f"{seen}, but /dev/kfd may not be opened", cure
    return "problem", f"{seen}, but torch sees no device", "unset HIP_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES"


def supported(architecture: str, built: Sequence[str]) -> bool:
    """Whether code for one of `built` runs there: on CUDA that of the same major and an earlier minor, too,
    and what is compiled while it runs (compute_90); on ROCm that of the whole family."""
    if architecture.startswith("gfx"):
        return architecture in built or FAMILIES.get(architecture[:5]) in built
    here = _capability(architecture)
    ready = [_capability(name) for name in built if name.startswith("sm_")]
    later = [_capability(name) for name in built if name.startswith("compute_")]
    return any(major == here[0] and minor <= here[1] for major, minor in ready) or any(
        each <= here for each in later
    )


def _capability(name: str) -> tuple[int, int]:
    """(9, 0) for sm_90 and sm_90a."""
    digits = re.sub(r"\D", "", name)
    return int(digits[:-1]), int(digits[-1])


def judge_rocm(torch: Torch, hardware: Hardware) -> Judged:
    if not torch.hip:
        return "unknown", f"torch {torch.version} is no ROCm build", ""
    version = numbers(torch.hip)[:2]
    told = f"ROCm {'.'.join(map(str, version))}"
    if STRIX_HALO not in _architectures(torch, hardware):
        return "unknown", f"{told}: the table of releases has {STRIX_HALO} alone", ""
    row = next((row for row in STRIX_HALO_ROCM if row.first <= version < row.end), None)
    if row is None:
        return "unknown", f"{told} on {STRIX_HALO}: newer than the table of releases", ""
    if row.works:
        return "ok", f"{told} on {STRIX_HALO} ({row.source})", ""
    return (
        "problem",
        f"{told} on {STRIX_HALO} ({row.source})",
        "use ROCm 7.2 with its torch (Dockerfile.rocm)",
    )


def judge_driver(drivers: Drivers, torch: Torch, hardware: Hardware) -> Judged:
    if hardware.nvidia:
        return _nvidia_driver(drivers.nvidia, torch.cuda)
    if STRIX_HALO in _architectures(torch, hardware):
        return _strix_halo_kernel(drivers.kernel)
    return "unknown", f"kernel {drivers.kernel}: no NVIDIA card and no {STRIX_HALO} to judge it for", ""


def _nvidia_driver(driver: str, cuda: str) -> Judged:
    least = CUDA_DRIVER.get(numbers(cuda)[0]) if cuda else None
    if not driver or least is None:
        return "unknown", f"NVIDIA driver {driver or 'not shown'}, torch's CUDA {cuda or 'none'}", ""
    told = f"NVIDIA driver {driver}, CUDA {cuda} wants {least} or newer ({CUDA_DRIVERS})"
    if numbers(driver)[0] < least:
        return "problem", told, f"install driver {least} or newer, or a torch for an older CUDA"
    return "ok", told, ""


def _strix_halo_kernel(kernel: str) -> Judged:
    kind = kernel.rpartition("-")[2]
    least = STRIX_HALO_KERNELS[kind if kind in STRIX_HALO_KERNELS else ""]
    if numbers(kernel) >= min(least, STRIX_HALO_KERNELS[""]):
        return "ok", f"kernel {kernel} ({RDNA35})", ""
    cure = "use Linux 6.18.4 or newer; Ubuntu 24.04: linux-oem 6.14.0-1018 or HWE 6.17.0-19"
    return "warning", f"kernel {kernel}: may lack the fixes for {STRIX_HALO} ({RDNA35})", cure


def _architectures(torch: Torch, hardware: Hardware) -> set[str]:
    return {*hardware.amd, *(device.architecture for device in torch.devices)}


def numbers(version: str) -> tuple[int, ...]:
    """(6, 14, 0, 1018) for "6.14.0-1018-oem"; (0,) where there is none."""
    start = re.match(r"\d+([.-]\d+)*", version)
    return tuple(int(part) for part in re.split(r"[.-]", start[0])) if start else (0,)


# ---- decoding -------------------------------------------------------------------------------------------


def judge_pillow(pillow: Pillow, python: tuple[int, int]) -> Judged:
    """Pillow 13.0.0 checks a bound whose lack let a JPEG write past its buffer: see
    https://pillow.readthedocs.io/en/stable/releasenotes/13.0.0.html"""
    if numbers(pillow.version)[0] >= FIXED_PILLOW:
        return "ok", pillow.text(), ""
    told = f"{pillow.text()}: open to CVE-2026-112403 and CVE-2026-112398, critical overflows by JPEGs"
    if pillow.simd:
        return "warning", told, "make simd-undo, at least for photos that you do not trust"
    if python < (3, 11):
        return "warning", told, "use Python 3.11 or newer: no fixed Pillow exists for 3.10"
    return "problem", told, f"pip install 'pillow>={FIXED_PILLOW}'"


def judge_rates(rates: Mapping[str, float]) -> Judged:
    told = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    return "ok", f"{told} of these photos a second on one core", ""


def judge_extensions(errors: Mapping[str, str]) -> Judged:
    """Compiled module -> its error; without them training decodes slower, and right."""
    missing = {name: error for name, error in errors.items() if error}
    if not missing:
        return "ok", ", ".join(errors), ""
    told = "; ".join(f"{name} is not there ({error})" for name, error in missing.items())
    cure = "apt install gcc python3-dev libjpeg-dev, then pip install --no-deps -e ."
    return "warning", told, cure


# ---- limits, disk, clock --------------------------------------------------------------------------------


def judge_shm(size: int) -> Judged:
    """Not for our loader, which does without."""
    told = f"{size / GB:,.2f} GB"
    if size < SMALL_SHM:
        cure = "docker run --ipc=host or --shm-size=8g; loaders that use torch's DataLoader die without"
        return "warning", told, cure
    return "ok", told, ""


def judge_files(limit: int) -> Judged:
    if limit < 0:  # RLIM_INFINITY
        return "ok", "unlimited", ""
    if limit >= FEW_FILES:
        return "ok", f"{limit:,}", ""
    state: State = "problem" if limit < TOO_FEW_FILES else "warning"
    return state, f"{limit:,}", "ulimit -n 4096"


def judge_space(disk: Disk) -> Judged:
    told = f"{disk.free / GB:,.0f} of {disk.total / GB:,.0f} GB free"
    if disk.free < LITTLE_SPACE:
        return "warning", told, "free some: checkpoints and shards need it"
    return "ok", told, ""


def judge_speed(rate: float) -> Judged:
    told = f"{rate / 1e6:,.0f} MB/s, read past the page cache"
    if rate < SLOW_DISK:
        return "warning", told, "put the shards on a local SSD, or pack smaller photos (--max-side)"
    return "ok", told, ""


def judge_gtt(gtt: Gtt, hardware: Hardware) -> Judged:
    """An APU computes in the machine's memory, as far as the kernel lets it."""
    own, lent, memory = (size / GB for size in (gtt.vram, gtt.gtt, gtt.memory))
    told = f"{lent:,.1f} GB of the machine's {memory:,.1f} GB, and {own:,.1f} GB of its own"
    if not any(name.startswith("gfx115") for name in hardware.amd):
        return "unknown", f"{told}: no APU that we know", ""
    if gtt.gtt < SMALL_GTT * gtt.memory:
        return "warning", told, f"amd-ttm --set {gtt.memory * 3 // 4 // 2**30}, then reboot ({RDNA35})"
    return "ok", told, ""


def judge_clock(clock: Clock) -> Judged:
    governors = ", ".join(clock.governors)
    told = f"governor {governors} ({clock.driver})" + (f", GPU {clock.gpu_level}" if clock.gpu_level else "")
    # those drivers call it powersave when the processor itself chooses its clock
    self_clocking = clock.driver.replace("_", "-") in ("intel-pstate", "amd-pstate-epp")
    if "powersave" in clock.governors and not self_clocking:
        return "warning", told, "sudo cpupower frequency-set -g performance"
    if clock.gpu_level == "low":
        cure = "echo auto | sudo tee /sys/class/drm/card*/device/power_dpm_force_performance_level"
        return "warning", told, cure
    return "ok", told, ""


# ---- the environment ------------------------------------------------------------------------------------


def judge_override(value: str | None, hardware: Hardware) -> Judged:
    """It makes ROCm take one chip for another. An empty value is no version, and ROCm refuses it."""
    cure = "unset HSA_OVERRIDE_GFX_VERSION"
    if value is None:
        return "ok", "not set", ""
    told = f'"{value}"'
    if STRIX_HALO in hardware.amd:
        return "problem", f"{told} on {STRIX_HALO}, which has code of its own", cure
    if not value:
        return "warning", f"{told}: ROCm refuses to start with it", cure
    return "warning", f"{told}: results are right only on a chip that needs it", cure


def judge_fused(value: str | None, torch: Torch) -> Judged:
    """2 turns on timm's fused attention for Swin without asking whether it computes right here."""
    if value is None:
        return "ok", "not set", ""
    if value == "2" and torch.hip:
        cure = "unset TIMM_FUSED_ATTN: on ROCm wrong results were reported"
        return "warning", f"{value}: fused attention without a check", cure
    return "ok", value, ""


def judge_threads(value: str | None, cores: int) -> Judged:
    if value is None:
        return "ok", f"not set, {cores} cores", ""
    told = f"{value}, {cores} cores"
    if not value.isdigit() or int(value) == 0:
        return "warning", f"{told}: no number of threads", "unset OMP_NUM_THREADS"
    if int(value) > cores:
        return "warning", f"{told}: threads wait for each other", f"export OMP_NUM_THREADS={cores}"
    return "ok", told, ""
