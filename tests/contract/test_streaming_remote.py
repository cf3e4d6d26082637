"""Epochs streamed over HTTP (nginx) and from S3 (Swift), whatever these servers do in the middle.

Either every photo comes exactly as it was packed, or one line says which object failed and how.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardtool.errors import DatasetError, StorageError
from shardtool.index import Split, open_split
from shardtool.remote import IN_FLIGHT, Patience, RemoteShards, Request
from tests.contract.test_remote import Bucket, outage, set_up
from tests.servers import S3Server, ServerMissing, WebServer, nginx, s3_server

HASTY = Patience(deadline=20.0, stall=2.0, pause=0.05)
SHORT = Patience(deadline=1.0, stall=0.4, pause=0.1)


@pytest.fixture(scope="module")
def train(packed: Path) -> Split:
    """What was packed, on this machine."""
    return open_split(str(packed / "train"))


@pytest.fixture(scope="module")
def photos(train: Split) -> list[bytes]:
    return train.read(range(len(train)))


def shards_at(place: str, train: Split, patience: Patience = HASTY) -> RemoteShards:
    """The shards of a split where they were copied to."""
    sizes = [os.path.getsize(f"{train.place}/{name}.tar") for name in train.shards]
    return RemoteShards(place, train.shards, sizes, patience)


def all_of(train: Split) -> list[Request]:
    return list(zip(train.shard.tolist(), train.offset.tolist(), train.size.tolist(), strict=True))


def one_by_one(shards: RemoteShards, train: Split) -> list[bytes]:
    return [shards.read(*request) for request in all_of(train)]


# --- HTTP --------------------------------------------------------------------------------------

STATUSES = {"missing": 404, "forbidden": 403, "failing": 500, "busy": 503, "many": 429}
LOCATIONS = """
location /whole/ { alias ROOT/; max_ranges 0; }
location /few/ { alias ROOT/; limit_req zone=few; limit_req_status 503; }
location /fewer/ { alias ROOT/; limit_req zone=few; limit_req_status 429; add_header Retry-After 1 always; }
location /slow/ { alias ROOT/; limit_rate 40k; }
location /crawling/ { alias ROOT/; limit_rate 1k; }
location /page/ { default_type text/html; return 200 "<html>please sign in</html>"; }
""" + "".join(f"location /{name}/ {{ return {status}; }}\n" for name, status in STATUSES.items())


@pytest.fixture(scope="module")
def web_root(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nginx serves: the packed specimens, which a test may replace and put back."""
    return Path(shutil.copytree(packed, tmp_path_factory.mktemp("web") / "root"))


@pytest.fixture(scope="module")
def web(web_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    locations = LOCATIONS.replace("ROOT", str(web_root))
    try:
        with nginx(web_root, tmp_path_factory.mktemp("nginx"), locations) as server:
            yield server
    except ServerMissing as error:
        pytest.skip(str(error))


def test_a_split_behind_http_is_the_local_one(web: WebServer, train: Split, photos: list[bytes]) -> None:
    remote = open_split(f"{web.url}/train")
    assert remote.row.tolist() == train.row.tolist()
    assert remote.read(range(len(remote))) == photos


def test_an_epoch_takes_few_requests_on_few_connections(
    web: WebServer, train: Split, photos: list[bytes]
) -> None:
    before = len(web.requests())
    shards = shards_at(f"{web.url}/train", train)
    assert shards.read_many(all_of(train)) == photos
    together = web.requests()[before:]
    assert Counter(path for _, _, path in together) == {f"/train/{name}.tar": 1 for name in train.shards}
    assert one_by_one(shards, train) == photos
    alone = web.requests()[before + len(together) :]
    assert len(alone) == len(train)
    assert {connection for connection, _, _ in alone} <= {connection for connection, _, _ in together}
    assert {status for _, status, _ in together + alone} == {206}


def test_many_reads_are_on_their_way_at_once_and_not_too_many(web: WebServer, train: Split) -> None:
    """Photos that lie far apart, from a server that takes its time."""
    before = len(web.requests())
    sizes = [os.path.getsize(f"{train.place}/{name}.tar") for name in train.shards]
    shards = RemoteShards(f"{web.url}/slow/train", train.shards * 8, sizes * 8, HASTY)
    count = 8 * len(train.shards)
    shards.read_many([(number, 0, 512) for number in range(count)])
    asked = web.requests()[before:]
    assert len(asked) == count
    assert 1 < len({connection for connection, _, _ in asked}) <= IN_FLIGHT


@pytest.mark.parametrize("name", ["few", "fewer"])
def test_an_epoch_through_a_rate_limit_is_whole(
    name: str, web: WebServer, train: Split, photos: list[bytes]
) -> None:
    before = len(web.requests())
    shards = shards_at(f"{web.url}/{name}/train", train)
    several = all_of(train)[::12]
    assert shards.read_many(several) == photos[::12]
    assert [shards.read(*request) for request in several] == photos[::12]
    statuses = Counter(status for _, status, _ in web.requests()[before:])
    assert statuses[206] >= len(several)
    assert statuses[{"few": 503, "fewer": 429}[name]] > 0


def test_an_epoch_from_a_slow_server_is_whole(web: WebServer, train: Split, photos: list[bytes]) -> None:
    shards = shards_at(f"{web.url}/slow/train", train)
    assert shards.read_many(all_of(train)) == photos


def test_a_server_that_crawls_ends_in_one_line(web: WebServer, train: Split) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"within 1 s: .*/crawling/train/shard-0"):
        shards_at(f"{web.url}/crawling/train", train, SHORT).read_many(all_of(train))
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("name", ["failing", "busy", "many"])
def test_a_server_that_goes_on_failing_ends_in_one_line(name: str, web: WebServer, train: Split) -> None:
    before, began = len(web.requests()), time.monotonic()
    message = (
        rf"within 1 s: HTTP {STATUSES[name]} \({web.url}/{name}/train/shard-000000\.tar, bytes \d+-\d+\)"
    )
    with pytest.raises(StorageError, match=message):
        shards_at(f"{web.url}/{name}/train", train, SHORT).read(0, 512, 100)
    assert time.monotonic() - began < 2.0
    assert 2 <= len(web.requests()) - before <= 10


AT_ONCE = {
    "missing": (DatasetError, "file is missing"),
    "forbidden": (StorageError, r"not allowed \(HTTP 403\)"),
    "whole": (StorageError, "ignores Range: it sends whole files"),
    "page": (StorageError, "a web page"),
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_no_patience_helps_is_asked_once(name: str, web: WebServer, train: Split) -> None:
    kind, message = AT_ONCE[name]
    before = len(web.requests())
    with pytest.raises(kind, match=message) as caught:
        shards_at(f"{web.url}/{name}/train", train).read(0, 512, 100)
    assert f"{web.url}/{name}/train/shard-000000.tar, bytes 512-611" in str(caught.value)
    wait_until(lambda: len(web.requests()) == before + 1)


def wait_until(happened: Callable[[], bool]) -> None:
    """nginx writes its log when a request is over."""
    give_up = time.monotonic() + 5.0
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_where_ranges_are_ignored_a_split_does_not_open(web: WebServer) -> None:
    with pytest.raises(StorageError, match=r"ignores Range.*shard-00000\d"):
        open_split(f"{web.url}/whole/train", check=False)


REPLACED: dict[str, Callable[[bytes], bytes]] = {
    "as long": lambda data: data[::-1],
    "longer": lambda data: data + b"\0" * 512,
    "shorter": lambda data: data[:600],
}


@pytest.mark.parametrize("length", REPLACED)
def test_a_shard_that_is_replaced_in_the_middle_of_an_epoch_is_noticed(
    length: str, web: WebServer, web_root: Path, train: Split, photos: list[bytes]
) -> None:
    path = web_root / "train" / f"{train.shards[0]}.tar"
    old, when = path.read_bytes(), path.stat().st_mtime
    shards = shards_at(f"{web.url}/train", train)
    mine = [request for request in all_of(train) if request[0] == 0]
    assert shards.read(*mine[0]) == photos[0]
    try:
        place(path, REPLACED[length](old), when + 100)
        with pytest.raises(
            DatasetError, match=r"the shard was replaced while it was read.*shard-000000\.tar"
        ):
            shards.read(*mine[-1])
    finally:
        place(path, old, when)
    assert shards.read(*mine[-1]) == photos[len(mine) - 1]


def place(path: Path, data: bytes, when: float) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(data)
    os.utime(aside, (when, when))
    aside.replace(path)


def epoch(shards: RemoteShards, wanted: list[Request], out: multiprocessing.SimpleQueue[list[bytes]]) -> None:
    out.put(shards.read_many(wanted))
    gc.collect()  # what was inherited and is not needed goes now


def test_forked_workers_and_their_parent_go_on_reading(
    web: WebServer, train: Split, photos: list[bytes]
) -> None:
    """The parent's connections must survive that a child lets go of its copies of them."""
    fork = multiprocessing.get_context("fork")
    shards, wanted = shards_at(f"{web.url}/train", train, Patience(deadline=5.0, stall=5.0)), all_of(train)
    assert shards.read_many(wanted) == photos
    out = fork.SimpleQueue()
    workers = [fork.Process(target=epoch, args=(shards, wanted, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [out.get() for _ in workers] == [photos, photos]
    for worker in workers:
        worker.join()
    assert shards.read_many(wanted) == photos


# --- S3 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs the package s3fs")
    try:
        with s3_server(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except ServerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> Bucket:
    import s3fs

    files = s3fs.S3FileSystem(
        key=s3.key, secret=s3.secret, endpoint_url=s3.endpoint, skip_instance_cache=True
    )
    files.mkdir("streaming")
    return Bucket("streaming", files)


@pytest.fixture
def at_s3(s3: S3Server, bucket: Bucket, packed: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the packed training split in a bucket that this process may read."""
    import s3fs

    set_up(monkeypatch, s3)
    s3fs.S3FileSystem.clear_instance_cache()  # it remembers no environment
    return f"{bucket.put(packed, 'shards')}/train"


def test_an_epoch_from_s3_is_the_local_one(at_s3: str, train: Split, photos: list[bytes]) -> None:
    shards = shards_at(at_s3, train)
    assert shards.read_many(all_of(train)) == photos
    assert one_by_one(shards, train) == photos


@pytest.mark.slow
def test_a_short_outage_in_the_middle_of_an_epoch_is_waited_out(
    s3: S3Server, at_s3: str, train: Split, photos: list[bytes]
) -> None:
    shards, half = shards_at(at_s3, train, Patience()), len(train) // 2
    got = [shards.read(*request) for request in all_of(train)[:half]]
    with ThreadPoolExecutor(1) as pool:
        with outage(s3):
            rest = pool.submit(lambda: [shards.read(*request) for request in all_of(train)[half:]])
            time.sleep(2.0)
            assert not rest.done()
        got += rest.result(timeout=90)
    assert got == photos


@pytest.mark.slow
def test_a_long_outage_in_the_middle_of_an_epoch_ends_in_one_line(
    s3: S3Server, at_s3: str, train: Split, photos: list[bytes]
) -> None:
    shards = shards_at(at_s3, train, Patience(deadline=8.0))
    assert shards.read(*all_of(train)[0]) == photos[0]
    with outage(s3):
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"no way to read it within 8 s: ") as caught:
            shards.read_many(all_of(train))
        assert time.monotonic() - began < 12.0
    assert f"{at_s3}/shard-00000" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert shards.read_many(all_of(train)) == photos


def test_a_missing_object_is_told_at_once(at_s3: str, train: Split) -> None:
    began = time.monotonic()
    with pytest.raises(DatasetError, match=r"file is missing \(s3://streaming/nowhere/shard-000000\.tar"):
        shards_at("s3://streaming/nowhere", train).read(0, 512, 100)
    assert time.monotonic() - began < 2.0


def test_wrong_credentials_are_told_at_once_without_them(
    at_s3: str, s3: S3Server, train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{s3.secret}-no")
    with pytest.raises(StorageError, match=r"not allowed \(HTTP 403 \w+\)") as caught:
        shards_at(at_s3, train).read(0, 512, 100)
    assert s3.secret not in str(caught.value)


@pytest.mark.parametrize("length", REPLACED)
def test_an_object_that_is_replaced_in_the_middle_of_an_epoch_is_noticed(
    length: str, at_s3: str, bucket: Bucket, train: Split, photos: list[bytes]
) -> None:
    shards = shards_at(at_s3, train)
    assert shards.read(*all_of(train)[0]) == photos[0]
    path = Path(f"{train.place}/{train.shards[0]}.tar")
    bucket.files.pipe_file(f"streaming/shards/train/{path.name}", REPLACED[length](path.read_bytes()))
    with pytest.raises(DatasetError, match=r"the shard was replaced while it was read.*shard-000000\.tar"):
        shards.read(*all_of(train)[1])
