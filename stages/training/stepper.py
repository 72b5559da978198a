"""A training step: forward, loss, backward, clipping, optimizer (METHOD §7).

In: a run's State and micro-batches. Out: updated weights and the step's figures.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from codeseg.model.code.batch import Batch
from codeseg.model.code.composition import Losses
from codeseg.model.learner import Learner
from codeseg.stages.training.flops import count_flops
from codeseg.stages.training.optimizer import learning_rate
from codeseg.stages.training.processes import Processes, accumulating
from codeseg.stages.training.recipes import TrainConfig
from codeseg.stages.training.run import State

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper:
    """Runs forward, loss, backward, clipping and the update of the weights.

    Attributes:
        phase: 1 while the last block's copy is frozen, then 2.
        flops: of a micro-batch's forward and backward in this process.
    """

    def __init__(self, state: State, train: TrainConfig, processes: Processes) -> None:
        self._state, self._train, self._processes = state, train, processes
        self._model: nn.Module = state.code
        self._names: list[str] = []
        self._figures: Tensor | None = None
        self._compiles = compiles(train, processes.device)
        # On a CPU, reading costs nothing; a loss scaler must see its infinities at every step.
        self.reads_each_step = processes.device.type == "cpu" or state.scaler.is_enabled()
        self.phase: Literal[0, 1, 2] = 0
        self.flops = 0

    def enter_phase(self, batch: Batch) -> None:
        """Switch the trainable parameters, for which DistributedDataParallel must be rebuilt."""
        phase: Literal[1, 2] = 1 if self._state.step < self._train.phase1_steps else 2
        if phase == self.phase:
            return
        self.phase = phase
        self._state.code.set_phase(phase)
        self.flops = count_flops(
            lambda: _backward(self._loss(self._state.code.forward, batch, 0)["loss"])
        )
        if self._compiles:
            self._state.code.compile()
        self._model = self._processes.wrap(self._state.code)

    def forward_backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Accumulate gradients of the mean loss over micro-batches; return each term's mean."""
        self._state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            with accumulating(self._model, last=micro == len(batches) - 1):
                terms = self._loss(self._model, batch, micro)
                _backward(self._state.scaler.scale(terms["loss"] / len(batches)))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().float() / len(batches)
        self._state.scaler.unscale_(self._state.optimizer)
        return sums

    def _loss(self, model: Callable[..., Losses], batch: Batch, micro: int) -> dict[str, Tensor]:
        """Return the loss of micro-batch number `micro` and its weighted terms.

        `model` is the learner, plain, wrapped or compiled. Randomness depends only on seed and
        step.
        """
        code, device = self._state.code, self._processes.device
        seed = step_seed(self._train.seed, self._state.step, micro)
        draws = code.draws(seed, batch)
        dtype = AUTOCAST.get(self._train.precision)
        batch = batch.to(device)
        if self._compiles:
            for values, dim in batch.varying():
                torch._dynamo.mark_dynamic(values, dim)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            losses = model(batch, *draws)
        return {"loss": losses.total, **{f"loss_{name}": term for name, term in losses.items()}}

    def gradient_norm(self) -> Tensor:
        """Return the global L2 norm before clipping; it is not finite if any gradient is not."""
        parameters = self._state.parameters.values()
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def all_reduce(self, terms: dict[str, Tensor], stop: bool) -> None:
        """Average the step's figures over processes, on the device, without reading them.

        Figures that are not finite are kept until they are read, and until then the optimizer
        updates nothing.
        """
        device = self._processes.device
        marks = {"stop": float(stop), "step": float(self._state.step + 1)}
        self._names = [*terms, *marks]
        # Not torch.tensor(…, device), which waits for the GPU.
        filled = [torch.full((), value, device=device) for value in marks.values()]
        figures = self._processes.mean(torch.stack([*terms.values(), *filled]))
        if not self.reads_each_step:
            if self._figures is not None:
                figures = torch.where(self._figures.isfinite().all(), figures, self._figures)
            self._state.optimizer.found_inf = 1 - figures.isfinite().all().float()  # type: ignore[attr-defined]
        self._figures = figures

    def read(self) -> tuple[int, dict[str, float]]:
        """Return the number and figures of this step, or of the first that was not finite.

        The figures include `stop`, which is above 0 if any process was asked to stop.
        """
        assert self._figures is not None
        figures = dict(zip(self._names, self._figures.tolist(), strict=True))
        return int(figures.pop("step")), figures

    def update(self, norm: Tensor) -> float:
        """Clip the gradients and update the weights; return the learning rate."""
        state = self._state
        weights = [p for p in state.parameters.values() if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(weights, self._train.clip_norm, norm)
        rate = learning_rate(state.step, self._train)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return rate


def compiles(train: TrainConfig, device: torch.device) -> bool:
    """Return whether to compile the model: as the setting says, by default on a GPU."""
    return device.type == "cuda" if train.compile is None else train.compile


def hold_frozen(code: Learner, precision: str) -> None:
    """Keep the frozen CLIP in the dtype of the step's products, which is fastest on a GPU."""
    if dtype := AUTOCAST.get(precision):
        code.clip.hold_in(dtype)


def step_seed(seed: int, step: int, micro: int) -> int:
    """Return a step's 63-bit seed, the same after resuming and on any number of ranks."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
