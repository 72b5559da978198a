"""A one-image benchmark on disk, a tiny CLIP's config, and where the real samples are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
REALDATA = Path(os.environ.get("CODESEG_REALDATA", ROOT.parent / "shared" / "realdata"))
real = pytest.mark.skipif(not REALDATA.is_dir(), reason="no real samples on this machine")

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""An open_clip config small enough for a test."""

MANIFEST = """
name = "toy"
title = "Toy"
background = {background}
images = 1
classes = {classes}
palette = {palette}
[layout]
images = "images/{{id}}.png"
labels = "labels/{{id}}.png"
[labels]
{labels}
"""


def toy(folder, *, raw=None, labels='rule = "identity"', classes=3, background="false", size=None):
    """A one-image benchmark on disk; returns the manifest's path."""
    raw = np.zeros((4, 5), np.uint8) if raw is None else np.asarray(raw, np.uint8)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size or raw.shape[::-1]).save(folder / "images" / "a.png")
    Image.fromarray(raw).save(folder / "labels" / "a.png")
    path = folder / "toy.toml"
    names = json.dumps([f"c{k}" for k in range(classes)])
    palette = [[k, k, k] for k in range(classes)]
    path.write_text(
        MANIFEST.format(background=background, classes=names, palette=palette, labels=labels)
    )
    return path
