"""The packing benchmark: everybody gets the same members, every figure is told, nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import packing, photos, rivals
from benchmarks.machine import Missing, filesystem_type, find_gnu_tar
from benchmarks.packing import Figure
from benchmarks.rivals import Contender, Lap, Ready
from benchmarks.simulated import simulated_photos
from shardtool.errors import UserError
from shardtool.pack import PackOptions, pack
from shardtool.scan import PHOTOS

ROOT = Path(__file__).resolve().parents[2]
FIGURES = [
    "pack header",
    "pack header, command",
    "write",
    "GNU tar",
    "GNU tar, no fsync",
    "GNU tar, JPEGs alone",
    "webdataset",
    "tarfile",
    "pack decode",
    "decoder",
]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The benchmark as a process of its own. Whatever happens, nobody ever sees a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.packing", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def measured(specimens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The JSON file of a short run over the drawn leaves, and what it said on stderr."""
    out = tmp_path_factory.mktemp("measured") / "packing.json"
    done = run("--photos", specimens, "--json", out, "--rounds", 1, "--plan-photos", 3000)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return out, done.stderr


@pytest.fixture(scope="module")
def result(measured: tuple[Path, str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(measured[0].read_text())
    return value


@pytest.fixture(scope="module")
def ready(specimens: Path, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return rivals.make_ready(specimens, tmp_path_factory.mktemp("ready"))


def test_everybody_has_a_figure_in_the_table_and_in_the_json(
    measured: tuple[Path, str], result: dict[str, Any]
) -> None:
    (tree,) = result["trees"]
    assert [figure["name"] for figure in tree["figures"]] == FIGURES
    for figure in tree["figures"]:
        assert figure["how"]
        assert figure["name"] in measured[1]
        assert figure["photos"] == tree["samples"] == 54
        assert figure["bytes"] >= tree["jpeg_bytes"] > 0
        assert figure["rounds"] == len(figure["seconds"]) == 1
        rates = figure["photos_per_second"]
        assert 0 < rates["min"] <= rates["median"] <= rates["max"]


def test_ratios_are_quotients_of_median_speeds(result: dict[str, Any]) -> None:
    (tree,) = result["trees"]
    found = dict(tree["ratios"])
    for name, seconds in (("pack", "seconds"), ("check", "check_seconds")):
        one, many = tree["memory"]["trees"]
        took = many[seconds] - one[seconds]
        beyond = found.pop(f"decode_{name}_beyond_start_over_decoder")
        assert (beyond is None) == (took <= 0)
        if beyond is not None:
            decoder = next(f for f in tree["figures"] if f["name"] == "decoder")["photos_per_second"][
                "median"
            ]
            assert beyond == pytest.approx((many["files"] - one["files"]) / took / decoder, abs=2e-3)
    speed = {f["name"]: median(f["photos"] / s for s in f["seconds"]) for f in tree["figures"]}
    assert found == pytest.approx(
        {
            "pack_header_over_tar": speed["pack header"] / speed["GNU tar"],
            "write_over_tar": speed["write"] / speed["GNU tar"],
            "pack_header_over_webdataset": speed["pack header"] / speed["webdataset"],
            "decode_over_decoder": speed["pack decode"] / speed["decoder"],
        },
        abs=2e-3,
    )


def test_memory_is_that_of_a_tree_and_of_one_four_times_as_large(result: dict[str, Any]) -> None:
    memory = result["trees"][0]["memory"]
    assert memory["workers"] >= 2
    assert [tree["files"] for tree in memory["trees"]] == [54, 216]
    for tree in memory["trees"]:
        # an interpreter with its libraries takes more than 20 MB, a machine has more than it needs
        assert 20e6 < tree["worker_peak_bytes"] < result["hardware"]["memory_bytes"]
        assert 20e6 < tree["main_peak_bytes"] < result["hardware"]["memory_bytes"]


def test_simulated_photos_are_planned_with_given_and_with_made_splits(result: dict[str, Any]) -> None:
    assert [plan["splits"] for plan in result["plans"]] == ["given", "made"]
    for plan in result["plans"]:
        assert (plan["photos"], plan["classes"]) == (3000, 32_000)
        assert plan["shards"] >= 1
        assert plan["seconds"] > 0
        assert plan["peak_bytes"] > plan["photos_table_bytes"] > 3000 * 60


def test_a_result_names_machine_versions_command_and_disk_but_no_path(
    measured: tuple[Path, str], result: dict[str, Any], specimens: Path
) -> None:
    assert {"processor", "cores", "memory_bytes", "load_average"} <= set(result["hardware"])
    assert {"python", "tar", "webdataset", "pyarrow", "simplejpeg"} <= set(result["versions"])
    assert result["command"] == (
        f"python -m benchmarks.packing --photos {specimens.name} --json packing.json --rounds 1 "
        "--plan-photos 3000"
    )
    assert result["scratch"] == filesystem_type(measured[0].parent)
    text = measured[0].read_text()
    assert not [path for path in (specimens, measured[0], ROOT) if str(path.parent) in text]


def test_nothing_but_the_json_is_left_behind(measured: tuple[Path, str]) -> None:
    assert list(measured[0].parent.iterdir()) == [measured[0]]


@pytest.mark.parametrize("rival", ["GNU tar", "GNU tar, no fsync", "tarfile", "webdataset"])
def test_a_rival_writes_the_payloads_and_names_that_our_shards_hold(
    ready: Ready, packed_anew: Path, tmp_path: Path, rival: str
) -> None:
    write = {contender.name: contender.run for contender in rivals.contenders(ready, 1)}[rival]
    if isinstance(write, Missing):
        pytest.skip(str(write))
    assert write(tmp_path).bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    ours = members(packed_anew)
    assert len(ours) == 3 * 54
    assert members(tmp_path) == ours


def test_gnu_tar_writes_in_the_order_of_our_shards(ready: Ready, packed_anew: Path, tmp_path: Path) -> None:
    try:
        program = find_gnu_tar()
    except Missing as reason:
        pytest.skip(str(reason))
    rivals.write_gnu_tar(program, ready.members, ready.names(), tmp_path)
    assert list(members(tmp_path)) == list(members(packed_anew))


def test_the_writing_alone_makes_the_shards_of_a_whole_pack(
    ready: Ready, packed_anew: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    rivals.write_planned(ready.plan, tmp_path)
    whole = digests(packed_anew)
    alone = digests(tmp_path)
    assert len(alone) == 4
    assert alone == {name: whole[name] for name in alone}


@pytest.fixture(scope="module")
def packed_anew(specimens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed-anew") / "shards"
    pack(specimens, out, PackOptions(check="header"))
    return out


def members(folder: Path) -> dict[str, bytes]:
    """Name -> payload of all members of the tars below a folder, in order."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as file:
            for member in file:
                payload = file.extractfile(member)
                assert payload is not None
                found[member.name] = payload.read()
    return found


def test_without_gnu_tar_its_figures_are_missing_with_the_reason(
    ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = ("write", "GNU tar", "tarfile")
    racing = [rival for rival in rivals.contenders(ready, 1) if rival.name in wanted]
    write, tar, standard = figures = packing.race(racing, 54, 1, tmp_path)
    assert tar.to_json() == {"name": "GNU tar", "how": tar.how, "missing": "no GNU tar on the PATH"}
    assert len(write.laps) == len(standard.laps) == 1
    assert packing.ratios(figures)["write_over_tar"] is None
    console = Console(file=io.StringIO(), width=200)
    console.print(packing.table("leaves", figures))
    assert "missing" in console.file.getvalue()  # type: ignore[attr-defined]


def test_rounds_alternate_and_every_lap_starts_in_an_empty_folder(tmp_path: Path) -> None:
    order = []

    def runner(name: str) -> Contender:
        def lap(out: Path) -> Lap:
            assert list(out.iterdir()) == []
            (out / name).touch()
            order.append(name)
            return Lap(1.0, 0)

        return Contender(name, "", lap)

    figures = packing.race([runner(name) for name in "abc"], 7, 3, tmp_path)
    assert "".join(order) == "abcbcacab"
    assert [figure.rates for figure in figures] == [(7.0,) * 3] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_figure_tells_the_middle_lap_and_the_spread() -> None:
    figure = Figure("write", "", 100, (Lap(2.0, 9), Lap(1.0, 9), Lap(4.0, 9)))
    assert figure.to_json()["photos_per_second"] == {"min": 25.0, "median": 50.0, "max": 100.0}


def test_a_photo_that_does_not_decode_is_named(jpeg: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg(1))
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    photos = [tmp_path / "good.jpg", tmp_path / "bad.jpg"]
    with pytest.raises(UserError, match=r"does not decode.*bad\.jpg"):
        rivals.decode(photos, workers=2)


@pytest.mark.parametrize("given", [True, False])
def test_simulated_photos_look_like_those_of_a_scan(given: bool) -> None:
    photos, taxonomy = simulated_photos(4321, given)
    assert photos.schema == PHOTOS
    assert photos.num_rows == 4321
    sources = photos.column("source").to_pylist()
    assert len(set(sources)) == len(set(photos.column("digest").to_pylist())) == 4321
    assert 50 <= np.mean([len(source) for source in sources]) <= 70
    labels = [tuple(source.decode().split("/")[-3:-1]) for source in sources]
    assert [taxonomy.row_names[row] for row in photos.column("row").to_pylist()] == labels
    counts = np.bincount(photos.column("split").to_numpy() + 1, minlength=3).tolist()
    assert counts == ([0, 3889, 432] if given else [4321, 0, 0])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two large photos: smooth, with some noise."""
    folder = tmp_path_factory.mktemp("large")
    for number in range(2):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((800, 600)), dtype=np.int16)
        noisy = (pixels + random.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=95)
    return folder


def test_cut_photos_are_different_of_about_the_size_and_pack_takes_them(large: Path, tmp_path: Path) -> None:
    cut, again = tmp_path / "cut", tmp_path / "again"
    done = run("make-photos", large, cut, "--count", 60, "--size", 20_000)
    assert done.returncode == 0, done.stderr
    photos.cut_photos(large, again, 60, 20_000)
    assert contents(cut) == contents(again)
    assert len(set(contents(cut).values())) == 60
    assert all(18_000 < len(data) < 22_000 for data in contents(cut).values())
    done_packing = pack(cut, tmp_path / "shards", PackOptions())
    assert not done_packing.scan.refused
    assert done_packing.scan.photos.num_rows == 60


def test_every_tenth_cut_photo_of_a_class_is_in_val() -> None:
    folders = [photos.class_folder(number) for number in range(1500)]
    assert len(set(folders)) == 2 * 50
    assert {folder.partition("/")[2] for folder in folders if folder.startswith("val/")} == {
        folder.partition("/")[2] for folder in folders if folder.startswith("train/")
    }
    assert sum(folder.startswith("val/") for folder in folders) == 150


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "nothing to measure: give --photos or --plan-photos"),
        (("--photos", "no/such/tree"), "no such folder (no/such/tree)"),
        (("--plan-photos", 10, "--json", "no/such/folder/packing.json"), "no such folder"),
        (("make-photos", "no/such/photos", "cut"), "no such folder (no/such/photos)"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_status_2(arguments: tuple[object, ...], line: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert f"error: {line}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
