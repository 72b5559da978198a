"""A weight file -> its tensors by name, and whether they fit a model. No code in the file runs.

It reads .safetensors files, .pt/.bin/.pth files that hold only tensors, and TorchScript archives
such as OpenAI's. From the latter, a restricted unpickler takes only the tensors.
"""

import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}
ATTRIBUTES = ("attn_mask",)  # tensors of OpenAI's archives that are not weights
DEEPEST = 50  # nesting of modules


def read_weights(path: Path) -> State:
    """Return a file's tensors by name; refuse a damaged file and one with more than tensors."""
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        elif _is_torchscript(path):
            found = _read_torchscript(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; its advice to turn safety off is hidden
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign is None:
            raise ValueError(f"{path} is not a weight file, or is damaged") from None
        raise ValueError(
            f"{path} holds more than tensors ({foreign[1]}), which is not read: "
            "save only its state_dict, preferably as .safetensors"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    is_state = isinstance(found, dict) and found
    if not is_state or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds no named tensors: save a model's state_dict")
    others = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path}: {others[0]!r} is not a tensor: save only a model's state_dict")
    return {name.removeprefix("module."): value for name, value in found.items()}


def check_fit(model: nn.Module, state: State) -> None:
    """Refuse weights that do not fit the model or are not finite.

    The ValueError names the first missing, unexpected and misshapen tensor, or one with NaN.
    """
    wanted = model.state_dict()
    shapes = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
    }
    lines = [
        f"{kind} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        for kind, names in faults.items()
        if names
    ]
    if shapes:
        ours, theirs = (tuple(tensors[shapes[0]].shape) for tensors in (wanted, state))
        lines.append(f"{shapes[0]} is {theirs} and should be {ours}")
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        lines.append("these are Hugging Face's names: use the file that open_clip publishes")
    if lines:
        raise ValueError("; ".join(lines))
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds NaN or infinite numbers: the file is damaged")


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Object:
    """A placeholder for objects of the archive's own classes that keeps only their attributes."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """An unpickler of tensors, lists and attributes; it refuses any other name."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(archive.open(f"{folder}/data.pkl"))
        self._archive = archive
        self._folder = folder
        self._read: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Object
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle":  # build_intlist and similar functions
            return list
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        if key in self._read:
            return self._read[key]
        info = self._archive.getinfo(f"{self._folder}/data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError("tensors are stored as they are")
        content = bytearray(self._archive.read(info))
        tensor = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._read.setdefault(key, tensor)


def _view(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its file")
    return storage.as_strided(tuple(size), tuple(stride), offset)  # checks the bounds itself


def _read_torchscript(path: Path) -> State:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        try:
            root = _Unpickler(archive, name.removesuffix("/data.pkl")).load()
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise pickle.UnpicklingError(str(error)) from None
    return dict(_tensors(root, "", DEEPEST))


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a module by its dotted name, as in its state_dict."""
    if isinstance(value, Tensor) and not name.endswith(ATTRIBUTES):
        yield name, value
    elif isinstance(value, _Object) and isinstance(getattr(value, "state", None), dict) and depth:
        for attribute, inner in value.state.items():
            yield from _tensors(inner, f"{name}.{attribute}" if name else str(attribute), depth - 1)
