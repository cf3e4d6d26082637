"""bench-io as a person runs it: a table, a verdict, a JSON file, and one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.probes import PROBES

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "train" / "tiny.toml"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def bench_io() -> Run:
    """Run `bench-io` as a process of its own. Whatever happens, nobody ever sees a traceback."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks.cli import main; main()", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def test_a_quick_run_writes_the_table_the_verdict_and_the_json_file(
    bench_io: Run, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    arguments = ("--quick", "--workers", 2, "--device", "cpu", "--recipe", TINY, "--json", out)
    done = bench_io(*arguments, "--shards", packed / "train")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for name in PROBES:
        assert f"measuring {name}" in done.stderr
    value = json.loads(out.read_text())
    assert [measurement["name"] for measurement in value["measurements"]] == list(PROBES)
    assert value["verdict"]["bottleneck"] in PROBES
    assert {"torch", "torchvision", "timm", "numpy", "pillow", "opencv", "simplejpeg"} <= set(
        value["versions"]
    )
    assert {"processor", "cores", "memory_bytes", "device"} <= set(value["hardware"])
    assert value["settings"]["workers"] == 2


def test_without_shards_leaves_are_drawn_and_removed_and_json_goes_to_stdout(
    bench_io: Run, tmp_path: Path
) -> None:
    arguments = ("--quick", "--workers", 2, "--device", "cpu", "--recipe", TINY, "--json", "-")
    done = bench_io(*arguments, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["settings"]["shards"] == "drawn specimens"
    assert list(tmp_path.glob("bench-io-*")) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--shards", "no/such/train"), "no dataset.json"),
        (("--json", "no/such/folder/bench.json"), "--json names no file"),
    ],
)
def test_what_is_not_there_is_one_line_and_status_2(
    bench_io: Run, arguments: tuple[str, ...], line: str
) -> None:
    done = bench_io("--quick", *arguments)
    assert done.returncode == 2
    assert f"error: {line}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_recipe_and_device_are_refused_before_anything_is_measured(
    bench_io: Run, packed: Path
) -> None:
    for option in (("--recipe", "nowhere"), ("--device", "cuda:99")):
        done = bench_io("--quick", "--shards", packed / "train", *option)
        assert done.returncode == 2
        assert "measuring" not in done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from benchmarks.cli import app; "
        "assert CliRunner().invoke(app, ['-h']).exit_code == 0; "
        "sys.exit(bool({'torch', 'timm', 'numpy', 'albumentations'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0
