"""Differentiable sums and gathers over all ranks; the identity for one process.

Every rank computes the same global loss from gathered tensors, so a tensor's gradient is the sum of
the gradients on all ranks, and DDP's average over ranks turns that into the gradient of the loss.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """Concatenate every rank's equally shaped tensor along `dim`, in rank order."""
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x, dim)
    return gathered


def total(x: Tensor) -> Tensor:
    """Sum a tensor over all ranks."""
    return x if world_size() == 1 else gather(x[None]).sum(0)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())
        ]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size(), dim=ctx.dim)[rank()], None
