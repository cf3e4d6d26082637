"""Members of a tar as hypothesis draws them, as our own writer and as `tarfile` write them."""

from __future__ import annotations

import io
import random
import string
import tarfile

from hypothesis import strategies as st

from shardtool import tar

ALPHABET = string.ascii_letters + string.digits + "._-"
names = st.text(ALPHABET, min_size=1, max_size=100)
payloads = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size),
    st.one_of(st.sampled_from([0, 1, 511, 512, 513, 9728, 10240]), st.integers(0, 3000)),
    st.integers(0, 99),
)
contents = st.lists(st.tuples(names, payloads), max_size=8)


def shard(members: list[tuple[str, bytes]]) -> bytes:
    body = b"".join(tar.member(name.encode(), payload) for name, payload in members)
    return body + tar.ending(len(body))


def oracle(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            file.addfile(info, io.BytesIO(payload))
    return out.getvalue()
