"""Jobs on processes: in order, bounded, and done even when a worker is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from shardtool.errors import UsageError, UserError
from shardtool.executor import _check_versions, engine, ordered, processes


def double(number: int) -> int:
    return 2 * number


def die_once(folder: Path, number: int) -> int:
    """Kills its process when it does job 3 for the first time."""
    if number == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


class Once:
    """A picklable job for `die_once`: the function with its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> int:
        return die_once(self.folder, number)


class Counting(Executor):
    """Runs a job when its result is asked for, and knows how many wait."""

    def __init__(self) -> None:
        self.waiting = self.most = 0

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        counting = self

        class Lazy(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                counting.waiting -= 1
                return work(*arguments, **named)

        return Lazy()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    with engine(workers) as (executor, count):
        assert count == workers
        assert list(ordered(executor, double, range(20), in_flight=4)) == list(range(0, 40, 2))


def test_no_more_jobs_wait_than_allowed_and_none_is_asked_for_early() -> None:
    asked = []

    def jobs() -> Iterator[int]:
        for number in range(50):
            asked.append(number)
            yield number

    executor = Counting()
    results = ordered(executor, double, jobs(), in_flight=5)
    assert next(results) == 0
    assert len(asked) <= 6
    assert list(results) == list(range(2, 100, 2))
    assert executor.most == 5


def test_the_jobs_of_a_killed_worker_are_done_again(tmp_path: Path) -> None:
    with processes(2) as executor:
        assert list(ordered(executor, Once(tmp_path), range(12), in_flight=4)) == list(range(12))
    assert (tmp_path / "died").exists()


def test_a_job_that_kills_its_worker_again_is_named() -> None:
    with processes(2) as executor, pytest.raises(UserError, match=r"killed again and again .*\(3\)"):
        list(ordered(executor, die, range(12), in_flight=4))


def test_a_worker_with_other_versions_is_named() -> None:
    class Workers:
        """What a client says of two workers, one of them with another Pillow."""

        def run(self, work: Any) -> dict[str, list[str]]:
            return {"tcp://a:1": work(), "tcp://b:2": [*work()[:-1], "pyarrow 1.0"]}

    with pytest.raises(UsageError, match=r"other versions: .*pyarrow 1\.0; here: .*tcp://b:2"):
        _check_versions(Workers())


def test_a_cluster_that_does_not_answer_is_a_usage_error() -> None:
    pytest.importorskip("distributed", reason="needs Dask")
    with pytest.raises(UsageError, match="no Dask scheduler answers"), engine(1, "tcp://127.0.0.1:9"):
        pass
