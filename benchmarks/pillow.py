"""Which Pillow is active: the stock one, or Pillow-SIMD, another distribution of the same module PIL."""

from __future__ import annotations

import importlib.metadata
import io
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

FORKS = ("pillow-simd", "pillow")
TRIALS = 5


@dataclass(frozen=True)
class Pillow:
    """The distribution ("" if PIL is of none known), its version, and the JPEG library it is built with."""

    name: str
    version: str
    simd: bool
    jpeg: str

    def text(self) -> str:
        """For people: "Pillow-SIMD 12.1.1.post0 (libjpeg-turbo 2.1.5)"."""
        return f"{'Pillow-SIMD' if self.simd else 'Pillow'} {self.version} ({self.jpeg})"


def active_pillow() -> Pillow:
    """What `import PIL` gives. Raises ImportError."""
    import PIL
    from PIL import features

    installed = {name: version for name in FORKS if (version := _installed(name))}
    name = owner(PIL.__version__, installed)
    turbo = features.version("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    return Pillow(name, PIL.__version__, name == "pillow-simd", jpeg)


def owner(version: str, installed: dict[str, str]) -> str:
    """The distribution whose version the module carries: of two that were installed over each other, the
    files of the later one are there."""
    return next((name for name in FORKS if installed.get(name) == version), "")


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def decode_rates(photos: Sequence[bytes]) -> dict[str, float]:
    """Photos a second on one core with the active Pillow and with simplejpeg: medians of trials in turn."""
    from PIL import Image
    from simplejpeg import decode_jpeg

    decoders: dict[str, Callable[[bytes], object]] = {
        "Pillow": lambda photo: Image.open(io.BytesIO(photo)).convert("RGB"),
        "simplejpeg": lambda photo: decode_jpeg(photo),
    }
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(TRIALS + 1):
        for name, decode in decoders.items():
            seconds[name].append(_seconds(decode, photos))
    return {name: len(photos) / statistics.median(taken[1:]) for name, taken in seconds.items()}  # 0 warms up


def _seconds(decode: Callable[[bytes], object], photos: Iterable[bytes]) -> float:
    start = time.perf_counter()
    for photo in photos:
        decode(photo)
    return time.perf_counter() - start
