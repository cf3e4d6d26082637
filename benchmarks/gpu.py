"""How busy a GPU says it is, and how much of its memory is taken; always with the source of the figure.

"Busy" here means that some kernel ran, not that the chip was used well, so it stands beside our own
device-busy share and never replaces it. What cannot be asked is unknown (None), never 0.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

SAMPLE_SECONDS = 0.1
DRM = Path("/sys/class/drm")


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
    """Reads utilisation and memory from a thread while the block runs; then `usage` holds the result."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._source = device, find_source(device)
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
        mean = sum(self._percents) / len(self._percents) if self._percents else None
        peak = max(self._memory, default=None)
        return Usage(mean, peak, self._source.name, len(self._percents))

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
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
