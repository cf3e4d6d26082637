"""timm imports torchvision, and torchvision's compiled operators do not always load.

They do not where torch and torchvision come from different builds (a CPU torch beside PyPI's CUDA
torchvision, some ROCm nightlies). The import then dies with "operator torchvision::nms does not exist",
because `torchvision/_meta_registrations.py` describes operators that were never declared. Nothing here
uses one of them, so declaring their names is enough. Call `import_torchvision` before importing timm.
"""

from __future__ import annotations

import functools
import importlib
import sys

import torch

# The operators that `_meta_registrations.py` describes without asking whether the library has loaded.
_DESCRIBED = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def import_torchvision() -> str:
    """Import torchvision, with its missing operators declared if they did not load.

    Returns what was done as one line for people, "" when nothing had to be.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return ""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare()
    importlib.import_module("torchvision")
    return (
        "torchvision's compiled operators do not load beside this torch; none is used here, "
        "so they were declared empty (install both from one build to be rid of this line)"
    )


@functools.cache
def _declare() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _DESCRIBED:
        library.define(schema)
    return library  # cached, since the declarations live as long as this object
