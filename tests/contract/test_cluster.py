"""Packing on a Dask cluster: a scheduler and workers as processes of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from shardtool.errors import UserError
from shardtool.executor import dask, ordered
from tests.kinds import Command, Digests, Shardtool
from tests.servers import DaskCluster, ServerMissing, dask_cluster, wait_for

NewCluster = Callable[..., DaskCluster]

SMALL_SHARDS = ("--shard-size", "40000")  # those of the fixture `packed`


@contextmanager
def starter(places: pytest.TempPathFactory) -> Iterator[NewCluster]:
    pytest.importorskip("distributed", reason="needs the package distributed")
    with ExitStack() as clusters:

        def start(workers: int = 2) -> DaskCluster:
            folder = places.mktemp("dask")
            try:
                return clusters.enter_context(dask_cluster(folder, workers))
            except ServerMissing as error:
                pytest.skip(str(error))

        yield start


@pytest.fixture
def new_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewCluster]:
    """Start a cluster; it ends with the test."""
    with starter(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of two workers; shared, so nobody may end them."""
    with starter(tmp_path_factory) as start:
        yield start()


def has_shards(out: Path, count: int) -> Callable[[], bool]:
    return lambda: len(list(out.glob("*/*.tar"))) >= count


def test_a_cluster_packs_the_same_bytes_and_says_nothing_of_itself(
    cluster: DaskCluster,
    specimens: Path,
    packed: Path,
    shardtool: Shardtool,
    digests: Digests,
    tmp_path: Path,
) -> None:
    line = ("pack", specimens, "--out", tmp_path / "shards", *SMALL_SHARDS)
    done = shardtool(*line, "--cluster", cluster.address)
    assert done.returncode == 0, done.stderr
    assert "distributed" not in done.stdout + done.stderr
    assert digests(tmp_path / "shards") == digests(packed)


def test_relative_paths_mean_the_folder_of_the_person_not_of_the_workers(
    cluster: DaskCluster,
    specimens: Path,
    packed: Path,
    shardtool: Shardtool,
    digests: Digests,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    tree, out = (os.path.relpath(path, pytestconfig.rootpath) for path in (specimens, tmp_path / "shards"))
    done = shardtool("pack", tree, "--out", out, *SMALL_SHARDS, "--cluster", cluster.address)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "shards") == digests(packed)


@pytest.mark.slow
def test_a_pack_survives_the_loss_of_a_worker(
    new_cluster: NewCluster,
    specimens: Path,
    packed: Path,
    command: Command,
    digests: Digests,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    cluster = new_cluster(workers=2)
    out = tmp_path / "shards"
    line = command("pack", specimens, "--out", out, *SMALL_SHARDS, "--cluster", cluster.address)
    pipe = subprocess.PIPE
    with subprocess.Popen(line, cwd=pytestconfig.rootpath, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(has_shards(out, 2), process)
        cluster.kill_worker()
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert digests(out) == digests(packed)


@pytest.mark.slow
def test_a_pack_that_loses_all_its_workers_ends_in_one_line(
    new_cluster: NewCluster,
    specimens: Path,
    command: Command,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    cluster = new_cluster(workers=2)
    out = tmp_path / "shards"
    line = command("pack", specimens, "--out", out, *SMALL_SHARDS, "--cluster", cluster.address)
    pipe = subprocess.PIPE
    with subprocess.Popen(line, cwd=pytestconfig.rootpath, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(has_shards(out, 2), process)
        cluster.kill_worker()
        cluster.kill_worker()
        try:
            _, errors = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 1, errors
    lines = [line for line in errors.splitlines() if not line.startswith("checking photos: ")]
    assert len(lines) == 1, errors
    assert f"error: the cluster has lost all its workers ({cluster.address})" in errors
    assert not (out / "dataset.json").exists()


def test_a_job_that_kills_its_workers_is_named(new_cluster: NewCluster) -> None:
    cluster = new_cluster(workers=5)
    with pytest.raises(UserError, match="killed"), dask(cluster.address) as (executor, _):
        list(ordered(executor, os._exit, [1], in_flight=1))


def test_a_cluster_holds_no_more_jobs_than_are_allowed_in_flight(cluster: DaskCluster) -> None:
    taken = finished = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        for number in range(200):
            taken += 1
            assert taken - finished <= 4 + 1  # this one is not submitted yet
            yield -number

    with dask(cluster.address) as (executor, _):
        for number, result in enumerate(ordered(executor, abs, jobs(), in_flight=4)):
            assert result == number
            finished += 1
    assert finished == 200


@pytest.mark.parametrize(
    "address", ["nonsense://127.0.0.1:1", pytest.param("tcp://127.0.0.1:1", marks=pytest.mark.slow)]
)
def test_a_scheduler_that_is_not_there_is_told_in_one_line(
    address: str, shardtool: Shardtool, specimens: Path, tmp_path: Path
) -> None:
    pytest.importorskip("distributed", reason="needs the package distributed")
    failed = shardtool("pack", specimens, "--out", tmp_path / "shards", "--cluster", address)
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr
    assert address in failed.stderr


@pytest.mark.slow
def test_a_cluster_without_workers_is_told_in_one_line(
    new_cluster: NewCluster, shardtool: Shardtool, specimens: Path, tmp_path: Path
) -> None:
    cluster = new_cluster(workers=0)
    failed = shardtool("pack", specimens, "--out", tmp_path / "shards", "--cluster", cluster.address)
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr
