"""The types of what the shared fixtures give."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

Jpeg = Callable[..., bytes]
Grow = Callable[..., Path]
Digests = Callable[[Path], dict[str, str]]
Command = Callable[..., list[str]]
Shardtool = Callable[..., subprocess.CompletedProcess[str]]
