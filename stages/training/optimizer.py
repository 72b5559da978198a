"""METHOD §7's optimizer: parameter groups, a step's learning rate, state without pickle.

In: CoDe's parameters and a TrainConfig. Out: AdamW, and its state as named tensors.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from codeseg.stages.training.recipes import TrainConfig

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], train: TrainConfig
) -> torch.optim.AdamW:
    """Return AdamW without weight decay for one-dimensional parameters and layers' biases.

    Gates, mask scales, mask biases and log-temperatures are scalars: the reference decays them,
    and so does this function unless `train.decay_scalars` is off. `parameters` are all that are
    trained in either phase.
    """
    decayed = {name: p for name, p in parameters.items() if _decays(name, p, train)}
    plain = [p for name, p in parameters.items() if name not in decayed]
    return torch.optim.AdamW(
        [
            {"params": list(decayed.values()), "weight_decay": train.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=train.peak_lr,
        betas=train.betas,
        eps=train.eps,
        # Fused: one kernel for all parameters, and an update can be skipped without GPU sync.
        fused=all(p.device.type == "cuda" for p in parameters.values()),
    )


def _decays(name: str, parameter: nn.Parameter, train: TrainConfig) -> bool:
    if parameter.ndim == 0:
        return train.decay_scalars
    return parameter.ndim > 1 and not name.endswith(".bias")


def learning_rate(step: int, train: TrainConfig) -> float:
    """Return the rate of a step: linear warm-up to the peak, then a cosine to the final rate.

    The reference warms up from 0.0001 of the peak at step 0 to the peak at step `warmup_steps`;
    without `warmup_start`, the first step has 1 / `warmup_steps` of the peak. The last step,
    `train.steps - 1`, gets exactly `train.final_lr`.
    """
    if step < train.warmup_steps:
        if train.warmup_start is None:
            return train.peak_lr * (step + 1) / train.warmup_steps
        done = step / train.warmup_steps
        return train.peak_lr * (train.warmup_start + (1 - train.warmup_start) * done)
    span = max(1, train.steps - 1 - train.warmup_steps)
    cosine = (1 + math.cos(math.pi * (step - train.warmup_steps) / span)) / 2
    return train.final_lr + (train.peak_lr - train.final_lr) * cosine


def optimizer_tensors(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the state as "parameter.moment" -> tensor, of parameters that had gradients."""
    return {
        f"{name}.{moment}": torch.as_tensor(optimizer.state[parameter][moment])
        for name, parameter in parameters.items()
        if optimizer.state.get(parameter)
        for moment in MOMENTS
    }


def restore_optimizer(
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Restore a state from `optimizer_tensors`; refuse a tensor that belongs to no parameter."""
    for key, value in tensors.items():
        name, _, moment = key.rpartition(".")
        if name not in parameters or moment not in MOMENTS:
            raise ValueError(f"optimizer state {key} belongs to no parameter of this model")
        parameter = parameters[name]
        # AdamW counts steps on the CPU unless fused; moments are on the parameter's device.
        on_cpu = moment == "step" and not optimizer.defaults["fused"]
        device = torch.device("cpu") if on_cpu else parameter.device
        optimizer.state[parameter][moment] = value.to(device)
