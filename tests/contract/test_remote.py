"""Packing from and to a real S3 server (OpenStack Swift on loopback), its outages included."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardtool.errors import SourceChanged
from shardtool.index import open_split
from shardtool.pack import PackOptions, pack, plan_pack
from shardtool.shard import write_shard
from shardtool.store import UPLOAD_BYTES, open_folder
from tests.kinds import Command, Digests, Grow, Jpeg, Shardtool
from tests.servers import S3Server, ServerMissing, dask_cluster, s3_server, wait_for

Start = Callable[..., subprocess.Popen[str]]

SMALL_SHARDS = ("--shard-size", "40000", "--workers", "1")  # the shards of the fixture `packed`
# the client's own patience is minutes; what shardtool adds to it is tested, not that
HASTY = {"FSSPEC_S3": json.dumps({"config_kwargs": {"retries": {"max_attempts": 0}}})}


@dataclass
class Bucket:
    """A new bucket, looked into with a client of its own that never asks its cache."""

    name: str
    files: Any  # s3fs.S3FileSystem

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, folder: Path, under: str) -> str:
        """Upload a folder; returns its URL."""
        for path in folder.rglob("*"):
            if path.is_file():
                name = f"{self.name}/{under}/{path.relative_to(folder)}"
                self.files.pipe_file(name, path.read_bytes())
        return f"{self.url}/{under}"

    def objects(self, under: str) -> dict[str, dict[str, Any]]:
        """Relative path -> what the listing says, the lock left out."""
        prefix = f"{self.name}/{under}/"
        found = self.files.find(prefix, detail=True)
        return {
            name.removeprefix(prefix): info for name, info in found.items() if not name.endswith("/.lock")
        }

    def digests(self, under: str) -> dict[str, str]:
        """Relative path -> SHA-256 of every object below, the lock left out."""
        return {
            name: hashlib.sha256(self.files.cat_file(f"{self.name}/{under}/{name}")).hexdigest()
            for name in self.objects(under)
        }

    def uploads(self) -> list[str]:
        """Keys of the uploads in parts that have begun and are not completed."""
        return [upload["Key"] for upload in self.files.list_multipart_uploads(self.name)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs the package s3fs")
    try:
        with s3_server(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except ServerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def new_bucket(s3: S3Server) -> Callable[[str], Bucket]:
    import s3fs

    files = s3fs.S3FileSystem(
        key=s3.key,
        secret=s3.secret,
        endpoint_url=s3.endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
    )

    def make(name: str) -> Bucket:
        files.mkdir(name)
        return Bucket(name, files)

    return make


@pytest.fixture
def bucket(new_bucket: Callable[[str], Bucket], request: pytest.FixtureRequest) -> Bucket:
    number = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return new_bucket(f"test-{number}")


@pytest.fixture(scope="module")
def photos(new_bucket: Callable[[str], Bucket], specimens: Path) -> str:
    """The drawn tree in a bucket; only to be read."""
    return new_bucket("photos").put(specimens, "organized")


@pytest.fixture
def at_s3(s3: S3Server, shardtool: Shardtool) -> Shardtool:
    """Run `shardtool` as a person who has set up the S3 server in the environment."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return shardtool(*arguments, **{**s3.environment, **environment})

    return run


@pytest.fixture
def start(s3: S3Server, command: Command, pytestconfig: pytest.Config) -> Iterator[Start]:
    """Begin what `at_s3` would run; ended with the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(*arguments),
            cwd=pytestconfig.rootpath,
            env={**os.environ, **s3.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@contextmanager
def outage(s3: S3Server) -> Iterator[None]:
    s3.kill_object_server()
    try:
        yield
    finally:
        s3.start_object_server()


def shards_at(bucket: Bucket, under: str) -> list[str]:
    return [name for name in bucket.objects(under) if name.endswith(".tar")]


@dataclass(frozen=True)
class Moved:
    """A pack from S3 to S3: the bucket, what lay in it before, how the command ended."""

    bucket: Bucket
    before: dict[str, dict[str, Any]]
    done: subprocess.CompletedProcess[str]


def move_in(bucket: Bucket) -> tuple[str, ...]:
    """Arguments that pack one folder of a bucket into another."""
    return ("pack", f"{bucket.url}/organized", "--out", f"{bucket.url}/shards", *SMALL_SHARDS)


@pytest.fixture(scope="module")
def moved(new_bucket: Callable[[str], Bucket], specimens: Path, s3: S3Server, shardtool: Shardtool) -> Moved:
    """Packed once for all tests that look at the outcome; only to be read."""
    bucket = new_bucket("moved")
    bucket.put(specimens, "organized")
    before = bucket.objects("organized")
    return Moved(bucket, before, shardtool(*move_in(bucket), "--workers", 2, **s3.environment))


def test_a_pack_from_s3_to_s3_gives_the_same_bytes(moved: Moved, packed: Path, digests: Digests) -> None:
    assert moved.done.returncode == 0, moved.done.stderr
    assert moved.bucket.digests("shards") == digests(packed)


@pytest.mark.parametrize(("source", "out"), [("local", "s3"), ("s3", "local")])
def test_a_pack_gives_the_same_bytes_wherever_it_reads_and_writes(
    source: str,
    out: str,
    specimens: Path,
    packed: Path,
    photos: str,
    bucket: Bucket,
    at_s3: Shardtool,
    digests: Digests,
    tmp_path: Path,
) -> None:
    tree = specimens if source == "local" else photos
    to = tmp_path / "shards" if out == "local" else f"{bucket.url}/shards"
    done = at_s3("pack", tree, "--out", to, *SMALL_SHARDS, "--workers", 2)
    assert done.returncode == 0, done.stderr
    found = digests(tmp_path / "shards") if out == "local" else bucket.digests("shards")
    assert found == digests(packed)


def test_a_cluster_packs_the_same_bytes_to_s3(
    s3: S3Server,
    bucket: Bucket,
    specimens: Path,
    packed: Path,
    at_s3: Shardtool,
    digests: Digests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("distributed", reason="needs the package distributed")
    set_up(monkeypatch, s3)  # the workers inherit it
    with dask_cluster(tmp_path) as cluster:
        line = ("pack", specimens, "--out", f"{bucket.url}/shards", "--shard-size", 40_000)
        done = at_s3(*line, "--cluster", cluster.address)
    assert done.returncode == 0, done.stderr
    assert bucket.digests("shards") == digests(packed)


def test_packing_from_a_bucket_changes_nothing_in_it(moved: Moved) -> None:
    assert moved.bucket.objects("organized") == moved.before


def test_packing_again_uploads_no_shard(moved: Moved, at_s3: Shardtool) -> None:
    before = {name: moved.bucket.objects("shards")[name] for name in shards_at(moved.bucket, "shards")}
    again = at_s3(*move_in(moved.bucket), "--json")
    assert json.loads(again.stdout)["written_shards"] == 0
    assert {name: moved.bucket.objects("shards")[name] for name in before} == before


def test_a_changed_photo_uploads_the_shards_that_hold_it(
    bucket: Bucket,
    specimens_copy: Path,
    at_s3: Shardtool,
    jpeg: Jpeg,
    digests: Digests,
    tmp_path: Path,
) -> None:
    line = ("pack", specimens_copy, "--out", f"{bucket.url}/shards", *SMALL_SHARDS)
    assert at_s3(*line).returncode == 0
    total = len(shards_at(bucket, "shards"))
    next(iter(sorted(specimens_copy.rglob("*.jpg")))).write_bytes(jpeg(1, 48, 48))
    again = at_s3(*line, "--json")
    assert 0 < json.loads(again.stdout)["written_shards"] < total
    pack(specimens_copy, tmp_path / "anew", PackOptions(shard_size=40_000))
    assert bucket.digests("shards") == digests(tmp_path / "anew")


@pytest.mark.parametrize("seen", [2, 4])
def test_a_pack_killed_between_uploads_goes_on_and_ends_in_the_same_bytes(
    seen: int,
    bucket: Bucket,
    specimens: Path,
    packed: Path,
    start: Start,
    at_s3: Shardtool,
    digests: Digests,
) -> None:
    line = ("pack", specimens, "--out", f"{bucket.url}/shards", *SMALL_SHARDS)
    process = start(*line)
    wait_for(lambda: len(shards_at(bucket, "shards")) >= seen, process)
    process.kill()
    process.communicate()
    left = bucket.digests("shards")
    assert "dataset.json" not in left
    whole = digests(packed)
    assert {name: whole[name] for name in left} == left
    again = at_s3(*line)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stderr
    assert bucket.digests("shards") == whole


@pytest.fixture
def large_tree(tmp_path: Path, jpeg: Jpeg, grow: Grow) -> Path:
    """More noise than one part of an upload takes."""
    noise = {f"train/Tomato/Blight/{number}.jpg": jpeg(number, 1600, 1600) for number in range(20)}
    assert sum(map(len, noise.values())) > UPLOAD_BYTES
    return grow(tmp_path / "large", noise)


@pytest.mark.slow
def test_a_shard_killed_in_its_upload_is_not_there_and_the_old_one_stays(
    bucket: Bucket,
    large_tree: Path,
    start: Start,
    at_s3: Shardtool,
    jpeg: Jpeg,
    digests: Digests,
    tmp_path: Path,
) -> None:
    out = f"{bucket.url}/shards"
    assert at_s3("pack", large_tree, "--out", out).returncode == 0
    (shard,) = shards_at(bucket, "shards")
    old = bucket.digests("shards")[shard]
    (large_tree / "train/Tomato/Blight/0.jpg").write_bytes(jpeg(99, 1600, 1600))
    process = start("pack", large_tree, "--out", out)
    wait_for(bucket.uploads, process)
    process.kill()
    process.communicate()
    assert bucket.digests("shards")[shard] == old
    assert "dataset.json" not in bucket.objects("shards")
    assert at_s3("pack", large_tree, "--out", out).returncode == 0
    pack(large_tree, tmp_path / "local")
    assert bucket.digests("shards") == digests(tmp_path / "local")


@pytest.mark.slow
def test_a_short_outage_in_the_middle_is_waited_out(
    s3: S3Server, bucket: Bucket, specimens: Path, packed: Path, start: Start, digests: Digests
) -> None:
    process = start("pack", specimens, "--out", f"{bucket.url}/shards", *SMALL_SHARDS)
    wait_for(lambda: shards_at(bucket, "shards"), process)
    with outage(s3):
        time.sleep(0.5)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert bucket.digests("shards") == digests(packed)


@pytest.mark.slow
def test_a_long_outage_ends_in_one_line_and_the_next_run_in_the_same_bytes(
    s3: S3Server,
    bucket: Bucket,
    specimens: Path,
    packed: Path,
    start: Start,
    at_s3: Shardtool,
    digests: Digests,
) -> None:
    line = ("pack", specimens, "--out", f"{bucket.url}/shards", *SMALL_SHARDS)
    process = start(*line, **HASTY)
    wait_for(lambda: shards_at(bucket, "shards"), process)
    with outage(s3):
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    (error,) = [text for text in errors.splitlines() if "rror" in text]
    assert f"{bucket.url}/shards" in error
    assert "run the same command again" in error
    assert "dataset.json" not in bucket.objects("shards")
    assert at_s3(*line).returncode == 0
    assert bucket.digests("shards") == digests(packed)


def test_two_packers_at_one_bucket_the_second_stops_and_names_the_first(
    bucket: Bucket, specimens: Path, packed: Path, start: Start, at_s3: Shardtool, digests: Digests
) -> None:
    line = ("pack", specimens, "--out", f"{bucket.url}/shards", *SMALL_SHARDS)
    first = start(*line)
    wait_for(lambda: shards_at(bucket, "shards"), first)
    first.send_signal(signal.SIGSTOP)
    second = at_s3(*line)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 5
    assert str(first.pid) in second.stderr
    _, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    assert bucket.digests("shards") == digests(packed)


def test_a_photo_that_changes_while_it_is_uploaded_is_named_and_its_shard_is_not_there(
    s3: S3Server,
    bucket: Bucket,
    specimens_copy: Path,
    jpeg: Jpeg,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_up(monkeypatch, s3)
    plan = plan_pack(specimens_copy, PackOptions())
    (job, *_) = plan.jobs(open_folder(f"{bucket.url}/shards"), plan.places)
    changed = next(iter(sorted((specimens_copy / job.plan.split).rglob("*.jpg"))))
    changed.write_bytes(jpeg(7))
    with pytest.raises(SourceChanged, match=changed.name):
        write_shard(job)
    assert bucket.objects("shards") == {}


@pytest.fixture(scope="module")
def shards(new_bucket: Callable[[str], Bucket], packed: Path) -> str:
    """The packed specimens in a bucket; only to be read."""
    return new_bucket("packed").put(packed, "shards")


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_in_a_bucket_reads_like_the_local_one(
    name: str, s3: S3Server, shards: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, s3)
    remote, local = open_split(f"{shards}/{name}"), open_split(str(packed / name))
    everything = range(len(local))
    assert len(remote) == len(local)
    assert remote.row.tolist() == local.row.tolist()
    assert remote.read(everything) == local.read(everything)


def test_info_says_of_a_bucket_what_it_says_of_a_folder(shards: str, packed: Path, at_s3: Shardtool) -> None:
    remote, local = at_s3("info", shards), at_s3("info", packed)
    assert remote.returncode == 0, remote.stderr
    assert remote.stdout == local.stdout
    assert at_s3("info", shards, "--json").stdout == at_s3("info", packed, "--json").stdout


def failures(s3: S3Server, photos: str, tmp_path: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Arguments and environment of commands that cannot do what they are asked."""
    pack_it = ["pack", photos, "--out", str(tmp_path / "shards")]
    signed_in = f"s3://{s3.key}:{s3.secret}@photos/organized"
    return {
        "wrong secret": (pack_it, {"AWS_SECRET_ACCESS_KEY": f"{s3.secret}-no"}),
        "no secret": (pack_it, {"AWS_SECRET_ACCESS_KEY": ""}),
        "no such bucket": (["pack", "s3://nowhere/organized", "--out", str(tmp_path / "shards")], {}),
        "no such folder": (["pack", f"{photos}/none", "--out", str(tmp_path / "shards")], {}),
        "no such bucket for --out": (["pack", photos, "--out", "s3://nowhere/shards"], {}),
        "wrong secret for info": (["info", photos], {"AWS_SECRET_ACCESS_KEY": f"{s3.secret}-no"}),
        "password in the URL": (["pack", signed_in, "--out", str(tmp_path / "shards")], {}),
        "password in --out": (["pack", photos, "--out", signed_in], {}),
        "nobody listens": (pack_it, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}),
        "no URL as endpoint": (pack_it, {"AWS_ENDPOINT_URL": "127.0.0.1:1"}),
    }


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] if case == "nobody listens" else [])
        for case in failures(S3Server(Path(), {"proxy": 0}), "", Path())
    ],
)
def test_what_fails_at_a_bucket_is_told_in_one_line_without_a_secret(
    case: str, s3: S3Server, photos: str, at_s3: Shardtool, tmp_path: Path
) -> None:
    arguments, environment = failures(s3, photos, tmp_path)[case]
    failed = at_s3(*arguments, **HASTY, **environment)
    assert failed.returncode in (1, 2)
    assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr
    assert "s3://" in failed.stderr
    assert s3.secret not in failed.stdout + failed.stderr


def test_no_secret_is_written_to_what_is_packed(s3: S3Server, moved: Moved) -> None:
    assert s3.secret not in moved.done.stdout + moved.done.stderr
    for name in moved.bucket.files.find(f"{moved.bucket.name}/shards"):
        assert s3.secret.encode() not in moved.bucket.files.cat_file(name), name


@pytest.mark.parametrize(
    "url",
    ["github://org:repo@/data", "pipe:cat photos", "filecache::s3://photos/organized", "ftp://h/photos"],
)
def test_a_url_that_is_no_storage_is_refused(url: str, shardtool: Shardtool, tmp_path: Path) -> None:
    refused = shardtool("pack", url, "--out", tmp_path / "shards")
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("url", ["github://org:repo@/data", "filecache::s3://photos/shards"])
def test_a_destination_that_is_no_storage_is_refused(url: str, shardtool: Shardtool, specimens: Path) -> None:
    assert shardtool("pack", specimens, "--out", url).returncode == 2


def set_up(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    """This process, too, finds the server in its environment."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
