"""Shards that others made, on disks and web servers of others: indexed, read, trained from."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from shardtool.errors import DatasetError, StorageError
from shardtool.index import open_split
from shardtool.indexing import find_shards, index_shards
from shardtool.verify import verify_sample
from train.augment import EvalTransform
from train.data import Loader, in_order

wds = pytest.importorskip("webdataset")
Jpeg = Callable[..., bytes]
Serve = Callable[..., str]
SPECIES = ("oak", "elm")
DISEASES = ("rust", "none", "spots")


def label(number: int) -> tuple[str, str]:
    return SPECIES[number % 2], DISEASES[number % 3]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, jpeg: Jpeg) -> Path:
    """What webdataset's own writer makes: 30 samples in three training shards, 6 in one of validation."""
    root = tmp_path_factory.mktemp("foreign")
    for name, numbers in (("train-0", range(10)), ("train-1", range(10, 20)), ("train-2", range(20, 30))):
        write(root / f"{name}.tar", numbers, jpeg)
    write(root / "val-0.tar", range(30, 36), jpeg)
    return root


def write(path: Path, numbers: range, jpeg: Jpeg) -> None:
    with wds.TarWriter(str(path)) as writer:
        for number in numbers:
            species, disease = label(number)
            names = {"species": species, "disease": disease, "number": number}
            writer.write(
                {"__key__": f"leaf{number:04d}", "jpg": jpeg(number), "json": names, "cls": number % 2}
            )


def sources(root: object) -> list[str]:
    return [f"train={root}/train-{{0..2}}.tar", f"val={root}/val-{{0..0}}.tar"]


@pytest.fixture(scope="session")
def indexed(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "out"
    found = index_shards([place for source in sources(written) for place in find_shards(source)], str(out))
    assert found.refused == ()
    return out


def test_a_dataset_of_webdatasets_own_writer_is_read_photo_by_photo(indexed: Path, jpeg: Jpeg) -> None:
    train, val = open_split(str(indexed / "train")), open_split(str(indexed / "val"))
    assert train.read(range(30)) == [jpeg(number) for number in range(30)]
    assert val.read(range(6)) == [jpeg(number) for number in range(30, 36)]
    for sample in range(30):
        assert train.taxonomy.row_names[train.row[sample]] == label(sample)
        assert train.entry(sample)["key"] == f"leaf{sample:04d}"


def test_webdatasets_reader_and_the_index_see_the_same_samples(written: Path, indexed: Path) -> None:
    split = open_split(str(indexed / "train"))
    shards = [str(written / f"train-{number}.tar") for number in range(3)]
    samples = list(wds.WebDataset(shards, shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == split.read(range(len(split)))
    assert [sample["__key__"] for sample in samples] == [split.entry(n)["key"] for n in range(len(split))]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainers_loader_gives_the_batches_of_a_foreign_dataset(indexed: Path, workers: int) -> None:
    split = open_split(str(indexed / "train"))
    loader = Loader(split, EvalTransform(16), workers, torch.device("cpu"))
    batches = list(loader.epoch(in_order(np.arange(len(split)), 7), 0))
    assert torch.cat([batch.sample for batch in batches]).tolist() == list(range(30))
    assert torch.cat([batch.species for batch in batches]).tolist() == split.species.tolist()
    assert torch.cat([batch.disease for batch in batches]).tolist() == split.disease.tolist()


# --- Behind a web server ------------------------------------------------------------------------


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A web server that knows ranges, as all that hold shards do; `ignored` ones are answered whole."""

    ignored = False

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if wanted is None or self.ignored or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{path.stat().st_size}")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Careless(Ranges):
    ignored = True


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a folder; returns its address."""
    pytest.importorskip("aiohttp")
    running = []

    def start(folder: Path, handler: type[Ranges] = Ranges) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
        )
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("checksums", [False, True])
def test_shards_behind_a_web_server_are_indexed_and_read(
    written: Path, tmp_path: Path, jpeg: Jpeg, serve: Serve, checksums: bool
) -> None:
    places = [place for source in sources(serve(written)) for place in find_shards(source)]
    manifest = index_shards(places, str(tmp_path), checksums).manifest
    assert manifest.bases["train"].startswith("http://127.0.0.1")
    split = open_split(str(tmp_path / "train"))
    assert split.check == checksums
    assert split.read(range(30)) == [jpeg(number) for number in range(30)]
    assert verify_sample(str(tmp_path), 0.5, deep=True).findings == ()


def test_a_packed_dataset_is_read_by_its_web_address(packed: Path, serve: Serve) -> None:
    here, there = open_split(str(packed / "train")), open_split(f"{serve(packed)}/train")
    assert there.read([0, 35, 7]) == here.read([0, 35, 7])
    assert there.where(7) == here.where(7)


def test_a_server_that_ignores_ranges_is_an_error_and_never_other_bytes(packed: Path, serve: Serve) -> None:
    with pytest.raises(StorageError, match="ignores Range"):
        open_split(f"{serve(packed, Careless)}/train", check=False)


def test_a_shard_that_is_not_on_the_server_is_named(written: Path, tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(DatasetError, match=r"missing.*train-3\.tar"):
        index_shards(find_shards(f"{serve(written)}/train-{{0..3}}.tar"), str(tmp_path))


# --- In a bucket --------------------------------------------------------------------------------


def test_shards_in_a_bucket_get_their_index_beside_them(written: Path, jpeg: Jpeg) -> None:
    files = fsspec.filesystem("memory")
    for name in ("train-0", "train-1"):
        files.pipe_file(f"/bucket/train/{name}.tar", (written / f"{name}.tar").read_bytes())
    try:
        index_shards(find_shards("memory://bucket"), "memory://bucket")
        assert files.exists("/bucket/train/train-1.parquet")
        assert open_split("memory://bucket/train").read([0, 19]) == [jpeg(0), jpeg(19)]
    finally:
        files.rm("/bucket", recursive=True)
