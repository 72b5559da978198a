"""What `codeseg features` will do, before it does it: settings, pending shards, size, time.

In: the command's wishes and ROOT's ledger. Out: resolved settings, plans of the vocabulary and the
features, and an estimate. Torch is loaded only when the CLIP must be looked at.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from codeseg.pipeline.engine.ledger import DAMAGED, Ledger, Plan, ShardRecord, plan
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_table import features_fingerprint, features_inputs
from codeseg.pipeline.stream.vocabulary_table import vocabulary_input

TEMPLATES = 80  # of CLIP's authors for ImageNet
CLIP_CACHE = "ledger/features/clip.json"  # facts of the last used CLIP, so as not to load it again
JPG_BYTES = 20_000  # of a web image at 256 pixels, where nothing better is known
CAPTION_TOKENS = 16  # SOS, EOS and the mean web caption
PROBE_IMAGES = 4


@dataclass(frozen=True)
class Wishes:
    """What the user asks for; the same words as the command's options."""

    clip: str = "ViT-B-16"
    pretrained: str = "openai"
    image_tokens: str = "fp16"  # or "int8", half the size; or "none", recomputed by the trainer
    views: int = 1  # fixed augmented views of each image
    precision: str = "fp32"  # or "bf16", "fp16"
    batch_size: int = 64  # images encoded together, and rows of a record batch
    min_nouns: int = 2  # captions with fewer distinct nouns are left out
    least_crop: float = 0.9  # share of the image's area; 1 = the whole image
    flip: bool = True  # mirror half the views
    seed: int = 0  # of the views

    def __post_init__(self) -> None:
        for name, known in (
            ("image_tokens", ("fp16", "int8", "none")),
            ("precision", ("fp32", "bf16", "fp16")),
        ):
            if getattr(self, name) not in known:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {', '.join(known)}, not {getattr(self, name)!r}")


def resolve(wishes: Wishes, clip: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that go to `ledger/features/settings.json`."""
    from_pixels = wishes.image_tokens == "none"
    return {
        "clip": dict(clip),
        "image_tokens": wishes.image_tokens,
        "views": 1 if from_pixels else wishes.views,
        "precision": wishes.precision,
        "block_rows": wishes.batch_size,
        "min_nouns": wishes.min_nouns,
        "crop_scale": [wishes.least_crop, 1.0],
        "flip": wishes.flip,
        "mean": [0.485, 0.456, 0.406],  # ImageNet's, not CLIP's (METHOD §1)
        "std": [0.229, 0.224, 0.225],
        "seed": wishes.seed,
        "templates": TEMPLATES,
    }


def clip_facts(root: Storage, model: str, pretrained: str) -> dict[str, Any]:
    """What the settings say of a CLIP, from the last run's notes or by loading it."""
    model, name = _absolute(model), _absolute(pretrained)
    weights_file = _hash_file(_weights_path(name))
    try:
        cached = json.loads(root.read_bytes(CLIP_CACHE))
    except (FileNotFoundError, ValueError):
        cached = {}
    asked = [model, name, weights_file]
    if cached.get("asked") != asked:
        cached = {"asked": asked, "facts": _load_facts(model, name)}
        root.write_atomic(CLIP_CACHE, json.dumps(cached, indent=1).encode() + b"\n")
    facts: dict[str, Any] = cached["facts"]
    return facts


@dataclass(frozen=True)
class Work:
    """What there is to do at a root."""

    settings: dict[str, Any]
    vocabulary: Plan
    vocabulary_input: str
    features: Plan
    inputs: dict[int, str]  # shard -> fingerprint of its input
    rows: dict[int, int]  # pending shard -> trainable rows
    replaced_bytes: int  # of pending shards' older files

    @property
    def new_bytes(self) -> int:
        """Estimated size of the pending features."""
        return sum(self.rows.values()) * row_bytes(self.settings)


def read_nouns(root: Storage) -> dict[int, ShardRecord]:
    """The ledger's nouns.

    Raises:
        ValueError: there are none.
    """
    nouns = Ledger(root).records("nouns")
    if not nouns:
        raise ValueError(f"{root.uri} holds no nouns; run `codeseg nouns {root.uri}`")
    return nouns


def make_plan(root: Storage, settings: dict[str, Any], vocabulary_settings: str) -> Work:
    """Look at the ledger.

    Args:
        root: of the dataset.
        settings: resolved.
        vocabulary_settings: their fingerprint.

    Raises:
        ValueError: there are no nouns, or they are older than the pairs.
    """
    ledger = Ledger(root)
    pairs, nouns = ledger.records("pairs"), read_nouns(root)
    stale = [i for i, record in nouns.items() if i in pairs and record.input != pairs[i].output]
    if stale or nouns.keys() - pairs.keys():
        raise ValueError(
            f"{root.uri}: {len(stale) or 'some'} nouns shards do not match their pairs; "
            f"run `codeseg nouns {root.uri}`"
        )
    inputs = features_inputs(pairs, nouns)
    features = plan(ledger, "features", inputs, features_fingerprint(settings))
    whole = {0: vocabulary_input(nouns)}
    old = ledger.records("features")
    return Work(
        settings=settings,
        vocabulary=plan(ledger, "vocabulary", whole, vocabulary_settings),
        vocabulary_input=whole[0],
        features=features,
        inputs=inputs,
        rows={i: nouns[i].rows_out for i in features.pending},
        replaced_bytes=sum(old[i].bytes for i, why in features.stale.items() if why != DAMAGED),
    )


def row_bytes(settings: Mapping[str, Any]) -> int:
    """Estimated bytes of a features row."""
    clip = settings["clip"]
    caption = CAPTION_TOKENS * (2 * clip["text_width"] + 4) + 200
    if settings["image_tokens"] == "none":
        return int(caption + JPG_BYTES)
    tokens = 1 + (clip["image_size"] // clip["patch_size"]) ** 2
    token = 2 * clip["width"] if settings["image_tokens"] == "fp16" else clip["width"] + 4
    return int(caption + settings["views"] * (3 * clip["image_size"] ** 2 + tokens * token))


def known_speed(records: Mapping[int, ShardRecord], settings: Mapping[str, Any]) -> float | None:
    """Rows a second of one worker, from shards already made with these settings."""
    mine = features_fingerprint(settings)
    made = [r for r in records.values() if r.settings == mine and r.rows_out]
    seconds = sum(record.seconds for record in made)
    return sum(record.rows_in for record in made) / seconds if seconds else None


def probe_speed(settings: dict[str, Any], device: str, threads: int) -> float:
    """Rows a second of one worker, by encoding a few random images here."""
    import torch

    from codeseg.pipeline.features.encoder import Encoder

    torch.set_num_threads(threads)
    encoder = Encoder(settings, device)
    size, views = settings["clip"]["image_size"], settings["views"]
    pixels = torch.zeros(PROBE_IMAGES, views, size, size, 3, dtype=torch.uint8)
    seconds = []
    for _ in range(2):  # the first run is a warm-up
        begin = time.perf_counter()
        encoder.caption_states([[0] * CAPTION_TOKENS] * PROBE_IMAGES)
        if settings["image_tokens"] != "none":
            encoder.image_tokens(pixels).cpu()
        seconds.append(time.perf_counter() - begin)
    return PROBE_IMAGES / seconds[-1]


def _load_facts(model: str, pretrained: str) -> dict[str, Any]:
    from codeseg.model.clip.encoder import FrozenClip

    clip = FrozenClip.load(model, pretrained)
    names = ("weights_sha256", "image_size", "patch_size", "width", "text_width", "embed_dim")
    facts = {name: getattr(clip, name) for name in (*names, "layers", "context_length")}
    return {"model": model, "pretrained": pretrained, **facts}


def _absolute(name: str) -> str:
    """A file's absolute path, for workers elsewhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_file() else name


def _weights_path(pretrained: str) -> Path | None:
    """The local file of weights, where there is one to look at."""
    if pretrained == "storybook":
        spec = find_spec("codeseg.model")
        assert spec is not None and spec.origin is not None
        return Path(spec.origin).parent / "weights" / "storybook.safetensors"
    return Path(pretrained) if Path(pretrained).is_file() else None


def _hash_file(path: Path | None) -> str:
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
