"""A device name -> the torch device: the only place that chooses between GPU and CPU."""

import torch


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return a device by name; "auto" is cuda, else mps, else cpu.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, there in has.items() if there), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is none of auto, cpu, cuda, mps") from None
    if not has.get(device.type, True):
        raise ValueError(f"torch finds no {device.type} device here: use --device cpu or auto")
    return device


def is_gpu(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is on a GPU, where other forms are fastest."""
    return tensor.device.type == "cuda"
