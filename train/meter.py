"""How fast an epoch goes, what it loses time on, and its mean losses."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from train.data import Batch
from train.order import EpochOrder

RECENT_STEPS = 50


class Meter:
    """Rates and mean losses of an epoch; where the time went."""

    def __init__(self, order: EpochOrder, first_step: int = 0) -> None:
        self.order, self.first_step = order, first_step
        self.photos, self.waited, self.start = 0, 0.0, time.monotonic()
        self.recent: deque[dict[str, float]] = deque(maxlen=RECENT_STEPS)
        self.sums: dict[str, float] = {}

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time spent waiting for them counted."""
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - before
            if batch is None:
                return
            yield batch

    def count(self, photos: int, losses: dict[str, float]) -> None:
        self.photos += photos
        self.recent.append(losses)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * photos

    def summary(self) -> dict[str, Any]:
        return {
            "first_step": self.first_step,  # more than 0 where a run went on inside the epoch
            "photos": self.photos,
            "seconds": round(self._seconds, 3),
            "photos_a_second": round(self.photos / self._seconds, 1),
            "data_wait_share": round(self.waited / self._seconds, 4),
            "train": {name: value / max(self.photos, 1) for name, value in self.sums.items()},
        }

    def rates(self) -> str:
        """Speed and data wait, for people."""
        return f"{self.photos / self._seconds:,.0f} img/s  data wait {self.waited / self._seconds:.0%}"

    def losses(self) -> str:
        """Means over the latest steps, for people."""
        names = dict.fromkeys(name for losses in self.recent for name in losses)
        means = {
            name: statistics.fmean(losses[name] for losses in self.recent if name in losses) for name in names
        }
        return "loss: " + "  ".join(f"{name} {value:.3f}" for name, value in means.items())

    def seconds_for(self, photos: int) -> float:
        """How long so many photos will take at the speed of this epoch."""
        return photos * self._seconds / max(self.photos, 1)

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)
