"""Peak memory of a pack and of its workers, over a tree of photos and over a larger one."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import peak_memory
from benchmarks.rivals import Ready, check_status, pack_command
from shardtool import terminal
from shardtool.text import counted, size_text

LARGER = 4  # times as many photos: memory must not follow
SAMPLE_SECONDS = 0.02  # between two looks at the memory of running processes


def memory(ready: Ready, workers: int, scratch: Path) -> dict[str, Any]:
    """Peak memory of a pack that decodes, of the tree and of one with LARGER times the photos."""
    trees = []
    for copies in (1, LARGER):
        with tempfile.TemporaryDirectory(prefix="larger-", dir=scratch) as folder:
            source, out = Path(folder, "photos"), Path(folder, "shards")
            files = multiply(ready.source, source, copies)
            command = pack_command(source, out, "decode", workers)
            checked = _watched([*command, "--dry-run"])["seconds"]  # everything but the writing
            trees.append({"files": files, **_watched(command), "check_seconds": checked})
        peak = size_text(trees[-1]["worker_peak_bytes"])
        terminal.say(f"memory: {counted(files, 'file')}, {peak} in the largest worker")
    rates = {"pack": beyond_start(trees, "seconds"), "check": beyond_start(trees, "check_seconds")}
    told = ", ".join(f"{name} {rate:,.0f} photos/s" for name, rate in rates.items() if rate)
    terminal.say(f"beyond the start of the processes: {told or 'too short to tell'}")
    return {"check": "decode", "workers": workers, "trees": trees, "photos_per_second_beyond_start": rates}


def beyond_start(trees: Sequence[dict[str, Any]], seconds: str) -> float | None:
    """Photos/s of the files that the larger tree has more; None if they took no time that could be seen."""
    one, many = trees
    took = many[seconds] - one[seconds]
    return (many["files"] - one["files"]) / took if took > 0 else None


def multiply(source: Path, out: Path, copies: int) -> int:
    """A tree with the files in the class folders of `source`, each `copies` times, as hard links.

    Returns the number of files.
    """
    files = [path for path in source.glob("*/*/**/*") if path.is_file() and not path.is_symlink()]
    for path, number in itertools.product(files, range(copies)):
        target = out / path.relative_to(source).with_name(f"{number}-{path.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return len(files) * copies


def _watched(command: list[str]) -> dict[str, Any]:
    """Seconds of a command, peak memory of it and of the largest of the processes that it starts."""
    peaks: dict[int, int] = {}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            for pid in (process.pid, *_children(process.pid)):
                # the last look counts, not the highest: before its exec a child has its parent's memory
                peaks[pid] = peak_memory(pid) or peaks.get(pid, 0)
            time.sleep(SAMPLE_SECONDS)
        errors.seek(0)
        check_status(process.returncode, errors.read())
    seconds = round(time.monotonic() - start, 3)
    main = peaks.pop(process.pid)
    return {"seconds": seconds, "main_peak_bytes": main, "worker_peak_bytes": max(peaks.values())}


def _children(pid: int) -> list[int]:
    """Running child processes, of all threads."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in file.read_text().split()]
        except OSError:  # the thread has ended
            continue
    return found
