"""Reading samples behind a URL: exactly the bytes asked for, or one line that says why not."""

from __future__ import annotations

import email.utils
import multiprocessing
import pickle
import random
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardtool.errors import DatasetError, StorageError, UserError
from shardtool.remote import (
    GAP_BYTES,
    LONGEST_PAUSE,
    LONGEST_RETRY_AFTER,
    RANGE_BYTES,
    Answer,
    Passing,
    Patience,
    RemoteShards,
    Request,
    Span,
    Version,
    coalesce,
    pause_before,
    range_fault,
    retry_after,
    status_fault,
)
from shardtool.store import filesystem
from tests.servers import Part, Script, scripted_server

HASTY = Patience(deadline=3.0, stall=0.5, pause=0.01)
SHARD = random.Random(0).randbytes(300_000)
WHERE = "https://host/shard.tar, bytes 0-9"


# --- What is asked for -------------------------------------------------------------------------

requests = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 20_000_000), st.integers(1, 6_000_000)), max_size=30
)


@given(requests)
def test_every_request_lies_in_the_span_that_is_asked_for_it(wanted: list[Request]) -> None:
    held = {}
    for span, positions in coalesce(wanted):
        for position in positions:
            shard, offset, size = wanted[position]
            assert (span.shard, span.start <= offset, offset + size <= span.end) == (shard, True, True)
            held[position] = span
    assert sorted(held) == list(range(len(wanted)))


@given(requests)
def test_a_span_is_a_single_photo_or_not_above_the_limit(wanted: list[Request]) -> None:
    for span, _ in coalesce(wanted):
        assert len(span) <= max(RANGE_BYTES, *(size for _, _, size in wanted))


@given(requests)
def test_no_byte_is_asked_for_that_lies_far_from_a_photo(wanted: list[Request]) -> None:
    for span, positions in coalesce(wanted):
        end = span.start
        for _, offset, size in sorted(wanted[position] for position in positions):
            assert offset - end <= GAP_BYTES
            end = max(end, offset + size)
        assert end == span.end


def test_neighbours_share_a_span_and_others_do_not() -> None:
    near, far = 100 + GAP_BYTES, 300 + 2 * GAP_BYTES
    wanted = [(0, far, 10), (0, 0, 100), (1, 100, 10), (0, near, 100), (0, 0, 100)]
    assert coalesce(wanted) == [
        (Span(0, 0, near + 100), [1, 4, 3]),
        (Span(0, far, far + 10), [0]),
        (Span(1, 100, 110), [2]),
    ]


@pytest.mark.parametrize(
    ("value", "seconds"), [("", 0), ("7", 7), ("0", 0), ("3600", LONGEST_RETRY_AFTER), ("-5", 0), ("soon", 0)]
)
def test_a_retry_after_is_honoured_up_to_a_bound(value: str, seconds: float) -> None:
    assert retry_after(value, now=0.0) == seconds


def test_a_retry_after_may_be_a_date() -> None:
    assert retry_after(email.utils.formatdate(1_000_020, usegmt=True), now=1_000_000.0) == 20.0
    assert retry_after(email.utils.formatdate(999_000, usegmt=True), now=1_000_000.0) == 0.0


@given(st.integers(0, 10_000), st.floats(0, LONGEST_RETRY_AFTER))
def test_pauses_grow_to_a_bound_and_are_never_shorter_than_asked(attempt: int, asked: float) -> None:
    pause = pause_before(attempt, 0.5, asked)
    assert asked <= pause <= max(asked, LONGEST_PAUSE)
    assert pause >= min(0.25 * 2.0 ** min(attempt, 10), LONGEST_PAUSE / 2)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        (Version("a", "Mon"), Version("a", "Tue"), False),  # the same file, copied there again
        (Version("a", "Mon"), Version("b", "Mon"), True),
        (Version("", "Mon"), Version("", "Tue"), True),
        (Version("a"), Version("", "Mon"), False),
        (Version(), Version(), False),
    ],
)
def test_two_files_differ_by_what_both_answers_say(first: Version, second: Version, differ: bool) -> None:
    assert first.differs(second) is second.differs(first) is differ


# --- What is answered --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_may_be_asked_again(status: int) -> None:
    fault = status_fault(Answer(status, {"retry-after": "3"}), WHERE)
    assert isinstance(fault, Passing)
    assert (str(fault), fault.retry_after) == (f"HTTP {status}", 3.0)


FAULTS = {
    "missing": (Answer(404, {}), DatasetError, "file is missing"),
    "gone": (Answer(410, {}), DatasetError, "file is missing"),
    "forbidden": (Answer(403, {}), StorageError, "not allowed"),
    "not signed in": (Answer(401, {}), StorageError, "not allowed"),
    "page": (Answer(200, {"content-type": "text/html; charset=utf-8"}), StorageError, "a web page"),
    "whole": (Answer(200, {"content-length": "1000"}), StorageError, "ignores Range"),
    "other": (Answer(418, {}, "Teapot"), StorageError, "HTTP 418 Teapot"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_answer_without_the_bytes_is_told_at_once(name: str) -> None:
    answer, kind, message = FAULTS[name]
    fault = status_fault(answer, WHERE)
    assert isinstance(fault, kind)
    assert message in str(fault)
    assert WHERE in str(fault)


def part(content_range: str, **headers: str) -> Answer:
    return Answer(206, {"content-range": content_range, **headers})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (part("bytes 10-19/100", length="10"), None),
        (part("bytes 10-19/*"), None),
        (part("bytes 10-19/101"), "replaced while it was read: it has 101 bytes now, not 100"),
        (Answer(416, {"content-range": "bytes */15"}), "it has 15 bytes now"),
        (Answer(416, {}), "replaced while it was read: it does not reach so far now"),
        (part("bytes 0-9/100"), "sends bytes 0-9 in place"),
        (part("bytes 10-18/100"), "sends bytes 10-18 in place"),
        (part("bytes 10-19"), "nobody knows what"),
        (Answer(206, {}), "nobody knows what"),
        (part("bytes 10-19/100", **{"content-length": "11"}), "announces 11 bytes, not 10"),
    ],
)
def test_a_part_is_taken_only_if_it_is_the_one_asked_for(answer: Answer, message: str | None) -> None:
    fault = range_fault(answer, Span(0, 10, 20), 100, WHERE)
    assert (message in str(fault)) if message else fault is None


# --- A server that misbehaves ------------------------------------------------------------------


def bounds(wanted: str) -> tuple[int, int]:
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1


def head(wanted: str, **headers: object) -> bytes:
    start, end = bounds(wanted)
    facts = {"Content-Range": f"bytes {start}-{end - 1}/{len(SHARD)}", "Content-Length": end - start}
    facts |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in facts.items() if value is not None]
    return "\r\n".join(["HTTP/1.1 206 Partial Content", *lines, "Connection: close", "", ""]).encode()


def good(wanted: str, **headers: object) -> list[Part]:
    start, end = bounds(wanted)
    return [head(wanted, **headers) + SHARD[start:end]]


def status(line: str, *headers: str) -> list[Part]:
    return ["\r\n".join([f"HTTP/1.1 {line}", *headers, "Content-Length: 0", "", ""]).encode()]


def at(url: str, patience: Patience = HASTY) -> RemoteShards:
    return RemoteShards(f"{url}/train", ["shard-000000"], [len(SHARD)], patience)


def cut(wanted: str, **headers: object) -> list[Part]:
    start, end = bounds(wanted)
    return [head(wanted, **headers) + SHARD[start : end - 7]]


def fault(kind: str, wanted: str) -> Iterable[Part]:
    answers: dict[str, list[Part]] = {
        "503": status("503 Busy"),
        "nothing": [],
        "cut": cut(wanted),
        "cut unannounced": cut(wanted, Content_Length=None),
        "stall": [None],
        "stall in the body": [*cut(wanted), None],
    }
    return answers[kind]


PASSING_FAULTS = ("503", "nothing", "cut", "cut unannounced", "stall", "stall in the body")


@pytest.mark.parametrize("kind", PASSING_FAULTS)
def test_what_passes_is_waited_for(kind: str) -> None:
    def script(number: int, wanted: str) -> Iterable[Part]:
        return fault(kind, wanted) if number < 2 else good(wanted)

    with scripted_server(script) as url:
        assert at(url).read(0, 1000, 5000) == SHARD[1000:6000]


@pytest.mark.parametrize("kind", PASSING_FAULTS)
def test_what_does_not_pass_ends_in_one_line_at_the_deadline(kind: str) -> None:
    with scripted_server(lambda _, wanted: fault(kind, wanted)) as url:
        began = time.monotonic()
        patience = Patience(deadline=1.0, stall=0.3, pause=0.05)
        with pytest.raises(StorageError, match=r"no way to read it within 1 s: ") as caught:
            at(url, patience).read(0, 1000, 5000)
        assert time.monotonic() - began < 2.5
    assert f"{url}/train/shard-000000.tar, bytes 1000-5999" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    times = []

    def script(number: int, wanted: str) -> Iterable[Part]:
        times.append(time.monotonic())
        return good(wanted) if number else status("429 Slow down", "Retry-After: 1")

    with scripted_server(script) as url:
        assert at(url).read(0, 0, 10) == SHARD[:10]
    assert times[1] - times[0] >= 1.0


AT_ONCE: dict[str, tuple[Script, str]] = {
    "missing": (lambda _, wanted: status("404 Not Found"), "file is missing"),
    "forbidden": (lambda _, wanted: status("403 Forbidden"), "not allowed"),
    "ranges ignored": (
        lambda _, wanted: [f"HTTP/1.1 200 OK\r\nContent-Length: {len(SHARD)}\r\n\r\n".encode() + SHARD],
        "ignores Range",
    ),
    "a page": (
        lambda _, wanted: [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>sign in</html>"],
        "a web page",
    ),
    "other bytes": (
        lambda _, wanted: good("bytes=0-4999"),
        "sends bytes 0-4999 in place of those asked for",
    ),
    "fewer announced": (lambda _, wanted: cut(wanted, Content_Length=4993), "announces 4993 bytes, not 5000"),
    "more than announced nowhere": (
        lambda _, wanted: [*good(wanted, Content_Length=None), b"more"],
        "5001 bytes came, not 5000",
    ),
    "another size": (
        lambda _, wanted: good(wanted, Content_Range="bytes 1000-5999/77777"),
        "it has 77777 bytes now, not 300000",
    ),
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_no_patience_helps_is_asked_once(name: str) -> None:
    script, message = AT_ONCE[name]
    asked = []

    def counted(number: int, wanted: str) -> Iterable[Part]:
        asked.append(number)
        return script(number, wanted)

    with scripted_server(counted) as url, pytest.raises(UserError, match=message) as caught:
        at(url).read(0, 1000, 5000)
    assert asked == [0]
    assert "/train/shard-000000.tar, bytes 1000-5999" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fact", ["ETag", "Last_Modified"])
def test_a_shard_that_is_replaced_between_two_reads_is_noticed(fact: str) -> None:
    def script(number: int, wanted: str) -> Iterable[Part]:
        return good(wanted, **{fact: "old" if number < 2 else "new"})

    with scripted_server(script) as url:
        shards = at(url)
        assert [shards.read(0, 0, 10), shards.read(0, 10, 10)] == [SHARD[:10], SHARD[10:20]]
        with pytest.raises(DatasetError, match="the shard was replaced while it was read"):
            shards.read(0, 20, 10)


def test_the_first_failure_does_not_wait_for_the_others() -> None:
    def script(number: int, wanted: str) -> Iterable[Part]:
        return status("404 Not Found") if wanted.startswith("bytes=200000") else [None]

    began = time.monotonic()
    with scripted_server(script) as url:
        shards = at(url, Patience(deadline=30.0, stall=30.0))
        with pytest.raises(DatasetError, match="missing"):
            shards.read_many([(0, 0, 10), (0, 200_000, 10)])
    assert time.monotonic() - began < 5.0


def test_secrets_of_the_address_are_in_no_message() -> None:
    with scripted_server(lambda _, wanted: status("503 Busy")) as url:
        secret = url.replace("//", "//secret@")
        with pytest.raises(StorageError) as caught:
            at(secret, Patience(deadline=0.2, pause=0.05)).read(0, 0, 10)
    assert "secret" not in str(caught.value)
    dead = RemoteShards(f"{secret}/train", ["shard"], [10], Patience(deadline=0.2, pause=0.05))
    with pytest.raises(StorageError) as caught:
        dead.read(0, 0, 10)
    assert "secret" not in str(caught.value)


def test_a_request_outside_the_shard_is_not_made() -> None:
    def script(number: int, wanted: str) -> Iterable[Part]:
        raise AssertionError("nobody should ask")

    with scripted_server(script) as url:
        for offset, size in [(-1, 5), (0, 0), (len(SHARD) - 4, 5)]:
            with pytest.raises(DatasetError, match="points outside the shard's 300000 bytes"):
                at(url).read(0, offset, size)


def test_of_no_requests_come_no_bytes() -> None:
    assert at("http://127.0.0.1:9").read_many([]) == []


# --- Processes ---------------------------------------------------------------------------------


def serving() -> AbstractContextManager[str]:
    return scripted_server(lambda _, wanted: good(wanted))


def read_there(shards: RemoteShards, results: multiprocessing.SimpleQueue[bytes]) -> None:
    results.put(shards.read(0, 500, 100))


def test_a_forked_process_and_its_parent_go_on_reading() -> None:
    fork = multiprocessing.get_context("fork")
    with serving() as url:
        shards = at(url)
        assert shards.read(0, 0, 10) == SHARD[:10]
        results = fork.SimpleQueue()
        for _ in range(2):
            child = fork.Process(target=read_there, args=(shards, results))
            child.start()
            assert results.get() == SHARD[500:600]
            child.join()
            assert shards.read(0, 10, 10) == SHARD[10:20]


def test_shards_can_be_sent_to_another_process() -> None:
    with serving() as url:
        shards = at(url)
        shards.read(0, 0, 10)
        again = pickle.loads(pickle.dumps(shards))
        assert again.read(0, 500, 100) == SHARD[500:600]


# --- Other storages ----------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = "memory://remote-reads" if request.param == "memory" else f"file://{tmp_path}"
    files, path = filesystem(url)
    files.pipe_file(f"{path}/shard-000000.tar", SHARD)
    return url


def test_any_storage_that_fsspec_knows_is_read(place: str) -> None:
    shards = RemoteShards(place, ["shard-000000"], [len(SHARD)], HASTY)
    wanted = [(0, 200_000, 77), (0, 0, 10), (0, 200_000, 77)]
    assert shards.read_many(wanted) == [SHARD[200_000:200_077], SHARD[:10], SHARD[200_000:200_077]]


def test_in_any_storage_a_missing_or_cut_shard_is_told(place: str) -> None:
    with pytest.raises(DatasetError, match="file is missing"):
        RemoteShards(place, ["nowhere"], [100], HASTY).read(0, 0, 10)
    longer = RemoteShards(place, ["shard-000000"], [len(SHARD) + 100], HASTY)
    with pytest.raises(StorageError, match="10 bytes came, not 20"):
        longer.read(0, len(SHARD) - 10, 20)


@pytest.mark.parametrize("threads", [1, 4])
def test_many_random_requests_give_their_bytes_in_their_order(threads: int) -> None:
    files, rng = fsspec.filesystem("memory"), random.Random(threads)
    bodies = [rng.randbytes(500_000) for _ in range(3)]
    for number, body in enumerate(bodies):
        files.pipe_file(f"/many/{number}.tar", body)
    shards = RemoteShards("memory://many", ["0", "1", "2"], [500_000] * 3, HASTY)
    batches = [
        [(rng.randrange(3), rng.randrange(490_000), rng.randint(1, 10_000)) for _ in range(200)]
        for _ in range(12)
    ]
    with ThreadPoolExecutor(threads) as pool:
        for wanted, got in zip(batches, pool.map(shards.read_many, batches), strict=True):
            assert got == [bodies[shard][offset:][:size] for shard, offset, size in wanted]
