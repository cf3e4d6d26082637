"""Worker processes that fill batch slots, in pieces, whoever is free.

A task is a run of rows of one slot. All tasks stand in one pipe, from which each worker takes the next
record when it is free: no scheduler, no lock. What a worker has to say comes back through a pipe of its
own, whose end also tells of its death. A worker ends when the trainer does, however that ends: the pipe
of tasks then has no writer.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import multiprocessing.process
import os
import signal
import struct
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar, cast

import cv2
import torch

from shardtool.errors import TrainingError, UserError

Note = TypeVar("Note")
STOP_SECONDS = 5.0  # for a worker to end its piece before it is killed


@dataclass(frozen=True)
class Task:
    """Rows `start` to `stop` of a slot, to be filled for an epoch."""

    slot: int
    start: int
    stop: int
    epoch: int


@dataclass(frozen=True)
class Done(Generic[Note]):
    """A task that is done, with what there is to note about it, or the error that it ended in."""

    task: Task
    notes: Sequence[Note] = ()
    error: Exception | None = None


# Records of one size that divides a page: a read of one record is never torn between two readers.
_RECORD = struct.Struct("<4q")
Work = Callable[[Task], Sequence[Note]]


class InProcess(Generic[Note]):
    """No worker at all: a task is done when it is waited for."""

    def __init__(self, work: Work[Note]) -> None:
        self._work = work
        self._tasks: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self) -> list[Done[Note]]:
        """The next task, done."""
        return [do(self._work, self._tasks.popleft())]

    def cancel(self) -> None:
        """Forget the tasks that are not done."""
        self._tasks.clear()

    def close(self) -> None:
        """Nothing to stop."""


class Workers(Generic[Note]):
    """Processes that do `work`; they are forked, so what it refers to is shared and not copied."""

    def __init__(self, work: Work[Note], count: int) -> None:
        self._cancelled = mmap.mmap(-1, 1)  # shared with the workers
        self._pending = 0
        self._workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
        tasks, self._writer = os.pipe()
        _TRAINER_ENDS.add(self._writer)
        # also at the end of the program: multiprocessing would wait for workers that ignore its signal
        self._stop = weakref.finalize(self, _stop, os.getpid(), self._writer, self._workers)
        try:
            for _ in range(count):
                self._start(work, tasks)
        except OSError as error:
            self.close()
            raise TrainingError(
                f"{count} data workers cannot be started: {error.strerror}",
                cure="use fewer --workers, or raise ulimit -n and ulimit -u",
            ) from error
        finally:
            os.close(tasks)

    def _start(self, work: Work[Note], tasks: int) -> None:
        context = multiprocessing.get_context("fork")
        answers, theirs = context.Pipe(duplex=False)
        _TRAINER_ENDS.add(answers.fileno())
        arguments = (work, tasks, theirs, self._cancelled)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        self._workers[answers] = process
        try:
            process.start()
        except OSError:
            del self._workers[answers]
            _TRAINER_ENDS.discard(answers.fileno())
            raise
        finally:
            theirs.close()

    def submit(self, task: Task) -> None:
        self._pending += 1
        os.write(self._writer, _RECORD.pack(task.slot, task.start, task.stop, task.epoch))

    def wait(self) -> list[Done[Note]]:
        """Blocks until tasks are done. Raises TrainingError if a worker died."""
        done: list[Done[Note]] = []
        for ready in cast("list[Connection]", wait(list(self._workers))):
            try:
                done.append(ready.recv())
            except (EOFError, OSError) as error:
                raise _death(self._workers[ready]) from error
        self._pending -= len(done)
        return done

    def cancel(self) -> None:
        """Returns when no worker has a task any more; those not begun are not done."""
        self._cancelled[0] = 1
        while self._pending and self._workers:
            self.wait()
        self._cancelled[0] = 0

    def close(self) -> None:
        """Let the workers end; kill what does not."""
        self._stop()


def _stop(trainer: int, writer: int, workers: dict[Connection, multiprocessing.process.BaseProcess]) -> None:
    if os.getpid() != trainer:  # a worker that got a copy of another engine
        return
    _TRAINER_ENDS.discard(writer)
    os.close(writer)
    for answers in workers:
        _TRAINER_ENDS.discard(answers.fileno())
        answers.close()
    deadline = time.monotonic() + STOP_SECONDS
    for process in workers.values():
        process.join(max(deadline - time.monotonic(), 0))
        if process.is_alive():
            process.kill()
            process.join()
    workers.clear()


# Descriptors of this process that a forked worker must close: as long as one of them holds the other end
# of the tasks, the workers do not see the end of the trainer.
_TRAINER_ENDS: set[int] = set()


def do(work: Work[Note], task: Task) -> Done[Note]:
    """The task done; an error that a person can do something about is part of the answer."""
    try:
        return Done(task, work(task))
    except (UserError, OSError) as error:
        return Done(task, error=error)


def _serve(work: Work[Any], tasks: int, answers: Connection, cancelled: mmap.mmap) -> None:
    """A worker's life."""
    for descriptor in _TRAINER_ENDS:
        os.close(descriptor)
    # the trainer decides how to stop; its own handlers came along with the fork
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # they may go to the whole group
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # else the first collection would copy every page that was inherited
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with contextlib.suppress(BrokenPipeError):
        while record := os.read(tasks, _RECORD.size):
            task = Task(*_RECORD.unpack(record))
            answers.send(Done(task) if cancelled[0] else do(work, task))


def _death(process: multiprocessing.process.BaseProcess) -> TrainingError:
    process.join(STOP_SECONDS)
    status = process.exitcode or 0
    if status >= 0:
        return TrainingError(
            f"a data worker ended with status {status}, for the reason that it printed above",
            cure="this is a bug: please report it",
        )
    return TrainingError(
        f"a data worker died: process {process.pid}, killed by {signal.Signals(-status).name}",
        cure="often want of memory (dmesg tells): use fewer --workers; the same command goes on",
    )
