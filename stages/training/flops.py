"""Model FLOP utilisation: how much a step computes, and how much the device could.

In: a step to run, a device. Out: floating-point operations; FLOP/s.
"""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# Dense tensor-core rates of the vendors' data sheets, bf16 and fp16 alike, FLOP/s.
DATA_SHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


def count_flops(step: Callable[[], None]) -> int:
    """Operations of the products and convolutions that `step` runs (multiply-adds count two)."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> float:
    """What the device can do: its data sheet, or what a large matrix product reaches.

    Args:
        device: where the model is.
        precision: "fp32", "bf16" or "fp16".
    """
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        for part, rate in DATA_SHEET.items():
            if part in name:
                return rate
    return _measure(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _measure(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
