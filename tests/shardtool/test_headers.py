"""The walk over the headers of our own shards against damage; test_foreign has those of other programs."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardtool import tar
from shardtool.errors import DatasetError
from shardtool.headers import Member, walk_packed
from tests.tars import contents, oracle, shard


def walk(data: bytes) -> list[Member]:
    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    return list(walk_packed(read, len(data), "some/shard.tar"))


EXAMPLE = [("a.jpg", b"x" * 700), ("a.cls", b"3"), ("a.json", b"{}"), ("b.jpg", b""), ("b.cls", b"1" * 512)]


@given(contents)
def test_the_walk_finds_every_member_where_its_payload_lies(members: list[tuple[str, bytes]]) -> None:
    data = shard(members)
    assert [(m.name, data[m.offset : m.offset + m.size]) for m in walk(data)] == members


@given(contents)
def test_the_walk_reads_what_tarfile_writes(members: list[tuple[str, bytes]]) -> None:
    assert [(member.name, member.size) for member in walk(oracle(members))] == [
        (name, len(payload)) for name, payload in members
    ]


def test_a_shard_cut_at_any_block_or_odd_byte_is_an_error_that_names_the_offset() -> None:
    data = shard(EXAMPLE)
    cuts = [*range(0, len(data), tar.BLOCK), 1, 511, 513, len(data) - 1]
    for cut in cuts:
        with pytest.raises(DatasetError, match=r"some/shard\.tar at \d+"):
            walk(data[:cut])


@given(st.data())
def test_a_flipped_bit_in_any_header_is_an_error_that_names_the_offset(data: st.DataObject) -> None:
    good = shard(EXAMPLE)
    header = data.draw(st.sampled_from([member.offset - tar.BLOCK for member in walk(good)]))
    bit = data.draw(st.integers(0, 8 * tar.BLOCK - 1))
    bad = bytearray(good)
    bad[header + bit // 8] ^= 1 << bit % 8
    with pytest.raises(DatasetError, match=f"at {header}[ )]"):
        walk(bytes(bad))


def test_a_wiped_header_does_not_end_the_shard_in_silence() -> None:
    data = bytearray(shard(EXAMPLE))
    data[1536 : 1536 + tar.BLOCK] = bytes(tar.BLOCK)
    with pytest.raises(DatasetError, match="at 1536"):
        walk(bytes(data))


def test_anything_but_zeros_after_the_members_is_an_error() -> None:
    data = bytearray(shard(EXAMPLE))
    data[-1] = 1
    with pytest.raises(DatasetError, match="at "):
        walk(bytes(data))


@given(st.binary(max_size=3000))
def test_arbitrary_bytes_give_members_or_a_dataset_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(DatasetError):
        walk(data + b"\x01")


@pytest.mark.parametrize(
    "change",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "a.jpg"},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"mtime": 1},
        {"uid": 1000},
        {"mode": 0o777},
        {"uname": "root"},
    ],
    ids=str,
)
def test_links_devices_and_other_metadata_are_refused(change: dict[str, object]) -> None:
    info = tarfile.TarInfo("x.jpg")
    for name, value in change.items():
        setattr(info, name, value)
    data = info.tobuf(tarfile.USTAR_FORMAT) + tar.ending(tar.BLOCK)
    with pytest.raises(DatasetError, match="damaged tar header"):
        walk(data)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_pax_and_gnu_extensions_are_refused(tar_format: int) -> None:
    info = tarfile.TarInfo("n" * 300)
    with pytest.raises(DatasetError, match="damaged tar header"):
        walk(info.tobuf(tar_format) + tar.ending(0))


@pytest.mark.parametrize(
    "field", [b"-0000000001\0", b"\x80" + b"\xff" * 11, b"77777777777\0", b"           \0"]
)
def test_header_bombs_are_refused_without_reading_them(field: bytes) -> None:
    block = bytearray(tar.header(b"x.jpg", 0))
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(DatasetError):
        walk(bytes(block) + tar.ending(tar.BLOCK))
