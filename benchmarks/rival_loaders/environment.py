"""An environment for loaders that this project does not depend on: a venv, and system libraries beside it.

Nothing outside its folder is changed. What cannot be had raises Missing with the reason.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL

from benchmarks.machine import Missing
from shardtool import terminal

LIMIT_SECONDS = 600.0  # for one step of an installation
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The same releases on both sides: what decodes and transforms photos shall not differ by them.
SHARED = ("torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "pyarrow")
# What pip adds to an error says nothing by itself: "ERROR: ResolutionImpossible: for help visit …".
PIP_ADDS = "ERROR: ResolutionImpossible|error: (metadata|subprocess|legacy)-"
ERROR = re.compile(rf"(?!{PIP_ADDS})([\w.]*(Error|Exception)\b|ERROR: |E: |error: )")


@dataclass(frozen=True)
class Recipe:
    """How a loader is installed: `packages` from PyPI; `unpacked`, packages of Debian with all that they
    need, and `headers` without, are laid beside the venv where the system lacks them; `modules` must load."""

    packages: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    from_source: str = ""  # a requirement to be built against the libraries


_OPENCV = ("calib3d", "dnn", "features2d", "flann", "highgui", "imgcodecs", "ml", "objdetect", "photo")
_OPENCV_MORE = ("contrib", "shape", "stitching", "superres", "video", "videoio", "videostab", "viz")

RECIPES: Mapping[str, Recipe] = {
    "torchvision_v2": Recipe(modules=("torch", "PIL")),
    "litdata": Recipe(("litdata",), modules=("litdata",)),
    "huggingface": Recipe(("datasets",), modules=("datasets",)),
    "grain": Recipe(("grain",), modules=("grain", "array_record.python.array_record_module")),
    "spdl": Recipe(("spdl",), unpacked=("ffmpeg",), modules=("spdl.io", "spdl.io._core", "spdl.pipeline")),
    "ffcv": Recipe(
        (
            "numba",
            "assertpy",
            "fastargs",
            "pandas",
            "psutil",
            "terminaltables",
            "tqdm",
            "setuptools",
            "wheel",
        ),
        unpacked=("libopencv-imgproc-dev", "libturbojpeg0-dev"),
        # its source includes all of OpenCV and uses two modules
        headers=("libturbojpeg0", *(f"libopencv-{name}-dev" for name in (*_OPENCV, *_OPENCV_MORE))),
        modules=("ffcv.loader",),
        from_source="ffcv==1.0.2",
    ),
    "dali": Recipe(("nvidia-dali-cuda120",), modules=("nvidia.dali.plugin.pytorch",)),
}


class Environment:
    """A folder with a venv; what is installed in it is noted there and not done again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        self._libraries = folder / "libraries"
        self._notes = folder / "installed.json"

    def install(self, name: str) -> None:
        """Raises Missing with the reason if this loader cannot be had."""
        if name in self._installed():
            return
        recipe = RECIPES[name]
        terminal.say(f"installing what {name} needs in {terminal.clean(self.folder)}")
        self._make()
        if recipe.packages:
            self._pip(*recipe.packages)
        self._unpack(recipe)
        if recipe.from_source:
            self._pip("--no-deps", "--no-build-isolation", recipe.from_source)
        self._run([self.python, "-c", "".join(f"import {module};" for module in recipe.modules)])
        self._notes.write_text(json.dumps([*self._installed(), name]))

    def variables(self) -> dict[str, str]:
        """The environment variables that let its programs find the libraries."""
        folders = [str(path) for path in self._library_folders()]
        path = [*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(path)} if path else {}

    def versions(self) -> dict[str, str]:
        """Release of every package; nothing without an environment."""
        if not self.python.exists():
            return {}
        listed = json.loads(self._run([self.python, "-m", "pip", "list", "--format", "json"]))
        return {package["name"]: package["version"] for package in listed}

    def _installed(self) -> list[str]:
        if not self._notes.exists():
            return []
        names: list[str] = json.loads(self._notes.read_text())
        return names

    def _make(self) -> None:
        """A venv with the CPU build of torch: of PyPI's, several GB of CUDA would come along."""
        base = self.folder / "venv" / "base"
        if base.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run([sys.executable, "-m", "venv", "--clear", self.folder / "venv"])
        here = {"pillow": PIL.__version__.partition(".post")[0]}  # Pillow-SIMD goes by another name
        pins = {name: here.get(name) or importlib.metadata.version(name).partition("+")[0] for name in SHARED}
        torch = [f"{name}=={pins[name]}" for name in ("torch", "torchvision")]
        self._constraints.write_text("".join(f"{name}=={release}\n" for name, release in pins.items()))
        try:
            self._pip("--no-index", "--no-deps", *torch)  # a wheel that pip's configuration points to
        except Missing:
            self._pip("--no-deps", "--index-url", TORCH_INDEX, *torch)
        self._pip(*SHARED)
        base.touch()

    @property
    def _constraints(self) -> Path:
        return self.folder / "constraints.txt"

    def _pip(self, *arguments: str) -> None:
        self._run([self.python, "-m", "pip", "install", "-q", "-c", self._constraints, *arguments])

    def _unpack(self, recipe: Recipe) -> None:
        """Lay packages of Debian beside the venv, which takes no rights; other systems must have them."""
        if not recipe.unpacked or not shutil.which("apt-get"):
            return
        listed = self._run(["apt-get", "install", "-s", "--no-install-recommends", *recipe.unpacked])
        wanted = [line.split()[1] for line in listed.splitlines() if line.startswith("Inst ")]
        if not wanted:
            return
        downloads = self.folder / "downloads"
        downloads.mkdir(exist_ok=True)
        self._run(["apt-get", "download", *wanted, *recipe.headers], downloads)
        for package in downloads.glob("*.deb"):
            self._run(["dpkg", "-x", package, self._libraries])
        shutil.rmtree(downloads)
        self._write_pkg_config()

    def _library_folders(self) -> list[Path]:
        around = sorted((self._libraries / "usr" / "lib").glob("*-linux-gnu*"))
        # some libraries lie in folders of their own: blas, lapack, pulseaudio
        return [*around, *(path for top in around for path in sorted(top.iterdir()) if path.is_dir())]

    def _write_pkg_config(self) -> None:
        """Files for pkg-config: those of Debian's name / as the root."""
        flags = " ".join(f"-L{path}" for path in self._library_folders()[:1])
        include = self._libraries / "usr" / "include"
        for name, libraries in (
            ("opencv4", "-lopencv_core -lopencv_imgproc"),
            ("libturbojpeg", "-lturbojpeg"),
        ):
            lines = [f"Name: {name}", f"Description: {name}", "Version: 1"]
            lines += [f"Libs: {flags} {libraries}", f"Cflags: -I{include} -I{include}/opencv4"]
            (self._libraries / f"{name}.pc").write_text("\n".join(lines) + "\n")

    def _run(self, command: Sequence[str | Path], folder: Path | None = None) -> str:
        """Its stdout. Raises Missing with what it complained of."""
        environment = {**os.environ, **self.variables()}
        if self._libraries.exists():
            environment["PKG_CONFIG_PATH"] = str(self._libraries)
        return run(command, environment, folder, LIMIT_SECONDS)


def run(
    command: Sequence[str | Path], environment: Mapping[str, str], folder: Path | None, limit: float
) -> str:
    """stdout of a command. Raises Missing with the reason if it fails or is not done in `limit` seconds."""
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its workers can be ended with it
        )
    except OSError as error:
        raise Missing(f"{name}: {error.strerror}") from None
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise Missing(f"{name} took longer than {limit:.0f} s") from None
    finally:
        _end(process)
    if process.returncode:
        raise Missing(complaint(errors or output, process.returncode))
    return output


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def complaint(output: str, status: int) -> str:
    """The line that says what went wrong: the last that looks like an error's, else the last of all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or [f"ended with status {status}"])[-1]
