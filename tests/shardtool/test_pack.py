"""A packed folder: what is in it, that its bytes follow from the photos alone, and what is refused."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shardtool.errors import NoSpace, ResumeRefused, SourceChanged, UsageError, UserError
from shardtool.files import exclusive
from shardtool.index import open_manifest, open_split
from shardtool.pack import MaxRefused, Packed, PackOptions, pack
from shardtool.progress import Advance, OpenProgress
from shardtool.report.card import MARK
from shardtool.select import duplicates
from shardtool.shard import PIECE
from shardtool.store import LocalFolder
from shardtool.verify import verify
from tests.kinds import Digests, Grow, Jpeg, Shardtool

FILES = ("dataset.json", "report.json", "report.html", "README.md", "croissant.json")
SMALL = PackOptions(shard_size=40_000)


def shards(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tar"))


def members_of(folder: Path, split: str) -> set[str]:
    """Source paths of a packed split; the empty set if there is no such split."""
    if split not in open_manifest(str(folder)).splits:
        return set()
    opened = open_split(str(folder / split))
    return {os.fsdecode(opened.entry(sample)["source"]) for sample in range(len(opened))}


def reasons(packed: Packed) -> dict[str, str]:
    return {os.fsdecode(refusal.source): refusal.reason for refusal in packed.scan.refused}


def rewritten(before: dict[str, int], folder: Path) -> set[str]:
    return {name for name, number in inodes(folder).items() if before.get(name) != number}


def inodes(folder: Path) -> dict[str, int]:
    """Shards and sidecars with the number of their file: another number, another write."""
    return {str(p.relative_to(folder)): p.stat().st_ino for p in folder.glob("*/shard-*")}


def hooked(label: str, hook: Callable[[], None]) -> OpenProgress:
    """Progress that calls `hook` when the stage `label` begins: between the scan and the writing."""

    @contextlib.contextmanager
    def show(stage: str, total: int) -> Iterator[Advance]:
        if stage == label:
            hook()
        yield lambda count: None

    return show


# --- What is there -----------------------------------------------------------------------------


def test_the_output_is_shards_sidecars_and_five_files(packed: Path) -> None:
    names = {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()}
    tars = shards(packed)
    assert len(tars) > 4
    sidecars = {name.replace(".tar", ".parquet") for name in tars}
    assert names == {*tars, *sidecars, *FILES, ".lock"}


def test_dataset_json_tells_what_is_there(packed: Path, packing: PackOptions) -> None:
    value = json.loads((packed / "dataset.json").read_text())
    assert set(value) == {"format", "tool", "digest", "options", "splits", "taxonomy"}
    assert value["options"]["shard_size"] == packing.shard_size
    for name, split in value["splits"].items():
        assert split["samples"] == sum(split["class_counts"]) == {"train": 36, "val": 18}[name]
        for shard in split["shards"]:
            path = packed / name / shard["name"]
            data, sidecar = (path.with_suffix(end).read_bytes() for end in (".tar", ".parquet"))
            assert shard["bytes"] == len(data)
            assert shard["sha256"] == hashlib.sha256(data).hexdigest()
            assert shard["sidecar_sha256"] == hashlib.sha256(sidecar).hexdigest()


def test_no_report_holds_a_time_or_a_place_of_this_machine(packed: Path, specimens: Path) -> None:
    for name in FILES:
        text = (packed / name).read_text()
        assert str(specimens) not in text
        assert str(packed) not in text
        written = datetime.fromtimestamp((packed / name).stat().st_mtime)
        days = [written.strftime(form) for form in ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d %b %Y")]
        for word in (*days, socket.gethostname(), getpass.getuser()):
            assert not re.search(rf"(?<![\w:]){re.escape(word)}\b", text), (name, word)  # CSS has ":root"


def test_every_photo_is_packed_with_its_own_bytes(packed: Path, specimens: Path) -> None:
    for name in ("train", "val"):
        split = open_split(str(packed / name))
        for sample, data in enumerate(split.read(range(len(split)))):
            assert data == (specimens / os.fsdecode(split.entry(sample)["source"])).read_bytes()
    photos = {str(path.relative_to(specimens)) for path in specimens.rglob("*.jpg")}
    assert members_of(packed, "train") | members_of(packed, "val") == photos


# --- The same bytes ----------------------------------------------------------------------------


def test_two_packs_of_one_tree_have_the_same_bytes(
    specimens: Path, packed: Path, packing: PackOptions, tmp_path: Path, digests: Digests
) -> None:
    moved = shutil.copytree(specimens, tmp_path / "elsewhere")
    pack(moved, tmp_path / "out", packing)
    assert digests(tmp_path / "out") == digests(packed)


def test_two_workers_write_the_same_bytes_as_one(
    specimens: Path, packed: Path, packing: PackOptions, tmp_path: Path, digests: Digests
) -> None:
    pack(specimens, tmp_path / "out", packing, workers=2)
    assert digests(tmp_path / "out") == digests(packed)


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "TZ": "Pacific/Kiritimati"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "7"},
    ],
    ids=["another time zone", "a locale without UTF-8"],
)
def test_another_locale_time_zone_and_umask_change_no_byte(
    environment: dict[str, str],
    tmp_path: Path,
    grow: Grow,
    jpeg: Jpeg,
    digests: Digests,
    shardtool: Shardtool,
) -> None:
    tree = grow(
        tmp_path / "tree", {f"train/Caf\u00e9 {i % 2}/B\u00e4r/\u00f6{i}.jpg": jpeg(i) for i in range(8)}
    )
    pack(tree, tmp_path / "here")
    before = os.umask(0o077)
    try:
        done = shardtool("pack", tree, "--out", tmp_path / "there", "--workers", 1, **environment)
    finally:
        os.umask(before)
    assert done.returncode == 0
    assert digests(tmp_path / "there") == digests(tmp_path / "here")


def test_the_source_is_only_read(specimens: Path, packing: PackOptions, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.stat().st_mode)
            for path in specimens.rglob("*")
        }

    before = state()
    pack(specimens, tmp_path / "out", packing)
    assert state() == before


# --- Packing again -----------------------------------------------------------------------------


def test_a_second_pack_writes_no_shard(specimens: Path, packed_copy: Path, digests: Digests) -> None:
    before, content = inodes(packed_copy), digests(packed_copy)
    done = pack(specimens, packed_copy, SMALL)
    assert (done.written, done.kept) == ((), len(shards(packed_copy)))
    assert inodes(packed_copy) == before
    assert digests(packed_copy) == content


def test_a_changed_photo_rewrites_one_shard(specimens_copy: Path, packed_copy: Path, jpeg: Jpeg) -> None:
    before = inodes(packed_copy)
    photo = sorted(specimens_copy.glob("train/*/*/*.jpg"))[11]
    photo.write_bytes(jpeg(1, 40, 40))
    done = pack(specimens_copy, packed_copy, SMALL)
    assert len(done.written) == 1
    changed = rewritten(before, packed_copy)
    assert {name.rpartition(".")[0] for name in changed} == set(done.written)
    assert verify(packed_copy, deep=True).findings == ()


def test_a_photo_changed_into_one_of_the_same_size_is_noticed(
    specimens_copy: Path, packed_copy: Path
) -> None:
    photo = sorted(specimens_copy.glob("train/*/*/*.jpg"))[11]
    data, status = bytearray(photo.read_bytes()), photo.stat()
    data[data.index(b"\xff\xda") + 40] ^= 1
    photo.write_bytes(data)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(pack(specimens_copy, packed_copy, PackOptions(40_000)).written) == 1


@pytest.mark.parametrize("change", ["class removed", "class renamed", "split removed", "class added"])
def test_a_pack_after_a_change_equals_a_fresh_pack(
    change: str, specimens_copy: Path, packed_copy: Path, tmp_path: Path, jpeg: Jpeg, digests: Digests
) -> None:
    species = sorted((specimens_copy / "train").iterdir())[0]
    twin = specimens_copy / "val" / species.name
    if change == "class removed":
        shutil.rmtree(species / "Healthy")
        shutil.rmtree(twin / "Healthy")
    elif change == "class renamed":
        (species / "Healthy").rename(species / "Zzz")
        (twin / "Healthy").rename(twin / "Zzz")
    elif change == "split removed":
        shutil.rmtree(specimens_copy / "val")
    else:
        (species / "Aaa").mkdir()
        (species / "Aaa" / "1.jpg").write_bytes(jpeg(1, 40, 40))
    pack(specimens_copy, packed_copy, SMALL)
    pack(specimens_copy, tmp_path / "fresh", SMALL)
    assert digests(packed_copy) == digests(tmp_path / "fresh")
    assert verify(packed_copy, deep=True).findings == ()


def test_other_options_are_refused_with_the_difference_and_change_nothing(
    specimens: Path, packed_copy: Path, digests: Digests
) -> None:
    before = digests(packed_copy)
    with pytest.raises(ResumeRefused, match="seed 0 -> 1"):
        pack(specimens, packed_copy, PackOptions(40_000, seed=1))
    assert digests(packed_copy) == before


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}'])
def test_packing_again_mends_a_damaged_dataset_json(
    text: str, specimens: Path, packed: Path, packed_copy: Path, digests: Digests
) -> None:
    (packed_copy / "dataset.json").write_text(text)
    pack(specimens, packed_copy, SMALL)
    assert digests(packed_copy) == digests(packed)


def test_a_dataset_of_a_later_format_is_not_overwritten(
    specimens: Path, packed_copy: Path, digests: Digests
) -> None:
    value = json.loads((packed_copy / "dataset.json").read_text())
    (packed_copy / "dataset.json").write_text(json.dumps({**value, "format": 2}))
    before = digests(packed_copy)
    with pytest.raises(Exception, match="another format"):
        pack(specimens, packed_copy, SMALL)
    assert digests(packed_copy) == before


def test_what_a_killed_writer_left_behind_is_removed(
    specimens: Path, packed: Path, packed_copy: Path, digests: Digests
) -> None:
    (packed_copy / "dataset.json").unlink()
    for name in ("train/.tmp-123-shard-000000.tar", ".tmp-123-dataset.json", ".tmp-123-report.html"):
        (packed_copy / name).write_bytes(b"half")
    os.truncate(packed_copy / "train/shard-000001.tar", 512)
    pack(specimens, packed_copy, SMALL)
    assert digests(packed_copy) == digests(packed)


# --- Copies, conflicts, leaks ------------------------------------------------------------------


def test_the_training_copy_of_a_validation_photo_is_refused(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    names = ["train/A/x/1.jpg", "train/A/x/other.jpg", "val/A/x/copy.jpg"]
    tree = grow(tmp_path / "tree", dict(zip(names, [jpeg(1), jpeg(2), jpeg(1)], strict=True)))
    done = pack(tree, tmp_path / "out")
    assert reasons(done) == {"train/A/x/1.jpg": "leak"}
    assert done.scan.refused[0].detail == "same bytes as val/A/x/copy.jpg"
    assert members_of(tmp_path / "out", "train") == {"train/A/x/other.jpg"}
    assert members_of(tmp_path / "out", "val") == {"val/A/x/copy.jpg"}


def test_of_a_photo_in_all_splits_the_test_copy_remains(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tree = grow(tmp_path / "tree", {f"{split}/A/x/1.jpg": jpeg(1) for split in ("train", "val", "test")})
    done = pack(tree, tmp_path / "out")
    assert reasons(done) == {"train/A/x/1.jpg": "leak", "val/A/x/1.jpg": "leak"}
    assert members_of(tmp_path / "out", "test") == {"test/A/x/1.jpg"}


def test_all_copies_under_two_labels_are_refused(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {"train/A/x/1.jpg": jpeg(1), "train/A/y/1.jpg": jpeg(1), "val/A/x/1.jpg": jpeg(1)}
    done = pack(grow(tmp_path / "tree", {**files, "train/A/x/2.jpg": jpeg(2)}), tmp_path / "out")
    assert reasons(done) == dict.fromkeys(files, "label conflict")
    assert members_of(tmp_path / "out", "train") == {"train/A/x/2.jpg"}
    assert open_manifest(str(tmp_path / "out")).class_counts["train"] == [1, 0]


def test_copies_inside_a_class_are_kept_and_counted(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {f"train/A/x/{i}.jpg": jpeg(min(i, 3)) for i in range(6)}
    done = pack(grow(tmp_path / "tree", files), tmp_path / "out")
    assert done.scan.refused == ()
    assert duplicates(done.scan) == 3
    assert members_of(tmp_path / "out", "train") == set(files)
    split = open_split(str(tmp_path / "out/train"))
    assert len({split.entry(sample)["key"] for sample in range(6)}) == 6


def test_the_bytes_decide_not_the_name(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tree = grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1), "val/A/x/1.jpg": jpeg(2)})
    assert pack(tree, tmp_path / "out").scan.refused == ()


# --- A tree without split folders --------------------------------------------------------------


def flat(jpeg: Jpeg, classes: int = 3, each: int = 20) -> dict[str, bytes]:
    return {f"S{c}/d/{i:03d}.jpg": jpeg(1000 * c + i) for c in range(classes) for i in range(each)}


def test_a_tree_without_splits_is_split_in_every_class(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tree = grow(tmp_path / "tree", flat(jpeg))
    pack(tree, tmp_path / "out", PackOptions(val_share=0.2))
    train, val = (members_of(tmp_path / "out", name) for name in ("train", "val"))
    assert train | val == set(flat(jpeg))
    assert not train & val
    assert Counter(name.split("/")[0] for name in val) == {"S0": 4, "S1": 4, "S2": 4}


def test_copies_land_on_one_side_of_a_split(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tree = grow(tmp_path / "tree", {f"S/d/{i:02d}.jpg": jpeg(i // 3) for i in range(30)})
    done = pack(tree, tmp_path / "out", PackOptions(val_share=0.3))
    assert done.scan.refused == ()
    sides = [{int(Path(n).stem) // 3 for n in members_of(tmp_path / "out", s)} for s in ("train", "val")]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3


def test_a_new_photo_does_not_send_the_others_to_the_other_split(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    tree = grow(tmp_path / "tree", flat(jpeg))
    pack(tree, tmp_path / "before", PackOptions(val_share=0.3))
    grow(tree, {"S0/d/new.jpg": jpeg(9999)})
    pack(tree, tmp_path / "after", PackOptions(val_share=0.3))
    before, after = (members_of(tmp_path / name, "val") for name in ("before", "after"))
    assert len((before ^ after) - {"S0/d/new.jpg"}) <= 1


def test_a_share_of_nothing_gives_no_validation_split(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    done = pack(grow(tmp_path / "tree", flat(jpeg)), tmp_path / "out", PackOptions(val_share=0))
    assert set(done.manifest.splits) == {"train"}


# --- Refusals and errors -----------------------------------------------------------------------


def test_bad_photos_are_refused_by_name_and_the_rest_is_packed(
    specimens_copy: Path, tmp_path: Path, packing: PackOptions
) -> None:
    folder = sorted(specimens_copy.glob("train/*/*"))[0]
    photo = sorted(folder.glob("*.jpg"))[0]
    bad = {
        "cut.jpg": (photo.read_bytes()[:-300], "damaged"),
        "page.jpg": (b"<!doctype html>", "not an image"),
        "empty.jpg": (b"", "empty"),
    }
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    done = pack(specimens_copy, tmp_path / "out", packing)
    place = folder.relative_to(specimens_copy)
    assert reasons(done) == {str(place / name): reason for name, (_, reason) in bad.items()}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["refused"] == {"damaged": 1, "empty": 1, "not an image": 1}
    assert {refusal["source"]: refusal["reason"] for refusal in report["refusals"]} == reasons(done)
    page = (tmp_path / "out/report.html").read_text()
    assert all(str(place / name) in page for name in bad)
    assert len(members_of(tmp_path / "out", "train")) == 36


def test_strict_stops_at_a_refused_photo_and_publishes_nothing(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    tree = grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1), "train/A/x/2.jpg": b""})
    with pytest.raises(UserError, match=r"train/A/x/2\.jpg"):
        pack(tree, tmp_path / "out", max_refused=MaxRefused())
    assert shards(tmp_path / "out") == []
    assert not (tmp_path / "out/dataset.json").exists()


def test_a_tree_of_refused_photos_only_packs_nothing_and_says_so(tmp_path: Path, grow: Grow) -> None:
    tree = grow(tmp_path / "tree", {"A/x/1.jpg": b"", "A/x/2.jpg": b"<html>"})
    with pytest.raises(
        UserError, match=r"every one of 2 files was refused; the first: empty, 0 bytes .A/x/1\.jpg"
    ):
        pack(tree, tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()


def test_trusting_headers_packs_a_cut_photo(specimens_copy: Path, tmp_path: Path) -> None:
    photo = sorted(specimens_copy.glob("train/*/*/*.jpg"))[0]  # the one that stands in the report's gallery
    photo.write_bytes(photo.read_bytes()[:-200])
    done = pack(specimens_copy, tmp_path / "out", PackOptions(check="header"))
    assert done.scan.refused == ()
    assert verify(tmp_path / "out").findings == ()


def test_converted_photos_are_counted_by_rule(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20), 30_000, np.uint16)).save(out, "PNG")
    tree = grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1), "train/A/x/2.jpg": out.getvalue()})
    assert pack(tree, tmp_path / "out").scan.converted == {"PNG to JPEG": 1}
    assert json.loads((tmp_path / "out/report.json").read_text())["converted"] == {"PNG to JPEG": 1}
    assert verify(tmp_path / "out", deep=True).findings == ()


def test_a_source_that_is_not_there_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["tree", "tree/out", "tree/train/out", "link/out"])
def test_the_output_may_not_lie_inside_the_source(place: str, tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tree = grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1)})
    (tmp_path / "link").symlink_to(tree)
    with pytest.raises(UsageError, match="inside the source"):
        pack(tree, tmp_path / place)
    assert [path.name for path in tree.rglob("*") if path.is_file()] == ["1.jpg"]


def test_a_foreign_folder_is_left_alone(specimens: Path, tmp_path: Path, grow: Grow) -> None:
    out = grow(tmp_path / "out", {"train/shard-000000.tar": b"somebody's", "thesis.txt": b"mine"})
    with pytest.raises(UsageError, match="not made by shardtool"):
        pack(specimens, out)
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "shard-000000.tar",
        "thesis.txt",
    ]


def test_other_files_in_the_output_stay(specimens: Path, packed_copy: Path, grow: Grow) -> None:
    grow(packed_copy, {"notes.txt": b"mine", "train/notes.txt": b"mine"})
    pack(specimens, packed_copy, SMALL)
    assert (packed_copy / "notes.txt").exists()
    assert (packed_copy / "train/notes.txt").exists()


def test_a_card_that_a_person_has_taken_over_stays(specimens: Path, packed_copy: Path) -> None:
    card = packed_copy / "README.md"
    first = card.read_text()
    card.write_text(first + "gone")
    pack(specimens, packed_copy, SMALL)
    assert card.read_text() == first
    mine = first.replace(MARK + "\n", "") + "Licence: CC-BY"
    card.write_text(mine)
    pack(specimens, packed_copy, SMALL)
    assert card.read_text() == mine


@pytest.mark.parametrize(
    "options", [{"shard_size": 10_239}, {"shard_size": -1}, {"val_share": 1.0}, {"val_share": -0.1}]
)
def test_impossible_options_are_usage_errors(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PackOptions(**options)  # type: ignore[arg-type]


# --- Change while it is packed -----------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("change", ["changed", "vanished", "cut"])
def test_a_photo_that_changes_between_scan_and_write_stops_the_pack(
    change: str, workers: int, specimens_copy: Path, tmp_path: Path, jpeg: Jpeg, digests: Digests
) -> None:
    photo = sorted(specimens_copy.glob("train/*/*/*.jpg"))[20]
    good = photo.read_bytes()

    def disturb() -> None:
        if change == "vanished":
            photo.unlink()
        else:
            photo.write_bytes(jpeg(1, 40, 40) if change == "changed" else good[:-100])

    out = tmp_path / "out"
    with pytest.raises(SourceChanged) as caught:
        pack(specimens_copy, out, SMALL, workers=workers, progress=hooked("writing photos", disturb))
    assert caught.value.where == str(photo.relative_to(specimens_copy))
    assert not (out / "dataset.json").exists()
    assert not list(out.rglob(".tmp-*"))
    photo.write_bytes(good)
    pack(specimens_copy, out, SMALL)
    pack(specimens_copy, tmp_path / "fresh", SMALL)
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_photo_that_changes_after_its_shard_was_written_does_not_stop_the_report(
    specimens_copy: Path, packed_copy: Path, digests: Digests
) -> None:
    before = digests(packed_copy)
    photo = sorted(specimens_copy.glob("train/*/*/*.jpg"))[0]
    pack(specimens_copy, packed_copy, SMALL, progress=hooked("writing photos", photo.unlink))
    after = digests(packed_copy)
    assert {name for name in after if after[name] != before[name]} <= {"report.html"}


def test_the_old_dataset_json_is_withdrawn_before_a_shard_changes(
    specimens_copy: Path, packed_copy: Path, jpeg: Jpeg
) -> None:
    sorted(specimens_copy.glob("train/*/*/*.jpg"))[3].write_bytes(jpeg(1, 40, 40))
    seen: list[bool] = []
    show = hooked("writing photos", lambda: seen.append((packed_copy / "dataset.json").exists()))
    pack(specimens_copy, packed_copy, SMALL, progress=show)
    assert seen == [False]


def test_a_shard_written_before_a_kill_does_not_pass_for_that_of_a_photo_put_back(
    specimens_copy: Path, packed_copy: Path, packed: Path, digests: Digests
) -> None:
    """Killed after the new tar and before its sidecar, and the change undone: the old sidecar is no proof."""
    photo = sorted(specimens_copy.glob("train/*/*/*.jpg"))[11]
    good = photo.read_bytes()
    old = {path: path.read_bytes() for path in packed_copy.glob("train/*.parquet")}
    data = bytearray(good)
    data[data.index(b"\xff\xda") + 40] ^= 1
    photo.write_bytes(data)
    pack(specimens_copy, packed_copy, SMALL)
    for path, content in old.items():
        path.write_bytes(content)
    (packed_copy / "dataset.json").unlink()
    photo.write_bytes(good)
    pack(specimens_copy, packed_copy, SMALL)
    assert digests(packed_copy) == digests(packed)


# --- Kills and rivals --------------------------------------------------------------------------


CHILDREN = "/proc/{0}/task/{0}/children"
needs_children = pytest.mark.skipif(
    not Path(CHILDREN.format(os.getpid())).exists(), reason="needs Linux's list of child processes in /proc"
)


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    listed = Path(CHILDREN.format(pid))
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def wait_for(done: Callable[[], object], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("seed", range(3))
def test_a_pack_that_is_killed_anywhere_goes_on_to_the_same_bytes(
    seed: int,
    specimens: Path,
    packed: Path,
    tmp_path: Path,
    command: Callable[..., list[str]],
    digests: Digests,
) -> None:
    out, chance = tmp_path / "out", random.Random(seed)
    line = command("pack", specimens, "--out", out, "--workers", 1, "--shard-size", "40000")
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = chance.randrange(1, 12)  # so many files of the twelve shards and sidecars
    wait_for(lambda: process.poll() is not None or len(list(out.glob("*/*shard-*"))) >= wanted)
    time.sleep(chance.random() * 0.01)
    process.kill()
    process.wait()
    pack(specimens, out, SMALL)
    assert digests(out) == digests(packed)


@needs_children
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_workers_of_a_killed_pack_die_with_it(
    number: int,
    specimens: Path,
    packed: Path,
    tmp_path: Path,
    command: Callable[..., list[str]],
    digests: Digests,
) -> None:
    out = tmp_path / "out"
    line = command("pack", specimens, "--out", out, "--workers", 2, "--shard-size", "40000")
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: len(children(process.pid)) >= 3 or process.poll() is not None)
        workers = children(process.pid)
    finally:
        process.send_signal(number)
        process.wait()
    try:
        assert wait_for(lambda: not any(alive(worker) for worker in workers), 10)
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
    pack(specimens, out, SMALL)
    assert digests(out) == digests(packed)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def interrupted(line: list[str]) -> tuple[int, str]:
    """Status and stderr of a command that gets a Ctrl-C as soon as its workers run."""
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert wait_for(lambda: len(children(process.pid)) >= 3 or process.poll() is not None)
    start = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, shown = process.communicate(timeout=15)
    assert time.monotonic() - start < 3
    return process.returncode, shown


@needs_children
def test_ctrl_c_ends_a_pack_at_once_with_130_and_one_line(
    tmp_path: Path, specimens: Path, command: Callable[..., list[str]]
) -> None:
    for attempt in range(5):  # on a busy machine it may be done before the signal comes
        out = tmp_path / f"out-{attempt}"
        status, shown = interrupted(
            command("pack", specimens, "--out", out, "--workers", 2, "--shard-size", "10240")
        )
        if status:
            break
    assert status == 130
    assert "Traceback" not in shown
    assert "run the same command again" in shown


def test_a_second_packer_stops_at_once_and_names_the_first(
    specimens: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    with exclusive(tmp_path / "out", "shardtool pack"):
        done = shardtool("pack", specimens, "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 5
    assert f"pid {os.getpid()}" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock"]


def test_the_lock_of_a_dead_packer_blocks_nobody(specimens: Path, tmp_path: Path, grow: Grow) -> None:
    out = grow(tmp_path / "out", {".lock": b'{"pid": 1, "host": "gone", "since": 0}'})
    assert pack(specimens, out, SMALL).written


# --- Policies ----------------------------------------------------------------------------------


def test_leaks_and_conflicts_are_kept_when_asked_for(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    files = {"train/A/x/1.jpg": jpeg(1), "train/A/y/1.jpg": jpeg(1), "val/A/x/1.jpg": jpeg(1)}
    tree = grow(tmp_path / "tree", files)
    done = pack(tree, tmp_path / "out", PackOptions(keep_conflicts=True, keep_leaks=True))
    assert done.scan.refused == ()
    assert members_of(tmp_path / "out", "train") | members_of(tmp_path / "out", "val") == set(files)
    done = pack(tree, tmp_path / "leaks", PackOptions(keep_conflicts=True))
    assert set(reasons(done).values()) == {"leak"}


@pytest.mark.parametrize(
    "twins", [("Leaf_Rust", "leaf_rust"), ("Rust", "Rust "), ("Stra\u00dfe", "STRASSE")], ids=ascii
)
def test_twin_folders_become_one_class_when_asked_for(
    twins: tuple[str, str], tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    first, second = twins
    files = {f"train/Rose/{first}/{i}.jpg": jpeg(i) for i in range(2)}
    files |= {f"train/Rose/{second}/{i}.jpg": jpeg(10 + i) for i in range(3)}
    tree = grow(tmp_path / "tree", files)
    with pytest.raises(UsageError, match="merge-twins"):
        pack(tree, tmp_path / "apart")
    done = pack(tree, tmp_path / "out", PackOptions(merge_twins=True))
    assert done.manifest.taxonomy.row_names == (("Rose", second),)  # the name of most photos
    assert members_of(tmp_path / "out", "train") == set(files)


def test_a_name_that_the_majority_changes_is_changed_in_every_shard(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, digests: Digests
) -> None:
    """The sidecars of the training shards stay the same: only their labels mean another name."""
    options = PackOptions(merge_twins=True)
    files = {f"train/rose/Rust/{i}.jpg": jpeg(i) for i in range(3)}
    tree = grow(tmp_path / "tree", files | {f"train/rose/rust/{i}.jpg": jpeg(10 + i) for i in range(2)})
    pack(tree, tmp_path / "out", options)
    grow(tree, {f"val/rose/rust/{i}.jpg": jpeg(20 + i) for i in range(2)})
    pack(tree, tmp_path / "out", options)
    pack(tree, tmp_path / "fresh", options)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
    assert verify(tmp_path / "out", deep=True).findings == ()


@pytest.mark.parametrize(
    ("limit", "stops"), [(MaxRefused(1), True), (MaxRefused(2), False), (MaxRefused(share=0.5), False)]
)
def test_too_many_refusals_stop_a_pack_and_publish_nothing(
    limit: MaxRefused, stops: bool, tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    files = {
        "train/A/x/1.jpg": jpeg(1),
        "train/A/x/2.jpg": b"",
        "train/A/x/3.jpg": b"<html>",
        "train/A/x/4.jpg": jpeg(4),
    }
    tree = grow(tmp_path / "tree", files)
    if stops:
        with pytest.raises(UserError, match=r"2 files refused, more than 1; the first: empty"):
            pack(tree, tmp_path / "out", max_refused=limit)
        assert not (tmp_path / "out/dataset.json").exists()
    else:
        assert len(pack(tree, tmp_path / "out", max_refused=limit).scan.refused) == 2


def test_look_alikes_of_two_splits_are_listed_and_inside_a_split_on_request(
    specimens_copy: Path, tmp_path: Path, packing: PackOptions
) -> None:
    photos = sorted(specimens_copy.glob("train/*/*/*.jpg"))[:2]
    twins = [specimens_copy / "val" / photos[0].relative_to(specimens_copy / "train"), photos[1]]
    for photo, twin in zip(photos, twins, strict=True):
        with Image.open(photo) as image:
            image.save(twin.with_name("again.jpg"), quality=60)
    across = pack(specimens_copy, tmp_path / "across", packing)
    inside = pack(specimens_copy, tmp_path / "inside", packing, near_within=True)
    pairs = [{(pair.first, pair.second) for pair in done.near} for done in (across, inside)]
    named = [
        tuple(os.fsencode(path.relative_to(specimens_copy)) for path in (photo, twin.with_name("again.jpg")))
        for photo, twin in zip(photos, twins, strict=True)
    ]
    assert named[0] in pairs[0]
    assert set(named[1]) not in map(set, pairs[0])
    assert {frozenset(named[0]), frozenset(named[1])} <= set(map(frozenset, pairs[1]))
    assert across.scan.refused == ()


def test_a_photo_larger_than_a_piece_and_a_shard_is_packed_whole(tmp_path: Path, grow: Grow) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    assert len(out.getvalue()) > PIECE
    tree = grow(tmp_path / "tree", {f"train/A/x/{i}.jpg": out.getvalue() + bytes(i) for i in range(3)})
    pack(tree, tmp_path / "out", PackOptions(shard_size=1_000_000, check="header"))
    split = open_split(str(tmp_path / "out/train"))
    assert len(split.read(range(3))) == 3
    assert verify(tmp_path / "out").findings == ()


# --- Where to ------------------------------------------------------------------------------------


def test_a_file_url_is_watched_like_the_path_that_it_is(tmp_path: Path, grow: Grow, jpeg: Jpeg) -> None:
    tree = grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1)})
    with pytest.raises(UsageError, match="inside the source"):
        pack(f"file://{tree}", tree / "out")
    assert pack(f"file://{tree}", f"file://{tmp_path}/out").written == ("train/shard-000000",)


def test_dots_in_a_path_mean_what_the_system_says(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`link/../tree` is beside what the link points to, not beside the link."""
    grow(tmp_path / "here/tree", {"train/Wrong/x/1.jpg": jpeg(1)})
    grow(tmp_path / "there/tree", {"train/Right/x/1.jpg": jpeg(2)})
    (tmp_path / "there/folder").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "there/folder")
    monkeypatch.chdir(tmp_path / "here")
    done = pack("link/../tree", "no/../out")
    assert done.manifest.taxonomy.species == ("Right",)
    assert (tmp_path / "here/out/dataset.json").exists()
    assert not (tmp_path / "here/no").exists()


def test_the_shares_of_a_split_are_no_option_of_a_tree_that_has_splits(
    tmp_path: Path, grow: Grow, jpeg: Jpeg
) -> None:
    tree = grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1)})
    with pytest.raises(UsageError, match="--split has no effect"):
        pack(tree, tmp_path / "out", PackOptions(val_share=0.2))
    assert not (tmp_path / "out/dataset.json").exists()


def test_files_of_other_tools_beside_the_shards_stay(specimens: Path, packed_copy: Path, grow: Grow) -> None:
    grow(packed_copy, {"train/shard-000000.idx": b"DALI's", "train/shard-list.txt": b"mine"})
    (packed_copy / "train/shard-000099.tar").write_bytes(b"of an earlier plan")
    done = pack(specimens, packed_copy, SMALL)
    assert done.removed == ("train/shard-000099",)
    assert (packed_copy / "train/shard-000000.idx").exists()
    assert (packed_copy / "train/shard-list.txt").exists()
    assert not (packed_copy / "train/shard-000099.tar").exists()


def test_a_change_of_the_classes_is_told(specimens_copy: Path, packed_copy: Path) -> None:
    told: list[str] = []
    shutil.rmtree(next(iter(sorted((specimens_copy / "train").iterdir()))) / "Healthy")
    shutil.rmtree(next(iter(sorted((specimens_copy / "val").iterdir()))) / "Healthy")
    pack(specimens_copy, packed_copy, SMALL, tell=told.append)
    assert len(told) == 1
    assert told[0].startswith("classes changed, and with them their ids: dropped ")
    assert told[0].endswith("/Healthy")


def test_a_dataset_that_is_replaced_needs_room_for_one_shard_a_worker(
    specimens_copy: Path, packed_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for photo in specimens_copy.glob("train/*/*/*.jpg"):
        photo.write_bytes(photo.read_bytes() + b"\0")
    largest = max(path.stat().st_size for path in packed_copy.glob("train/*.tar"))
    monkeypatch.setattr(LocalFolder, "free", lambda self: largest // 2)
    with pytest.raises(NoSpace, match=r"needs .* free"):
        pack(specimens_copy, packed_copy, SMALL)
    monkeypatch.setattr(LocalFolder, "free", lambda self: 2 * largest)
    assert pack(specimens_copy, packed_copy, SMALL).written
