"""Bytes of samples from shards behind a URL: exactly those asked for, or one line that says why not.

HTTP and S3 are asked with the sessions that fsspec keeps, but their answers are judged here, before a byte
of them is taken: fsspec hands over the whole file where a server ignores Range, and tells nobody that the
file is another one now. Other storages are read through fsspec as they are; of theirs the number of bytes
is checked here, and the checksum by whoever knows it.
"""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import fsspec.asyn

from shardtool.errors import DatasetError, StorageError, UserError
from shardtool.store import PASSING, filesystem, is_passing, shown, told

GAP_BYTES = 64 << 10  # read along rather than asked around: less than what a round trip costs
RANGE_BYTES = 4 << 20  # of photos that lie together; a larger photo is still one range
IN_FLIGHT = 16  # ranges that one process waits for at once
LONGEST_PAUSE = 8.0  # seconds between two tries
LONGEST_RETRY_AFTER = 30.0  # seconds; a server may ask for an hour

_AGAIN = "run shardtool verify, then pack again or fetch it again"
_SERVER = "use a server that answers Range requests, or copy the shards to this machine"

Request = tuple[int, int, int]  # shard number, offset, bytes


@dataclass(frozen=True)
class Patience:
    """Seconds: for one range with all its tries, without a byte before a try is given up (HTTP; S3 clients
    have a setting of their own), and before the second try; later pauses double."""

    deadline: float = 60.0
    stall: float = 15.0
    pause: float = 0.5


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` (exclusive) of a shard."""

    shard: int
    start: int
    end: int

    @property
    def header(self) -> str:
        """As the Range header says it."""
        return f"bytes={self.start}-{self.end - 1}"

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Version:
    """What a server says about which file it is that it sends; "" for what it does not say."""

    etag: str = ""
    modified: str = ""

    def differs(self, other: Version) -> bool:
        """Whether these are surely two files."""
        if self.etag and other.etag:
            return self.etag != other.etag
        return bool(self.modified and other.modified) and self.modified != other.modified


class Passing(Exception):
    """A failure that may be over in a moment; the server may have said (in seconds) in how long."""

    def __init__(self, what: str, retry_after: float = 0.0) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class RemoteShards:
    """The shards `names` in the folder `place` (a URL), which have `sizes` bytes.

    Connections belong to a process: one that was forked, or was sent this object, opens its own.
    """

    def __init__(
        self, place: str, names: Sequence[str], sizes: Sequence[int], patience: Patience | None = None
    ) -> None:
        self._place, self._names, self._sizes = place, names, sizes
        self._patience = patience or Patience()
        self._seen: dict[int, Version] = {}
        self._storage: _Storage | None = None

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes of a shard. Raises as `read_many` does."""
        return self.read_many([(shard, offset, size)])[0]

    def read_many(self, requests: Sequence[Request]) -> list[bytes]:
        """The bytes of each request, in their order; many are on their way at once.

        Raises DatasetError if a shard is missing, was replaced or does not reach so far, and StorageError
        if the server does not allow it, does not send what it was asked for, or fails for too long.
        """
        for request in requests:
            self._check(*request)
        parts, storage = coalesce(requests), self._open()
        bodies = fsspec.asyn.sync(storage.loop, _together, [self._fetch(storage, span) for span, _ in parts])
        photos = [b""] * len(requests)
        for (span, held), body in zip(parts, bodies, strict=True):
            for position in held:
                _, offset, size = requests[position]
                start = offset - span.start
                photos[position] = body[start : start + size]
        return photos

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_storage": None}

    def _open(self) -> _Storage:
        if self._storage is None or self._storage.pid != os.getpid():
            self._storage = _storage(self._place, self._patience)
        return self._storage

    def _check(self, shard: int, offset: int, size: int) -> None:
        if offset < 0 or size < 1 or offset + size > self._sizes[shard]:
            raise DatasetError(
                f"the index points outside the shard's {self._sizes[shard]} bytes",
                where=self._where(Span(shard, offset, offset + size)),
                cure=_AGAIN,
            )

    def _where(self, span: Span) -> str:
        return f"{shown(self._url(span.shard))}, bytes {span.start}-{span.end - 1}"

    def _url(self, shard: int) -> str:
        return f"{self._place}/{self._names[shard]}.tar"

    async def _fetch(self, storage: _Storage, span: Span) -> bytes:
        async with storage.slots:
            give_up = storage.loop.time() + self._patience.deadline
            failure = Passing("no answer")
            for attempt in itertools.count():
                try:
                    left = give_up - storage.loop.time()
                    return await asyncio.wait_for(self._try(storage, span), left)
                except asyncio.TimeoutError:
                    break
                except Passing as error:
                    failure = error
                pause = pause_before(attempt, self._patience.pause, failure.retry_after)
                if storage.loop.time() + pause >= give_up:
                    break
                await asyncio.sleep(pause)
        raise StorageError(
            f"no way to read it within {self._patience.deadline:g} s: {failure}",
            where=self._where(span),
            cure="check the network and the server, then run the same command again",
        )

    async def _try(self, storage: _Storage, span: Span) -> bytes:
        try:
            body = await storage.get(self._url(span.shard), span, partial(self._judge, span))
        except (UserError, Passing):
            raise
        except Exception as error:  # each client library has its own tree of errors
            raise self._failure(error, span) from error
        if len(body) != len(span):
            raise StorageError(
                f"{len(body)} bytes came, not {len(span)}", where=self._where(span), cure=_SERVER
            )
        return body

    def _failure(self, error: Exception, span: Span) -> Exception:
        if isinstance(error, FileNotFoundError):
            return DatasetError("file is missing", where=self._where(span), cure=_AGAIN)
        if isinstance(error, PermissionError):
            return StorageError(
                "reading it is not allowed", where=self._where(span), cure="check the credentials"
            )
        if is_passing(error):
            return Passing(told(error))
        return StorageError(f"the storage failed: {told(error)}", where=self._where(span), cure=_SERVER)

    def _judge(self, span: Span, answer: Answer) -> None:
        """Raise unless the answer is the part of the shard that was asked for."""
        where, size = self._where(span), self._sizes[span.shard]
        if wrong := status_fault(answer, where):
            raise wrong
        now = Version(answer.header("etag"), answer.header("last-modified"))
        if now.differs(self._seen.get(span.shard, now)):
            raise _replaced(where)
        if wrong := range_fault(answer, span, size, where):
            raise wrong
        self._seen.setdefault(span.shard, now)


@dataclass(frozen=True)
class Answer:
    """What comes before the bytes; `reason` is what S3 adds to a status that is an error."""

    status: int
    headers: Mapping[str, str]  # names in small letters, or a mapping that does not mind
    reason: str = ""

    def header(self, name: str) -> str:
        return self.headers.get(name, "")


def status_fault(answer: Answer, where: str) -> Exception | None:
    """What is wrong with an answer by its status: Passing if it may be over soon; None for a part of a
    file and for "it does not reach so far", which `range_fault` looks at."""
    status = f"HTTP {answer.status} {answer.reason}".rstrip()
    if answer.status in (206, 416):
        return None
    if answer.status in PASSING:
        return Passing(status, retry_after(answer.header("retry-after"), time.time()))
    if answer.status in (404, 410):
        return DatasetError("file is missing", where=where, cure=_AGAIN)
    if answer.status in (401, 403):
        return StorageError(
            f"reading it is not allowed ({status})", where=where, cure="check the address and the credentials"
        )
    if answer.status == 200 and answer.header("content-type").startswith("text/html"):
        return StorageError(
            "the server answers with a web page, not with the shard",
            where=where,
            cure="open the address in a browser: often it asks to sign in",
        )
    if answer.status == 200:
        return StorageError("the server ignores Range: it sends whole files", where=where, cure=_SERVER)
    return StorageError(f"the server answers {status}", where=where, cure="check the address")


_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


def range_fault(answer: Answer, span: Span, size: int, where: str) -> UserError | None:
    """What is wrong with the part of a file that an answer announces: a shard of another size than `size`,
    other bytes than those of the span, more or fewer of them."""
    found = _CONTENT_RANGE.fullmatch(answer.header("content-range"))
    first, last, total = found.groups() if found else (None, None, None)
    if total and total not in ("*", str(size)):
        return _replaced(where, f": it has {total} bytes now, not {size}")
    if answer.status == 416:
        return _replaced(where, ": it does not reach so far now")
    if (first, last) != (str(span.start), str(span.end - 1)):
        sent = f"bytes {first}-{last}" if first else "nobody knows what"
        return StorageError(f"the server sends {sent} in place of those asked for", where=where, cure=_SERVER)
    length = answer.header("content-length")
    if length not in ("", str(len(span))):
        return StorageError(
            f"the server announces {length} bytes, not {len(span)}", where=where, cure=_SERVER
        )
    return None


def _replaced(where: str, how: str = "") -> DatasetError:
    return DatasetError(
        f"the shard was replaced while it was read{how}", where=where, cure="start again on the new dataset"
    )


def retry_after(value: str, now: float) -> float:
    """Seconds that a Retry-After header (a number or a date) asks for, up to LONGEST_RETRY_AFTER; 0 without
    one. `now` is the time in seconds since 1970."""
    try:
        seconds = (
            float(value) if value.isdigit() else email.utils.parsedate_to_datetime(value).timestamp() - now
        )
    except (TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def pause_before(attempt: int, first: float, asked: float) -> float:
    """Seconds before the next try; up to half less by chance, so that a thousand workers that failed
    together do not come back together. Never less than the server asked for."""
    growing: float = min(first * 2.0 ** min(attempt, 10), LONGEST_PAUSE)
    return max(growing * random.uniform(0.5, 1.0), asked)


def coalesce(requests: Sequence[Request]) -> list[tuple[Span, list[int]]]:
    """Spans that cover the requests, each with the positions of the requests that lie in it.

    Neighbours in a shard share a span up to RANGE_BYTES if no more than GAP_BYTES lie between them.
    """
    spans: list[tuple[Span, list[int]]] = []
    for position in sorted(range(len(requests)), key=requests.__getitem__):
        shard, offset, size = requests[position]
        end = offset + size
        if spans and (joined := _joined(spans[-1][0], Span(shard, offset, end))):
            spans[-1] = joined, spans[-1][1]
            spans[-1][1].append(position)
        else:
            spans.append((Span(shard, offset, end), [position]))
    return spans


def _joined(span: Span, other: Span) -> Span | None:
    """One span for both, of which `other` does not begin earlier; None if they are better asked apart."""
    if span.shard != other.shard or other.start - span.end > GAP_BYTES:
        return None
    end = max(span.end, other.end)
    return Span(span.shard, span.start, end) if end == span.end or end - span.start <= RANGE_BYTES else None


async def _together(fetches: Sequence[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """All of them at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(fetch) for fetch in fetches]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- Storages ----------------------------------------------------------------------------------

Judge = Callable[[Answer], None]


def _storage(place: str, patience: Patience) -> _Storage:
    files, _ = filesystem(place)
    scheme = place.partition("://")[0]
    kinds = {"http": _Http, "https": _Http, "s3": _S3}
    return kinds.get(scheme, _Storage)(files, patience)


class _Storage:
    """Any storage that fsspec knows: it says nothing before its bytes, so there is nothing to judge."""

    def __init__(self, files: Any, patience: Patience) -> None:
        self.files, self.patience, self.pid = files, patience, os.getpid()
        self.loop: asyncio.AbstractEventLoop = fsspec.asyn.get_loop()
        self.slots = asyncio.Semaphore(IN_FLIGHT)

    async def get(self, url: str, span: Span, judge: Judge) -> bytes:
        """The bytes of a span, if `judge` does not raise over what is said about them before."""
        path = self.files._strip_protocol(url)
        if self.files.async_impl:
            body: bytes = await self.files._cat_file(path, start=span.start, end=span.end)
        else:
            ask = partial(self.files.cat_file, path, start=span.start, end=span.end)
            body = await self.loop.run_in_executor(None, ask)
        return body


class _Http(_Storage):
    async def get(self, url: str, span: Span, judge: Judge) -> bytes:
        import aiohttp

        session = await self.files.set_session()
        settings = dict(self.files.kwargs)
        # compressed on the way, a part would be a part of something else
        asked = {"Range": span.header, "Accept-Encoding": "identity"}
        settings["headers"] = {**settings.get("headers", {}), **asked}
        settings["timeout"] = aiohttp.ClientTimeout(
            total=None, sock_connect=self.patience.stall, sock_read=self.patience.stall
        )
        async with session.get(self.files.encode_url(url), **settings) as answer:
            judge(Answer(answer.status, answer.headers))
            # one byte more than asked for shows that these are not they
            body = await _at_most(answer.content, len(span) + 1)
        if len(body) < len(span):  # where a server announces no length, a broken connection looks so
            raise Passing(f"the answer ended after {len(body)} of {len(span)} bytes")
        return body


async def _at_most(stream: Any, size: int) -> bytes:
    """What a stream holds, up to `size` bytes."""
    chunks = []
    while size and (chunk := await stream.read(size)):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


class _S3(_Storage):
    async def get(self, url: str, span: Span, judge: Judge) -> bytes:
        bucket, key, _ = self.files.split_path(url)
        try:
            answer = await self.files._call_s3("get_object", Bucket=bucket, Key=key, Range=span.header)
        except Exception as error:
            if refusal := getattr(error, "response", None) or getattr(error.__cause__, "response", None):
                judge(_s3_answer(refusal))
            raise
        try:
            judge(_s3_answer(answer))
            body: bytes = await answer["Body"].read()
        finally:
            answer["Body"].close()
        return body


def _s3_answer(response: Mapping[str, Any]) -> Answer:
    said = response["ResponseMetadata"]
    return Answer(said["HTTPStatusCode"], said["HTTPHeaders"], response.get("Error", {}).get("Code", ""))
