"""The report on the authors' numbers: right on theirs where they lie, wrong where one differs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference_dense import (
    PREFIX,
    alignment_values,
    build_clip,
    embed,
    main,
    method_arrays,
    settings_of,
)

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(os.environ.get("CODESEG_REFERENCE", ROOT.parent / "shared" / "reference"))
METHOD = {
    "code": "ours",
    "logit_scale": 40,
    "probability_threshold": 0.3,
    "area_threshold": 0.05,
    "window": 32,
    "stride": 16,
    "feature_window": 0,
}


def small_spec():
    """A CLIP of six blocks and 32 pixels, three classes, two methods."""
    spec = {
        "seed_tag": "test",
        "clip": {
            "embed_dim": 16,
            "image_size": 32,
            "patch_size": 8,
            "vision_width": 32,
            "vision_layers": 6,
            "vision_heads": 2,
            "text_width": 32,
            "text_layers": 1,
            "text_heads": 2,
            "context_length": 77,
            "vocab_size": 49408,
            "act": "quick_gelu",
        },
        "classes": [["open air", "pavement"], ["lorry"], ["hedge", "tree"]],
        "templates": ["a picture of {}.", "one {}"],
        "pixel_mean": [122.771, 116.746, 104.094],
        "pixel_std": [68.501, 66.632, 70.323],
        "resize": {"short_side": 40, "long_side": 2048, "size": [40, 53]},
        "methods": {"scclip": METHOD, "naclip": {**METHOD, "window": 0, "stride": None}},
        "parameters": {},
    }
    kinds = {1: "bias", 2: "matrix", 4: "matrix"}
    for name, parameter in build_clip(spec).clip.named_parameters():
        kind = "norm_weight" if ".ln_" in name and name.endswith("weight") else None
        kind = kind or kinds.get(parameter.ndim)
        if kind:
            spec["parameters"][f"clip.{name}"] = {"shape": list(parameter.shape), "kind": kind}
    return spec


ALIGNMENT = {
    "heads": 2,
    "grid_rows": 2,
    "grid_columns": 3,
    "global_tokens": 1,
    "logit_scale": 2.0,
    "lambda_background": 0.3,
}


def add_alignment(spec, arrays):
    """Add three random pictures of 2 x 3 patches of width 8, texts of width 5, and what follows."""
    draw = np.random.default_rng(1).standard_normal
    shapes = {"qkv": (3, 7, 24), "patches": (3, 6, 8), "text": (3, 5), "class_sentences": (2, 4, 5)}
    given = {f"input/{n}": torch.from_numpy(draw(s)).float() for n, s in shapes.items()}
    for layer, inputs in (("linear_layer", 5), ("hidden_layers.0", 8)):
        for kind, shape in (("weight", [8, inputs]), ("bias", [8])):
            rule = {"shape": shape, "kind": "matrix" if kind == "weight" else "bias"}
            spec["parameters"][f"talk2dino.{layer}.{kind}"] = rule
    spec["talk2dino"] = dict(ALIGNMENT)
    found, numbers = alignment_values(spec, given)
    arrays |= {PREFIX + name: value.detach().numpy() for name, value in found.items()}
    gradients = {n: numbers.pop(n) for n in list(numbers) if n.startswith("talk2dino.")}
    spec["talk2dino"] |= numbers | {"grad_norms": gradients}


def write_pair(folder, change=None):
    spec = small_spec()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    clip = build_clip(spec)
    texts = embed(clip, [n for group in spec["classes"] for n in group], tuple(spec["templates"]))
    arrays = {"input/pixels": pixels}
    for name in spec["methods"]:
        assert settings_of(spec, spec["methods"][name], name).method == name
        for key, value in method_arrays(clip, spec, name, pixels, texts):
            if key != "window_logits/last":
                arrays[f"{name}/{key}"] = value.detach().numpy()
    add_alignment(spec, arrays)
    if change:
        change(arrays, spec)
    (folder / "a.json").write_text(json.dumps(spec))
    np.savez(folder / "a.npz", **arrays)
    return [str(folder / "a.json"), str(folder / "a.npz")]


def test_the_report_accepts_equal_numbers_of_any_pair(tmp_path, capsys):
    assert main(write_pair(tmp_path)) == 0
    assert "scclip/outlier_score" in capsys.readouterr().out


def shift_logit(arrays, _):
    arrays["naclip/logits"][0, 0, 0] += 1e-4


def flip_label(arrays, _):
    label = arrays["scclip/label_background"]
    label[3, 3] = (label[3, 3] + 1) % 3


def shift_cleaned_mask(arrays, _):
    arrays["talk2dino/mask_cleaned"][0, 1, 1, 2] += 1e-4


def shift_gradient(_, spec):
    spec["talk2dino"]["grad_norms"]["talk2dino.logit_scale"] *= 1.001


@pytest.mark.parametrize("change", [shift_logit, flip_label, shift_cleaned_mask, shift_gradient])
def test_the_report_fails_on_one_number_or_one_label(tmp_path, capsys, change):
    assert main(write_pair(tmp_path, change)) == 1
    assert capsys.readouterr().out.count("OUT") == 1


def test_an_array_that_nothing_computes_is_named(tmp_path, capsys):
    assert main(write_pair(tmp_path, lambda a, _: a.update({"naclip/else": np.zeros(1)}))) == 2
    assert "nothing here computes: ['naclip/else']" in capsys.readouterr().err


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the authors' numbers are not on this machine")
def test_every_method_equals_its_authors_code(capsys):
    files = [str(REFERENCE / f"dense-small.{kind}") for kind in ("json", "npz")]
    assert main(files) == 0, capsys.readouterr().out
