"""Tars of other programs get an index, or an error that names the place; never a shorter list."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardtool import foreign, tar
from shardtool.errors import DatasetError, UsageError, UserError
from shardtool.foreign import scan_shard, split_name
from shardtool.headers import walk
from shardtool.index import open_manifest, open_split
from shardtool.indexing import Indexed, find_shards, index_shards
from shardtool.pack import PackOptions, pack
from shardtool.verify import verify
from tests.kinds import Grow, Jpeg, Shardtool

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar_bytes(
    members: Mapping[str, bytes] | list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]  # a fraction needs a PAX header
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def shard_of(data: bytes, checksums: bool = False) -> foreign.Shard:
    return scan_shard(lambda at, length: data[at : at + length], len(data), "train", "s", checksums)


def reasons(shard: foreign.Shard) -> list[str]:
    return [refusal.reason for refusal in shard.refused]


def index_folder(folder: Path, out: Path | None = None, checksums: bool = False) -> Indexed:
    return index_shards(find_shards(str(folder)), str(out or folder), checksums)


@pytest.fixture
def sample(jpeg: Jpeg) -> Callable[[int], dict[str, bytes]]:
    def make(number: int) -> dict[str, bytes]:
        return {f"{number:03d}.jpg": jpeg(number), f"{number:03d}.cls": b"%d" % (number % 3)}

    return make


Sample = Callable[[int], dict[str, bytes]]


@pytest.fixture
def folder(tmp_path: Path, grow: Grow, sample: Sample) -> Path:
    """Two shards of four samples each in train/, one of two in val/."""
    parts = {"train/a": range(4), "train/b": range(4, 8), "val/a": range(8, 10)}
    tars = {
        f"{name}.tar": tar_bytes({k: v for number in numbers for k, v in sample(number).items()})
        for name, numbers in parts.items()
    }
    return grow(tmp_path / "foreign", tars)


# --- The index ----------------------------------------------------------------------------------


def test_an_indexed_folder_opens_like_a_packed_one(folder: Path, jpeg: Jpeg) -> None:
    indexed = index_folder(folder)
    assert indexed.refused == ()
    split = open_split(str(folder / "train"))
    assert split.read(range(8)) == [jpeg(number) for number in range(8)]
    assert [split.taxonomy.species[number] for number in split.species] == [
        f"class-{number % 3:06d}" for number in range(8)
    ]
    assert set(split.taxonomy.diseases) == {("unlabelled",)}
    assert open_manifest(str(folder)).bases == {}
    assert not split.check
    assert verify(folder, deep=True).findings == ()


def test_the_foreign_tars_are_not_touched(folder: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.tar")}
    index_folder(folder, checksums=True)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.tar")} == before


def test_with_checksums_a_flipped_bit_is_found_and_without_it_is_not(folder: Path) -> None:
    for checksums in (False, True):
        index_folder(folder, checksums=checksums)
        split = open_split(str(folder / "train"))
        path = folder / "train/b.tar"
        whole = path.read_bytes()
        at = int(split.offset[5]) + 100
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert bool(verify(folder).findings) == checksums
        if checksums:
            with pytest.raises(DatasetError, match="key 005"):
                split.read([5])
        path.write_bytes(whole)


def test_checksums_are_those_of_the_photos_across_the_chunks_that_are_read(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tar_bytes({name: payload for number in range(9) for name, payload in sample(number).items()})
    whole = shard_of(data, checksums=True)
    monkeypatch.setattr(foreign, "CHUNK", 700)
    assert shard_of(data, checksums=True) == whole
    assert all(whole.photos.column("crc32c").to_pylist())


def test_tars_in_the_folder_itself_are_one_split(folder: Path, jpeg: Jpeg) -> None:
    assert {place.split for place in find_shards(str(folder / "train"))} == {"train"}
    index_shards(find_shards(str(folder / "train"), "val"), str(folder / "train"))
    split = open_split(str(folder / "train/val"))
    assert split.read([7]) == [jpeg(7)]
    assert open_manifest(str(folder / "train")).bases == {"val": ".."}


@pytest.mark.parametrize("relative", [False, True])
def test_an_index_elsewhere_finds_the_tars(
    folder: Path, tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    index_folder(Path("foreign") if relative else folder, tmp_path / "out")
    monkeypatch.chdir("/")
    assert open_split(str(tmp_path / "out/train")).read([7]) == [jpeg(7)]
    assert not list(folder.rglob("*.parquet"))
    assert verify(tmp_path / "out", deep=True).findings == ()


def test_a_pattern_with_braces_names_shards_in_order(tmp_path: Path) -> None:
    (place,) = find_shards(f"val={tmp_path}/x-{{08..11}}.tar")
    assert place.split == "val"
    assert place.names == ("x-08", "x-09", "x-10", "x-11")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("x-{0..9999999}.tar", "more than"),
        ("x-{0..9999}-{0..9999}.tar", "more than"),
        ("x-{0..3.tar", "braces"),
        ("{a,b}/x.tar", "one folder"),
        ("https://host/x.tar?token=secret", "signed"),
        ("https://me:secret@host/x.tar", "signed"),
        ("pipe://cat/x.tar", "no way to read"),
    ],
)
def test_a_pattern_that_means_nothing_is_a_usage_error(pattern: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        index_shards(find_shards(pattern), str(tmp_path))
    assert "secret" not in str(caught.value)


def test_labels_by_name_are_taken_before_numbers(jpeg: Jpeg) -> None:
    names = json.dumps({"species": " Apfel ", "disease": "Schorf", "more": [1]}).encode()
    data = tar_bytes(
        [("1.jpg", jpeg(1)), ("1.json", names), ("1.cls", b"7"), ("2.JPEG", jpeg(2)), ("2.cls", b"oak\n")]
    )
    photos = shard_of(data).photos.to_pylist()
    assert [(photo["species"], photo["disease"]) for photo in photos] == [
        ("Apfel", "Schorf"),
        ("oak", "unlabelled"),
    ]


def test_an_index_made_again_forgets_shards_that_are_gone(
    folder: Path, digests: Callable[..., object]
) -> None:
    index_folder(folder)
    first = digests(folder)
    index_folder(folder)
    assert digests(folder) == first
    (folder / "train/b.tar").unlink()
    index_folder(folder)
    assert not (folder / "train/b.parquet").exists()
    assert len(open_split(str(folder / "train"))) == 4


def test_processes_index_the_same_as_one(
    folder: Path, tmp_path: Path, shardtool: Shardtool, digests: Callable[..., object]
) -> None:
    for workers in (1, 2):
        done = shardtool("index", folder, "--out", tmp_path / f"out{workers}", "--workers", workers)
        assert done.returncode == 0
    assert digests(tmp_path / "out1") == digests(tmp_path / "out2")


# --- Nothing of others is written over ----------------------------------------------------------


def test_a_packed_dataset_has_its_index_already(packed: Path, digests: Callable[..., object]) -> None:
    before = digests(packed)
    with pytest.raises(UsageError, match="has its index already"):
        index_folder(packed)
    assert digests(packed) == before


@pytest.mark.parametrize("name", ["train/a.parquet", "dataset.json", "report.json"])
def test_a_file_of_others_in_the_way_is_a_usage_error_and_stays(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b'{"mine": 1}')
    with pytest.raises(UsageError, match="our"):
        index_folder(folder)
    assert (folder / name).read_bytes() == b'{"mine": 1}'


def test_an_output_folder_of_others_is_a_usage_error(folder: Path, tmp_path: Path, grow: Grow) -> None:
    with pytest.raises(UsageError, match="not empty"):
        index_folder(folder, grow(tmp_path / "thesis", {"text": b"mine"}))


def test_an_index_is_no_place_to_pack_into(folder: Path, specimens: Path) -> None:
    index_folder(folder)
    for name in ("a", "b"):  # as our own are called, which a pack replaces
        (folder / f"train/{name}.tar").rename(folder / f"train/shard-00000{name}.tar")
    index_folder(folder)
    with pytest.raises(UsageError, match="not made by shardtool"):
        pack(specimens, folder, PackOptions())
    assert verify(folder).findings == ()


def test_an_interrupted_index_may_be_made_again(folder: Path, tmp_path: Path) -> None:
    index_folder(folder, tmp_path / "out")
    (tmp_path / "out/dataset.json").unlink()
    (tmp_path / "out/train/b.parquet").unlink()
    index_folder(folder, tmp_path / "out")
    assert verify(tmp_path / "out").findings == ()


def test_a_damaged_shard_stops_the_index_before_anything_is_written(folder: Path) -> None:
    with (folder / "train/b.tar").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(DatasetError, match=r"train/b\.tar at"):
        index_folder(folder)
    assert not list(folder.rglob("*.parquet"))
    assert not (folder / "dataset.json").exists()


def test_verify_finds_what_changed_in_a_foreign_shard(folder: Path, sample: Sample) -> None:
    index_folder(folder)
    path = folder / "val/a.tar"
    for change in ("label", "photo", "order"):
        members = list({**sample(8), **sample(9)}.items())
        if change == "label":
            members[1] = ("008.cls", b"1")
        elif change == "photo":
            members[0] = ("008.jpg", members[2][1])
        else:
            members.reverse()
        path.write_bytes(tar_bytes(members))
        assert [finding.where.split(",")[0] for finding in verify(folder).findings] == ["val/a.tar"]


# --- Samples that cannot be used ----------------------------------------------------------------


def grey(mode: str) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (16, 16)).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"x.cls": b"1", "x.txt": b"no"}, "no photo"),
        ({"x.png": b"\x89PNG", "x.cls": b"1"}, "no photo"),
        ({"x.jpg": None, "x.jpeg": None, "x.cls": b"1"}, "two photos"),
        ({"x.jpg": None}, "no label"),
        ({"x.jpg": None, "x.cls": b"-1"}, "no label"),
        ({"x.jpg": None, "x.cls": b" \n"}, "no label"),
        ({"x.jpg": None, "x.json": b"{"}, "no label"),
        ({"x.jpg": None, "x.json": b'{"species": 1, "disease": "d"}'}, "no label"),
        ({"x.jpg": None, "x.json": b"[" * 200_000}, "no label"),
        ({"x.jpg": None, "x.cls": b"1" * (2 << 20)}, "no label"),
        ({"x.jpg": b"\x89PNG\r\n", "x.cls": b"1"}, "not a JPEG"),
        ({"x.jpg": b"", "x.cls": b"1"}, "not a JPEG"),
        ({"x.jpg": b"\xff\xd8\xff\xe0\x00\x10", "x.cls": b"1"}, "damaged"),
        ({"x.jpg": grey("CMYK"), "x.cls": b"1"}, "not RGB or grey"),
        ({"../x.jpg": None, "../x.cls": b"1"}, "unsafe name"),
        ({"/etc/x.jpg": None, "/etc/x.cls": b"1"}, "unsafe name"),
        ({"a/../../x.jpg": None, "a/../../x.cls": b"1"}, "unsafe name"),
        ({f"{'d/' * 3000}x.jpg": None, f"{'d/' * 3000}x.cls": b"1"}, "unsafe name"),
    ],
)
def test_a_sample_that_cannot_be_used_is_refused_with_its_reason_and_the_next_is_not(
    jpeg: Jpeg, members: dict[str, bytes | None], reason: str
) -> None:
    given = {name: jpeg(0) if data is None else data for name, data in members.items()}
    shard = shard_of(tar_bytes({**given, "good.jpg": jpeg(1), "good.cls": b"1"}))
    assert reasons(shard) == [reason]
    assert shard.photos.column("key").to_pylist() == ["good"]
    assert shard.refused[0].source.startswith("train/s.tar/")


def test_grey_photos_are_taken_and_small_ones_are_not(jpeg: Jpeg) -> None:
    shard = shard_of(tar_bytes({"a.jpg": grey("L"), "a.cls": b"1", "b.jpg": jpeg(1, 20, 7), "b.cls": b"1"}))
    assert shard.photos.column("key").to_pylist() == ["a"]
    assert reasons(shard) == ["too small"]


def test_the_size_is_found_behind_a_long_exif(jpeg: Jpeg) -> None:
    plain = jpeg(1, 24, 40)
    padding = b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(0xFFFF - 8)
    (photo,) = shard_of(
        tar_bytes({"x.jpg": plain[:2] + 3 * padding + plain[2:], "x.cls": b"1"})
    ).photos.to_pylist()
    assert (photo["width"], photo["height"]) == (24, 40)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused_and_not_followed(jpeg: Jpeg, kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("x.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
        for name, data in (("x.cls", b"1"), ("y.jpg", jpeg(1)), ("y.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    shard = shard_of(out.getvalue())
    assert reasons(shard) == ["not a regular file"]
    assert shard.photos.num_rows == 1


def test_a_key_that_comes_again_in_its_shard_is_refused(jpeg: Jpeg) -> None:
    pair = [("a.jpg", jpeg(1)), ("a.cls", b"1")]
    shard = shard_of(tar_bytes([*pair, ("b.jpg", jpeg(2)), ("b.cls", b"1"), *pair]))
    assert reasons(shard) == ["key twice in a shard"]
    assert shard.photos.column("key").to_pylist() == ["a", "b"]


def test_members_that_belong_to_no_sample_are_counted(jpeg: Jpeg) -> None:
    shard = shard_of(
        tar_bytes(
            {"README": b"hi", ".DS_Store": b"", "__meta__/x.json": b"{}", "a.jpg": jpeg(1), "a.cls": b"1"}
        )
    )
    assert shard.ignored == 3
    assert shard.photos.num_rows == 1


def test_when_every_sample_is_refused_the_first_reason_is_told(tmp_path: Path, grow: Grow) -> None:
    folder = grow(tmp_path, {"a.tar": tar_bytes({"x.jpg": b"no", "x.cls": b"1"})})
    with pytest.raises(UserError, match="not a JPEG"):
        index_folder(folder)
    assert not (folder / "dataset.json").exists()


def test_refused_samples_are_status_3_listed_and_explained(
    folder: Path, grow: Grow, jpeg: Jpeg, shardtool: Shardtool
) -> None:
    grow(folder, {"val/b.tar": tar_bytes({"pic/odd.jpg": jpeg(3), "x.jpg": jpeg(4), "x.cls": b"0"})})
    done = shardtool("index", folder, "--workers", 1, "--json")
    assert done.returncode == 3
    value = json.loads(done.stdout)
    assert value["refused"] == {"no label": 1}
    assert value["refusals"][0]["source"] == "val/b.tar/pic/odd.jpg"
    assert value["splits"]["val"]["samples"] == 3
    assert value["foreign"] is True
    explained = shardtool("explain", "odd.jpg", "--shards", folder)
    assert explained.returncode == 0
    assert "no label" in explained.stderr
    again = shardtool("index", folder, "--workers", 1)
    assert "photos will be read unchecked" in again.stderr
    assert "without checksums" in shardtool("info", folder).stderr


# --- Any program's tar --------------------------------------------------------------------------


LENGTHS = [("ustar", length) for length in (5, 99, 100, 101, 160, 240)] + [
    (format, length) for format in ("gnu", "pax") for length in (5, 99, 100, 101, 160, 255, 300, 1000)
]


@pytest.mark.parametrize(("format", "length"), LENGTHS)
def test_members_of_every_format_are_where_tarfile_finds_them(format: str, length: int, jpeg: Jpeg) -> None:
    name = "/".join(["d" * 49] * (length // 50) + ["f" * (length % 50 + 1)]) + "é.jpg"
    data = tar_bytes({name: jpeg(1), "z.txt": b"", "y.txt": b"y"}, FORMATS[format])
    found = list(walk(lambda at, count: data[at : at + count], len(data), "x"))
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(member.name, member.offset_data, member.size) for member in file]
    assert [(member.name, member.offset, member.size) for member in found] == expected


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("format", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_a_folder_that_gnu_tar_packed_is_indexed(
    format: str, tmp_path: Path, grow: Grow, sample: Sample
) -> None:
    tree = grow(tmp_path / "tree", {**sample(1), **sample(2)})
    (tree / "000.jpg").symlink_to("001.jpg")
    subprocess.run(
        ["tar", f"--format={format}", "--sort=name", "-cf", tmp_path / "x.tar", "-C", tree, "."], check=True
    )
    shard = shard_of((tmp_path / "x.tar").read_bytes())
    assert shard.photos.column("source").to_pylist() == [b"./001.jpg", b"./002.jpg"]
    assert reasons(shard) == ["not a regular file"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_sparse_file_is_refused_and_the_next_sample_found(
    format: str, tmp_path: Path, grow: Grow, sample: Sample
) -> None:
    tree = grow(tmp_path / "tree", {"000.cls": b"1", **sample(1)})
    with (tree / "000.jpg").open("wb") as file:
        for hole in range(40):  # so many that the map goes on in further blocks
            file.seek(hole << 17)
            file.write(b"x" * 4096)
    names = ["000.jpg", "000.cls", "001.jpg", "001.cls"]
    subprocess.run(
        ["tar", f"--format={format}", "-S", "-cf", tmp_path / "x.tar", "-C", tree, *names], check=True
    )
    shard = shard_of((tmp_path / "x.tar").read_bytes())
    assert shard.photos.column("key").to_pylist() == ["001"]
    assert reasons(shard) == ["not a regular file"]


@pytest.mark.parametrize(
    ("name", "key", "ending"),
    [
        ("a/b.c/d.seg.JPG", "a/b.c/d", "seg.jpg"),
        ("./x.jpg", "./x", "jpg"),
        ("x", "", ""),
        (".x.jpg", "", ""),
        ("x.", "", ""),
        ("__meta__/a.jpg", "", ""),
    ],
)
def test_a_name_is_split_where_webdataset_splits_it(name: str, key: str, ending: str) -> None:
    assert split_name(name) == (key, ending)


# --- Hostile headers ----------------------------------------------------------------------------


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with a right checksum and any bytes for its size."""
    block = bytearray(tar.header(name, 0))
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def number(size: int) -> bytes:
    return b"%011o\0" % size


def base256(size: int) -> bytes:
    return (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)


LONG = header(b"././@LongLink", number(10), b"L") + b"longname\0\0".ljust(512, b"\0")
HOSTILE = {
    "negative size": header(b"x.jpg", base256(-512)),
    "negative octal size": header(b"x.jpg", b"-0000000777\0"),
    "size of 2^60": header(b"x.jpg", base256(1 << 60)),
    "size of 2^60 of a long name": header(b"x", base256(1 << 60), b"L"),
    "size of 2^60 of a PAX header": header(b"x", base256(1 << 60), b"x"),
    "negative size of a PAX header": header(b"x", base256(-1024), b"x"),
    "member past the end": header(b"x.jpg", number(100_000)),
    "size that is no number": header(b"x.jpg", b"99999999999\0"),
    "nested long names": LONG * 2000,
    "long name of nothing": LONG,
    "PAX size of 2^60": header(b"x", number(27), b"x") + b"27 size=1152921504606846976\n".ljust(512, b"\0"),
    "PAX negative size": header(b"x", number(13), b"x") + b"13 size=-512\n".ljust(512, b"\0"),
    "PAX record of no length": header(b"x", number(9), b"x") + b"0 path=a\n".ljust(512, b"\0"),
    "PAX record longer than the header": header(b"x", number(9), b"x") + b"900 pa=a\n".ljust(512, b"\0"),
    "PAX record without end": header(b"x", number(9), b"x") + b"9 path=ab".ljust(512, b"\0"),
    "global PAX header of a name": header(b"x", number(10), b"g") + b"10 path=a\n".ljust(512, b"\0"),
    "sparse map without end": header(b"x", number(0), b"S")[:482] + b"\1" + bytes(29) + b"\1" * 2048,
    "noise": b"\x55" * 512,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_an_error_that_names_shard_and_offset(what: str, sample: Sample) -> None:
    good = tar_bytes(sample(1), tarfile.USTAR_FORMAT).rstrip(b"\0")
    good += bytes(-len(good) % 512)
    asked: list[int] = []
    data = good + HOSTILE[what] + bytes(10_240)

    def read(at: int, length: int) -> bytes:
        asked.append(length)
        return data[at : at + length]

    with pytest.raises(DatasetError) as caught:
        scan_shard(read, len(data), "train", "s")
    name, _, offset = caught.value.where.partition(" at ")
    assert name == "train/s.tar"
    assert len(good) <= int(offset) <= len(data)
    assert max(asked) <= 10_240
    assert len(asked) < 50


def test_a_huge_pax_header_that_is_really_there_is_not_read(sample: Sample) -> None:
    huge = header(b"x", number(8 << 20), b"x") + bytes(8 << 20)
    data = huge + tar_bytes(sample(1))
    with pytest.raises(DatasetError, match="headers without end"):
        shard_of(data)


def test_a_million_tiny_pax_records_take_no_time_to_speak_of(sample: Sample) -> None:
    records = b"5 a=\n" * 200_000
    data = header(b"x", number(len(records)), b"x") + records.ljust(tar.padded(len(records)), b"\0")
    assert shard_of(data + tar_bytes(sample(1))).photos.num_rows == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_cut_anywhere_is_an_error(format: str, sample: Sample) -> None:
    data = tar_bytes({**sample(1), **sample(2)}, FORMATS[format])
    members = list(walk(lambda at, count: data[at : at + count], len(data), "x"))
    end = members[-1].offset + 512
    for size in [*range(0, end + 1024, 512), *range(1, end + 1024, 509)]:
        with pytest.raises(DatasetError):
            shard_of(data[:size])
    assert shard_of(data[: end + 1024]).photos.num_rows == 2  # two blocks of zeros are an end


def test_a_second_tar_behind_the_first_is_an_error(sample: Sample) -> None:
    with pytest.raises(DatasetError, match="follows the end"):
        shard_of(tar_bytes(sample(1)) + tar_bytes(sample(2)))


@given(st.data())
def test_any_flipped_bit_of_any_header_is_an_error_or_a_refusal(jpeg: Jpeg, data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(sorted(FORMATS.values())))
    names = [
        (f"{n:03d}{'n' * 90}.{end}", jpeg(n) if end == "jpg" else b"1")
        for n in range(3)
        for end in ("jpg", "cls")
    ]
    whole = bytearray(tar_bytes(names, format))
    headers = [n for n in range(0, len(whole), 512) if whole[n + 257 : n + 262] == b"ustar"]
    # byte 155 stands behind the end of the checksum: nobody reads it
    at = data.draw(st.sampled_from(headers)) + data.draw(st.sampled_from([*range(155), *range(156, 512)]))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DatasetError):
        shard_of(bytes(whole))
