from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardtool.errors import TrainingError, UsageError
from train.engine import Done, InProcess, Task, Workers

TASKS = [Task(slot, start, start + 4, epoch=2) for slot in range(3) for start in (0, 4, 8)]


def echo(task: Task) -> list[str]:
    return [f"{task.slot}:{task.start}-{task.stop}@{task.epoch}"]


def refuse(task: Task) -> list[str]:
    raise UsageError("not this one", where=f"slot {task.slot}", cure="another")


def sleep(task: Task) -> list[str]:
    time.sleep(0.05)
    return echo(task)


def die(task: Task) -> list[str]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@pytest.fixture(params=[0, 1, 3])
def count(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def engine(work: object, count: int) -> Workers[str] | InProcess[str]:
    return Workers(work, count) if count else InProcess(work)  # type: ignore[arg-type]


def collect(running: Workers[str] | InProcess[str], tasks: int) -> Iterator[Done[str]]:
    seen = 0
    while seen < tasks:
        done = running.wait()
        seen += len(done)
        yield from done


def test_every_task_is_done_once_by_whoever_is_free(count: int) -> None:
    running = engine(echo, count)
    for task in TASKS:
        running.submit(task)
    done = list(collect(running, len(TASKS)))
    running.close()
    assert {answer.task for answer in done} == set(TASKS)
    assert sorted(note for answer in done for note in answer.notes) == sorted(echo(task)[0] for task in TASKS)


def test_an_error_that_a_person_can_act_on_comes_back_whole(count: int) -> None:
    running = engine(refuse, count)
    running.submit(TASKS[3])
    (done,) = collect(running, 1)
    running.close()
    assert isinstance(done.error, UsageError)
    assert (done.error.what, done.error.where, done.error.cure) == ("not this one", "slot 1", "another")


def test_cancelled_tasks_leave_an_engine_that_works_on(count: int) -> None:
    running = engine(sleep, count)
    for task in TASKS * 20:
        running.submit(task)
    start = time.monotonic()
    running.cancel()
    assert time.monotonic() - start < 2  # all of them would take 9 seconds
    running.submit(TASKS[0])
    (done,) = collect(running, 1)
    running.close()
    assert (done.task, list(done.notes)) == (TASKS[0], echo(TASKS[0]))


def test_a_worker_that_is_killed_is_named_at_once() -> None:
    running = Workers(die, 2)
    running.submit(TASKS[0])
    start = time.monotonic()
    with pytest.raises(TrainingError, match=r"data worker died: process \d+, killed by SIGKILL"):
        running.wait()
    assert time.monotonic() - start < 2
    running.close()


def crash(task: Task) -> list[str]:
    raise IndexError("a bug")


def test_a_worker_with_a_bug_is_not_taken_for_one_without_memory(capfd: pytest.CaptureFixture[str]) -> None:
    running = Workers(crash, 1)
    running.submit(TASKS[0])
    with pytest.raises(TrainingError, match=r"ended with status 1.*bug"):
        running.wait()
    running.close()
    assert "IndexError: a bug" in capfd.readouterr().err


def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_trainer() -> None:
    running = Workers(sleep, 2)
    for process in running._workers.values():
        assert process.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            time.sleep(0.1)  # it has set its handlers by then
            os.kill(process.pid, number)
    running.submit(TASKS[0])
    assert [done.task for done in collect(running, 1)] == [TASKS[0]]
    running.close()


def test_a_program_that_ends_without_closing_does_not_hang() -> None:
    program = "from train.engine import Workers\nkept = Workers(lambda task: [], 2)\nprint('end')"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60, check=True
    )
    assert done.stdout == "end\n"


def test_closing_ends_the_workers_also_while_other_engines_live() -> None:
    first, second = (
        Workers(echo, 2),
        Workers(echo, 2),
    )  # the second's workers were forked with the first's pipes
    start = time.monotonic()
    first.close()
    second.close()
    first.close()
    assert time.monotonic() - start < 2


TRAINER = """
import sys, time
from train.engine import Task, Workers
def work(task): time.sleep(0.01); return []
engines = [Workers(work, 2), Workers(work, 2)]
for engine in engines:
    for number in range(1000): engine.submit(Task(0, 0, 1, 0))
print(*(process.pid for engine in engines for process in engine._workers.values()), flush=True)
time.sleep(60)
"""


def test_workers_end_when_the_trainer_is_killed_and_leave_nothing() -> None:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    root = str(Path(__file__).parents[2])
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True, cwd=root)
    assert trainer.stdout is not None
    workers = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(workers) == 4
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 5
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in workers)
    if before:
        assert set(Path("/dev/shm").iterdir()) <= before


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
