"""What a device can do is known by its whole name, or not claimed."""

import pytest
import torch

from codeseg.stages.training.flops import data_sheet, peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA B200", 2250),
    ],
)
def test_data_sheet_tells_devices_of_one_family_apart(name, tera):
    assert data_sheet(name) == tera * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA H100", "NVIDIA L40", "NVIDIA GeForce RTX 4090 D", "GH200"]
)
def test_device_that_is_not_listed_is_not_guessed(name):
    assert data_sheet(name) is None


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cpu_is_measured(precision):
    rate = peak_flops(torch.device("cpu"), precision)
    assert rate is not None and rate > 0
