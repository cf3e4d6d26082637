"""Independent jobs on processes: any PEP 3148 executor will do, `None` runs them in this process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from shardtool.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Executor | None]:
    """An executor of `workers` local processes, none for one worker; stopped at once on errors."""
    if workers <= 1:
        yield None
        return
    # spawn, not fork: the progress display runs a thread, and forking beside threads can deadlock
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed",
            cure="often by the system for want of memory; try --workers 1",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    # Ctrl-C reaches the workers too: they shall end at once and without a traceback each
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # and they end with a parent that is killed: else they wait for ever, and go on writing to a
    # destination whose lock is free
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block ends: a worker that is just being started would print a traceback.

    A worker inherits the mask and lifts it when it is set up. In this process the mask is not enough,
    since another thread may take the signal, whose handler then runs in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if asked:
        raise KeyboardInterrupt


def ordered(
    executor: Executor | None, work: Callable[[Job], Result], jobs: Iterable[Job], in_flight: int
) -> Iterator[Result]:
    """Results in the order of the jobs, with at most `in_flight` jobs submitted ahead."""
    if executor is None:
        yield from map(work, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    for job in jobs:
        with _interrupts_held():
            waiting.append(executor.submit(work, job))
        if len(waiting) >= in_flight:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
