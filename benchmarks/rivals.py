"""Everybody who writes or decodes the same photos: our packer, GNU tar, webdataset, tarfile, the decoder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import Missing, find_gnu_tar
from shardtool.errors import Status, UserError

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from shardtool.photo import Check
    from shardtool.plan import Plan

SMALL_SHARDS = 16_000_000  # bytes
ENDINGS = ("jpg", "cls", "json")  # the members of a sample, in the order of our shards


# ---- what is called of shardtool ----------------------------------------------------------------


def pack_tree(source: Path, out: Path, check: Check, workers: int) -> None:
    """The whole pack: plan, scan, checksums, shards, sidecars, report, dataset.json, all synced."""
    from shardtool.pack import PackOptions, pack

    # several workers want several shards, as a tree of many gigabytes gives them
    options = PackOptions(check=check) if workers == 1 else PackOptions(SMALL_SHARDS, check=check)
    pack(source, out, options, workers=workers)


def plan_tree(source: Path) -> Plan:
    """The plan of a pack that reads headers only."""
    from shardtool.pack import PackOptions, plan_pack

    return plan_pack(source, PackOptions(check="header"))


def write_planned(plan: Plan, out: Path) -> None:
    """The shards of a plan with their sidecars, and nothing else."""
    from shardtool.shard import write_shard
    from shardtool.store import LocalFolder

    for job in plan.jobs(LocalFolder(out), plan.places):
        write_shard(job)


# ---- one tree of photos, made ready -------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """A tree of photos on the scratch disk, and the members of its samples as files of one folder."""

    source: Path
    plan: Plan
    members: Path
    keys: tuple[str, ...]  # in the order of our shards

    def names(self, endings: Sequence[str] = ENDINGS) -> list[str]:
        """Files in `members`, in the order in which everybody writes them."""
        return [f"{key}.{ending}" for key in self.keys for ending in endings]


def make_ready(photos: Path, scratch: Path) -> Ready:
    """Copy the tree, pack it once and lay its members out; all of it is in the page cache then.

    Copied, so that everybody reads from the same file system.
    """
    source, packed, members = scratch / "photos", scratch / "packed", scratch / "members"
    shutil.copytree(photos, source, symlinks=True)
    pack_tree(source, packed, "header", workers=1)
    members.mkdir()
    keys = tuple(_lay_out(packed, members))
    shutil.rmtree(packed)
    os.sync()  # what was just written shall not go to the disk while others are timed
    return Ready(source, plan_tree(source), members, keys)


def _lay_out(packed: Path, members: Path) -> Iterator[str]:
    """Write every member of the shards as a file of its name; yields the keys in order."""
    for shard in sorted(packed.glob("*/shard-*.tar")):
        with tarfile.open(shard) as file:
            for member in file:
                payload = file.extractfile(member)
                assert payload is not None, member.name
                (members / member.name).write_bytes(payload.read())
                if member.name.endswith(".jpg"):
                    yield member.name.removesuffix(".jpg")


# ---- the rivals: each writes into an empty folder -----------------------------------------------


@dataclass(frozen=True)
class Lap:
    """One run: `bytes` were written, or read by the decoder."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class Contender:
    """Something to be timed; `run` takes an empty folder to write into, or is the reason why it cannot."""

    name: str
    how: str
    run: Callable[[Path], Lap] | Missing


def contenders(ready: Ready, workers: int) -> list[Contender]:
    """Ours and the others, over the same photos; `workers` processes where all cores are used."""
    return [*_packers(ready), *_other_writers(ready), *_decoders(ready, workers)]


def _packers(ready: Ready) -> list[Contender]:
    return [
        Contender(
            "pack header",
            "shardtool pack --check header --workers 1, in this process",
            _timed(lambda out: pack_tree(ready.source, out / "shards", "header", workers=1)),
        ),
        Contender(
            "pack header, command",
            "the same as a command, with the start of the interpreter",
            _timed(lambda out: _run(pack_command(ready.source, out / "shards", "header", 1))),
        ),
        Contender(
            "write",
            "the planned shards and their sidecars alone",
            _timed(lambda out: write_planned(ready.plan, out)),
        ),
    ]


def _other_writers(ready: Ready) -> list[Contender]:
    every, jpegs = ready.names(), ready.names(("jpg",))
    return [
        Contender("GNU tar", "tar --format=ustar of the same members, then fsync", _gnu_tar(ready, every)),
        Contender(
            "GNU tar, no fsync",
            "the same, left in the page cache",
            _gnu_tar(ready, every, synced=False),
        ),
        Contender("GNU tar, JPEGs alone", "a third of the members, then fsync", _gnu_tar(ready, jpegs)),
        Contender("webdataset", "ShardWriter, the same members, then fsync", _webdataset(ready)),
        Contender(
            "tarfile",
            "Python's tarfile, USTAR, the same members, then fsync",
            _timed(lambda out: write_tarfile(ready.members, every, out)),
        ),
    ]


def _decoders(ready: Ready, workers: int) -> list[Contender]:
    jpegs = [ready.members / name for name in ready.names(("jpg",))]
    return [
        Contender(
            "pack decode",
            f"shardtool pack --check decode --workers {workers}, with the start of its processes",
            _timed(lambda out: pack_tree(ready.source, out / "shards", "decode", workers)),
        ),
        Contender(
            "decoder",
            f"simplejpeg, whole photos to RGB, bytes in memory, {workers} running processes",
            lambda out: decode(jpegs, workers),
        ),
    ]


def _timed(work: Callable[[Path], None]) -> Callable[[Path], Lap]:
    def run(out: Path) -> Lap:
        start = time.monotonic()
        work(out)
        seconds = time.monotonic() - start
        return Lap(seconds, sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))

    return run


def pack_command(source: Path, out: Path, check: Check, workers: int) -> list[str]:
    """The same pack as a command."""
    size = [] if workers == 1 else ["--shard-size", str(SMALL_SHARDS)]
    options = ["--out", str(out), "--check", check, "--workers", str(workers), "--json", *size]
    return [sys.executable, "-c", "from shardtool.cli import main; main()", "pack", str(source), *options]


def _run(command: list[str]) -> None:
    """Raises UserError if the pack was not done."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    check_status(done.returncode, done.stderr)


def check_status(status: int, stderr: str) -> None:
    """Raises UserError if a pack was not done."""
    if status not in (Status.DONE, Status.SOME_REFUSED):
        raise UserError(f"shardtool pack ended with status {status}", where=stderr.strip())


def _gnu_tar(ready: Ready, names: Sequence[str], synced: bool = True) -> Callable[[Path], Lap] | Missing:
    try:
        program = find_gnu_tar()
    except Missing as reason:
        return reason
    return _timed(lambda out: write_gnu_tar(program, ready.members, names, out, synced))


def write_gnu_tar(program: str, members: Path, names: Sequence[str], out: Path, synced: bool = True) -> None:
    """One tar of these files, in this order."""
    with tempfile.NamedTemporaryFile("w") as listing:
        listing.write("".join(f"{name}\0" for name in names))
        listing.flush()
        options = ["--format=ustar", "-cf", str(out / "all.tar"), "-C", str(members), "--null"]
        subprocess.run([program, *options, "-T", listing.name], check=True)
    if synced:
        _sync(out)


def write_tarfile(members: Path, names: Sequence[str], out: Path) -> None:
    """One tar of these files, in this order, by the standard library."""
    with tarfile.open(out / "all.tar", "w", format=tarfile.USTAR_FORMAT) as file:
        for name in names:
            file.add(members / name, name, recursive=False)
    _sync(out)


def _webdataset(ready: Ready) -> Callable[[Path], Lap] | Missing:
    try:
        import webdataset
    except ImportError as error:
        return Missing(str(error))

    def write(out: Path) -> None:
        with webdataset.ShardWriter(str(out / "shard-%06d.tar"), verbose=0) as writer:
            for key in ready.keys:
                parts = {end: (ready.members / f"{key}.{end}").read_bytes() for end in ENDINGS}
                writer.write({"__key__": key, **parts})
        _sync(out)

    return _timed(write)


def _sync(folder: Path) -> None:
    """Our packer ends on the disk, so the others do."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def decode(photos: Sequence[Path], workers: int) -> Lap:
    """Decode all photos in `workers` processes that have started, and have read their share, before.

    Raises UserError for a photo that does not decode.
    """
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(workers)  # it holds a process until the others have a share, too
    shares = [photos[first::workers] for first in range(workers)]
    with ProcessPoolExecutor(workers, context, _keep_barrier, (start,)) as executor:
        starts, stops = zip(*executor.map(_decode_share, shares), strict=True)
    return Lap(max(stops) - min(starts), sum(photo.stat().st_size for photo in photos))


_barrier: Barrier  # of a decoding process: it can be inherited, but not sent with the work


def _keep_barrier(start: Barrier) -> None:
    global _barrier
    _barrier = start


def _decode_share(photos: Sequence[Path]) -> tuple[float, float]:
    """When the decoding began and ended; all processes of a machine read the same clock."""
    import simplejpeg

    jpegs = [photo.read_bytes() for photo in photos]
    _barrier.wait()
    start = time.monotonic()
    for path, jpeg in zip(photos, jpegs, strict=True):
        try:
            simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
        except ValueError as error:
            raise UserError(f"a photo does not decode: {error}", where=path.name) from None
    return start, time.monotonic()
