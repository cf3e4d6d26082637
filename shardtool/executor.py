"""Independent jobs on processes: any PEP 3148 executor will do, `None` runs them in this process."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from importlib.metadata import version
from typing import Any, TypeVar

import PIL

from shardtool import __version__
from shardtool.errors import UsageError, UserError

RETRIES = 3  # of a job whose cluster worker died
CONNECT_SECONDS = 10

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextlib.contextmanager
def engine(workers: int, cluster: str = "") -> Iterator[tuple[Executor | None, int]]:
    """What runs the jobs, and how many at once: a Dask cluster at an address, or local processes."""
    if cluster:
        with dask(cluster) as executor:
            yield executor
        return
    with processes(workers) as pool:
        yield pool, workers


@contextlib.contextmanager
def dask(address: str) -> Iterator[tuple[Executor, int]]:
    """The executor of a Dask cluster that somebody runs, and its number of threads.

    A job whose worker dies is given to others, RETRIES times. Raises UsageError.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed.comm.addressing import parse_address
        from distributed.comm.registry import get_backend
    except ImportError as error:
        raise UsageError("--cluster needs Dask", cure="pip install distributed") from error
    try:
        get_backend(parse_address(address)[0])
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            "no Dask scheduler answers", where=address, cure="give one's address, tcp://HOST:8786"
        ) from error
    for name in ("distributed.client", "tornado.application"):  # they tell a lost worker over many lines
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise UsageError(
                "the cluster has no workers", where=address, cure="start some: dask worker ADDRESS"
            ) from error
        _check_versions(client)
        try:
            yield Cluster(client, address), sum(client.nthreads().values())
        except KilledWorker as error:
            raise _killed(error.task) from error


def _check_versions(client: Any) -> None:
    """Raises UsageError if a worker would write other bytes than this machine, or none."""
    mine = _versions()
    try:
        found = client.run(_versions)
    except ImportError as error:
        raise UsageError(f"on a worker: {error}", cure="install the same packages there as here") from error
    for worker, theirs in found.items():
        if theirs != mine:
            raise UsageError(
                f"a worker has other versions: {', '.join(theirs)}; here: {', '.join(mine)}",
                where=worker,
                cure="install the same there",
            )


def _versions() -> list[str]:
    """Of what decides the bytes of a shard."""
    # Pillow-SIMD is another distribution of the same module
    return [f"shardtool {__version__}", f"Pillow {PIL.__version__}", f"pyarrow {version('pyarrow')}"]


class Cluster(Executor):
    """The workers of a Dask cluster; waiting for a job ends when they are all gone."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._executor = client.get_executor(retries=RETRIES)

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = self._executor.submit(work, *arguments, **named)
        return future

    def await_one(self, future: Future[Any]) -> None:
        """Return when the job is done. Raises UserError when nobody is left to do it."""
        while not wait([future], timeout=CONNECT_SECONDS).done:
            if not self._client.nthreads():
                raise UserError(
                    "the cluster has lost all its workers",
                    where=self._address,
                    cure="start some and run the same command again",
                )


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Executor | None]:
    """An executor of `workers` local processes, none for one worker; stopped at once on errors."""
    if workers <= 1:
        yield None
        return
    pool = Processes(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Processes(Executor):
    """Local processes that can be started again when one of them was killed."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._start()

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        with _interrupts_held():
            try:
                return self._pool.submit(work, *arguments, **named)
            except BrokenExecutor as error:  # as if it had broken a moment later
                lost: Future[Any] = Future()
                lost.set_exception(error)
                return lost

    def restart(self) -> None:
        """New processes for those that are gone."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _start(self) -> ProcessPoolExecutor:
        # spawn, not fork: the progress display runs a thread, and forking beside threads can deadlock
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._workers, mp_context=context, initializer=_follow_parent)


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
    """Results in the order of the jobs, with at most `in_flight` jobs submitted ahead.

    A job whose worker was killed runs once more, alone. Raises UserError naming the job (`str`) when it
    is killed again.
    """
    if executor is None:
        yield from map(work, jobs)
        return
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    for job in jobs:
        if len(waiting) >= in_flight:
            yield _first(executor, work, waiting)
        waiting.append((job, executor.submit(work, job)))
    while waiting:
        yield _first(executor, work, waiting)


def _first(
    executor: Executor, work: Callable[[Job], Result], waiting: deque[tuple[Job, Future[Result]]]
) -> Result:
    """The result of the job that waits longest."""
    if isinstance(executor, Cluster):
        executor.await_one(waiting[0][1])
    try:
        result = waiting[0][1].result()
    except BrokenExecutor as error:
        if not isinstance(executor, Processes):
            raise _killed(waiting[0][0]) from error
        _once_more(executor, work, waiting)
        result = waiting[0][1].result()
    waiting.popleft()
    return result


def _once_more(
    executor: Processes, work: Callable[[Job], Result], waiting: deque[tuple[Job, Future[Result]]]
) -> None:
    """Run what was lost with a killed worker, one job at a time: nobody knows which was its job."""
    executor.restart()
    for place, (job, future) in enumerate(waiting):
        if future.cancelled() or isinstance(future.exception(), BrokenExecutor):
            again = executor.submit(work, job)
            if isinstance(again.exception(), BrokenExecutor):
                raise _killed(job) from again.exception()
            waiting[place] = job, again


def _killed(job: object) -> UserError:
    return UserError(
        "a worker process was killed again and again at the same job",
        where=job,
        cure="often by the system for want of memory: give it more, or use fewer workers",
    )
