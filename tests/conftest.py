"""What all tests share: small drawn leaves, a packed copy of them, the command line as a person runs it."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from shardtool.pack import PackOptions, pack
from shardtool.specimens import SpecimenPlan, write_specimens

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"

settings.register_profile("brief", max_examples=40, deadline=None)
settings.load_profile("brief")


@pytest.fixture(scope="session")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn tree with split folders: 3 species x 3 diseases, 36 training and 18 validation photos."""
    out = tmp_path_factory.mktemp("specimens")
    write_specimens(SpecimenPlan(species=3, diseases=3, images=4, size=48, seed=5, val_share=0.5), out)
    return out


@pytest.fixture(scope="session")
def packing() -> PackOptions:
    """The options of `packed`: shards so small that 54 photos fill several."""
    return PackOptions(shard_size=40_000)


@pytest.fixture(scope="session")
def packed(specimens: Path, packing: PackOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed specimens; shared by all tests, so only to be read."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(specimens, out, packing)
    return out


@pytest.fixture
def packed_copy(packed: Path, tmp_path: Path) -> Path:
    """The packed specimens, to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


@pytest.fixture
def specimens_copy(specimens: Path, tmp_path: Path) -> Path:
    """The drawn tree, to be changed."""
    return Path(shutil.copytree(specimens, tmp_path / "organized"))


@pytest.fixture(scope="session")
def real_leaves() -> Path:
    """Photos as found in the wild: train and val folders of nine crops."""
    folder = REAL_DATA / "leaves"
    if not folder.is_dir():
        pytest.skip("needs the real leaves in ../shared/data/leaves")
    return folder


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """A small plain RGB JPEG; another number, another photo."""

    def make(number: int, width: int = 16, height: int = 16) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=70)
        return out.getvalue()

    return make


@pytest.fixture(scope="session")
def grow() -> Callable[[Path, Mapping[str, bytes]], Path]:
    """Write files below a folder, given as relative path -> bytes; returns the folder."""

    def plant(root: Path, files: Mapping[str, bytes]) -> Path:
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root

    return plant


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """Relative path -> SHA-256 of every file of a folder, hidden ones included, the lock left out."""

    def of(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }

    return of


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """The argument list that runs `shardtool` with the interpreter of the tests."""

    def line(*arguments: object) -> list[str]:
        start = "from shardtool.cli import main; main()"
        return [sys.executable, "-c", start, *map(str, arguments)]

    return line


@pytest.fixture(scope="session")
def shardtool(command: Callable[..., list[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `shardtool` as a process of its own. Whatever happens, nobody ever sees a traceback."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=240,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
