"""The tar writer against the standard library's."""

from __future__ import annotations

import itertools
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from shardtool import tar
from tests.tars import contents, names, oracle, shard


@given(contents)
def test_a_shard_is_byte_for_byte_what_tarfile_writes(members: list[tuple[str, bytes]]) -> None:
    assert shard(members) == oracle(members)


@given(names, st.integers(0, tar.MAX_PAYLOAD))
def test_a_header_is_what_tarfile_writes_for_any_size(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar.header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)
    assert tar.parse(tar.header(name.encode(), size)) == (name.encode(), size)


@given(names, st.integers(0, tar.MAX_PAYLOAD), st.integers(0, 8 * tar.BLOCK - 1))
def test_a_header_with_a_flipped_bit_is_none_of_ours(name: str, size: int, bit: int) -> None:
    block = bytearray(tar.header(name.encode(), size))
    block[bit // 8] ^= 1 << bit % 8
    assert tar.parse(bytes(block)) is None


@given(st.binary(min_size=tar.BLOCK, max_size=tar.BLOCK))
def test_other_blocks_are_none_of_ours(block: bytes) -> None:
    assert tar.parse(block) is None


@given(contents)
def test_the_size_of_a_shard_is_known_before_it_is_written(members: list[tuple[str, bytes]]) -> None:
    inside = sum(tar.BLOCK + tar.padded(len(payload)) for _, payload in members)
    assert len(shard(members)) == tar.file_size(inside)
    assert tar.file_size(inside) % tar.RECORD == 0


def test_sizes_at_the_edges_of_a_record_end_with_two_zero_blocks_at_least() -> None:
    for blocks in range(45):
        ending = tar.ending(blocks * tar.BLOCK)
        assert len(ending) >= 2 * tar.BLOCK
        assert len(ending) < 2 * tar.BLOCK + tar.RECORD
        assert not any(itertools.chain(ending))
