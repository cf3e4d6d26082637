"""Our loader beside others: the arithmetic on made-up rows, and short real runs of ours and the seed's."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from benchmarks import peers
from benchmarks.machine import Missing
from benchmarks.peers import Contender, Row
from benchmarks.rival_loaders import opencv, photos, seed, torchvision_v2
from benchmarks.rival_loaders.clock import Span, check, time_batches
from benchmarks.rival_loaders.environment import Environment, complaint
from benchmarks.rival_loaders.environment import run as run_command
from benchmarks.rival_loaders.job import CROP_RATIO, CROP_SCALE, Job, endless
from shardtool.errors import UsageError
from shardtool.index import open_split
from tests.kinds import Jpeg

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The benchmark as a process of its own. Whatever happens, nobody ever sees a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def job(loader: str = "ours", work: str = "core", dtype: str = "uint8", **more: Any) -> Job:
    terms = {"shards": "", "files": "", "prepared": "", "workers": 2, "batch": 8, "size": 32}
    return Job(loader, work, dtype, **{**terms, **more})  # type: ignore[arg-type]


# ---- a real, short run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The JSON of one round over the drawn leaves, and what it said on stderr."""
    out = tmp_path_factory.mktemp("peers")
    names = ("ours", "seed_files", "seed_webdataset", "dali")
    done = run(
        *("--shards", packed / "train", "--json", out / "peers.json", "--environment", out / "kept"),
        *("--rounds", 1, "--photos", 16, "--batch", 8, "--size", 32, "--workers", 1),
        *(word for name in names for word in ("--only", name)),
        **NOWHERE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return json.loads((out / "peers.json").read_text()), done.stderr


@pytest.mark.slow
def test_ours_and_the_snippets_of_the_source_document_have_figures(
    measured: tuple[dict[str, Any], str],
) -> None:
    result, _ = measured
    rows = {(row["name"], row["work"]): row for row in result["rows"] if row["loader"] != "dali"}
    assert len(rows) == 8
    for row in rows.values():
        assert row["photos_of_laps"] == [16], row
        assert 0 < row["images_per_second"]["min"] == row["images_per_second"]["max"]
    types = {name: row["dtype"] for (name, _), row in rows.items()}
    assert types == {"ours": "uint8"} | dict.fromkeys(("ours, float", *SNIPPETS), "float32")


SNIPPETS = ("seed, files", "seed, WebDataset")


@pytest.mark.slow
def test_the_ratios_to_the_snippet_are_those_of_the_float_rows(
    measured: tuple[dict[str, Any], str],
) -> None:
    result, errors = measured
    rates = {(row["name"], row["work"]): row.get("images_per_second", {}) for row in result["rows"]}
    for work in ("core", "full"):
        expected = rates["ours, float", work]["median"] / rates["seed, WebDataset", work]["median"]
        assert result["ratios"][f"{work}_over_seed_snippet"] == pytest.approx(expected, abs=0.01)
        pair = f"ours, float / seed, WebDataset: {work}, float32 on both sides"
        assert result["pairs"][f"{work}_over_seed_snippet"] == pair
        assert pair in errors
    assert result["ratios"]["core_over_best_peer"] is None


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_listed_with_the_reason(
    measured: tuple[dict[str, Any], str],
) -> None:
    result, errors = measured
    missing = [row for row in result["rows"] if row["loader"] == "dali"]
    assert {row["name"] for row in missing} == {"DALI", "DALI, float"}
    for row in missing:
        assert re.match(r"ERROR: .*\btorch==", row["missing"])
        assert f"{row['name']}, core: missing, {row['missing']}" in errors


@pytest.mark.slow
def test_the_conditions_are_told_without_names_of_folders(
    measured: tuple[dict[str, Any], str], packed: Path
) -> None:
    result, _ = measured
    assert result["photos"] == {
        "count": 36,
        "mean_bytes": result["photos"]["mean_bytes"],
        "mean_size": [48, 48],
    }
    assert result["photos"]["mean_bytes"] == round(float(open_split(str(packed / "train")).size.mean()), 1)
    assert result["hardware"]["cores"] >= 1
    assert {"torch", "albumentations", "webdataset"} <= result["versions"].keys()
    assert str(packed.parent) not in json.dumps(result)
    assert result["command"].startswith("python -m benchmarks.peers --shards shards/train --workers 1")


# ---- figures ------------------------------------------------------------------------------------


def row(name: str, rates: list[float], missing: str = "", **terms: str) -> Row:
    known = {contender.name: contender for contender in peers.contenders() if contender.work == "core"}
    loader, work, dtype = (terms.get(key) or getattr(known[name], key) for key in ("loader", "work", "dtype"))
    contender = Contender(name, loader, work, dtype, "")  # type: ignore[arg-type]
    return Row(contender, [(round(rate * 2), 2.0) for rate in rates], missing)


def test_a_row_tells_the_middle_lap_and_the_spread() -> None:
    figures = row("ours", [30.0, 10.0, 20.0]).to_json()["images_per_second"]
    assert figures == {"median": 20.0, "min": 10.0, "max": 30.0}


def test_ours_is_compared_with_the_best_peer_of_the_type_in_which_it_is_less_ahead() -> None:
    rows = [
        row("ours", [100.0]),
        row("ours, float", [60.0]),
        row("FFCV", [50.0]),
        row("grain", [20.0]),
        row("DALI, float", [40.0]),
        row("seed, WebDataset", [55.0]),
    ]
    ratio = peers.ratios(rows)["core_over_best_peer"]
    assert (ratio.value, ratio.pair) == (1.5, "ours, float / DALI, float: core, float32 on both sides")
    rows[2] = row("FFCV", [80.0])
    ratio = peers.ratios(rows)["core_over_best_peer"]
    assert (ratio.value, ratio.pair) == (1.25, "ours / FFCV: core, uint8 on both sides")


def test_a_row_that_failed_after_some_laps_counts_for_nothing() -> None:
    rows = [row("ours", [100.0]), row("FFCV", [80.0], missing="it broke"), row("grain", [20.0])]
    assert peers.ratios(rows)["core_over_best_peer"].value == 5.0
    assert rows[1].to_json()["missing"] == "it broke"
    assert "images_per_second" not in rows[1].to_json()


def test_a_ratio_with_a_side_missing_is_none() -> None:
    found = peers.ratios([row("ours", [100.0])])
    assert [ratio.value for ratio in found.values()] == [None] * 3


def test_lost_and_missing_rows_stand_in_the_table_like_the_others() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(peers.table([row("ours", [10.0]), row("FFCV", [1234.0]), row("DALI", [], missing="no")]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any("FFCV" in line and "1,234" in line for line in lines)
    assert any("DALI" in line and "missing" in line for line in lines)


def test_everybody_has_a_name_of_its_own_and_a_module() -> None:
    every = peers.contenders()
    assert len({(contender.name, contender.work) for contender in every}) == len(every)
    folder = ROOT / "benchmarks" / "rival_loaders"
    for contender in every:
        text = (folder / f"{contender.loader}.py").read_text()
        assert "def batches(job: Job)" in text
        assert ("def prepare(job: Job)" in text) == (contender.loader in peers.WRITES_ITS_OWN)


# ---- the clock ----------------------------------------------------------------------------------


def batches(images: np.ndarray[Any, Any] | None = None) -> Iterator[Any]:
    while True:
        yield np.zeros((8, 32, 32, 3), np.uint8) if images is None else images


@pytest.mark.parametrize(("wanted", "timed"), [(1, 16), (16, 16), (17, 32)])
def test_whole_rounds_of_a_batch_a_worker_are_timed(wanted: int, timed: int) -> None:
    assert time_batches(batches(), job(), Span(photos=wanted))["photos"] == timed


def test_without_a_number_of_photos_a_run_ends_after_the_seconds() -> None:
    found = time_batches(batches(), job(), Span(seconds=0.05))
    assert 0.05 <= found["seconds"] < 5
    assert found["photos"] > 16


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((7, 32, 32, 3), np.uint8),
        np.zeros((8, 32, 32, 3), np.float32),
        np.zeros((8, 32, 31, 3), np.uint8),
        np.zeros((8, 32, 32, 4), np.uint8),
    ],
)
def test_batches_that_are_not_what_was_asked_for_are_no_figure(images: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="not 8 photos of 32 pixels as uint8"):
        time_batches(batches(images), job(), Span(photos=16))


def test_both_usual_layouts_are_taken() -> None:
    check(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), job())
    check(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), job())


# ---- the work -----------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_crops_lie_in_the_photo(width: int, height: int) -> None:
    left, top, across, down = opencv.random_crop(width, height)
    assert 0 <= left < left + across <= width
    assert 0 <= top < top + down <= height


def test_crops_have_the_scale_and_the_ratio_and_reach_all_of_both() -> None:
    crops = np.array([opencv.random_crop(1000, 1000)[2:] for _ in range(2000)])
    scale, ratio = crops.prod(axis=1) / 1e6, crops[:, 0] / crops[:, 1]
    for found, (low, high) in ((scale, CROP_SCALE), (ratio, CROP_RATIO)):
        assert low - 0.01 <= found.min() < low + 0.05
        assert high - 0.1 < found.max() <= high + 0.01


def test_all_give_one_photo_in_the_wanted_size(jpeg: Jpeg) -> None:
    data = jpeg(1, 60, 50)
    image = Image.open(io.BytesIO(data))
    assert opencv.core(data, 32).shape == (32, 32, 3)
    assert torchvision_v2.core(job())(image).dtype == torch.uint8
    for pixels in (
        torchvision_v2.core(job(dtype="float32"))(image),
        seed.augment(job(work="core"))(np.asarray(image)),
        seed.augment(job(work="full"))(np.asarray(image)),
    ):
        assert (tuple(pixels.shape), pixels.dtype) == ((3, 32, 32), torch.float32)


def test_the_loose_files_are_the_photos_of_the_shards(packed: Path, tmp_path: Path) -> None:
    photos.lay_out(packed / "train", tmp_path)
    split = open_split(str(packed / "train"))
    files = job(files=str(tmp_path)).photos()
    assert len(files) == len(split) == 36
    for sample, data in enumerate(split.read(range(len(split)))):
        path = tmp_path / str(split.species[sample]) / f"{split.entry(sample)['key']}.jpg"
        assert path.read_bytes() == data


def test_a_folder_without_shards_is_no_empty_comparison(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no shards in this folder"):
        photos.lay_out(tmp_path, tmp_path / "files")


def test_endless_items_come_all_before_one_comes_again() -> None:
    drawn = list(islice(endless(range(10)), 30))
    assert [sorted(drawn[first : first + 10]) for first in (0, 10, 20)] == [list(range(10))] * 3
    assert drawn[:10] != drawn[10:20]


# ---- what others need ---------------------------------------------------------------------------


def test_what_was_half_made_is_made_again_and_what_was_made_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "files"
    with contextlib.suppress(OSError), photos.made_once(folder) as made:
        assert made is not None
        (made / "half").touch()
        raise OSError
    assert not folder.exists()
    with photos.made_once(folder) as made:
        assert made is not None
        assert list(made.iterdir()) == []
        (made / "whole").touch()
    with photos.made_once(folder) as made:
        assert made is None
    assert [path.name for path in folder.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("Traceback …\n  File …\nValueError: no photo\n", "ValueError: no photo"),
        (
            "RuntimeError: no opencv\n[end of output]\nerror: metadata-generation-failed\nhint: above",
            "no opencv",
        ),
        ("ERROR: No matching distribution found for x\nWARNING: old pip", "No matching distribution"),
        ("ERROR: Cannot install x\nERROR: ResolutionImpossible: for help visit …", "Cannot install x"),
        ("E: Unable to locate package ffmpeg\n", "Unable to locate package"),
        ("nothing like it\n", "nothing like it"),
        ("", "ended with status 9"),
    ],
)
def test_the_reason_is_the_line_that_says_what_went_wrong(output: str, told: str) -> None:
    assert told in complaint(output, 9)


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    command = ["sh", "-c", f"(sleep 2; touch {tmp_path}/late) & sleep 60"]
    with pytest.raises(Missing, match="sh took longer than 0 s"):
        run_command(command, dict(os.environ), tmp_path, 0.2)
    subprocess.run(["sleep", "2.3"], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no-such-program: No such file"):
        run_command([tmp_path / "no-such-program"], {}, None, 1)


def test_an_environment_that_is_not_there_has_no_versions(tmp_path: Path) -> None:
    assert Environment(tmp_path).versions() == {}


# ---- the command line ---------------------------------------------------------------------------


def test_photos_of_a_camera_are_made_and_packed(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    for number in range(2):
        coarse = np.random.default_rng(number).integers(0, 256, (15, 30, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((240, 120)).save(tmp_path / "large" / f"{number}.jpg")
    out = tmp_path / "camera"
    done = run("make-photos", tmp_path / "large", out, "--size", "80x60", "--count", 500)
    assert done.returncode == 0, done.stderr
    found = photos.photos_of(out / "shards" / "train")
    assert found["mean_size"] == [80, 60]
    assert found["count"] == 450


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "nothing to measure with: give --shards"),
        (("--shards", "no/such/split"), "no such folder (no/such/split)"),
        (("make-photos", "docs", "camera", "--size", "large"), "--size large: write --size 1024x768"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_status_2(arguments: tuple[object, ...], line: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert f"error: {line}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_loader_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no loader 'dalí'.*there are ours, seed_files"):
        peers.chosen(["ours", "dalí"])
    assert {contender.loader for contender in peers.chosen(["ours", "dali"])} == {"ours", "dali"}
