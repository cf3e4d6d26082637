"""A stand-in for an image or a machine with torch: an environment of its own that sees our packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(folder: Path) -> dict[str, str]:
    """Make an environment in `folder`; gives the variables under which its Python comes first.

    Packages of the running environment are found, and pip will not remove them: they lie outside.
    """
    # pip is one of our packages; that of venv may come with a setuptools of years ago
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    purelib = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    Path(purelib, "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHON", "MAKEFLAGS", "MAKELEVEL")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PATH": f"{folder / 'bin'}:{kept['PATH']}", "TORCH": "cpu"}


def copy(names: list[str], folder: Path) -> None:
    """Files and folders of the project, without what a build left in them."""
    leftovers = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=leftovers)
        else:
            shutil.copy(ROOT / name, folder / name)
