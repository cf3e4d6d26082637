"""Tars of others, trained from as they are: by webdataset's writer and tarfile, on disk and behind HTTP."""

from __future__ import annotations

import functools
import gc
import http.server
import io
import itertools
import multiprocessing
import os
import pickle
import random
import re
import signal
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardtool.errors import DatasetError, TrainingError, UsageError, UserError
from shardtool.indexing import find_shards, index_shards
from shardtool.taxonomy import Taxonomy
from train.augment import EvalTransform, train_transform
from train.data import Batch
from train.decode import Pixels
from train.recipe import AugmentSpec
from train.stream import (
    SHUFFLE_PHOTOS,
    Lane,
    Stream,
    StreamOptions,
    Survey,
    buffer_photos,
    deal,
    is_streamed,
    plan_lanes,
    plan_steps,
    resumed,
    shard_urls,
    substitute,
    survey,
)

# torch thinks that a worker needs a core
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

Jpeg = Callable[..., bytes]
SPECIES, DISEASES = ("oak", "elm"), ("rust", "none", "spots")
EACH = (7, 1, 12, 5, 9)  # photos of the five shards
PHOTOS = sum(EACH)


def names(number: int) -> dict[str, object]:
    return {"species": SPECIES[number % 2], "disease": DISEASES[number % 3], "number": number}


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def tars(tmp_path_factory: pytest.TempPathFactory, jpeg: Jpeg) -> Path:
    """Five shards as webdataset's own writer makes them, photo `number` with sample id `number`."""
    root, numbers = tmp_path_factory.mktemp("tars"), itertools.count()
    for shard, count in enumerate(EACH):
        with webdataset.TarWriter(str(root / f"train-{shard:03d}.tar")) as writer:
            for number in itertools.islice(numbers, count):
                writer.write({"__key__": f"leaf{number:04d}", "jpg": jpeg(number), "json": names(number)})
    return root


def stream_of(found: Survey, workers: int = 0, batch: int = 4, **options: object) -> Stream:
    taxonomy = Taxonomy.from_labels(found.classes)
    return Stream(found, taxonomy, EvalTransform(16), StreamOptions(batch, workers, **options))  # type: ignore[arg-type]


def samples(batches: Iterator[Batch]) -> list[int]:
    return [sample for batch in batches for sample in batch.sample.tolist()]


# --- Every photo, once ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_every_photo_comes_once_an_epoch_with_its_pixels_and_labels(
    tars: Path, jpeg: Jpeg, workers: int
) -> None:
    stream = stream_of(survey(str(tars)), workers)
    batches = list(stream.epoch(0))
    assert [batch.step for batch in batches] == list(range(stream.steps))
    assert max(map(len, batches)) <= 4
    assert sorted(samples(iter(batches))) == list(range(PHOTOS))
    expected = np.empty((16, 16, 3), np.uint8)
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        for place, number in enumerate(batch.sample.tolist()):
            named = stream.taxonomy.names(int(batch.species[place]), int(batch.disease[place]))
            assert named == (names(number)["species"], names(number)["disease"])
            EvalTransform(16)(jpeg(number), expected)
            assert np.array_equal(batch.images[place].numpy(), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_repeated_exactly_and_the_next_one_has_another_order(tars: Path, workers: int) -> None:
    found = survey(str(tars))
    first, again = (samples(stream_of(found, workers).epoch(3)) for _ in range(2))
    assert first == again
    other = samples(stream_of(found, workers).epoch(4))
    assert other != first
    assert sorted(other) == sorted(first) != first


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_resumed_epoch_gives_the_batches_that_were_left(tars: Path, workers: int) -> None:
    stream = stream_of(survey(str(tars)), workers)
    whole = list(stream.epoch(1))
    for start in range(stream.steps + 1):
        rest = list(stream.epoch(1, start))
        assert [batch.step for batch in rest] == list(range(start, stream.steps))
        for left, before in zip(rest, whole[start:], strict=True):
            assert left.sample.tolist() == before.sample.tolist()
            assert torch.equal(left.images, before.images)


def test_ranks_share_the_photos_and_have_equally_many_batches(tars: Path) -> None:
    found = survey(str(tars))
    ranks = [stream_of(found, workers=0, rank=rank, ranks=2) for rank in range(2)]
    seen = [list(stream.epoch(0)) for stream in ranks]
    assert len(seen[0]) == len(seen[1]) == ranks[0].steps
    assert sorted(samples(itertools.chain(*seen))) == list(range(PHOTOS))


def test_more_ranks_than_shards_is_refused(tars: Path) -> None:
    with pytest.raises(UsageError, match=r"5 shards are too few for 6 ranks.*index"):
        stream_of(survey(str(tars)), ranks=6)


def test_evaluation_reads_in_the_order_of_the_shards(tars: Path) -> None:
    assert samples(stream_of(survey(str(tars)), shuffle=False).epoch(0)) == list(range(PHOTOS))


def test_augmented_pixels_depend_on_epoch_and_photo_and_not_on_the_workers(tars: Path) -> None:
    found = survey(str(tars))
    taxonomy = Taxonomy.from_labels(found.classes)

    def pixels(workers: int, epoch: int) -> dict[int, bytes]:
        transform = train_transform(AugmentSpec(profile="light"), 16, seed=0)
        stream = Stream(found, taxonomy, transform, StreamOptions(4, workers))
        return {
            sample: batch.images[place].numpy().tobytes()
            for batch in stream.epoch(epoch)
            for place, sample in enumerate(batch.sample.tolist())
        }

    assert pixels(0, 0) == pixels(2, 0) != pixels(0, 1)


# --- What is found ----------------------------------------------------------------------------------


def test_stream_and_index_see_the_same_photos_and_classes(tars: Path, tmp_path: Path) -> None:
    stream = stream_of(survey(str(tars)))
    manifest = index_shards(find_shards(str(tars)), str(tmp_path / "index")).manifest
    assert stream.taxonomy == manifest.taxonomy
    assert stream.class_counts.tolist() == manifest.class_counts["train"]


def test_folders_globs_and_braces_name_the_same_shards(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [f"{tars}/train-{shard:03d}.tar" for shard in range(5)]
    assert shard_urls(str(tars)) == shard_urls(f"{tars}/") == expected
    assert shard_urls(f"{tars}/*.tar") == shard_urls(f"{tars}/train-00[0-4].tar") == expected
    assert shard_urls(f"{tars}/train-{{000..004}}.tar") == expected
    assert shard_urls(f"file://{tars}/train-{{000..004}}.tar") == expected
    assert shard_urls(f"{tars}/train-{{000,003}}.tar") == [expected[0], expected[3]]
    monkeypatch.chdir(tars)
    assert survey("train-00{0..1}.tar").label.tolist() == survey(f"{tars}/train-00[01].tar").label.tolist()


def test_a_file_with_brackets_in_its_name_is_itself(tars: Path, tmp_path: Path) -> None:
    path = tmp_path / "part[1].tar"
    path.write_bytes((tars / "train-000.tar").read_bytes())
    assert len(survey(str(path))) == EACH[0]


def test_the_split_of_a_folder_with_splits_is_taken(tars: Path, tmp_path: Path) -> None:
    for split, shard in (("train", "000"), ("val", "002")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.tar").write_bytes((tars / f"train-{shard}.tar").read_bytes())
    assert [len(survey(str(tmp_path), split)) for split in ("train", "val")] == [EACH[0], EACH[2]]
    with pytest.raises(UsageError, match="no tars of test"):
        survey(str(tmp_path), "test")


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/x-{0..0}.tar"])
def test_no_shard_at_all_is_a_clear_error(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=r"no \.tar here|no shard matches|shard is missing"):
        survey(f"{tmp_path}{pattern}")


def test_classes_come_from_cls_where_no_json_names_them(tmp_path: Path, jpeg: Jpeg) -> None:
    members = [("a.jpg", jpeg(0)), ("a.cls", b"3"), ("b.jpg", jpeg(1)), ("b.cls", b"maple\n")]
    members += [("c.JPEG", jpeg(2)), ("c.cls", b"3"), ("c.json", b'{"species": "ash", "disease": "rust"}')]
    stream = stream_of(survey(str(write_tar(tmp_path / "a.tar", members))), shuffle=False)
    (batch,) = stream.epoch(0)
    named = [stream.taxonomy.names(*ids) for ids in zip(batch.species, batch.disease, strict=True)]
    assert named == [("class-000003", "unlabelled"), ("maple", "unlabelled"), ("ash", "rust")]


def test_the_digest_is_of_the_photos_and_labels_and_not_of_their_place(tars: Path, tmp_path: Path) -> None:
    digest = survey(str(tars)).digest
    assert survey(str(copy_of(tars, tmp_path))).digest == digest
    (tmp_path / "train-001.tar").unlink()
    assert survey(str(tmp_path)).digest != digest


def test_what_is_no_jpeg_with_a_label_is_refused_and_counted(tmp_path: Path, jpeg: Jpeg) -> None:
    png = io.BytesIO()
    Image.new("RGB", (16, 16)).save(png, "PNG")
    members = [("a.jpg", jpeg(0)), ("a.cls", b"1"), ("b.png", png.getvalue()), ("b.cls", b"1")]
    members += [("c.jpg", png.getvalue()), ("c.cls", b"1"), ("d.jpg", jpeg(1))]
    found = survey(str(write_tar(tmp_path / "a.tar", members)))
    assert [refusal.reason for refusal in found.refused] == ["no photo", "not a JPEG", "no label"]
    assert "1 photos" in found.note
    assert "3 samples refused" in found.note
    assert samples(stream_of(found).epoch(0)) == [0]


def test_shards_without_any_usable_photo_are_an_error_that_says_why(tmp_path: Path, jpeg: Jpeg) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0))])
    with pytest.raises(UserError, match=r"no sample with a JPEG and a label.*a\.jpg, no label"):
        survey(str(tmp_path))


def test_the_note_says_in_one_line_what_is_lost_and_how_to_get_an_index(tars: Path) -> None:
    note = survey(f"{tars}/*.tar").note
    assert "\n" not in note
    assert note.endswith(f"shardtool index '{tars}'")


def test_only_tars_without_an_index_are_streamed(tars: Path, packed: Path, tmp_path: Path) -> None:
    assert is_streamed(str(tars))
    assert is_streamed("https://host/train-{000..009}.tar")
    assert not is_streamed(str(packed))
    assert not is_streamed(str(packed / "train"))
    assert not is_streamed("https://host/shards/train")
    assert not is_streamed(str(tmp_path))
    assert not is_streamed(str(tmp_path / "nothing"))


def test_a_pack_that_has_not_finished_is_not_streamed(packed_copy: Path) -> None:
    (packed_copy / "dataset.json").unlink()
    assert not is_streamed(str(packed_copy / "train"))
    for sidecar in (packed_copy / "train").glob("*.parquet"):
        sidecar.unlink()
    assert is_streamed(str(packed_copy / "train"))  # nothing of ours but the tars


def test_a_class_that_the_label_space_lacks_is_refused(tars: Path) -> None:
    found = survey(str(tars))
    with pytest.raises(UsageError, match="5 classes that the label space lacks, the first: elm/none"):
        Stream(found, Taxonomy(("oak",), (("none",),)), EvalTransform(16), StreamOptions(4, 0))


# --- Nothing is run -----------------------------------------------------------------------------------


class Mischief:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickled_member_is_never_opened(tmp_path: Path, jpeg: Jpeg) -> None:
    trap = tmp_path / "opened"
    evil = pickle.dumps(Mischief(trap))
    endings = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz")
    members = [("a.jpg", jpeg(0)), ("a.cls", b"1"), *((f"a.{ending}", evil) for ending in endings)]
    path = write_tar(tmp_path / "a.tar", members)
    assert samples(stream_of(survey(str(path))).epoch(0)) == [0]
    assert not trap.exists()
    write_tar(path, members[:3])
    next(iter(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil")))
    assert trap.exists()  # what the library's own decoder does


@pytest.mark.parametrize(
    "address", ["pipe:touch {trap}; cat {tar}", "pipe:cat {tar}", "simplecache::file://{tar}"]
)
def test_commands_and_chains_are_refused(tars: Path, tmp_path: Path, address: str) -> None:
    trap = tmp_path / "run"
    source = address.format(trap=trap, tar=tars / "train-000.tar")
    assert is_streamed(source)
    with pytest.raises(UsageError, match="never run"):
        survey(source)
    assert not trap.exists()


@pytest.mark.parametrize("scheme", ["github", "zip", "local", "ftp", "reference"])
def test_a_scheme_that_is_not_listed_is_refused(scheme: str) -> None:
    with pytest.raises(UsageError, match=f"no way to read {scheme}://"):
        survey(f"{scheme}://host/train-{{0..1}}.tar")


def test_a_member_that_unpacks_to_more_than_its_bytes_is_not_read(tmp_path: Path, jpeg: Jpeg) -> None:
    path = write_tar(
        tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("a.cls", b"1"), ("b.jpg", b""), ("b.cls", b"1")]
    )
    data = bytearray(path.read_bytes())
    place = data.index(b"b.jpg\0")
    header = data[place : place + 512]
    header[156:157], header[483:495] = b"S", b"\x80" + (1 << 45).to_bytes(11, "big")  # GNU tar's sparse file
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    data[place : place + 512] = header
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert tar.getmember("b.jpg").size == 1 << 45
    found = survey(str(path))
    assert [refusal.reason for refusal in found.refused] == ["not a regular file"]
    assert samples(stream_of(found).epoch(0)) == [0]


# --- Damage --------------------------------------------------------------------------------------------


def copy_of(tars: Path, folder: Path) -> Path:
    for path in tars.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def flip(path: Path, member: str) -> None:
    """One bit of the header of a member."""
    data = bytearray(path.read_bytes())
    data[data.index(member.encode() + b"\0") + 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_a_header_is_found_before_training(tars: Path, tmp_path: Path) -> None:
    flip(copy_of(tars, tmp_path) / "train-002.tar", "leaf0011.jpg")
    with pytest.raises(DatasetError, match=r"damaged tar header.*train-002\.tar at \d+"):
        survey(str(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bit_that_flips_later_is_an_error_and_no_short_epoch(
    tmp_path: Path, jpeg: Jpeg, workers: int
) -> None:
    for shard in range(2):
        members = [(f"{n}.{end}", data) for n in range(6) for end, data in (("jpg", jpeg(n)), ("cls", b"1"))]
        write_tar(tmp_path / f"{shard}.tar", members)
    stream = stream_of(survey(str(tmp_path)), workers)
    flip(tmp_path / "1.tar", "3.jpg")
    by_itself = webdataset.WebDataset(str(tmp_path / "1.tar"), shardshuffle=False)
    assert len(list(by_itself)) == 3  # without an error
    with pytest.raises(DatasetError, match=r"only 3 of 6 photos came.*1\.tar"):
        list(stream.epoch(0))


def test_a_shard_that_is_cut_exchanged_or_gone_later_is_named(tars: Path, tmp_path: Path) -> None:
    stream = stream_of(survey(str(copy_of(tars, tmp_path))))
    path = tmp_path / "train-003.tar"
    whole = path.read_bytes()
    for size in (0, 512, len(whole) // 2, len(whole) // 2 + 100):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"train-003\.tar"):
            list(stream.epoch(0))
    path.write_bytes((tars / "train-004.tar").read_bytes())
    with pytest.raises(DatasetError, match=r"train-003\.tar"):
        list(stream.epoch(0))
    path.unlink()
    with pytest.raises(DatasetError, match=r"shard is missing.*train-003\.tar"):
        list(stream.epoch(0))


@given(st.data())
def test_a_bit_that_flips_beside_the_photos_is_an_error_or_harmless(tars: Path, data: st.DataObject) -> None:
    path = tars.parent / "flipped.tar"
    whole = (tars / "train-000.tar").read_bytes()
    path.write_bytes(whole)
    stream = stream_of(survey(str(path)), shuffle=False)
    with tarfile.open(path) as tar:
        photos = [range(m.offset_data, m.offset_data + m.size) for m in tar if m.name.endswith(".jpg")]
    beside = [place for place in range(len(whole)) if not any(place in photo for photo in photos)]
    flipped = bytearray(whole)
    flipped[data.draw(st.sampled_from(beside))] ^= 1 << data.draw(st.integers(0, 7))
    before = torch.cat([batch.images for batch in stream.epoch(0)])
    path.write_bytes(flipped)
    try:
        after = torch.cat([batch.images for batch in stream.epoch(0)])
    except DatasetError as error:
        after, named = before, error.where.endswith("flipped.tar")
    else:
        named = True
    assert named
    assert torch.equal(before, after)


class Fatal(EvalTransform):
    """Ends its process, as the system does when memory is short."""

    def __call__(self, photo: bytes, out: Pixels, epoch: int = 0, sample: int = 0, copy: int = 0) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_epoch_with_its_name(tars: Path) -> None:
    found = survey(str(tars))
    stream = Stream(found, Taxonomy.from_labels(found.classes), Fatal(16), StreamOptions(4, 2))
    with pytest.raises(TrainingError, match="a data worker died: DataLoader worker"):
        list(stream.epoch(0))


def test_an_epoch_can_be_left_and_another_one_begun(tars: Path) -> None:
    stream = stream_of(survey(str(tars)), workers=2)
    before = multiprocessing.active_children()
    batches = stream.epoch(0)
    next(batches)
    assert len(multiprocessing.active_children()) > len(before)
    del batches
    gc.collect()
    assert multiprocessing.active_children() == before
    assert sorted(samples(stream.epoch(0))) == list(range(PHOTOS))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photo_that_does_not_decode_is_replaced_and_listed(
    tmp_path: Path, jpeg: Jpeg, workers: int
) -> None:
    photos = [jpeg(number) for number in range(12)]
    table = photos[5].index(b"\xff\xc4") + 5
    photos[5] = photos[5][:table] + b"\xff" * 16 + photos[5][table + 16 :]  # no Huffman code is so full
    members = [
        (f"{n}.{end}", data)
        for n in range(12)
        for end, data in (("jpg", photos[n]), ("cls", b"%d" % (n % 2)))
    ]
    heard: list[int] = []
    found = survey(str(write_tar(tmp_path / "a.tar", members)))
    assert len(found) == 12
    options = StreamOptions(12, workers)
    stream = Stream(
        found,
        Taxonomy.from_labels(found.classes),
        EvalTransform(16),
        options,
        lambda each: heard.append(each.sample),
    )
    for epoch in range(2):
        (batch,) = stream.epoch(epoch)
        counts = Counter(batch.sample.tolist())
        assert len(batch) == 12
        assert counts[5] == 0
        (twice,) = (sample for sample, count in counts.items() if count == 2)
        assert twice % 2 == 1  # of the same class
        assert torch.equal(*batch.images[batch.sample == twice])
    (replaced,) = stream.replaced.values()
    assert heard == [5] == [replaced.sample]
    assert replaced.where.endswith("a.tar/5.jpg")
    assert replaced.reason.startswith("not decodable")


# --- Behind a web server ----------------------------------------------------------------------------------


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A web server that knows ranges, as all that hold shards do."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
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


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = functools.partial(Ranges, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_behind_a_web_server_are_streamed(tars: Path, workers: int) -> None:
    pytest.importorskip("aiohttp")
    with serving(tars) as address:
        found = survey(f"{address}/train-{{000..004}}.tar")
        assert found.note.endswith(f"shardtool index '{address}/train-{{000..004}}.tar' --out DIR")
        stream = stream_of(found, workers)
        for epoch in range(2):
            assert sorted(samples(stream.epoch(epoch))) == list(range(PHOTOS))


def test_a_shard_that_is_not_on_the_server_is_named(tars: Path) -> None:
    pytest.importorskip("aiohttp")
    with serving(tars) as address, pytest.raises(DatasetError, match=r"missing.*train-005\.tar"):
        survey(f"{address}/train-{{000..005}}.tar")


# --- Plans ------------------------------------------------------------------------------------------

shard_photos = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@given(shard_photos, st.integers(0, 9), st.integers(1, 16), st.integers(1, 4), st.integers(0, 99))
def test_all_ranks_and_epochs_have_the_same_number_of_batches(
    photos: list[int], workers: int, batch: int, ranks: int, seed: int
) -> None:
    try:
        steps = plan_steps(photos, workers, batch, ranks)
    except UsageError:
        assert ranks > 1
        return
    seen = Counter[int]()
    for rank in range(ranks):
        shards = list(deal(photos, range(len(photos)), ranks)[rank])
        random.Random(seed).shuffle(shards)
        lanes = plan_lanes(photos, shards, workers, batch, steps)
        seen.update(shard for lane in lanes for shard in lane.shards)
        assert len(lanes) <= max(workers, 1)
        sizes = [size for lane in lanes for size in lane.sizes()]
        assert len(sizes) == steps
        assert 1 <= min(sizes) <= max(sizes) <= batch
        assert all(sum(lane.sizes()) == sum(photos[shard] for shard in lane.shards) for lane in lanes)
    assert seen == Counter(range(len(photos)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_what_is_left_after_a_resume_is_taken_in_the_same_turns(
    counts: list[int], data: st.DataObject
) -> None:
    lanes = [Lane((shard,), 100, batches) for shard, batches in enumerate(counts)]

    def turns(lanes: Sequence[Lane]) -> list[tuple[int, int]]:
        left = [[(lane.shards[0], number) for number in range(lane.skip, lane.batches)] for lane in lanes]
        return [each for row in itertools.zip_longest(*left) for each in row if each]

    start = data.draw(st.integers(0, sum(counts)))
    assert turns(resumed(lanes, start)) == turns(lanes)[start:]


def test_the_shuffle_buffer_is_bounded_in_photos_and_bytes() -> None:
    sizes = np.array([10, 300, 20, 200, 30])
    assert [buffer_photos(sizes, budget) for budget in (0, 300, 499, 500, 529, 530, 559, 560)] == [
        1, 1, 1, 2, 2, 3, 4, 5,
    ]  # fmt: skip
    assert buffer_photos(np.ones(2 * SHUFFLE_PHOTOS, np.int64), 1 << 30) == SHUFFLE_PHOTOS


def test_a_substitute_is_of_the_same_class_or_else_of_the_same_species() -> None:
    species, disease = np.array([1, 1, 0, 1, 0]), np.array([0, 1, 1, 1, 0])

    def chosen(place: int, good: Mapping[int, None]) -> int:
        return substitute(species, disease, place, np.array(list(good)))

    assert chosen(3, dict.fromkeys([0, 1, 2, 4])) == 1
    assert chosen(3, dict.fromkeys([0, 2, 4])) == 0
    assert chosen(3, dict.fromkeys([2, 4])) == 2
