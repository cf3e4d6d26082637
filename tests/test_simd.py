"""make simd puts Pillow-SIMD in Pillow's place, make simd-undo brings Pillow back."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import standin

FILES = ["LICENSE", "Makefile", "README.md", "constraints.txt", "install.sh", "pyproject.toml"]
PACKAGES = ["benchmarks", "shardtool", "train"]
NO_INDEX = ("No matching distribution", "Max retries", "NewConnectionError")
TELL = """
import dataclasses, io, json
from PIL import Image
from benchmarks.pillow import active_pillow
jpeg = io.BytesIO()
Image.new("RGB", (40, 30), (10, 200, 30)).save(jpeg, "JPEG")
pixel = Image.open(jpeg).resize((8, 8)).getpixel((4, 4))
print(json.dumps({**dataclasses.asdict(active_pillow()), "pixel": pixel}))
"""


def tell(project: Path, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        ["python3", "-c", TELL], cwd=project, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.mark.slow
def test_simd_takes_pillows_place_and_undo_brings_it_back(tmp_path: Path) -> None:
    if not re.search(r"\bavx2\b", Path("/proc/cpuinfo").read_text()):
        pytest.skip("no AVX2 here, which make simd refuses")
    project = tmp_path / "project"
    project.mkdir()
    standin.copy([*FILES, *PACKAGES], project)
    environment = standin.environment(tmp_path / "venv")

    def make(target: str) -> subprocess.CompletedProcess[str]:
        command = ["make", target]
        return subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=400
        )

    done = make("simd")
    if done.returncode and any(word in done.stderr + done.stdout for word in NO_INDEX):
        pytest.skip("no package index with Pillow-SIMD")
    assert done.returncode == 0, done.stderr
    assert "pip check" in done.stdout
    active = tell(project, environment)
    assert (active["name"], active["simd"]) == ("pillow-simd", True)
    assert active["version"].startswith("12.1.1")
    assert active["pixel"] == pytest.approx((10, 200, 30), abs=3)

    done = make("simd-undo")
    assert done.returncode == 0, done.stderr
    active = tell(project, environment)
    assert (active["name"], active["simd"]) == ("pillow", False)
    pins = (project / "constraints.txt").read_text()
    assert f"\npillow=={active['version']}" in pins


def test_a_build_that_fails_leaves_pillow_in_place() -> None:
    recipe = (standin.ROOT / "Makefile").read_text().partition("\nsimd: ")[2].partition("\n\n")[0]
    assert re.findall(r"-m pip (\w+)", recipe) == ["wheel", "uninstall", "install"]
