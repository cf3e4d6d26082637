"""CPU, CUDA and ROCm are one code path: which device, which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from shardtool.errors import UsageError
from train.recipe import OptimizerSpec


def choose_device(name: str) -> torch.device:
    """ "auto" is the first GPU, else the CPU. Raises UsageError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # or pinning memory would open the first card, too
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: {first}", cure="use auto or cpu") from None
    return device


def choose_precision(device: torch.device, spec: OptimizerSpec) -> torch.dtype:
    """The dtype of the forward pass: bfloat16 where the hardware has it, else float16 on a GPU."""
    if spec.precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[spec.precision]
    if device.type == "cuda":
        with torch.cuda.device(device):  # older cards emulate bfloat16, slowly
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The forward pass in `dtype`; float32 is left alone. May be entered many times."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def device_name(device: torch.device) -> str:
    """For people: "NVIDIA H100", or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
