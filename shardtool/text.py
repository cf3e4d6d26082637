"""Names, sizes and durations as words for people."""

from __future__ import annotations

import unicodedata


def plain(text: object) -> str:
    """Text from a file name or a label without control or direction characters, for stdout."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
        for char in str(text)
    )


def counted(count: int, noun: str, plural: str = "") -> str:
    """1 shard, 1,024 shards; `plural` is for a noun that takes more than an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def size_text(count: float) -> str:
    """Bytes for people: 71.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time_text(seconds: float) -> str:
    """A duration for people: 4.2 s, 12 min, 3 h 05."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d}"
