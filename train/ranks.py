"""The processes of one training: one, or several that torchrun started, each with its device.

Every rank computes its share of each global batch; gradients and losses are summed once a step. All ranks
decide the same from the same sums, so none waits for a collective that another one skipped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shardtool.errors import TrainingError, UserError

TIMEOUT = timedelta(minutes=10)  # longer than any validation or save that the others wait for


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the log and the checkpoints."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add up each tensor over the ranks, in place: one collective for all of one dtype."""
        if self.count == 1:
            return
        for dtype in {tensor.dtype: None for tensor in tensors}:
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def concatenate(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, one behind the other along the first dimension; lengths may differ."""
        if self.count == 1:
            return tensor
        length = torch.tensor([len(tensor)], device=tensor.device)
        lengths = [torch.empty_like(length) for _ in range(self.count)]
        dist.all_gather(lengths, length)
        longest = int(torch.cat(lengths).max())
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(own)] for part, own in zip(parts, lengths, strict=True)])

    def gather(self, value: Any) -> list[Any]:
        """A small plain value of every rank, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)


def local_device(name: str) -> str:
    """`--device auto` or `cuda` under torchrun: each rank has the card of its own number."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks of this training, as torchrun's environment says; one where it says nothing.

    Raises TrainingError where another rank died or did not answer for TIMEOUT.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        yield ranks
        ranks.barrier()
    except UserError:
        raise
    except RuntimeError as error:
        if not _is_of_a_collective(error):
            raise
        raise TrainingError(
            f"rank {ranks.rank} lost the others: {str(error).splitlines()[0]}",
            cure="look at the first rank that failed; the same command goes on",
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _is_of_a_collective(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "process group", "connection", "timed out", "timeout")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
