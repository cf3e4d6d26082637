"""The folder tree: every file is packed, refused with a reason, or ignored by a rule that is counted."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardtool.errors import UsageError
from shardtool.photo import Refused
from shardtool.scan import Scan, examine_tree, list_tree
from shardtool.source import LocalSource, read_source
from tests.kinds import Grow, Jpeg


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    signal.alarm(20)  # a FIFO that blocks must end the test, not the patience
    yield
    signal.alarm(0)


def scan(root: Path) -> Scan:
    return examine_tree(list_tree(LocalSource(str(root))), "decode")


def sources(found: Scan) -> list[bytes]:
    return found.photos.column("source").to_pylist()


def refused(found: Scan) -> dict[str, str]:
    return {os.fsdecode(refusal.source): refusal.reason for refusal in found.refused}


def labels(found: Scan) -> set[tuple[str, str]]:
    return {found.taxonomy.row_names[row] for row in found.photos.column("row").to_pylist()}


# --- Shape of the tree -------------------------------------------------------------------------


def test_split_folders_give_the_splits(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    names = ["train/Rose/Rust/1.jpg", "val/Rose/Rust/2.jpg", "test/Rose/Rust/3.jpg"]
    found = scan(grow(tmp_path, {name: jpeg(i) for i, name in enumerate(names)}))
    by_source = dict(zip(sources(found), found.photos.column("split").to_pylist(), strict=True))
    assert by_source == {names[0].encode(): 0, names[1].encode(): 1, names[2].encode(): 2}


def test_a_tree_without_split_folders_has_none(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    found = scan(grow(tmp_path, {"Rose/Rust/1.jpg": jpeg(1)}))
    assert found.photos.column("split").to_pylist() == [-1]


def test_photos_at_the_wrong_depth_are_refused(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    wrong = ["top.jpg", "train/loose.jpg", "train/Rose/loose.jpg", "other/Rose/Rust/1.jpg"]
    deep = "train/Rose/Rust/deep/1.jpg"
    found = scan(grow(tmp_path, {name: jpeg(1) for name in ["train/Rose/Rust/1.jpg", deep, *wrong]}))
    assert sources(found) == [b"train/Rose/Rust/1.jpg"]
    assert refused(found) == dict.fromkeys([*wrong, deep], "misplaced")


def test_what_lies_in_a_folder_named_like_a_photo_is_refused(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    found = scan(grow(tmp_path, {"Rose/Rust/1.jpg": jpeg(1), "Rose/Rust/folder.jpg/2.jpg": jpeg(2)}))
    assert sources(found) == [b"Rose/Rust/1.jpg"]
    assert refused(found) == {"Rose/Rust/folder.jpg/2.jpg": "misplaced"}


def test_no_file_is_lost(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {
        "train/Rose/Rust/good.jpg": jpeg(1),
        "train/Rose/Rust/bad.jpg": b"<html>",
        "train/Rose/Rust/empty.png": b"",
        "train/Rose/Rust/notes.txt": b"x",
        "train/Rose/Rust/README": b"x",
        "train/Rose/Rust/.DS_Store": b"x",
        "train/Rose/Rust/Thumbs.db": b"x",
        "train/labels.csv": b"x",
        "train/loose.jpg": jpeg(2),
    }
    found = scan(grow(tmp_path, files))
    assert len(sources(found)) + len(found.refused) + sum(found.ignored.values()) == len(files)
    assert found.ignored == {".txt ending": 1, "no ending": 1, "hidden": 1, ".db ending": 1, ".csv ending": 1}


def test_hidden_folders_and_empty_class_folders_are_counted(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    grow(tmp_path, {"Rose/Rust/1.jpg": jpeg(1), ".git/Rose/1.jpg": jpeg(2), "Rose/.cache/1.jpg": jpeg(3)})
    (tmp_path / "Rose" / "Empty").mkdir()
    found = scan(tmp_path)
    assert found.ignored == Counter({"hidden folder": 2, "empty class folder": 1})
    assert found.taxonomy.row_names == (("Rose", "Rust"),)


def test_endings_are_known_in_any_case(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    names = ["Rose/Rust/1.JPG", "Rose/Rust/2.JpEg", "Rose/Rust/3.jpe", "Rose/Rust/4.jfif", "Rose/Rust/5.PNG"]
    found = scan(grow(tmp_path, {name: jpeg(i) for i, name in enumerate(names)}))
    assert sources(found) == [name.encode() for name in names]


def test_a_class_of_refused_photos_stays_in_the_label_space(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    found = scan(grow(tmp_path, {"A/x/1.jpg": b"", "B/y/1.jpg": jpeg(1)}))
    assert found.taxonomy.row_names == (("A", "x"), ("B", "y"))
    assert found.photos.column("row").to_pylist() == [1]


@pytest.mark.parametrize("files", [{}, {"a.jpg": b""}, {"A/b.jpg": b""}, {"A/b/c.txt": b""}])
def test_a_tree_without_photos_in_classes_is_an_error(
    tmp_path: Path, grow: Grow, files: dict[str, bytes]
) -> None:
    with pytest.raises(UsageError, match="no photos"):
        list_tree(LocalSource(str(grow(tmp_path, files))))


# --- Names -------------------------------------------------------------------------------------

NAMES = [
    "a b  c.jpg",
    " leading and trailing .jpg",
    "many.dots.in.it.jpg",
    "[bold]brackets[red] (1).jpg",
    "-rf.jpg",
    "--out=x.jpg",
    "line\nbreak.jpg",
    "tab\tand\x1b[31mescape.jpg",
    "quote'\"`$(x).jpg",
    "<img src=x>.jpg",
    "back\\slash.jpg",
    "%s %d {}.jpg",
    "\N{SNOWMAN}\N{HERB}.jpg",
    unicodedata.normalize("NFC", "Bl\u00e4tter.jpg"),
    unicodedata.normalize("NFD", "Bl\u00e4tter.jpg"),
    "n" * 251 + ".jpg",
]


def test_any_name_is_packed_and_its_bytes_are_kept(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    grow(tmp_path, {f"Rose/Rust/{name}": jpeg(i) for i, name in enumerate(NAMES)})
    (tmp_path / "Rose/Rust" / os.fsdecode(b"latin\xe9\xff.jpg")).write_bytes(jpeg(99))
    found = scan(tmp_path)
    expected = [b"Rose/Rust/" + name.encode() for name in NAMES] + [b"Rose/Rust/latin\xe9\xff.jpg"]
    assert sorted(sources(found)) == sorted(expected)
    assert not found.refused


def test_a_class_may_have_any_name(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    names = ["a b", "a.b", "[red]x", "-x", "new\nline", "n" * 255, "\N{HERB}", os.fsdecode(b"caf\xe9")]
    found = scan(grow(tmp_path, {f"{name}/{name}/1.jpg": jpeg(i) for i, name in enumerate(names)}))
    assert labels(found) == {(name, name) for name in names}


def test_a_name_composed_or_decomposed_is_the_same_class(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    one, other = (unicodedata.normalize(form, "Apfelb\u00e4ume") for form in ("NFC", "NFD"))
    assert one != other
    found = scan(grow(tmp_path, {f"train/{one}/x/1.jpg": jpeg(1), f"val/{other}/x/2.jpg": jpeg(2)}))
    assert found.taxonomy.row_names == ((one, "x"),)
    assert f"val/{other}/x/2.jpg".encode() in sources(found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Leaf_Rust/a", "leaf_rust/b"),
        ("Rose/Leaf_Rust", "Rose/leaf_rust"),
        ("Rose/Rust", "Rose/Rust "),
        ("Stra\u00dfe/a", "STRASSE/a"),
    ],
)
def test_class_folders_that_differ_in_case_or_blanks_are_an_error_naming_both(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, one: str, other: str
) -> None:
    grow(tmp_path, {f"train/{one}/1.jpg": jpeg(1), f"val/{other}/2.jpg": jpeg(2)})
    with pytest.raises(UsageError, match="case or blanks") as caught:
        list_tree(LocalSource(str(tmp_path)))
    depth = 2 if one.split("/")[0] == other.split("/")[0] else 1
    for path in (one, other):
        assert repr("/".join(path.split("/")[:depth])) in caught.value.where


def test_diseases_of_two_species_may_differ_in_case(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    found = scan(grow(tmp_path, {"Rose/Rust/1.jpg": jpeg(1), "Apple/rust/2.jpg": jpeg(2)}))
    assert found.taxonomy.rows == 2


# --- What is no regular file -------------------------------------------------------------------


def test_links_pipes_and_sockets_are_refused_and_do_not_hang(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    root = grow(tmp_path / "tree", {"Rose/Rust/1.jpg": jpeg(1)})
    outside = grow(tmp_path / "outside", {"secret.jpg": jpeg(2)})
    folder = root / "Rose" / "Rust"
    (folder / "link.jpg").symlink_to(outside / "secret.jpg")
    (folder / "broken.jpg").symlink_to("nowhere")
    (folder / "loop").symlink_to("..")
    (root / "Rose" / "Linked").symlink_to(folder)
    (root / "Linked").symlink_to(root / "Rose")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryDirectory() as short:
        server.bind(f"{short}/s")  # a socket's path is at most 108 bytes
        os.rename(f"{short}/s", folder / "socket.jpg")
        found = scan(root)
    assert sources(found) == [b"Rose/Rust/1.jpg"]
    assert refused(found) == {
        "Linked": "misplaced",
        "Rose/Linked": "misplaced",
        **dict.fromkeys(
            [f"Rose/Rust/{name}" for name in ("broken.jpg", "link.jpg", "loop", "pipe.jpg", "socket.jpg")],
            "not a regular file",
        ),
    }


def test_a_photo_that_vanished_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="unreadable"):
        read_source(os.fsencode(tmp_path / "gone.jpg"))


def test_a_photo_that_vanishes_after_it_was_listed_is_refused(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    root = grow(tmp_path, {"Rose/Rust/1.jpg": jpeg(1)})
    tree = list_tree(LocalSource(str(root)))
    (root / "Rose/Rust/1.jpg").unlink()
    assert refused(examine_tree(tree, "decode")) == {"Rose/Rust/1.jpg": "unreadable"}


def test_a_folder_that_may_not_be_read_is_refused(grow: Grow, jpeg: Jpeg) -> None:
    nobody, me = 65534, os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in a folder of root's alone
        root = grow(Path(folder), {"Rose/Rust/1.jpg": jpeg(1), "Rose/Scab/1.jpg": jpeg(2)})
        root.chmod(0o755)
        (root / "Rose/Scab").chmod(0)
        if me == 0:
            os.seteuid(nobody)  # root may read everything
        try:
            assert refused(scan(root)) == {"Rose/Scab": "unreadable"}
        finally:
            os.seteuid(me)
            (root / "Rose/Scab").chmod(0o755)


def test_progress_counts_every_photo_once(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tree = list_tree(
        LocalSource(str(grow(tmp_path, {"A/x/1.jpg": jpeg(1), "A/x/2.jpg": b"", "A/y/3.jpg": jpeg(3)})))
    )
    steps: list[int] = []
    examine_tree(tree, progress=lambda photos, refused: steps.append(photos + len(refused)))
    assert sum(steps) == tree.photos == 3


@pytest.mark.parametrize("name", ["photo", "photo.jpg_large", ".photo.jpg", "photo."])
def test_a_photo_whose_name_does_not_tell_is_known_by_its_first_bytes(
    name: str, tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    found = scan(
        grow(tmp_path, {f"Rose/Rust/{name}": jpeg(1), "Rose/Rust/notes.txt": b"BM text", "Rose/Rust/.x": b""})
    )
    assert sources(found) == [f"Rose/Rust/{name}".encode()]
    assert sum(found.ignored.values()) == 2


def test_a_format_that_is_not_read_is_refused_not_ignored(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    found = scan(grow(tmp_path, {"Rose/Rust/1.jpg": jpeg(1), "Rose/Rust/2.HEIC": heic, "Rose/Rust/3": heic}))
    assert set(refused(found)) == {"Rose/Rust/2.HEIC", "Rose/Rust/3"}


def test_a_class_that_cannot_be_read_keeps_its_id(grow: Grow, jpeg: Jpeg) -> None:
    nobody, me = 65534, os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        root = grow(
            Path(folder), {"Rose/Rust/1.jpg": jpeg(1), "Rose/Scab/1.jpg": jpeg(2), "Rose/Wilt/1.jpg": jpeg(3)}
        )
        root.chmod(0o755)
        (root / "Rose/Scab").chmod(0)
        if me == 0:
            os.seteuid(nobody)
        try:
            found = scan(root)
        finally:
            os.seteuid(me)
            (root / "Rose/Scab").chmod(0o755)
    assert found.taxonomy.diseases == (("Rust", "Scab", "Wilt"),)
    assert not found.ignored
