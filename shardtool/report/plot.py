"""Charts as inline SVG, without scripts; report.css gives their parts their colours."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shardtool.report.markup import text


def nice_step(top: float) -> int:
    """A step of 1, 2 or 5 times a power of ten, with three to seven of them up to `top`."""
    power: int = 10 ** max(math.floor(math.log10(max(top, 1) / 3)), 0)
    return max(power * factor for factor in (1, 2, 5) if factor == 1 or power * factor * 3 <= top)


class Plot:
    """A chart of `columns` of equal width, `top` high, as inline SVG."""

    WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 480, 220, 58, 36, 22  # units of the view box

    def __init__(self, columns: int, top: float) -> None:
        self.columns, self.top = columns, top

    def x(self, place: float) -> str:
        return f"{self.LEFT + place / self.columns * (self.WIDTH - self.LEFT):.1f}"

    def y(self, value: float) -> str:
        span = self.HEIGHT - self.BELOW - self.ABOVE
        return f"{self.HEIGHT - self.BELOW - value / self.top * span:.1f}"

    def svg(self, title: str, parts: Iterable[str]) -> str:
        box = f"0 0 {self.WIDTH} {self.HEIGHT}"
        return f'<svg class="chart" viewBox="{box}" role="img"><title>{title}</title>{"".join(parts)}</svg>'

    def axes(
        self,
        rows: Iterable[tuple[float, str]],
        columns: Iterable[tuple[float, str]],
        upward: str,
        rightward: str,
    ) -> str:
        """Grid lines at `rows` (value, label), labels under `columns` (place, label), and what they are."""
        lines = "".join(
            f'<path class="axis" d="M{self.LEFT} {self.y(value)}H{self.WIDTH}"/>'
            f'<text x="{self.LEFT - 6}" y="{self.y(value)}" dy="4" text-anchor="end">{text(label)}</text>'
            for value, label in rows
        )
        under = self.HEIGHT - self.BELOW
        ticks = "".join(
            f'<text x="{self.x(place)}" y="{under + 14}" text-anchor="middle">{text(label)}</text>'
            for place, label in columns
        )
        return (
            f'{lines}{ticks}<path class="axis" d="M{self.LEFT} {under}H{self.WIDTH}"/>'
            f'<text x="0" y="10">{text(upward)}</text>'
            f'<text x="{self.WIDTH}" y="{self.HEIGHT - 4}" text-anchor="end">{text(rightward)}</text>'
        )

    def steps(self, heights: NDArray[np.float64], first: int, kind: str) -> str:
        """An area over the columns from `first` on; a run of equal heights is one step."""
        if not len(heights):
            return ""
        ends = np.append(np.flatnonzero(np.diff(heights)) + 1, len(heights))
        path = "".join(f"V{self.y(heights[end - 1])}H{self.x(first + end)}" for end in ends.tolist())
        return f'<path class="{kind}" d="M{self.x(first)} {self.y(0)}{path}V{self.y(0)}Z"/>'

    def column(self, place: int, height: float, title: str) -> str:
        left, right = (float(self.x(place + side)) for side in (0.1, 0.9))
        top = float(self.y(height))
        return (
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{self.HEIGHT - self.BELOW - top:.1f}"><title>{text(title)}</title></rect>'
        )

    def limit(self, value: float, label: str) -> str:
        return (
            f'<path class="limit" d="M{self.LEFT} {self.y(value)}H{self.WIDTH}"/>'
            f'<text class="mark" x="{self.WIDTH}" y="{self.y(value)}" dy="-4" text-anchor="end">'
            f"{text(label)}</text>"
        )
