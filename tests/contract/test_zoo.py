"""Bad input through the command line: each file kept, converted, refused or ignored as its row says."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shardtool.index import open_manifest, open_split
from tests.zoo import (
    BLUE,
    RED,
    Animal,
    Converted,
    Fate,
    Ignored,
    Kept,
    Refused,
    animals,
    build,
    decoded,
    oriented,
    picture,
    plain,
    saved,
    upright,
)

Cli = Callable[..., subprocess.CompletedProcess[str]]
Grow = Callable[..., Path]
Check = Literal["decode", "header"]

NEAR = 4  # mean difference of 8-bit values: encoding the quarters gives 1, turning them 30 or more
ZOO = {animal.fault: animal for animal in animals()}
TRUSTED = [fault for fault, animal in ZOO.items() if animal.trusted != animal.fate]


@dataclass(frozen=True)
class Outcome:
    """What became of the zoo: how the command ended, what it said, the bytes of each packed photo."""

    tree: Path
    out: Path
    made: list[Animal]
    status: int
    told: dict[str, Any]
    packed: dict[str, bytes]

    @property
    def report(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return value

    @property
    def refused(self) -> dict[str, str]:
        return {refusal["source"]: refusal["reason"] for refusal in self.report["refusals"]}


def contents(out: Path) -> dict[str, bytes]:
    """Source path -> bytes of the JPEG, for every photo of a dataset."""
    found = {}
    for name in open_manifest(str(out)).splits:
        split = open_split(str(out / name))
        for sample, data in enumerate(split.read(range(len(split)))):
            found[os.fsdecode(split.entry(sample)["source"])] = bytes(data)
    return found


def pack_zoo(folder: Path, shardtool: Cli, *options: object) -> Outcome:
    tree, out = folder / "organized", folder / "shards"
    made = build(tree)
    done = shardtool("pack", tree, "--out", out, "--shard-size", "20KB", "--json", *options)
    return Outcome(tree, out, made, done.returncode, json.loads(done.stdout), contents(out))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, shardtool: Cli) -> Outcome:
    return pack_zoo(tmp_path_factory.mktemp("zoo"), shardtool, "--workers", 2)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory, shardtool: Cli) -> Outcome:
    return pack_zoo(tmp_path_factory.mktemp("trusted"), shardtool, "--workers", 1, "--check", "header")


def assert_fate(outcome: Outcome, animal: Animal, fate: Fate) -> None:
    if animal not in outcome.made:
        pytest.skip(f"needs a system and a user that can make this file: {animal.fault}")
    refusal = fate.reason if isinstance(fate, Refused) else None
    assert outcome.refused.get(animal.path) == refusal
    assert (animal.path in outcome.packed) == isinstance(fate, Kept | Converted)
    if isinstance(fate, Kept):
        assert outcome.packed[animal.path] == (outcome.tree / animal.path).read_bytes()
    if isinstance(fate, Converted):
        assert outcome.packed[animal.path] != (outcome.tree / animal.path).read_bytes()
        assert_looks(outcome.packed[animal.path], fate)


def assert_looks(data: bytes, fate: Converted) -> None:
    seen = decoded(data)
    assert seen.shape == fate.pixels.shape
    difference = np.abs(seen.astype(int) - fate.pixels)
    assert difference.max() == 0 if fate.exactly else difference.mean() < NEAR, difference.mean()


# --- Each file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ZOO)
def test_every_file_ends_as_its_row_says(fault: str, outcome: Outcome) -> None:
    assert_fate(outcome, ZOO[fault], ZOO[fault].fate)


@pytest.mark.parametrize("fault", TRUSTED)
def test_a_trusted_header_lets_damaged_pixels_through(fault: str, trusted: Outcome) -> None:
    assert_fate(trusted, ZOO[fault], ZOO[fault].trusted)


def test_trusting_headers_changes_nothing_else(outcome: Outcome, trusted: Outcome) -> None:
    extra = {ZOO[fault].path for fault in TRUSTED}
    assert trusted.status == 3
    assert {path: data for path, data in trusted.packed.items() if path not in extra} == outcome.packed
    assert {path: why for path, why in outcome.refused.items() if path not in extra} == trusted.refused


# --- All of them -------------------------------------------------------------------------------


def test_the_pack_ends_with_3_and_loses_no_file(outcome: Outcome) -> None:
    assert outcome.status == 3
    accounted = len(outcome.packed) + len(outcome.refused) + sum(outcome.report["ignored"].values())
    assert accounted == len(outcome.made)
    assert sum(outcome.report["samples"].values()) == len(outcome.packed)


@pytest.mark.parametrize(
    ("field", "kind", "name"),
    [("refused", Refused, "reason"), ("converted", Converted, "rule"), ("ignored", Ignored, "rule")],
)
def test_the_counts_are_those_of_the_rows(outcome: Outcome, field: str, kind: type, name: str) -> None:
    expected = Counter(getattr(animal.fate, name) for animal in outcome.made if isinstance(animal.fate, kind))
    assert outcome.report[field] == outcome.told[field] == expected


def test_progressive_photos_are_kept_and_counted(outcome: Outcome) -> None:
    assert outcome.told["progressive"] == sum(b"\xff\xc2" in data for data in outcome.packed.values()) == 2


def test_verify_finds_nothing_wrong_with_it(outcome: Outcome, shardtool: Cli) -> None:
    done = shardtool("verify", outcome.out, "--deep")
    assert done.returncode == 0, done.stderr


def test_every_packed_photo_is_a_plain_jpeg_for_two_decoders(outcome: Outcome) -> None:
    for path, data in outcome.packed.items():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.mode == "RGB", path
        assert simplejpeg.decode_jpeg(data, colorspace="RGB").shape == (image.height, image.width, 3), path


def test_every_packed_photo_is_coded_as_the_format_says(outcome: Outcome) -> None:
    """Baseline, extended or progressive: few programs read arithmetic and lossless coding."""
    for path, data in outcome.packed.items():
        scan = data.index(b"\xff\xda")
        assert not re.search(rb"\xff[\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0[\x08-\x20]\x08", data[:scan]), path


def test_no_packed_photo_says_where_it_was_taken(outcome: Outcome) -> None:
    for path, data in outcome.packed.items():
        with Image.open(io.BytesIO(data)) as image:
            assert not image.getexif().get_ifd(0x8825), path
        assert b"GPSL" not in data, path
        assert b"52.52N" not in data, path


def test_a_photo_that_lost_its_place_lost_all_tags_and_ends_with_its_picture(outcome: Outcome) -> None:
    paths = [animal.path for animal in ZOO.values() if getattr(animal.fate, "rule", "") == "GPS removed"]
    assert paths
    for path in paths:
        data = outcome.packed[path]
        assert not any(mark in data for mark in (b"Exif\0", b"ns.adobe.com", b"MPF\0")), path
        assert data.count(b"\xff\xd9") == 1, path
        assert data.endswith(b"\xff\xd9"), path


def test_class_names_are_kept_and_ids_count_refused_classes_too(outcome: Outcome) -> None:
    names = open_manifest(str(outcome.out)).taxonomy.row_names
    assert ("Lone", "refused") in names
    assert ("Only", "val") in names
    assert ("c" * 255, "-[red]\n<b>") in names
    assert ("Lone", "empty") not in names
    assert sum("pfelb" in species for species, _ in names) == 1


def test_the_source_is_as_it_was(outcome: Outcome, tmp_path: Path) -> None:
    fresh = {animal.path: animal for animal in build(tmp_path / "organized")}
    there = {str(path.relative_to(outcome.tree)) for path in outcome.tree.rglob("*") if not path.is_dir()}
    assert there - {"train/Special/kind/folder"} == {
        path for path in fresh if not (tmp_path / "organized" / path).is_dir()
    }
    for path in outcome.packed:
        assert (outcome.tree / path).read_bytes() == (tmp_path / "organized" / path).read_bytes()


def test_packing_the_zoo_again_writes_nothing_new(
    outcome: Outcome, shardtool: Cli, digests: Callable[[Path], dict[str, str]]
) -> None:
    before = digests(outcome.out)
    done = shardtool("pack", outcome.tree, "--out", outcome.out, "--shard-size", "20KB", "--workers", 1)
    assert done.returncode == 3
    assert digests(outcome.out) == before


@pytest.mark.parametrize(
    "error", ["openat:error=EACCES", "read,pread64,preadv,preadv2,mmap:error=EIO"], ids=["open", "read"]
)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_photo_that_the_system_does_not_give_is_unreadable(
    error: str, tmp_path: Path, grow: Grow, command: Callable[..., list[str]]
) -> None:
    """chmod would not keep root from reading. The photo is opened by its path under the tree."""
    names = ["train/A/x/1.jpg", "train/A/x/2.jpg", "train/A/x/3.jpg"]
    tree = grow(tmp_path / "tree", {name: plain(number) for number, name in enumerate(names)})
    line = command("pack", tree, "--out", tmp_path / "out", "--workers", 1)
    strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        os.devnull,
        "-P",
        str(tree / names[1]),
        "-P",
        names[1],
        "-e",
        f"inject={error}",
    ]
    done = subprocess.run([*strace, *line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert contents(tmp_path / "out").keys() == {names[0], names[2]}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [(r["source"], r["reason"]) for r in report["refusals"]] == [(names[1], "unreadable")]


# --- What the options change -------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, grow: Grow, shardtool: Cli) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Pack the given files (path -> bytes) with these options into `tmp_path`/out."""

    def pack(files: dict[str, bytes], *options: object) -> subprocess.CompletedProcess[str]:
        tree = grow(tmp_path / "tree", files)
        return shardtool("pack", tree, "--out", tmp_path / "out", "--workers", 1, "--json", *options)

    return pack


def test_max_side_shrinks_what_is_longer_and_enlarges_nothing(tmp_path: Path, run: Cli) -> None:
    wide, tall, small = picture(64, 32), picture(40, 80), picture(32, 20)
    files = {
        "train/A/x/wide.jpg": saved(wide),
        "train/A/x/tall.png": saved(tall, "PNG"),
        "train/A/x/turned.jpg": oriented(6, wide),
        "train/A/x/small.jpg": saved(small),
        "train/A/x/small.png": saved(small, "PNG"),
    }
    done = run(files, "--max-side", 32)
    assert done.returncode == 0
    packed = contents(tmp_path / "out")
    expected = {
        "wide.jpg": picture(32, 16),
        "tall.png": picture(16, 32),
        "turned.jpg": upright(6, picture(32, 16)),
        "small.png": small,
    }
    for name, pixels in expected.items():
        assert_looks(packed[f"train/A/x/{name}"], Converted("", pixels))
    assert packed["train/A/x/small.jpg"] == files["train/A/x/small.jpg"]
    counts = json.loads(done.stdout)["converted"]
    assert sum(count for rule, count in counts.items() if "shrunk" in rule) == 3
    assert counts["PNG to JPEG"] == 1


def test_quality_is_that_of_every_jpeg_made_anew_and_of_no_other(tmp_path: Path, run: Cli) -> None:
    files = {"train/A/x/kept.jpg": plain(1), "train/A/x/made.png": saved(picture(), "PNG")}
    assert run(files, "--quality", 40).returncode == 0
    packed = contents(tmp_path / "out")
    assert packed["train/A/x/kept.jpg"] == files["train/A/x/kept.jpg"]
    with (
        Image.open(io.BytesIO(packed["train/A/x/made.png"])) as made,
        Image.open(io.BytesIO(saved(picture(), quality=40))) as model,
    ):
        assert made.quantization == model.quantization  # type: ignore[attr-defined]


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="needs jpegtran (Debian: libjpeg-turbo-progs)")
def test_baseline_rewrites_progressive_photos_without_loss(tmp_path: Path, run: Cli) -> None:
    files = {"train/A/x/plain.jpg": plain(1), "train/A/x/slow.jpg": plain(2, progressive=True)}
    done = run(files, "--baseline")
    assert done.returncode == 0
    assert json.loads(done.stdout)["converted"] == {"progressive to baseline": 1}
    assert json.loads(done.stdout)["progressive"] == 0
    packed = contents(tmp_path / "out")
    assert packed["train/A/x/plain.jpg"] == files["train/A/x/plain.jpg"]
    slow = packed["train/A/x/slow.jpg"]
    assert b"\xff\xc2" not in slow
    assert np.array_equal(decoded(slow), decoded(files["train/A/x/slow.jpg"]))


def test_classes_that_differ_in_case_or_blanks_are_an_error_naming_both_and_the_cure(run: Cli) -> None:
    done = run({"train/A/Leaf_Rust/1.jpg": plain(1), "val/A/leaf_rust /2.jpg": plain(2)})
    assert done.returncode == 2
    assert all(word in done.stderr for word in ("Leaf_Rust", "leaf_rust ", "--merge-twins"))


def test_merge_twins_makes_one_class_of_them(tmp_path: Path, run: Cli) -> None:
    files = {
        "train/A/Leaf_Rust/1.jpg": plain(1),
        "train/A/leaf_rust/2.jpg": plain(2),
        "val/a/leaf_rust /3.jpg": plain(3),
    }
    assert run(files, "--merge-twins").returncode == 0
    manifest = open_manifest(str(tmp_path / "out"))
    assert manifest.taxonomy.rows == 1
    assert manifest.class_counts == {"train": [2], "val": [1]}
    assert contents(tmp_path / "out") == files


@pytest.mark.parametrize(
    ("option", "reason", "paths"),
    [
        ("--keep-conflicts", "label conflict", ("train/A/x/1.jpg", "train/A/y/1.jpg")),
        ("--keep-leaks", "leak", ("train/A/x/1.jpg", "val/A/x/1.jpg")),
    ],
)
def test_copies_that_are_refused_are_kept_on_request(
    option: str, reason: str, paths: tuple[str, str], tmp_path: Path, run: Cli
) -> None:
    files = {**dict.fromkeys(paths, plain(1)), "train/A/x/2.jpg": plain(2)}
    refusing = run(files)
    assert refusing.returncode == 3
    assert json.loads(refusing.stdout)["refused"].keys() == {reason}
    shutil.rmtree(tmp_path / "out")
    assert run(files, option).returncode == 0
    assert contents(tmp_path / "out") == files


@pytest.mark.parametrize(("limit", "status"), [("1", 1), ("2", 3), ("49%", 1), ("50%", 3)])
def test_more_refusals_than_allowed_stop_the_pack_and_publish_nothing(
    limit: str, status: int, tmp_path: Path, run: Cli
) -> None:
    good = {f"train/A/x/{number}.jpg": plain(number) for number in range(2)}
    bad = {"train/A/x/empty.jpg": b"", "train/A/x/page.jpg": b"<html>"}
    assert run({**good, **bad}, "--max-refused", limit).returncode == status
    assert bool(list((tmp_path / "out").rglob("*.tar"))) == (status == 3)
    assert (tmp_path / "out/dataset.json").exists() == (status == 3)


def test_the_colours_of_the_zoo_tell_right_from_wrong() -> None:
    turned = [upright(orientation, picture(32, 32)) for orientation in range(1, 9)]
    for number, one in enumerate(turned):
        for other in turned[:number]:
            assert np.abs(one.astype(int) - other).mean() > 5 * NEAR
    assert np.abs(np.subtract(RED, BLUE)).mean() > 5 * NEAR
