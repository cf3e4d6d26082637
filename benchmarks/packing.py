"""How fast, and in how much memory, photos are packed: beside GNU tar, webdataset, tarfile and the decoder.

All sides write the same members from files on one file system, page cache warm, in alternating rounds.

Example: python -m benchmarks.packing --photos data/organized --json packing.json
"""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import json
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
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardtool import terminal
from shardtool.errors import Status, UsageError, UserError

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    import pyarrow as pa
    from PIL import Image
    from rich.table import Table

    from shardtool.pack import Plan
    from shardtool.photo import Check
    from shardtool.taxonomy import Taxonomy

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

ENDINGS = ("jpg", "cls", "json")  # the members of a sample, in the order of our shards
# name of a ratio -> the two figures whose photos/s it divides
RATIOS = {
    "pack_header_over_tar": ("pack header", "GNU tar"),
    "write_over_tar": ("write", "GNU tar"),
    "pack_header_over_webdataset": ("pack header", "webdataset"),
    "decode_over_decoder": ("pack decode", "decoder"),
}
LARGER = 4  # times as many photos: memory must not follow
SAMPLE_SECONDS = 0.02  # between two looks at the memory of running processes
SPECIES, DISEASES = 320, 100  # of the simulated photos


# ---- what is called of shardtool: nothing else here knows its functions ------------------------


def pack_tree(source: Path, out: Path, check: Check, workers: int) -> None:
    """The whole pack: plan, scan, checksums, shards, sidecars, report, dataset.json, all synced."""
    from shardtool.pack import PackOptions, pack

    pack(source, out, PackOptions(check=check), workers=workers)


def plan_tree(source: Path) -> Plan:
    """The plan of a pack that reads headers only."""
    from shardtool.pack import PackOptions, plan_pack

    return plan_pack(source, PackOptions(check="header"))


def write_planned(plan: Plan, out: Path) -> None:
    """The shards of a plan with their sidecars, and nothing else."""
    from shardtool.shard import write_shard
    from shardtool.store import LocalFolder

    for job in plan.jobs(LocalFolder(out)):
        write_shard(job)


def plan_photos(photos: pa.Table, taxonomy: Taxonomy) -> int:
    """Select and lay out photos (schema `shardtool.scan.PHOTOS`) that a scan found; returns the shards."""
    from shardtool import layout
    from shardtool.pack import PackOptions
    from shardtool.scan import SPLITS, Scan
    from shardtool.select import select

    options = PackOptions()
    scan = select(Scan(taxonomy, photos, ()), options.val_share, options.seed)
    layouts = layout.plan(scan.photos, taxonomy, SPLITS, options.seed, options.shard_size)
    return sum(map(len, layouts.values()))


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


class Missing(Exception):
    """A rival that this machine does not have, and why."""


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
            _timed(lambda out: _run(_pack_command(ready.source, out / "shards", "header", 1))),
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


def _pack_command(source: Path, out: Path, check: Check, workers: int) -> list[str]:
    options = ["--out", str(out), "--check", check, "--workers", str(workers), "--json"]
    return [sys.executable, "-c", "from shardtool.cli import main; main()", "pack", str(source), *options]


def _run(command: list[str]) -> None:
    """Raises UserError if the pack was not done."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _check_status(done.returncode, done.stderr)


def _check_status(status: int, stderr: str) -> None:
    if status not in (Status.DONE, Status.SOME_REFUSED):
        raise UserError(f"shardtool pack ended with status {status}", where=stderr.strip())


def find_gnu_tar() -> str:
    """The program. Raises Missing."""
    for name in ("tar", "gtar"):  # macOS and the BSDs have a tar of their own
        program = shutil.which(name)
        if program and "GNU tar" in _version_line(program):
            return program
    raise Missing("no GNU tar on the PATH")


def _version_line(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


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


# ---- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """The laps of one contender over `photos` photos; none, with the reason, if it is `missing`."""

    name: str
    how: str
    photos: int
    laps: tuple[Lap, ...]
    missing: str = ""

    @property
    def rates(self) -> tuple[float, ...]:
        """Photos/s of each lap."""
        return tuple(self.photos / lap.seconds for lap in self.laps)

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        if self.missing:
            return {"name": self.name, "how": self.how, "missing": self.missing}
        rates = {"min": min(self.rates), "median": median(self.rates), "max": max(self.rates)}
        return {
            "name": self.name,
            "how": self.how,
            "photos": self.photos,
            "bytes": self.laps[-1].bytes,
            "rounds": len(self.laps),
            "seconds": [round(lap.seconds, 6) for lap in self.laps],
            "photos_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        }


def race(rivals: Sequence[Contender], photos: int, rounds: int, scratch: Path) -> list[Figure]:
    """Time everybody once a round, each round beginning with another one."""
    runners = [rival for rival in rivals if not isinstance(rival.run, Missing)]
    laps: dict[str, list[Lap]] = {rival.name: [] for rival in rivals}
    gc.freeze()  # collecting what large libraries keep is no part of anybody's work
    for number in range(rounds):
        first = number % len(runners)
        for runner in runners[first:] + runners[:first]:
            laps[runner.name].append(_lap(runner, scratch))
        terminal.say(f"round {number + 1} of {rounds} done")
    gc.unfreeze()
    return [
        Figure(rival.name, rival.how, photos, tuple(laps[rival.name]), _reason(rival)) for rival in rivals
    ]


def _lap(runner: Contender, scratch: Path) -> Lap:
    assert not isinstance(runner.run, Missing)
    with tempfile.TemporaryDirectory(prefix="out-", dir=scratch) as out:
        gc.collect()
        return runner.run(Path(out))


def _reason(rival: Contender) -> str:
    return str(rival.run) if isinstance(rival.run, Missing) else ""


def ratios(figures: Sequence[Figure]) -> dict[str, float | None]:
    """Median photos/s over median photos/s, of the pairs in RATIOS; None if one is missing."""
    rates = {figure.name: median(figure.rates) for figure in figures if figure.laps}
    return {
        name: round(rates[ours] / rates[theirs], 3) if {ours, theirs} <= rates.keys() else None
        for name, (ours, theirs) in RATIOS.items()
    }


def table(title: str, figures: Sequence[Figure]) -> Table:
    """For people."""
    result = terminal.table(title, "", "photos/s", "low – high", "MB/s")
    for figure in figures:
        if figure.missing:
            result.add_row(figure.name, "missing", "", "")
            continue
        speed = median(lap.bytes / lap.seconds for lap in figure.laps) / 1e6
        spread = f"{min(figure.rates):,.0f} – {max(figure.rates):,.0f}"
        result.add_row(figure.name, f"{median(figure.rates):,.0f}", spread, f"{speed:,.0f}")
    return result


def show(title: str, figures: Sequence[Figure], found: dict[str, float | None]) -> None:
    """The table, what each line of it is, and the ratios."""
    terminal.console.print(table(title, figures))
    for figure in figures:
        missing = f"; missing: {terminal.clean(figure.missing)}" if figure.missing else ""
        terminal.say(f"[dim]{figure.name}: {figure.how}{missing}[/]")
    for name, value in found.items():
        terminal.say(f"{name}: {'n/a' if value is None else value}")


# ---- memory -------------------------------------------------------------------------------------


def memory(ready: Ready, workers: int, scratch: Path) -> dict[str, Any]:
    """Peak memory of a pack that decodes, of the tree and of one with LARGER times the photos."""
    trees = []
    for copies in (1, LARGER):
        with tempfile.TemporaryDirectory(prefix="larger-", dir=scratch) as folder:
            source, out = Path(folder, "photos"), Path(folder, "shards")
            files = multiply(ready.source, source, copies)
            trees.append({"files": files, **_watched(_pack_command(source, out, "decode", workers))})
        peak = terminal.size_text(trees[-1]["worker_peak_bytes"])
        terminal.say(f"memory: {files:,} files, {peak} in the largest worker")
    return {"check": "decode", "workers": workers, "trees": trees}


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
        _check_status(process.returncode, errors.read())
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


def peak_memory(pid: int) -> int:
    """Bytes that the process had in memory at its peak; 0 if it has ended.

    Not `ru_maxrss`: that one keeps what the parent had when the process was started.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


# ---- the plan of very many photos ---------------------------------------------------------------


def plan_simulated(count: int) -> list[dict[str, Any]]:
    """Seconds and peak memory of planning `count` photos, of a tree with split folders and one without.

    Each in a process of its own, whose memory counts in full, the simulated photos included.
    """
    context = multiprocessing.get_context("spawn")
    results = []
    for given in (True, False):
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            results.append(executor.submit(_plan_simulated, count, given).result())
        seconds, peak = results[-1]["seconds"], terminal.size_text(results[-1]["peak_bytes"])
        splits = "given" if given else "made"
        terminal.say(f"plan of {count:,} simulated photos, splits {splits}: {seconds:.1f} s, {peak}")
    return results


def _plan_simulated(count: int, given: bool) -> dict[str, Any]:
    photos, taxonomy = simulated_photos(count, given)
    start = time.monotonic()
    shards = plan_photos(photos, taxonomy)
    seconds = time.monotonic() - start
    return {
        "photos": photos.num_rows,
        "classes": taxonomy.rows,
        "splits": "given" if given else "made",
        "shards": shards,
        "seconds": round(seconds, 3),
        "photos_table_bytes": photos.nbytes,
        "peak_bytes": peak_memory(os.getpid()),
    }


def simulated_photos(count: int, given: bool) -> tuple[pa.Table, Taxonomy]:
    """What a scan of `count` photos of about 80 KB would find (schema `shardtool.scan.PHOTOS`).

    `given`: in train and val folders, 9 to 1; else the splits are to be made.
    """
    import numpy as np
    import pyarrow as pa

    from shardtool.taxonomy import Taxonomy

    names = [(_species(s), _disease(d)) for s in range(SPECIES) for d in range(DISEASES)]
    random = np.random.default_rng(0)
    parts = [("train/", 0, 0.9), ("val/", 1, 0.1)] if given else [("", -1, 1.0)]
    shares = np.repeat([share / SPECIES for _, _, share in parts], SPECIES)
    bounds = np.round(np.concatenate([[0], np.cumsum(shares)]) * count).astype(np.int64)
    groups = itertools.product(parts, range(SPECIES))
    chunks = [
        _simulated_species(random, folder, split, species, start, stop)
        for ((folder, split, _), species), (start, stop) in zip(
            groups, itertools.pairwise(bounds.tolist()), strict=True
        )
    ]
    return pa.concat_tables(chunks), Taxonomy.from_labels(names)


def _species(number: int) -> str:
    return f"Solanum_tuberosum_{number:03d}"


def _disease(number: int) -> str:
    return f"Late_blight_{number:03d}"


def _simulated_species(random: Any, folder: str, split: int, species: int, start: int, stop: int) -> pa.Table:
    """The photos with the numbers `start` to `stop`, disease by disease."""
    import numpy as np
    import pyarrow as pa

    from shardtool.scan import PHOTOS

    count = stop - start
    diseases = np.arange(count) * DISEASES // max(count, 1)
    digests = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), count, [None, pa.py_buffer(random.bytes(16 * count))]
    )
    return pa.table(
        {
            "source": _simulated_paths(f"{folder}{_species(species)}/", diseases, start),
            "split": np.full(count, split, np.int8),
            "row": (species * DISEASES + diseases).astype(np.int32),
            "size": random.normal(80_000, 20_000, count).clip(5_000).astype(np.int64),
            "width": np.full(count, 512, np.int32),
            "height": np.full(count, 384, np.int32),
            "crc32c": random.integers(0, 1 << 32, count, np.uint32),
            "digest": digests,
            "rule": pa.repeat("", count),
            "progressive": pa.repeat(False, count),
            "look": pa.repeat(b"", count),
        },
        schema=PHOTOS,
    )


def _simulated_paths(folder: str, diseases: Any, start: int) -> pa.Array:
    """Paths of about 60 bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from shardtool.scan import PHOTOS

    folders = pa.array([f"{folder}{_disease(number)}/IMG_" for number in range(DISEASES)])
    numbers = pc.cast(pa.array(np.arange(start, start + len(diseases))), pa.string())
    padded = pc.utf8_lpad(numbers, 10, "0")
    paths = pc.binary_join_element_wise(folders.take(pa.array(diseases)), padded, ".jpg", "")
    return paths.cast(PHOTOS.field("source").type)


# ---- photos to measure with ---------------------------------------------------------------------


def cut_photos(source: Path, out: Path, count: int, size: int) -> None:
    """Cut `count` different JPEGs of about `size` bytes from the photos in `source`, into class folders.

    The same photos give the same JPEGs, with the same version of Pillow. Raises UsageError.
    """
    from PIL import Image

    photos = sorted(source.glob("*.jpg"))
    if not photos:
        raise UsageError("no .jpg files", where=source)
    for first, path in enumerate(photos):
        with Image.open(path) as photo:
            image = photo.convert("RGB")
        for number in range(first, count, len(photos)):
            target = out / class_folder(number) / f"{number:05d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_cut(image, number, size))


def class_folder(number: int) -> str:
    """split/species/disease of a cut photo: 10 species x 5 diseases, every tenth of a class in val."""
    split = "val" if number // 50 % 10 == 9 else "train"
    return f"{split}/Species_{number % 10}/Disease_{number // 10 % 5}"


def _cut(image: Image.Image, number: int, size: int) -> bytes:
    """A random quarter of the image or more, as a JPEG of about `size` bytes."""
    import numpy as np

    random = np.random.default_rng(number)
    width, height = (round(side * random.uniform(0.5, 0.9)) for side in image.size)
    left, top = int(random.integers(image.width - width + 1)), int(random.integers(image.height - height + 1))
    part = image.crop((left, top, left + width, top + height))
    scale = 0.5
    for _ in range(3):  # bytes grow with the area, roughly: each try comes closer
        jpeg = _jpeg(part, scale)
        scale *= (size / len(jpeg)) ** 0.5
    return jpeg


def _jpeg(image: Image.Image, scale: float) -> bytes:
    out = BytesIO()
    width, height = (max(round(side * scale), 16) for side in image.size)
    image.resize((width, height)).save(out, "JPEG", quality=90)
    return out.getvalue()


# ---- the command line ---------------------------------------------------------------------------


@app.callback(invoke_without_command=True, context_settings=terminal.HELP_OPTIONS)
def packing(
    context: typer.Context,
    photos: Annotated[list[Path] | None, typer.Option(help="A tree of photos; can be repeated.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go.")] = Path("packing.json"),
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody runs.")] = 5,
    scratch: Annotated[
        Path | None, typer.Option(help="Where to write: a disk or a tmpfs; beside --json by default.")
    ] = None,
    plan_count: Annotated[
        int, typer.Option("--plan-photos", min=0, help="Also plan so many simulated photos.")
    ] = 0,
) -> None:
    """Pack trees of photos beside other writers, and write the figures with hardware and versions.

    Example: python -m benchmarks.packing --photos data/organized --json packing.json
    """
    if context.invoked_subcommand:
        return
    trees, scratch = photos or [], scratch or json_file.absolute().parent
    if not trees and not plan_count:
        raise UsageError("nothing to measure", cure="give --photos or --plan-photos")
    _check_folders(*trees, json_file.absolute().parent, scratch)
    result = {**_conditions(trees, json_file, rounds, plan_count, scratch), "trees": []}
    for tree in trees:
        result["trees"].append(measure(tree, rounds, scratch))
    if plan_count:
        result["plans"] = plan_simulated(plan_count)
    json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    terminal.say(f"{terminal.clean(json_file)} is written")


@app.command("make-photos", context_settings=terminal.HELP_OPTIONS)
def make_photos(
    source: Annotated[Path, typer.Argument(help="Folder of large JPEGs.")],
    out: Annotated[Path, typer.Argument(help="Folder of the tree to be made.")],
    count: Annotated[int, typer.Option(min=1, help="Photos to cut.")] = 1500,
    size: Annotated[int, typer.Option(min=1000, help="Bytes of a photo, about.")] = 80_000,
) -> None:
    """Cut photos of a usual size from large ones, for --photos.

    Example: python -m benchmarks.packing make-photos photos cut --count 1500
    """
    _check_folders(source)
    cut_photos(source, out, count, size)
    terminal.say(f"{count:,} photos in {terminal.clean(out)}")


def measure(photos: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """All figures of one tree of photos."""
    workers = terminal.cpus()
    with tempfile.TemporaryDirectory(prefix="packing-", dir=scratch) as folder:
        ready = make_ready(photos, Path(folder))
        terminal.say(f"{terminal.clean(photos.name)}: {len(ready.keys):,} photos")
        figures = race(contenders(ready, workers), len(ready.keys), rounds, Path(folder))
        found = ratios(figures)
        show(terminal.clean(photos.name), figures, found)
        used = memory(ready, max(workers, 2), Path(folder))  # with one worker there is no process of its own
        jpegs = sum((ready.members / name).stat().st_size for name in ready.names(("jpg",)))
    return {
        "photos": photos.name,
        "samples": len(ready.keys),
        "jpeg_bytes": jpegs,
        "figures": [figure.to_json() for figure in figures],
        "ratios": found,
        "memory": used,
    }


def _conditions(
    trees: Sequence[Path], json_file: Path, rounds: int, plan_count: int, scratch: Path
) -> dict[str, Any]:
    """What the figures depend on; folders by their last name only."""
    import torch

    from benchmarks.machine import hardware, versions

    options = [f"--photos {tree.name}" for tree in trees]
    options += [f"--json {json_file.name}", f"--rounds {rounds}"]
    options += [f"--plan-photos {plan_count}"] if plan_count else []
    return {
        "hardware": hardware(torch.device("cpu")),
        "versions": {**versions(), **_tool_versions()},
        "command": " ".join(["python -m benchmarks.packing", *options]),
        "scratch": filesystem_type(scratch),
    }


def _tool_versions() -> dict[str, str]:
    try:
        tar = _version_line(find_gnu_tar())
    except Missing as reason:
        tar = str(reason)
    libraries = ("webdataset", "pyarrow", "xxhash", "google-crc32c")
    return {"tar": tar, **{name: importlib.metadata.version(name) for name in libraries}}


def filesystem_type(folder: Path) -> str:
    """tmpfs, ext4, ...: of the file system that holds the folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(around)[1]


def _check_folders(*folders: Path) -> None:
    """Raises UsageError now, not after minutes of measuring."""
    for folder in folders:
        if not folder.is_dir():
            raise UsageError("no such folder", where=folder)


if __name__ == "__main__":
    terminal.run(app, as_json=False)
