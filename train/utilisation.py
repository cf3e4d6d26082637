"""How busy a GPU says it is, and how much memory is taken; always with the source of the figure.

"Busy" here means that some kernel ran, not that the chip was used well, so it stands beside our own
device-busy share and never replaces it. What cannot be asked is unknown (None), never 0.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

SAMPLE_SECONDS = 0.1
DRM = Path("/sys/class/drm")
PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """Mean utilisation in percent over `samples` readings; peak memory of the whole device in bytes."""

    percent: float | None = None
    memory_bytes: int | None = None
    source: str = ""
    samples: int = 0

    def text(self) -> str:
        """For people: "87 % (torch.cuda.utilization, 42 readings)", or "unknown" with the reason."""
        if self.percent is None:
            return f"unknown ({self.source})" if self.source else "unknown"
        return f"{self.percent:.0f} % ({self.source}, {self.samples} readings)"


@dataclass(frozen=True)
class Source:
    """Where utilisation comes from: `read` gives percent, and is None where nothing can be asked."""

    name: str
    read: Callable[[], float] | None = None


class Sampler:
    """Reads utilisation and memory from a thread while the block runs; `usage` is the result so far."""

    def __init__(self, device: torch.device, seconds: float = SAMPLE_SECONDS) -> None:
        self._device, self._source, self._seconds = device, find_source(device), seconds
        self._percents: list[float] = []
        self._memory: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def usage(self) -> Usage:
        return self._usage(self._percents, self._memory)

    def take(self) -> Usage:
        """The usage since the last call."""
        percents, self._percents = self._percents, []
        memory, self._memory = self._memory, []
        return self._usage(percents, memory)

    def _usage(self, percents: list[float], memory: list[int]) -> Usage:
        mean = sum(percents) / len(percents) if percents else None
        return Usage(mean, max(memory, default=None), self._source.name, len(percents))

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            if self._device.type == "cuda":
                free, total = torch.cuda.mem_get_info(self._device)
                self._memory.append(total - free)
            if self._source.read is not None:
                with contextlib.suppress(Exception):  # a reading that fails is no reading, not 0
                    self._percents.append(self._source.read())


def find_source(device: torch.device, drm: Path = DRM) -> Source:
    """torch.cuda.utilization() where its vendor's library is installed, else the kernel's sysfs file."""
    if device.type != "cuda":
        return Source("no GPU is used")
    library = "amdsmi" if torch.version.hip else "NVML"
    try:
        torch.cuda.utilization(device)
    except Exception:  # each vendor's library raises a class of its own, and it may not be installed
        return _sysfs(drm, f"neither {library} nor one gpu_busy_percent can be read")
    return Source(f"torch.cuda.utilization, {library}", lambda: float(torch.cuda.utilization(device)))


def _sysfs(drm: Path, otherwise: str) -> Source:
    files = sorted(drm.glob("card*/device/gpu_busy_percent"))
    if len(files) != 1:  # with several cards nothing here says which is torch's
        return Source(otherwise)
    file = files[0]
    try:
        float(file.read_text())
    except (OSError, ValueError):
        return Source(otherwise)
    return Source(str(file), lambda: float(file.read_text()))


# ---- memory -------------------------------------------------------------------------------------------


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes that torch holds of a GPU, its cache included, and bytes that it has; None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory


def process_memory(pid: int | None = None, proc: Path = PROC) -> int | None:
    """Bytes of a process (by default this one) and its descendants, the data workers among them; None where
    the system does not say.

    Shared pages count once in all (PSS): summed resident sizes would count what workers share many times.
    """
    sizes = [_proportional_bytes(proc / str(one)) for one in _family(pid or os.getpid(), proc)]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


def _family(pid: int, proc: Path) -> Iterator[int]:
    yield pid
    for file in proc.glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in file.read_text().split():
                yield from _family(int(child), proc)


def _proportional_bytes(process: Path) -> int | None:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended, or the system has no such file
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
