"""How a job tells how far it is, to whoever listens: pure code needs no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

# A job opens a bar with (label, total) and advances it by counts.
Advance = Callable[[int], None]
OpenProgress = Callable[[str, int], AbstractContextManager[Advance]]


@contextlib.contextmanager
def silent(label: str, total: int) -> Iterator[Advance]:
    """Progress that shows nothing: for libraries, tests and --json."""
    yield lambda count: None
