from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch
def refuse(path):
    raise OSError("this build does not fit")
torch.ops.load_library = refuse
from train.compat import import_torchvision
print(repr(import_torchvision()))
import timm
from torchvision.transforms import v2
v2.RandAugment()
"""


def test_timm_imports_where_torchvisions_operators_do_not_load() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "do not load beside this torch" in result.stdout
