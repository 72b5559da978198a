"""A dataset root of random features and a random tiny CLIP, to train on in a second."""

import json
from pathlib import Path

from bench.make_features import make_features
from codeseg.model.clip.encoder import FrozenClip
from codeseg.stages.training.recipes import Recipe, resolve

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {
        "context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip

SETTINGS = (
    "train.steps=6",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.log_every=1",
    "train.checkpoint_every=2",
    "train.base_lr=1e-3",
    "train.lr_batch=4",
    "train.device=cpu",
)


def make_root(folder: Path, **options: object) -> Path:
    """Write folder/clip.json and folder/root, features made with that CLIP at random weights."""
    config = folder / "clip.json"
    config.write_text(json.dumps(CLIP))
    clip = FrozenClip.load(str(config), "random:1")
    identity = {
        "model": str(config),
        "pretrained": "random:1",
        "weights_sha256": clip.weights_sha256,
        "image_size": clip.image_size,
        "patch_size": clip.patch_size,
        "width": clip.width,
        "text_width": clip.text_width,
        "embed_dim": clip.embed_dim,
        "layers": clip.layers,
        "context_length": clip.context_length,
    }
    make_features(folder / "root", clip=identity, **options)
    return folder / "root"


def assignments(root: Path, *more: str) -> list[str]:
    """`--set` values of the tiny run."""
    clip = (f"clip.model={root.parent / 'clip.json'}", "clip.pretrained=random:1")
    return [*clip, *SETTINGS, *more]


def tiny_recipe(root: Path, *more: str) -> Recipe:
    """The tiny run on a root of `make_root`."""
    return resolve("code_vitb16", None, assignments(root, *more))
