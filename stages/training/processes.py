"""The processes that `torchrun` started: rank, device and a few collectives.

In: the environment of torchrun (RANK, WORLD_SIZE, LOCAL_RANK); without it, one process.
Out: a `Processes`, whose collectives do nothing in a single process.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codeseg.model.device import choose_device


@dataclass(frozen=True)
class Processes:
    """This process in its group; as a context manager, it closes the group."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def start(cls, device: str) -> Self:
        """Join torchrun's group, if any; `device` and errors are those of `choose_device`."""
        chosen = choose_device(device)
        gpu = chosen.type == "cuda"
        if gpu:
            # If a scheduler shows each task only its own GPU, its number is 0 in every task.
            alone = torch.cuda.device_count() == 1
            local = 0 if alone else int(os.environ.get("LOCAL_RANK", "0"))
            chosen = torch.device("cuda", local)
            torch.cuda.set_device(chosen)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size > 1:
            dist.init_process_group("nccl" if gpu else "gloo")
        return cls(int(os.environ.get("RANK", "0")), world_size, chosen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over processes."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        # Its successor, forward_sync_buffers, is newer than the oldest torch that we support.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        return DistributedDataParallel(
            model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def mean(self, values: Tensor) -> Tensor:
        """Average over processes, in place; a NaN on one process becomes NaN on all."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block when all processes do; if one fails in it, all fail and none waits.

        The others raise ValueError with the message of the first that failed.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        lines = self.gather(str(failed) if failed else None)
        if failed:
            raise failed
        for rank, line in enumerate(lines):
            if line is not None:
                raise ValueError(f"process {rank} failed: {line}")

    def refuse_differences(self, values: Mapping[str, Any]) -> None:
        """Refuse to continue if values, named for the message, differ between processes.

        Every process raises ValueError, which names the first process that differs.
        """
        first, *others = self.gather(dict(values))
        for rank, other in enumerate(others, start=1):
            if differing := [name for name in first if first[name] != other.get(name)]:
                raise ValueError(
                    f"process {rank} does not see the same {' and '.join(differing)} as process 0: "
                    "put RUN and ROOT on storage that all nodes share, and run one command on all"
                )

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def accumulating(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Skip the exchange of gradients except at a step's last micro-batch."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()
