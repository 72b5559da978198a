"""A step to run -> its floating-point operations; a device -> its peak rate in FLOP/s.

The two give the model FLOP utilization (MFU).
"""

import re
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 and fp16 tensor-core rates from the vendor's data sheets, FLOP/s, by the driver's full
# name of the device: "H100" alone is three devices.
DATA_SHEET = {
    r"NVIDIA A100[ -].*": 312e12,
    r"NVIDIA H100 80GB HBM3": 989e12,
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA H100 NVL": 835e12,
    r"NVIDIA H200": 989e12,
    r"NVIDIA B200": 2250e12,
    r"NVIDIA L4": 121e12,
    r"NVIDIA L40S": 362e12,
    r"NVIDIA GeForce RTX 4090": 165e12,
}


def count_flops(step: Callable[[], None]) -> int:
    """Count the FLOPs of a step's matrix products and convolutions (a multiply-add counts two)."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return a device's peak rate, FLOP/s; None for a GPU that is not listed here.

    `precision` is "fp32" (TF32 on a GPU), "bf16" or "fp16". A CPU's rate is measured with a large
    matrix product.
    """
    if device.type == "cuda":
        rate = data_sheet(torch.cuda.get_device_name(device))
        return rate / 2 if rate and precision == "fp32" else rate
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return _measure(device, types.get(precision, torch.float32))


def data_sheet(name: str) -> float | None:
    """Return a GPU's dense bf16 rate by its driver's name, or None if it is not listed."""
    return next((rate for one, rate in DATA_SHEET.items() if re.fullmatch(one, name)), None)


def _measure(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
