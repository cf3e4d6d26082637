"""A small pack killed, out of space, or failed by the disk at every call that changes files.

Two proofs that know nothing of each other: the seam (tests/seam.py) in a fork, at every single call, and
strace on the real command. `SWEEP=all` lets strace visit every call, too; by default it takes a sample.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.kinds import Digests, Jpeg
from tests.seam import NEED_SPACE, SYNCS, WRITES, Call, Fault, Forge, Run

State = Mapping[str, str]

SAMPLE = 20
PID = "{pid}"
TEMPORARY = re.compile(r"\.tmp-\d+-")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc of Linux"),
]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    with Forge(tmp_path_factory.mktemp("forge")) as forge:
        yield forge


@dataclass(frozen=True)
class Scene:
    """A pack about to run: its tree, what lies in the destination (None: nothing), its options.

    `complete` are the states in which dataset.json may be seen, `final` is how all must end.
    """

    forge: Forge
    digests: Digests
    tree: Path
    before: Path | None
    out: Path
    complete: tuple[State, ...] = ()
    final: State | None = None

    def arrange(self) -> None:
        """Put the destination into the state before the pack."""
        shutil.rmtree(self.out, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, self.out)

    def arguments(self) -> list[object]:
        return ["pack", self.tree, "--out", self.out, "--workers", 1, "--shard-size", 10_240, "--json"]

    def pack(self, fault: Fault = "none", at: int = -1) -> Run:
        return self.forge.run(self.out, *self.arguments(), fault=fault, at=at)

    def state(self) -> State:
        """Every file with its digest, the writer's pid left out of the names."""
        found = self.digests(self.out) if self.out.exists() else {}
        return {TEMPORARY.sub(".tmp-", name): digest for name, digest in found.items()}

    def assert_honest(self, where: str) -> None:
        """Where dataset.json is seen, all that it speaks of is there."""
        state = self.state()
        assert "dataset.json" not in state or _dataset(state) in self.complete, where

    def assert_goes_on(self, where: str, seen: list[State]) -> None:
        """The same command, undisturbed, ends in the same bytes.

        What it does follows from what lies there: a state among those `seen` is not tried again.
        """
        state = self.state()
        if state in seen:
            return
        seen.append(state)
        run = self.pack()
        assert run.status == 0, f"{where}: {run.said}"
        assert self.state() == self.final, where


def _dataset(state: State) -> State:
    return {name: digest for name, digest in state.items() if name == "dataset.json" or "shard-" in name}


def _plant(tree: Path, jpeg: Jpeg) -> Path:
    names = ("train/A/x/1.jpg", "train/A/x/2.jpg", "train/A/x/3.jpg", "train/B/y/1.jpg", "train/B/y/2.jpg")
    for number, name in enumerate((*names, "val/A/x/1.jpg")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(jpeg(number))
    return tree


def _finished(scene: Scene) -> Scene:
    """The scene with the state in which an undisturbed pack ends."""
    scene.arrange()
    assert scene.pack().status == 0
    assert scene.forge.run(scene.out, "verify", scene.out, "--deep").status == 0
    final = scene.state()
    return replace(scene, final=final, complete=(*scene.complete, _dataset(final)))


@pytest.fixture(scope="module")
def fresh(forge: Forge, digests: Digests, jpeg: Jpeg, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Nothing is there yet."""
    place = tmp_path_factory.mktemp("fresh")
    return _finished(Scene(forge, digests, _plant(place / "tree", jpeg), None, place / "out"))


@pytest.fixture(scope="module")
def changed(fresh: Scene, jpeg: Jpeg, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A finished dataset whose tree has another photo and no validation split any more."""
    place = tmp_path_factory.mktemp("changed")
    fresh.arrange()
    assert fresh.pack().status == 0
    before = Path(shutil.copytree(fresh.out, place / "before"))
    tree = _plant(place / "tree", jpeg)
    (tree / "train/A/x/2.jpg").write_bytes(jpeg(99))
    shutil.rmtree(tree / "val")
    return _finished(replace(fresh, tree=tree, before=before, out=place / "out"))


@pytest.fixture(scope="module")
def resumed(fresh: Scene, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """What a pack killed in the middle has left: some shards, nothing half done."""
    moves = [at for at, call in calls_of(fresh) if call.name == "replace" and "shard-" in call.path]
    fresh.arrange()
    assert fresh.pack("kill", moves[len(moves) // 2] + 1).status < 0
    before = tmp_path_factory.mktemp("resumed") / "before"
    return replace(fresh, before=Path(shutil.copytree(fresh.out, before)))


@pytest.fixture(params=["fresh", "changed", "resumed"])
def scene(request: pytest.FixtureRequest) -> Scene:
    found: Scene = request.getfixturevalue(request.param)
    return found


def calls_of(scene: Scene) -> list[tuple[int, Call]]:
    """All calls of an undisturbed pack, numbered."""
    scene.arrange()
    return list(enumerate(scene.pack().calls))


# --- In a fork, at every call ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["torn", "power", "reordered"])
def test_a_pack_cut_off_at_any_call_goes_on_to_the_same_bytes(scene: Scene, fault: Fault) -> None:
    seen: list[State] = []
    calls = calls_of(scene)
    for at, call in calls:
        scene.arrange()
        assert scene.pack(fault, at).status == -9
        scene.assert_honest(f"call {at}, {call}")
        scene.assert_goes_on(f"call {at}, {call}", seen)
    assert len(seen) > len(calls) / 20


def test_a_finished_pack_outlives_a_power_cut(scene: Scene) -> None:
    calls = calls_of(scene)
    scene.arrange()
    assert scene.pack("power", at=len(calls)).status == 0
    assert scene.state() == scene.final


def test_a_full_disk_at_any_call_ends_with_6_and_nothing_half_done(scene: Scene) -> None:
    seen: list[State] = []
    for at, call in calls_of(scene):
        if call.name not in NEED_SPACE:
            continue
        where = f"call {at}, {call}"
        scene.arrange()
        run = scene.pack("full", at)
        assert (run.status, "free some" in run.said) == (6, True), f"{where}: {run.said}"
        assert not list(scene.out.rglob(".tmp-*")), where
        scene.assert_honest(where)
        scene.assert_goes_on(where, seen)


def test_a_failing_disk_at_any_call_ends_with_1_and_publishes_nothing_of_it(scene: Scene) -> None:
    scene.arrange()
    before, seen = scene.state(), list[State]()
    for at, call in calls_of(scene):
        if call.name not in (*WRITES, *SYNCS, "open", "close", "replace", "rename"):
            continue
        where = f"call {at}, {call}"
        scene.arrange()
        run = scene.pack("error", at)
        assert run.status == 1, f"{where}: {run.said}"
        assert "Traceback" not in run.said, where
        assert not list(scene.out.rglob(".tmp-*")), where
        name = TEMPORARY.sub("", call.path)
        if name != call.path:
            assert scene.state().get(name) in (None, before.get(name)), where
        if call.name in SYNCS:
            assert Call(call.name, call.path) not in _own(run, call)[at + 1 :], where
        scene.assert_honest(where)
        scene.assert_goes_on(where, seen)


def _own(run: Run, like: Call) -> list[Call]:
    """The run's calls with the pid that `like` has in its temporary names."""
    pid = TEMPORARY.search(like.path)
    return [Call(call.name, TEMPORARY.sub(pid[0], call.path) if pid else call.path) for call in run.calls]


def test_writes_that_take_half_of_what_they_get_are_continued(scene: Scene) -> None:
    scene.arrange()
    run = scene.pack("short")
    assert run.status == 0, run.said
    assert scene.state() == scene.final


# --- strace on the command ---------------------------------------------------------------------

TRACED = (
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "fallocate"),
    *("fsync", "fdatasync", "ftruncate", "truncate", "openat", "creat", "mkdirat", "unlinkat", "linkat"),
    *("renameat", "renameat2", "symlinkat", "?open", "?mkdir", "?rmdir", "?unlink", "?rename", "?link"),
)


@dataclass(frozen=True)
class Point:
    """The `number`-th (from 1) system call of this name and path that one thread makes."""

    name: str
    path: str
    number: int


def _trace(scene: Scene, line: list[str], log: Path) -> list[Point]:
    """All system calls of an undisturbed pack that change files of the destination."""
    options = ["-f", "-qq", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(TRACED)}"]
    scene.arrange()
    done = subprocess.run(["strace", *options, *line], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    counts: Counter[tuple[str, str, str]] = Counter()
    points = []
    for text in log.read_text().splitlines():
        match = re.match(rf"(\d+) +(\w+)\([^<\"]*[<\"]({re.escape(str(scene.out))}[^>\"]*)", text)
        if match is None or (match[2] == "openat" and "O_CREAT" not in text):
            continue
        thread, name, place = match[1], match[2], match[3]
        counts[thread, name, place] += 1
        path = TEMPORARY.sub(f".tmp-{PID}-", place)
        points.append(Point(name, path, counts[thread, name, place]))
    return points


def _strike(line: list[str], point: Point, fault: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command; the system call at `point` meets the fault.

    The names of temporary files hold the pid: the shell becomes strace, which with -D becomes the command.
    """
    inject = f"inject={point.name}:{fault}:when={point.number}{more}"
    options = ["-D", "-f", "-qq", "-o", os.devnull, "-e", inject]
    script = f"""path=$(printf %s "$1" | sed "s/{PID}/$$/"); shift; exec strace -P "$path" "$@" """
    shell = ["sh", "-c", script, "sh", point.path, *options, *line]
    return subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)


def _sample(points: list[Point], count: int) -> list[Point]:
    """Evenly spread points, the first and the last among them; all of them with SWEEP=all."""
    if os.environ.get("SWEEP") == "all" or len(points) <= count:
        return points
    return [points[number * (len(points) - 1) // (count - 1)] for number in range(count)]


@pytest.fixture
def line(fresh: Scene, command: Callable[..., list[str]], tmp_path: Path) -> list[str]:
    return command(*fresh.arguments())


@needs_strace
def test_the_seam_misses_no_system_call_that_changes_files(
    fresh: Scene, line: list[str], tmp_path: Path
) -> None:
    names = {"openat": "open", "rename": "replace", "pwrite64": "pwrite"}
    traced = {
        (names.get(point.name, point.name), os.path.relpath(point.path, fresh.out).replace(PID, ""))
        for point in _trace(fresh, line, tmp_path / "log")
    }
    seen = {(call.name, TEMPORARY.sub(".tmp--", call.path)) for _, call in calls_of(fresh)}
    assert len(traced) > 30
    assert traced - seen == set()


@needs_strace
def test_the_command_killed_at_any_system_call_goes_on_to_the_same_bytes(
    fresh: Scene, line: list[str], tmp_path: Path
) -> None:
    points = _trace(fresh, line, tmp_path / "log")
    for point in _sample(points, SAMPLE):
        fresh.arrange()
        assert _strike(line, point, "signal=KILL").returncode == -9, point
        fresh.assert_honest(str(point))
        fresh.assert_goes_on(str(point), [])


@needs_strace
@pytest.mark.parametrize(
    ("names", "fault", "more", "status"),
    [
        (("write", "pwrite64", "writev", "openat"), "error=ENOSPC", "+", 6),
        (("write", "pwrite64", "writev"), "error=EIO", "", 1),
        (("fsync", "fdatasync"), "error=EIO", "", 1),
    ],
    ids=["no space", "failing write", "failing sync"],
)
def test_the_command_tells_what_the_disk_says_and_goes_on_later(
    names: tuple[str, ...], fault: str, more: str, status: int, fresh: Scene, line: list[str], tmp_path: Path
) -> None:
    points = [point for point in _trace(fresh, line, tmp_path / "log") if point.name in names]
    for point in _sample(points, SAMPLE // 4):
        fresh.arrange()
        done = _strike(line, point, fault, more)
        assert done.returncode == status, f"{point}: {done.stderr}"
        assert "Traceback" not in done.stderr
        assert not list(fresh.out.rglob(".tmp-*")), point
        fresh.assert_honest(str(point))
        fresh.assert_goes_on(str(point), [])


# --- A disk that is really full ----------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with the given limit."""
    place = tmp_path / "disk"
    place.mkdir()
    with contextlib.ExitStack() as stack:

        def mount(limit: str) -> Path:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(place)], capture_output=True, check=False
            )
            if done.returncode:
                pytest.skip("needs root that may mount a tmpfs")
            stack.callback(subprocess.run, ["umount", str(place)], check=True)
            return place

        if shutil.which("mount") is None:
            pytest.skip("needs the program mount")
        yield mount


@pytest.mark.parametrize("limit", ["size=16k", "size=40k", "nr_inodes=3", "nr_inodes=9"])
def test_a_disk_that_is_really_full_ends_with_6(
    limit: str, fresh: Scene, small_disk: Callable[[str], Path]
) -> None:
    """Too small at once, or in the middle: of bytes, or of inodes."""
    disk = small_disk(limit)
    run = replace(fresh, out=disk / "out").pack()
    assert run.status == 6, run.said
    assert not list(disk.rglob(".tmp-*"))
    assert not (disk / "out/dataset.json").exists()
    subprocess.run(["mount", "-o", "remount,size=10m,nr_inodes=1000", str(disk)], check=True)
    replace(fresh, out=disk / "out").assert_goes_on(limit, [])
