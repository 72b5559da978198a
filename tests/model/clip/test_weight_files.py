"""Files of weights people have: loaded, or refused in a line that says what does not fit."""

import json
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codeseg.model.clip.weight_files import read_weights
from codeseg.model.clip.weights import build_clip


@pytest.fixture(scope="module")
def state():
    clip = build_clip("storybook", "storybook")
    return {name: value.clone() for name, value in clip.state_dict().items()}


def scripted(state):
    """A TorchScript archive with these weights, as OpenAI's are: tensors in modules in modules."""

    def module(tensors):
        made = torch.nn.Module()
        inner = {}
        for name, value in tensors.items():
            first, dot, rest = name.partition(".")
            if dot:
                inner.setdefault(first, {})[rest] = value
            else:
                made.register_parameter(name, torch.nn.Parameter(value.half(), False))
        for name, held in inner.items():
            setattr(made, f"m{name}" if name.isdigit() else name, module(held))
        return made

    renamed = {name.replace("resblocks.", "resblocks.m"): v for name, v in state.items()}
    made = torch.jit.script(module(renamed))
    made.input_resolution = 96
    return made


def rename_in_archive(path, target):
    """Children called m0, m1 … become 0, 1 …, as a Sequential's are: an identifier may not."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith("data.pkl"):
                for i in range(10):
                    content = content.replace(b"X\x02\0\0\0m%d" % i, b"X\x01\0\0\0%d" % i)
            out.writestr(info.filename, content)


def test_the_tensors_of_a_torchscript_archive_are_read_without_running_it(state, tmp_path):
    torch.jit.save(scripted(state), tmp_path / "script.pt")
    rename_in_archive(tmp_path / "script.pt", tmp_path / "ViT.pt")
    found = read_weights(tmp_path / "ViT.pt")
    assert found.keys() == state.keys()
    for name, value in build_clip("storybook", str(tmp_path / "ViT.pt")).state_dict().items():
        assert torch.equal(value, state[name].half().float()), name


def refused(path):
    with pytest.raises(ValueError) as caught:
        build_clip("storybook", str(path))
    line = str(caught.value)
    assert "weights_only" not in line and "arbitrary code" not in line and "\n" not in line
    return line


def test_a_misfit_names_the_first_tensor_of_each_kind(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({**state, "ema_decay": torch.zeros(1)}, path)
    assert refused(path).endswith("do not fit storybook: unexpected ema_decay")
    few = dict(list(state.items())[2:])
    proj = few["visual.proj"]
    save_file({**few, "visual.proj": torch.zeros(3, 3), "x": torch.ones(1)}, path)
    missing = next(iter(state))
    shape = tuple(proj.shape)
    line = refused(path)
    assert (
        f"missing {missing} and 1 more; unexpected x; visual.proj is (3, 3) and should be " in line
    )
    assert line.endswith(str(shape))


def test_names_of_hugging_face_say_which_file_to_take(state, tmp_path):
    path = tmp_path / "model.safetensors"
    name = "vision_model.embeddings.class_embedding"
    save_file({name: state["visual.class_embedding"], "logit_scale": torch.zeros(())}, path)
    assert "Hugging Face's names: use the file that open_clip publishes" in refused(path)


def test_weights_that_are_not_numbers_are_refused(state, tmp_path):
    path = tmp_path / "nan.safetensors"
    save_file({**state, "visual.proj": torch.full_like(state["visual.proj"], float("nan"))}, path)
    assert "visual.proj holds NaN or infinite numbers" in refused(path)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code in a weight file was run",))


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (lambda p: p.write_bytes(b"<!DOCTYPE html>"), "is not a weight file"),
        (lambda p: p.write_bytes(b""), "is not a weight file"),
        (lambda p: p.write_bytes(b"root:x:0:0:root:/root:/bin/sh"), "is not a weight file"),
        (lambda p: p.write_bytes(pickle.dumps(Evil())), "not a weight file|more than tensors"),
        (lambda p: torch.save({"a": Evil()}, p), r"holds more than tensors \(_pytest\."),
        (lambda p: torch.save({"a": Evil()}, p, _use_new_zipfile_serialization=False), "more than"),
        (lambda p: torch.save({}, p), "holds no named tensors"),
        (lambda p: torch.save([1], p), "holds no named tensors"),
        (lambda p: torch.save(None, p), "holds no named tensors"),
        (lambda p: torch.save({1: torch.ones(1)}, p), "holds no named tensors"),
        (lambda p: torch.save({"state_dict": 5}, p), "'state_dict' is not a tensor"),
        (lambda p: torch.save({"state_dict": {}}, p), "holds no named tensors"),
        (lambda p: torch.save(torch.ones(1), p), "holds no named tensors"),
        (
            lambda p: torch.save({"state_dict": {"a": torch.ones(1)}, "best": np.float64(1)}, p),
            "holds more than tensors .*save only its state_dict",
        ),
        (lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p), "do not fit"),
    ],
)
def test_what_is_no_plain_file_of_tensors_is_refused_in_a_line(tmp_path, save, said):
    path = tmp_path / "w.pt"
    save(path)
    refusal = refused(path)
    assert re.search(said, refusal), refusal


def archive(tmp_path, program, data=b"\0" * 8):
    """A TorchScript archive whose pickle is anything at all."""
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as out:
        out.writestr("a/constants.pkl", b"")
        out.writestr("a/data.pkl", program)
        out.writestr("a/data/0", data)
    return tmp_path / "evil.pt"


def storage():
    return b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQ"


@pytest.mark.parametrize(
    "program",
    [
        pickle.dumps(Evil()),
        b"cos\nsystem\n(S'false'\ntR.",
        b"ctorch\nFloatStorage\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"K\x00(J\xff\xff\xff\x7ft(K\x00ttR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"K\x05(K\x02t(K\x01ttR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.",
        b"",
        b"N.",
    ],
)
def test_an_archive_made_to_do_harm_does_none(tmp_path, program):
    refused(archive(tmp_path, program))


def test_a_safetensors_file_that_lies_about_its_size_is_refused(tmp_path):
    head = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    assert "is not a weight file" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("seed", ["²", "x", "9" * 30])
def test_a_seed_is_a_number(seed):
    with pytest.raises(ValueError, match="takes a number"):
        build_clip("storybook", f"random:{seed}")
