"""The report tells the truth, shows copies side by side, stays small, and no name on it does anything."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardtool.index import Manifest, ShardEntry
from shardtool.pack import Packed, PackOptions, pack
from shardtool.photo import Refused
from shardtool.quality import ShuffleQuality
from shardtool.report import report_files
from shardtool.report.classes import CLASS_THUMBNAILS, class_flags
from shardtool.report.plot import nice_step
from shardtool.report.thumbnail import Read, thumbnail
from shardtool.similar import NearPair
from shardtool.taxonomy import Taxonomy
from tests.kinds import Grow, Jpeg

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(1)</script>",
    "\u202egnp.evil",
    "N" * 200,
    "two\nlines",
    "</style></details></table>",
]


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.seen)


def reader(tree: Path) -> Read:
    def read(path: bytes) -> bytes:
        try:
            return (tree / os.fsdecode(path)).read_bytes()
        except OSError as error:
            raise Refused("unreadable", str(error)) from None

    return read


def packed_tree(tmp_path: Path, grow: Grow, files: dict[str, bytes], **options: int) -> tuple[Read, Packed]:
    tree = grow(tmp_path / "tree", files)
    return reader(tree), pack(tree, tmp_path / "out", PackOptions(**options))


def page_of(
    read: Read,
    done: Packed,
    shuffle: dict[str, ShuffleQuality] | None = None,
    near: Sequence[NearPair] = (),
) -> str:
    return report_files(read, done.scan, done.manifest, shuffle or {}, near)["report.html"].decode()


def section(page: str, title: str) -> str:
    found = re.search(rf'<section id="{title}">(.*?)</section>', page, re.DOTALL)
    assert found, title
    return found[1]


def text(markup: str) -> str:
    return " ".join(
        html.unescape(re.sub("<wbr>|<[^>]*>", lambda tag: "" if tag[0] == "<wbr>" else " ", markup)).split()
    )


def pairs(page: str) -> list[str]:
    """The text of every two photos that stand side by side."""
    return [text(item) for item in re.findall(r"<li>(.*?)</li>", section(page, "copies"), re.DOTALL)]


# --- What is said ------------------------------------------------------------------------------


def test_a_leak_is_shown_beside_its_twin(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {"train/A/x/1.jpg": jpeg(1), "train/A/x/2.jpg": jpeg(2), "val/A/x/3.jpg": jpeg(1)}
    read, done = packed_tree(tmp_path, grow, files)
    page = page_of(read, done)
    assert pairs(page) == ["train/A/x/1.jpg val/A/x/3.jpg left refused, right packed"]
    assert Elements(section(page, "copies")).count("img") == 2
    refusal = json.loads(report_files(read, done.scan, done.manifest, {}, ())["report.json"])["refusals"][0]
    assert (refusal["source"], refusal["twin"]) == ("train/A/x/1.jpg", "val/A/x/3.jpg")


def test_a_label_conflict_is_one_pair_of_which_both_are_refused(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    files = {"train/A/x/1.jpg": jpeg(1), "train/A/y/2.jpg": jpeg(1), "train/A/y/3.jpg": jpeg(3)}
    page = page_of(*packed_tree(tmp_path, grow, files))
    assert pairs(page) == ["train/A/x/1.jpg train/A/y/2.jpg both refused"]
    assert "Label conflicts: 2 refused" in page


def test_copies_inside_a_class_are_shown_and_were_kept(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {f"train/A/x/{number}.jpg": jpeg(number % 3) for number in range(5)}
    read, done = packed_tree(tmp_path, grow, files)
    assert pairs(page_of(read, done)) == [
        "train/A/x/0.jpg train/A/x/3.jpg both kept, train, same label",
        "train/A/x/1.jpg train/A/x/4.jpg both kept, train, same label",
    ]
    assert "Copies that were kept: 4 photos" in page_of(read, done)


def test_copies_that_an_option_keeps_are_told_from_harmless_ones(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    files = {"train/A/x/1.jpg": jpeg(1), "val/A/x/2.jpg": jpeg(1)}
    files |= {"val/A/x/3.jpg": jpeg(3), "val/A/y/4.jpg": jpeg(3)}
    page = page_of(*packed_tree(tmp_path, grow, files, keep_leaks=True, keep_conflicts=True))
    assert pairs(page) == [
        "train/A/x/1.jpg val/A/x/2.jpg both kept, train and val, same label",
        "val/A/x/3.jpg val/A/y/4.jpg both kept, val, labels differ",
    ]


def test_photos_that_look_alike_come_with_distance_splits_and_labels(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    names = ("train/A/x/1.jpg", "train/A/y/2.jpg", "val/A/x/3.jpg")
    read, done = packed_tree(tmp_path, grow, {name: jpeg(i) for i, name in enumerate(names)})
    first, second, third = map(str.encode, names)
    near = (NearPair(first, third, 4), NearPair(second, third, 7), NearPair(first, second, 9))
    assert pairs(page_of(read, done, near=near)) == [
        "train/A/x/1.jpg val/A/x/3.jpg distance 4, train and val, same label",
        "train/A/y/2.jpg val/A/x/3.jpg distance 7, train and val, labels differ",
        "train/A/x/1.jpg train/A/y/2.jpg distance 9, train, labels differ",
    ]
    value = json.loads(report_files(read, done.scan, done.manifest, {}, near)["report.json"])
    assert value["near"][0] == {"first": names[0], "second": names[2], "distance": 4}


def test_every_refused_file_stands_under_its_reason_with_what_is_left_of_it(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    files = {"cut.jpg": jpeg(1, 64, 64)[:-300], "page.jpg": b"<html>", "ok.jpg": jpeg(2), "none.jpg": b""}
    page = page_of(*packed_tree(tmp_path, grow, {f"train/A/x/{name}": data for name, data in files.items()}))
    refused = section(page, "refused")
    assert [text(title) for title in re.findall("<h3>.*?</h3>", refused)] == [
        *("damaged: 1", "empty: 1", "not an image: 1"),
    ]
    entries = [text(item) for item in re.findall("<li>(.*?)</li>", refused, re.DOTALL)]
    assert entries[0].startswith("train/A/x/cut.jpg")
    assert all(entry.startswith("no picture train/A/x/") for entry in entries[1:])
    assert Elements(refused).count("img") == 1


def test_key_figures_splits_and_digest_are_those_of_the_dataset(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    files = {
        f"train/A/{disease}/{number}.jpg": jpeg(number + ord(disease))
        for disease in "xy"
        for number in (0, 9)
    }
    read, done = packed_tree(tmp_path, grow, files | {"val/B/z/1.jpg": jpeg(99), "val/B/z/2.jpg": b""})
    page = page_of(read, done)
    figures = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert figures["photos"] == "5"
    assert figures["species"] == "2"
    assert figures["classes"] == "3"
    assert figures["refused"] == "1"
    assert done.manifest.digest in page
    assert "train 4 80.0% 1" in text(section(page, "splits"))


def test_changes_and_ignored_files_are_counted(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    png = io.BytesIO()
    Image.new("RGB", (20, 20)).save(png, "PNG")
    files = {"train/A/x/1.jpg": jpeg(1), "train/A/x/2.png": png.getvalue(), "train/A/x/notes.txt": b"x"}
    changes = text(section(page_of(*packed_tree(tmp_path, grow, files)), "changes"))
    assert "PNG to JPEG 1" in changes
    assert ".txt ending 1" in changes


def test_progressive_photos_are_counted_and_the_cure_is_named(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    read, done = packed_tree(tmp_path, grow, {f"train/A/x/{number}.jpg": jpeg(number) for number in range(3)})
    place = done.scan.photos.schema.get_field_index("progressive")
    photos = done.scan.photos.set_column(place, "progressive", pa.array([True, False, True]))
    page = page_of(read, replace(done, scan=replace(done.scan, photos=photos)))
    assert "2 progressive JPEGs" in page
    assert "--baseline" in page
    assert "--baseline" not in page_of(read, done)


def test_the_order_is_judged_in_words(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {"train/A/x/1.jpg": jpeg(1), "val/A/x/2.jpg": jpeg(2)}
    quality = {"train": ShuffleQuality(256, 23.0, 129.0), "val": ShuffleQuality(256, 128.9, 129.0)}
    order = text(section(page_of(*packed_tree(tmp_path, grow, files), quality), "order"))
    train, val = order.split("val:")
    assert "shows 23.0 species" in train
    assert "clumped" in train
    assert "as well mixed as a random order" in val


# --- Classes -----------------------------------------------------------------------------------


def test_odd_classes_are_flagged() -> None:
    counts = np.array([[5, 1], [0, 2], [1, 0], [0, 0]])
    assert class_flags(counts, ("train", "val")) == ["", "not in train", "one photo", "no photo left"]


def test_the_tree_counts_each_class_in_each_split(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {f"train/A/x/{number}.jpg": jpeg(number) for number in range(3)} | {"val/A/y/9.jpg": jpeg(9)}
    tree = text(section(page_of(*packed_tree(tmp_path, grow, files)), "classes"))
    assert "A 3 1 x 3 0 y not in train 0 1" in tree


def test_the_long_tail_is_counted_named_and_drawn(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {f"train/A/big/{number}.jpg": jpeg(number) for number in range(120)}
    files |= {f"train/A/small/{number}.jpg": jpeg(500 + number) for number in range(7)}
    classes = section(page_of(*packed_tree(tmp_path, grow, files)), "classes")
    assert "Photos in train: 120 in the largest class, A / big , 7 in the smallest, A / small ." in text(
        classes
    )
    assert "In the long tail, with at most 80 photos: 1 of 2 classes." in text(classes)
    shapes = [attributes.get("class") for tag, attributes in Elements(classes).seen if tag == "path"]
    assert [shape for shape in shapes if shape != "axis"] == ["head", "tail", "limit"]


@given(st.floats(1, 1e13))
def test_an_axis_has_three_to_seven_steps(top: float) -> None:
    assert top < 3 or 3 <= top / nice_step(top) < 7.5


def large(done: Packed, species: int, diseases: int) -> Packed:
    """The same dataset as if it had so many classes, each of one photo that is everywhere the same."""
    names = [(f"Species {s:03}", f"Disease number {d:03}") for s in range(species) for d in range(diseases)]
    taxonomy, rows = Taxonomy.from_labels(names), species * diseases
    photos = pa.table(
        {
            "source": pa.array([b"train/A/x/1.jpg"] * rows, pa.binary()),
            "split": pa.array(np.zeros(rows), pa.int8()),
            "row": pa.array(np.arange(rows), pa.int32()),
            "digest": pa.array([b"%016d" % row for row in range(rows)], pa.binary(16)),
            "rule": pa.array([""] * rows),
            "progressive": pa.array([False] * rows),
        }
    )
    shards = tuple(
        ShardEntry(f"shard-{i:06}", rows // 1000, 10**9 - i, "0" * 64, "0" * 64) for i in range(1000)
    )
    counts = {"train": [1] * rows, "val": [0] * rows}
    manifest = Manifest(
        taxonomy, {"train": shards, "val": shards[:1]}, counts, done.manifest.options, "tool", "d"
    )
    return replace(done, manifest=manifest, scan=replace(done.scan, taxonomy=taxonomy, photos=photos))


def test_a_page_of_96000_classes_lists_them_all_and_still_opens(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    read, done = packed_tree(tmp_path, grow, {"train/A/x/1.jpg": jpeg(1, 300, 300)})
    page = page_of(read, large(done, 320, 300))
    elements = Elements(page)
    assert len(page) < 9_000_000
    assert elements.count("img") == CLASS_THUMBNAILS
    assert f"A thumbnail for {CLASS_THUMBNAILS} of 96,000 classes" in page
    assert elements.count("details") == 320
    assert not any("open" in attributes for tag, attributes in elements.seen if tag == "details")
    assert page.count("Disease number ") >= 96_000
    assert elements.count("rect") == 120 + 1  # a thousand shards of train share 120 bars, val has one


def test_every_species_has_a_picture_before_any_has_two(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    read, done = packed_tree(tmp_path, grow, {"train/A/x/1.jpg": jpeg(1)})
    folds = re.findall("<details>.*?</details>", page_of(read, large(done, 200, 5)), re.DOTALL)
    assert {fold.count("<img") for fold in folds} == {1, 2}


# --- Safe and reproducible ---------------------------------------------------------------------


@pytest.fixture
def hostile_page(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> str:
    names = [name.replace("/", "\N{FRACTION SLASH}") for name in HOSTILE] + [os.fsdecode(b"caf\xe9\xff")]
    files = {
        f"train/{name}/{name}/{number}{name[:40]}.jpg": jpeg(number) for number, name in enumerate(names)
    }
    files |= {f"train/{name}/{name}/bad.jpg": b"<script>alert(1)</script>" for name in names}
    files |= {f"val/{name}/{name}/1.jpg": jpeg(number) for number, name in enumerate(names[:3])}
    return page_of(*packed_tree(tmp_path, grow, files))


def test_no_name_becomes_markup(hostile_page: str, tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tame = page_of(
        *packed_tree(tmp_path / "tame", grow, {"train/A/x/1.jpg": jpeg(1), "train/A/x/2.jpg": b""})
    )
    pairs_only = {"figure", "figcaption", "wbr"}
    hostile = Elements(hostile_page)
    assert {tag for tag, _ in hostile.seen} <= {tag for tag, _ in Elements(tame).seen} | pairs_only
    for tag, attributes in hostile.seen:
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/jpeg;base64,")
        assert tag != "a" or (attributes["href"] or "").startswith("#")


def test_nothing_on_the_page_turns_the_text_or_breaks_the_line(hostile_page: str) -> None:
    assert "\u202e" not in hostile_page
    assert "two\nlines" not in hostile_page
    assert "two\N{REPLACEMENT CHARACTER}lines" in hostile_page


def test_a_long_name_loses_its_middle(hostile_page: str) -> None:
    assert "N" * 110 not in hostile_page
    assert f"{'N' * 50} … {'N' * 20}" in hostile_page


def test_the_page_loads_nothing_and_lets_in_its_own_style_only(hostile_page: str) -> None:
    style = re.search("<style>(.*?)</style>", hostile_page, re.DOTALL)
    assert style
    allowed = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'" in hostile_page
    assert Elements(hostile_page).count("style") == 1
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_same_pack_gives_the_same_files(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {"train/A/x/1.jpg": jpeg(1), "train/B/x/2.jpg": b"", "val/A/x/3.jpg": jpeg(3)}
    first, second = (packed_tree(tmp_path / place, grow, files) for place in ("here", "there"))
    for read, done in (first, second):
        assert str(tmp_path).encode() not in b"".join(
            report_files(read, done.scan, done.manifest, {}, ()).values()
        )
    assert [report_files(read, done.scan, done.manifest, {}, ()) for read, done in (first, first)] == [
        report_files(read, done.scan, done.manifest, {}, ()) for read, done in (second, second)
    ]


def test_a_thumbnail_is_small_and_holds_no_tags(jpeg: Jpeg) -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.open(io.BytesIO(jpeg(1, 400, 300))).save(out, "JPEG", exif=exif, comment=b"hello")
    small = Image.open(io.BytesIO(thumbnail(lambda path: out.getvalue(), b"1.jpg")))
    assert small.size == (96, 72)
    assert "exif" not in small.info
    assert "comment" not in small.info


def test_a_photo_that_is_gone_has_no_thumbnail(tmp_path: Path) -> None:
    assert thumbnail(reader(tmp_path), b"gone.jpg") == b""
