"""How many photos a second reach a collated batch: our loader beside others.

The same photos, the same work, the same batch, the same cores; page cache warm, each lap in a process of
its own, alternating rounds. Other loaders are installed in an environment of their own, which is kept.

Example: python -m benchmarks.peers --shards data/shards/train --workers 2 --json peers.json
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.machine import Missing
from benchmarks.photos import check_folders
from benchmarks.rival_loaders.clock import Span
from benchmarks.rival_loaders.environment import RECIPES, Environment, run
from benchmarks.rival_loaders.job import DType, Job, Work
from benchmarks.rival_loaders.photos import lay_out, made_once, make_photos, photos_of
from shardtool import terminal
from shardtool.errors import UsageError
from shardtool.index import open_split
from train.machine import hardware, versions

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command("make-photos", context_settings=terminal.HELP_OPTIONS)(make_photos)

CACHE = Path("~/.cache/plant-disease-trainer/peers")
ROOT = Path(__file__).resolve().parents[1]
LAP_LIMIT, PREPARE_LIMIT = 180.0, 600.0  # seconds, then a loader counts as one that cannot do it
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
OFFLINE = {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1"}
WRITES_ITS_OWN = ("seed_webdataset", "litdata", "huggingface", "grain", "ffcv")  # have a prepare()
PEER_PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "opencv-python-headless"),
    *("litdata", "datasets", "grain", "spdl", "ffcv", "nvidia-dali-cuda120"),
)


# ---- who takes part -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A loader at one kind of work; `loader` is its module in rival_loaders."""

    name: str
    loader: str
    work: Work
    dtype: DType
    how: str

    @property
    def is_peer(self) -> bool:
        """Neither ours nor the source document's."""
        return self.loader in RECIPES


def contenders() -> list[Contender]:
    """Everybody: all do the core work, ours and the source document's all of tier 1 and 2, too."""
    threads = "the same work in threads of the trainer's process"
    return [
        *_both("core"),
        Contender("ours, threads", "ours_threads", "core", "uint8", threads),
        *_peers(),
        *_both("full"),
        Contender("ours, threads", "ours_threads", "full", "uint8", threads),
    ]


def _both(work: Work) -> list[Contender]:
    return [
        Contender("ours", "ours", work, "uint8", "train.data.Loader, as the trainer uses it"),
        Contender("ours, float", "ours", work, "float32", "the same, then train.data.Normaliser on the CPU"),
        Contender(
            "seed, files", "seed_files", work, "float32", "the source document's DataLoader, loose files"
        ),
        Contender(
            "seed, WebDataset", "seed_webdataset", work, "float32", "the source document's snippet, shards"
        ),
    ]


def _peers() -> list[Contender]:
    opencv = "decoded and cropped by OpenCV"
    tensors = "loose files, Pillow, uint8 tensors"
    threads = "loose files, its own decoder and crop, threads"
    return [
        Contender("torchvision v2", "torchvision_v2", "core", "uint8", tensors),
        Contender("torchvision v2, float", "torchvision_v2", "core", "float32", f"{tensors}, normalised"),
        Contender("litdata", "litdata", "core", "uint8", f"its chunks, {opencv}"),
        Contender("HF datasets", "huggingface", "core", "uint8", f"an Arrow table, {opencv}"),
        Contender("grain", "grain", "core", "uint8", f"ArrayRecord, {opencv}"),
        Contender("SPDL", "spdl", "core", "uint8", "loose files, FFmpeg decodes and crops, threads"),
        Contender("FFCV", "ffcv", "core", "uint8", "its .beton file, its own decoder and crop, threads"),
        Contender("DALI", "dali", "core", "uint8", threads),
        Contender("DALI, float", "dali", "core", "float32", f"{threads}, normalised"),
    ]


def chosen(names: Sequence[str]) -> list[Contender]:
    """The contenders with these loaders; all for no name. Raises UsageError."""
    every = contenders()
    known = list(dict.fromkeys(contender.loader for contender in every))
    for name in names:
        if name not in known:
            raise UsageError(f"no loader {name!r}", where="--only", cure=f"there are {', '.join(known)}")
    return [contender for contender in every if not names or contender.loader in names]


# ---- figures ------------------------------------------------------------------------------------


@dataclass
class Row:
    """What became of a contender: (photos, seconds) of each lap, or why it is `missing`."""

    contender: Contender
    laps: list[tuple[int, float]] = field(default_factory=list)
    missing: str = ""

    @property
    def rates(self) -> list[float]:
        """Photos/s of each lap."""
        return [photos / seconds for photos, seconds in self.laps]

    @property
    def rate(self) -> float | None:
        """The median; None if there is none."""
        return median(self.rates) if self.rates and not self.missing else None

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        value: dict[str, Any] = asdict(self.contender)
        if self.missing:
            return {**value, "missing": self.missing}
        if not self.rates:
            return {**value, "missing": "not measured yet"}
        found = {"median": median(self.rates), "min": min(self.rates), "max": max(self.rates)}
        photos = [photos for photos, _ in self.laps]
        rounded = {name: round(rate, 1) for name, rate in found.items()}
        return {**value, "images_per_second": rounded, "photos_of_laps": photos}


@dataclass(frozen=True)
class Ratio:
    """Ours over theirs, and which rows that is; no value where one is missing."""

    value: float | None
    pair: str


def ratios(rows: Sequence[Row]) -> dict[str, Ratio]:
    """Median over median, at equal work and of equal type; against the best peer, the worse of the types."""
    found = {
        f"{work}_over_seed_snippet": _over(
            rows, work, "float32", [row for row in rows if row.contender.loader == "seed_webdataset"]
        )
        for work in ("core", "full")
    }
    peers = [row for row in rows if row.contender.is_peer]
    best = [_over(rows, "core", dtype, peers) for dtype in ("uint8", "float32")]
    measured = [ratio for ratio in best if ratio.value is not None]
    found["core_over_best_peer"] = min(measured or best, key=lambda ratio: ratio.value or 0.0)
    return found


def _over(rows: Sequence[Row], work: str, dtype: str, others: Sequence[Row]) -> Ratio:
    """Ours over the fastest of `others` at this work and type."""

    def like(row: Row) -> bool:
        return (row.contender.work, row.contender.dtype) == (work, dtype) and row.rate is not None

    ours = [row for row in rows if row.contender.loader == "ours" and like(row)]
    theirs = sorted(filter(like, others), key=lambda row: row.rate or 0.0)
    if not ours or not theirs:
        return Ratio(None, f"not measured: {work}, {dtype}")
    mine, best = ours[0], theirs[-1]
    pair = f"{mine.contender.name} / {best.contender.name}: {work}, {dtype} on both sides"
    return Ratio(round(median(mine.rates) / median(best.rates), 3), pair)


def table(rows: Sequence[Row]) -> Table:
    """For people."""
    result = terminal.table("", "images/s to a collated batch", "work", "type", "median", "low – high")
    for row in rows:
        contender = row.contender
        line = [contender.name, contender.work, contender.dtype]
        if row.rate is None:
            result.add_row(*line, "missing", "")
        else:
            result.add_row(*line, f"{row.rate:,.0f}", f"{min(row.rates):,.0f} – {max(row.rates):,.0f}")
    return result


def show(rows: Sequence[Row]) -> None:
    """The table, what is missing and why, and the ratios."""
    terminal.console.print(table(rows))
    for row in rows:
        if row.missing:
            contender = row.contender
            terminal.say(f"{contender.name}, {contender.work}: missing, {terminal.clean(row.missing)}")
    for name, ratio in ratios(rows).items():
        terminal.say(f"{name}: {'n/a' if ratio.value is None else ratio.value} ({ratio.pair})")


# ---- the race -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arena:
    """Where and under which terms everybody runs."""

    environment: Environment
    shards: Path
    data: Path  # loose files, and what loaders have written
    workers: int
    batch: int
    size: int

    def job(self, contender: Contender) -> Job:
        """What the contender is asked for."""
        return Job(
            contender.loader,
            contender.work,
            contender.dtype,
            shards=str(self.shards),
            files=str(self.data / "files"),
            prepared=str(self.data / contender.loader),
            workers=self.workers,
            batch=self.batch,
            size=self.size,
        )

    def prepare(self, contender: Contender) -> None:
        """Install the loader and let it write what it reads. Raises Missing."""
        if contender.is_peer:
            self.environment.install(contender.loader)
        if contender.loader not in WRITES_ITS_OWN:
            return
        with made_once(Path(self.job(contender).prepared)) as folder:
            if folder is not None:
                terminal.say(f"{contender.name} writes the photos in its own format")
                job = {**asdict(self.job(contender)), "prepared": str(folder)}
                self._ask(contender, {"job": job, "span": None}, PREPARE_LIMIT)

    def lap(self, contender: Contender, span: Span) -> tuple[int, float]:
        """Photos and seconds of one run in a process of its own. Raises Missing."""
        request = {"job": asdict(self.job(contender)), "span": asdict(span)}
        found = self._ask(contender, request, LAP_LIMIT)
        return found["photos"], found["seconds"]

    def _ask(self, contender: Contender, request: dict[str, Any], limit: float) -> dict[str, Any]:
        python, more = (sys.executable, {})
        if contender.is_peer:
            python, more = str(self.environment.python), self.environment.variables()
        variables = {**os.environ, **OFFLINE, **dict.fromkeys(ONE_THREAD, "1"), **more}
        command = [python, "-m", "benchmarks.rival_loaders", json.dumps(request)]
        answer: dict[str, Any] = json.loads(run(command, variables, ROOT, limit).splitlines()[-1])
        return answer


def get_ready(arena: Arena, rows: Sequence[Row]) -> None:
    """Lay the photos out, install and prepare everybody; who cannot be is missing."""
    with made_once(arena.data / "files") as folder:
        if folder is not None:
            lay_out(arena.shards, folder)
    reasons: dict[str, str] = {}
    for row in rows:
        loader = row.contender.loader
        if loader not in reasons:
            reasons[loader] = _reason(arena, row.contender)
        row.missing = reasons[loader]


def _reason(arena: Arena, contender: Contender) -> str:
    """Why this one cannot take part, "" if it can."""
    try:
        arena.prepare(contender)
    except Missing as reason:
        return str(reason)
    return ""


def race(arena: Arena, rows: Sequence[Row], span: Span, number: int) -> None:
    """One round: everybody once, each round beginning with another one; who fails is missing from then on."""
    first = number % len(rows)
    for row in [*rows[first:], *rows[:first]]:
        if row.missing:
            continue
        try:
            row.laps.append(arena.lap(row.contender, span))
        except Missing as reason:
            row.missing = str(reason)


# ---- the command line ---------------------------------------------------------------------------


@app.callback(invoke_without_command=True, context_settings=terminal.HELP_OPTIONS)
def peers(
    context: typer.Context,
    shards: Annotated[Path | None, typer.Option(help="Packed split: data/shards/train.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes or threads, and cores, of each.")] = 2,
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go.")] = Path("peers.json"),
    only: Annotated[
        list[str] | None, typer.Option(help="A loader, as ours or dali; can be repeated. By default all.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody runs.")] = 5,
    photos: Annotated[
        int, typer.Option(min=0, help="Photos of a run, after its warm-up; 0: as many as take --seconds.")
    ] = 0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long a run measures.")] = 4.0,
    batch: Annotated[int, typer.Option(min=1, help="Photos of a batch.")] = 256,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side of its photos.")] = 224,
    environment: Annotated[
        Path, typer.Option(help="Where other loaders are installed, and the photos in their formats kept.")
    ] = CACHE,
) -> None:
    """Compare our loader with others, and write the figures with hardware and versions.

    Other loaders are installed the first time: some 3 GB, which stay in --environment. Who cannot be
    installed or does not work is listed with the reason. The file is written anew after each round.

    Example: python -m benchmarks.peers --shards data/shards/train --workers 2 --json peers.json
    """
    if context.invoked_subcommand:
        return
    if shards is None:
        raise UsageError("nothing to measure with", cure="give --shards")
    check_folders(shards, json_file.absolute().parent)
    digest = open_split(str(shards)).digest
    folder = environment.expanduser().absolute()
    data = folder / "data" / f"{digest[:16]}-{shards.name}-{workers}"
    arena = Arena(Environment(folder), shards.absolute(), data, workers, batch, size)
    rows = [Row(contender) for contender in chosen(only or ())]
    compare(arena, rows, Span(photos, seconds), rounds, json_file)
    show(rows)
    terminal.say(f"{terminal.clean(json_file)} is written")


def compare(arena: Arena, rows: Sequence[Row], span: Span, rounds: int, json_file: Path) -> None:
    """Run all rounds; the file holds what is known after each."""
    get_ready(arena, rows)
    conditions = _conditions(arena, span, rounds)
    for number in range(rounds):
        race(arena, rows, span, number)
        terminal.say(f"round {number + 1} of {rounds} done")
        found = ratios(rows)
        result = {
            **conditions,
            "rounds": number + 1,
            "rows": [row.to_json() for row in rows],
            "ratios": {name: ratio.value for name, ratio in found.items()},
            "pairs": {name: ratio.pair for name, ratio in found.items()},
        }
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _conditions(arena: Arena, span: Span, rounds: int) -> dict[str, Any]:
    """What the figures depend on; folders by their last name only."""
    import torch

    how_long = f"--photos {span.photos}" if span.photos else f"--seconds {span.seconds:g}"
    shards = f"{arena.shards.parent.name}/{arena.shards.name}"
    command = (
        f"python -m benchmarks.peers --shards {shards} --workers {arena.workers} --rounds {rounds} {how_long}"
    )
    webdataset = importlib.metadata.version("webdataset")
    others = arena.environment.versions()
    return {
        "hardware": hardware(torch.device("cpu")),
        "versions": {**versions(), "webdataset": webdataset},
        "peer_versions": {name: others[name] for name in PEER_PACKAGES if name in others},
        "command": f"{command} --batch {arena.batch} --size {arena.size}",
        "cores": min(arena.workers, terminal.cpus()),
        "photos": photos_of(arena.shards),
    }


if __name__ == "__main__":
    terminal.run(app, as_json=False)
