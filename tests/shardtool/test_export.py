"""Shards become folders again, the same photos under the same names, and nothing lands elsewhere."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardtool.errors import NoSpace, ResumeRefused, UsageError
from shardtool.export import export, file_name, folder_name
from shardtool.index import open_dataset, open_manifest, sidecar_bytes
from shardtool.pack import PackOptions, pack
from tests.kinds import Grow, Jpeg, Shardtool


def photos(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of everything that is not hidden."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def classes(folder: Path) -> Counter[tuple[str, int, int, int, int]]:
    """Split, label, size and checksum of every photo of a packed dataset."""
    return Counter(
        (split, row["species_id"], row["disease_id"], row["size"], row["crc32c"])
        for split, _, table in open_dataset(str(folder)).sidecars()
        for row in table.to_pylist()
    )


def rewrite(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the rows of the first training sidecar, as somebody who means no good would, digests and all."""
    path = folder / "train/shard-000000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        change(row)
    manifest = json.loads((folder / "dataset.json").read_text())
    entry = manifest["splits"]["train"]["shards"][0]
    data = sidecar_bytes(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), entry["sha256"])
    path.write_bytes(data)
    entry["sidecar_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(manifest))


def test_a_packed_tree_comes_back_as_it_was(packed: Path, specimens: Path, tmp_path: Path) -> None:
    done = export(str(packed), tmp_path / "out")
    assert (done.written, done.kept, done.failures) == (54, 0, ())
    expected = {name: data for name, data in photos(specimens).items() if name.endswith(".jpg")}
    assert photos(tmp_path / "out") == expected


def test_packing_an_export_gives_the_same_dataset(packed: Path, packing: PackOptions, tmp_path: Path) -> None:
    export(str(packed), tmp_path / "out")
    pack(tmp_path / "out", tmp_path / "again", packing)
    assert open_manifest(str(tmp_path / "again")).digest == open_manifest(str(packed)).digest


def png(photo: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def odd(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> Path:
    """Twins in folders that differ in NFC and NFD, in case, converted photos, odd bytes, long names."""
    tree = grow(
        tmp_path / "tree",
        {
            "train/Oak/rou\u0308ge/x.jpg": jpeg(1),
            "train/Oak/ro\u00fcge/x.jpg": jpeg(2),
            "train/Oak/rust/a.JPG": jpeg(3),
            "train/Oak/rust/A.jpg": jpeg(4),
            "train/Oak/rust/drawn.png": png(jpeg(7)),
            "train/Oak/rust/wrong.jpg": png(jpeg(8)),
            os.fsdecode(b"val/\xff\xfe/caf\xe9/caf\xe9.jpg"): jpeg(5),
            f"val/Oak/rust/{'n' * 251}.jpg": jpeg(6),
            f"val/Oak/rust/{'n' * 251}.png": png(jpeg(9)),
        },
    )
    pack(tree, tmp_path / "odd")
    return tmp_path / "odd"


def test_odd_names_and_twins_are_all_kept_and_pack_to_the_same_classes(odd: Path, tmp_path: Path) -> None:
    before = classes(odd)
    assert export(str(odd), tmp_path / "out").written == before.total() == 9
    names = {os.path.basename(name) for name in photos(tmp_path / "out")}
    assert {"drawn.png.jpg", "wrong.jpg", os.fsdecode(b"caf\xe9.jpg")} <= names
    assert len({name.casefold() for name in names if name[0] in "xaA"}) == 4
    pack(tmp_path / "out", tmp_path / "again")
    assert classes(tmp_path / "again") == before


def test_an_export_goes_on_where_it_was_and_mends_what_is_damaged(packed: Path, tmp_path: Path) -> None:
    export(str(packed), tmp_path / "out")
    whole = photos(tmp_path / "out")
    gone, short, wrong = sorted(whole)[:3]
    (tmp_path / "out" / gone).unlink()
    (tmp_path / "out" / short).write_bytes(whole[short][:50])
    (tmp_path / "out" / wrong).write_bytes(bytes(len(whole[wrong])))
    (tmp_path / "out/.tmp-99").write_bytes(b"half")
    done = export(str(packed), tmp_path / "out")
    assert (done.written, done.kept) == (3, 51)
    assert photos(tmp_path / "out") == whole
    assert not (tmp_path / "out/.tmp-99").exists()


def test_processes_export_the_same_as_one(packed: Path, tmp_path: Path, shardtool: Shardtool) -> None:
    export(str(packed), tmp_path / "one")
    done = shardtool("export", "--shards", packed, "--to", tmp_path / "two", "--workers", 2, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"written": 54, "kept": 0, "failures": []}
    assert photos(tmp_path / "two") == photos(tmp_path / "one")


def test_one_split_may_be_exported(packed: Path, tmp_path: Path) -> None:
    assert export(str(packed), tmp_path / "out", ("val",)).written == 18
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"val"}
    with pytest.raises(UsageError, match="it has train, val"):
        export(str(packed), tmp_path / "other", ("test",))


def test_a_destination_of_others_is_refused_and_untouched(packed: Path, tmp_path: Path, grow: Grow) -> None:
    thesis = grow(tmp_path / "thesis", {"text": b"mine"})
    for out in (thesis, thesis / "text", packed / "train", packed):
        with pytest.raises(UsageError):
            export(str(packed), out)
    assert photos(thesis) == {"text": b"mine"}


def test_another_dataset_does_not_mix_with_the_first(packed: Path, odd: Path, tmp_path: Path) -> None:
    export(str(packed), tmp_path / "out")
    with pytest.raises(ResumeRefused):
        export(str(odd), tmp_path / "out")


def test_a_damaged_photo_is_left_out_and_told_with_status_3(
    packed_copy: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    path = packed_copy / "val/shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    done = shardtool("export", "--shards", packed_copy, "--to", tmp_path / "out", "--workers", 1)
    assert done.returncode == 3
    assert "val/shard-000000.tar, key" in done.stderr
    assert len(photos(tmp_path / "out")) == 53


def test_no_space_is_status_6_and_leaves_no_half_photo(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.suffix == ".jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NoSpace):
        export(str(packed), tmp_path / "out")
    assert photos(tmp_path / "out") == {}


# --- Names that want to be elsewhere ------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [b"../../../evil.jpg", b"/etc/passwd", b"train/A/..", b"a/\0.jpg", b"a/", b""]
)
def test_a_source_that_wants_to_be_elsewhere_stays_inside(
    packed_copy: Path, tmp_path: Path, source: bytes
) -> None:
    rewrite(packed_copy, lambda row: row.update(source=source))
    out = tmp_path / "deep/er/out"
    done = export(str(packed_copy), out)
    assert (done.written, done.failures) == (54, ())
    inside = {path for path in (tmp_path / "deep").rglob("*") if path.is_file()}
    assert all(path.is_relative_to(out) for path in inside)
    assert all(len(path.relative_to(out).parts) == 4 for path in inside if not path.name.startswith("."))


@pytest.mark.parametrize("label", ["..", "a/b", "", ".hidden", "nul\0", "n" * 256])
def test_a_label_that_no_folder_can_have_is_told_and_its_photos_left_out(
    packed_copy: Path, tmp_path: Path, label: str
) -> None:
    manifest = json.loads((packed_copy / "dataset.json").read_text())
    manifest["taxonomy"]["species"][0]["name"] = label
    (packed_copy / "dataset.json").write_text(json.dumps(manifest))
    done = export(str(packed_copy), tmp_path / "x/out")
    assert done.written == 36
    assert len(done.failures) == 18
    assert all(f"{label!r}" in failure.what for failure in done.failures)


def test_a_split_that_wants_to_be_elsewhere_is_left_out(packed_copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((packed_copy / "dataset.json").read_text())
    manifest["splits"]["../shards/val"] = manifest["splits"].pop("val")
    (packed_copy / "dataset.json").write_text(json.dumps(manifest))
    export(str(packed_copy), tmp_path / "x/y/out")
    assert {path.name for path in (tmp_path / "x/y").iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"y"}


@given(st.binary(max_size=300), st.booleans())
def test_no_source_makes_a_name_that_is_a_path(source: bytes, twin: bool) -> None:
    name = file_name(source, "ab12", twin)
    assert b"/" not in name
    assert b"\0" not in name
    assert not name.startswith(b".")
    assert 0 < len(name) <= 255
    assert os.path.splitext(name)[1].lower() in (b".jpg", b".jpeg", b".jpe", b".jfif", b".mpo")


@given(st.text(max_size=300))
def test_no_label_makes_a_folder_that_is_a_path(label: str) -> None:
    name = folder_name(label)
    assert name is None or (b"/" not in name and name not in (b"", b".", b"..") and len(name) <= 255)
