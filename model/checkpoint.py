"""Checkpoints: the trained tensors as safetensors, a config.json and a model card; no pickle.

    CHECKPOINT/model.safetensors      trained tensors only, names as in trainable_state_dict
    CHECKPOINT/config.json            {"codeseg": version, "clip", "model", "train"}: its settings;
                                      an alignment's has "backbone", its self-supervised ViT
    CHECKPOINT/README.md              a model card made from config.json
    CHECKPOINT/optimizer.safetensors  to resume only: optimizer state by parameter name
    CHECKPOINT/state.json             to resume only: step, data position
    RUN/settings.toml                 prediction settings, if the user has chosen any; pushed too

A checkpoint appears whole or not at all: it is written under a temporary name in the same folder,
flushed to disk, then renamed.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save
from torch import Tensor

from codeseg.model.align.alignment import Align
from codeseg.model.align.backbone import Backbone
from codeseg.model.align.config import AlignConfig
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.hub import hub_or_cache
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.learner import Learner

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
ANYWHERE = "THIS FOLDER OR ITS HUB ID"  # in a card that does not know its future location
OPTIMIZER, STATE, SETTINGS = "optimizer.safetensors", "state.json", "settings.toml"
_TEMPORARY = ".incomplete-"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; tensors on the CPU."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    code: Learner,
    train: Mapping[str, Any],
    *,
    version: str,
    sources: Sequence[Mapping[str, Any]] = (),
    optimizer: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        folder: must not exist yet; its parent is made.
        code: the model; only `trainable_state_dict()` is written.
        train: the training settings, for the record.
        version: codeseg's version.
        sources: each root's root, manifest, made_from and selection, for the record.
        optimizer: named optimizer tensors, to resume from.
        state: small JSON values, to resume from.

    Raises:
        OSError: the disk is full or not writable; existing checkpoints are untouched.
    """
    config = {
        "codeseg": version,
        "clip": clip_identity(code.clip),
        "model": asdict(code.config),
        "train": dict(train),
        "sources": [dict(source) for source in sources],
    }
    if code.backbone_facts:
        config["backbone"] = dict(code.backbone_facts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f"{_TEMPORARY}{folder.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed while it saved
    try:
        temporary.mkdir()
        _save_tensors(temporary / MODEL, code.trainable_state_dict())
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (temporary / CARD).write_text(model_card(config))
        if optimizer is not None:
            _save_tensors(temporary / OPTIMIZER, optimizer)
        if state is not None:
            (temporary / STATE).write_text(json.dumps(dict(state), indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        temporary.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"could not save {folder} ({error}); earlier checkpoints are untouched: "
            "free space, then rerun the same command to resume from the last one"
        ) from error


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.is_dir())


def keep_last(run: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints of a run."""
    for old in checkpoints(run)[:-count]:
        with contextlib.suppress(OSError):  # one checkpoint too many is better than a stopped run
            shutil.rmtree(old)


def locate(place: str | Path) -> Path:
    """Return a checkpoint's folder: the given one, a run's last one, or one fetched by hub id.

    Raises:
        ValueError: the folder holds no checkpoint, or the hub has no such model.
    """
    folder = Path(place)
    if (folder / MODEL).is_file():
        return folder
    if saved := checkpoints(folder):
        return saved[-1]
    if folder.exists():
        raise ValueError(
            f"{folder} holds no checkpoint: neither {MODEL} nor checkpoints/step-*; "
            "train one with `codeseg train ROOT RUN`"
        )
    try:
        with hub_or_cache():
            wanted = [MODEL, CONFIG, CARD, SETTINGS]
            return Path(snapshot_download(str(place), allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{place} is neither a checkpoint folder nor a model on the hub ({reason})"
        ) from None


def find_settings(folder: Path) -> Path | None:
    """Return the settings.toml of a checkpoint, else of the RUN that it belongs to, else None."""
    places = [folder, *([folder.parents[1]] if folder.parent.name == "checkpoints" else [])]
    return next((p / SETTINGS for p in places if (p / SETTINGS).is_file()), None)


def push_to_hub(place: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a checkpoint to the Hugging Face hub and return the repository's URL.

    The upload contains the weights, the settings and a model card that names the repository.

    Args:
        place: a RUN folder (its last complete checkpoint) or a checkpoint folder.
        repository: "organization/name", created if necessary.
        private: whether a new repository is visible to its owner only.

    Raises:
        ValueError: there is no checkpoint, or the hub refuses.
    """
    folder = locate(place)
    card = (folder / CARD).read_text().replace(ANYWHERE, repository)
    added = [CommitOperationAdd(name, folder / name) for name in (MODEL, CONFIG)]
    if settings := find_settings(folder):
        added.append(CommitOperationAdd(SETTINGS, settings))
        card += f"\nPrediction settings:\n\n```toml\n{settings.read_text().strip()}\n```\n"
    added.append(CommitOperationAdd(CARD, card.encode()))
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, added, commit_message=f"Upload {folder.name} of codeseg")
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{repository} could not be pushed ({reason}): log in with `hf auth login`, or check "
            "the name and the connection"
        ) from None
    return str(address)


def load_checkpoint(place: str | Path) -> Checkpoint:
    """Read a checkpoint's config and trained tensors.

    Raises:
        ValueError: there is no checkpoint, or one of its files is damaged; names the file.
    """
    folder = locate(place)
    config = read_json(folder / CONFIG)
    for section in ("clip", "model"):
        if section not in config:
            raise ValueError(f"{folder / CONFIG} has no section {section!r}: not by codeseg")
    return Checkpoint(folder, config, load_tensors(folder / MODEL))


def load_model(
    place: str | Path,
    device: str | torch.device = "cpu",
    pretrained: str | None = None,
    weights: str | None = None,
) -> CoDe | Align:
    """Build the model of a checkpoint: its frozen parts by name, then the trained tensors.

    Args:
        place: a RUN folder, a checkpoint folder or a hub id.
        device: the model's device.
        pretrained: the new location of the CLIP's weights, if they have moved since training.
        weights: the new location of the weight file of an alignment's ViT, if it has moved.

    Raises:
        ValueError: the CLIP, or an alignment's ViT, is unavailable or not the one that the
            checkpoint was trained with, or the tensors do not fit the model.
    """
    checkpoint = load_checkpoint(place)
    identity = checkpoint.config["clip"]
    clip = FrozenClip.load(identity["model"], pretrained or identity["pretrained"], device=device)
    check_clip(identity, clip, str(checkpoint.folder))
    facts = checkpoint.config.get("backbone") or {}
    try:
        config = (AlignConfig if facts else CoDeConfig)(**checkpoint.config["model"])
    except TypeError as error:  # a field that this version does not know
        raise ValueError(
            f"{checkpoint.folder / CONFIG}: {error}; saved by codeseg "
            f"{checkpoint.config.get('codeseg')}, which differs from this version"
        ) from None
    model: CoDe | Align
    if isinstance(config, AlignConfig):
        file = weights or facts["weights"]
        if file and not Path(file).is_file():
            raise ValueError(
                f"{checkpoint.folder} needs the ViT {facts['name']} with the weights in {file}, "
                "which does not exist: give the file's new location with --weights FILE"
            )
        backbone = Backbone(facts["name"], file)
        found = {**facts, "weights_sha256": backbone.weights_sha256}  # `restore` compares it
        model = Align(clip, config, found, backbone)
    else:
        model = CoDe(clip, config)
    restore(model, checkpoint)
    return model.to(device)


def restore(code: Learner, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's tensors; refuse another ViT, and names or shapes that do not fit."""
    expected, actual = (
        f"ViT {facts['name']} (sha256 {facts['weights_sha256'][:12]}…)" if facts else "no ViT"
        for facts in (checkpoint.config.get("backbone"), code.backbone_facts)
    )
    if expected != actual:
        raise ValueError(f"{checkpoint.folder} was trained with {expected}, but this is {actual}")
    try:
        code.load_trainable_state_dict(checkpoint.tensors)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder / MODEL}: {error}") from None


def clip_identity(clip: FrozenClip) -> dict[str, Any]:
    """Return the identity of a frozen CLIP: architecture, weights, and their hash."""
    return {
        "model": clip.name,
        "pretrained": clip.pretrained,
        "weights_sha256": clip.weights_sha256,
    }


def check_clip(expected: Mapping[str, Any], clip: FrozenClip, owner: str) -> None:
    """Refuse a CLIP other than the one that made `owner`; the ValueError names both."""
    actual = clip_identity(clip)
    same = expected["weights_sha256"] == actual["weights_sha256"]
    if not same or expected["model"] != actual["model"]:
        raise ValueError(f"{owner} was made with {_spell(expected)}, but this is {_spell(actual)}")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raise ValueError if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object; raise ValueError if it is missing or does not parse."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not parse: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    return values


def model_card(config: Mapping[str, Any]) -> str:
    """Return the text of a checkpoint's README.md."""
    clip, train = config["clip"], config["train"]
    digest = str(clip["weights_sha256"])[:12]
    settings = "\n".join(f"| {key} | {value} |" for key, value in sorted(train.items()))
    data = "\n".join(_spell_source(source) for source in config.get("sources", ()))
    method = "CoDe (co-decomposition of images and captions) on"
    if vit := config.get("backbone"):
        method = (
            "A projection to the patch tokens of the frozen self-supervised ViT\n"
            f"`{vit['name']}` (sha256 {vit['weights_sha256'][:12]}…) from the text embeddings of"
        )
    return f"""---
library_name: codeseg
pipeline_tag: image-segmentation
license: apache-2.0
tags: [open-vocabulary-segmentation, weakly-supervised]
---

# An open-vocabulary segmenter learned from image-caption pairs

{method} the frozen CLIP `{clip["model"]}` /
`{clip["pretrained"]}` (sha256 {digest}…). No mask label was used. This folder holds what was
trained; frozen models are fetched by their name, and their weights are checked by their hash.

```python
from codeseg import Segmenter

segmenter = Segmenter.from_pretrained("{ANYWHERE}")
result = segmenter.segment("photo.jpg", "dog, red car, sofa/couch")
print(result)  # result["dog"], result.overlay(), result.save("segments")
```

Trained with codeseg {config["codeseg"]}:

| setting | value |
|---|---|
{settings}

Data:

{data or "- not recorded"}
"""


def _spell_source(source: Mapping[str, Any]) -> str:
    """Return one line about a dataset root: its manifest, its origin and the selection."""
    made_from = "; ".join(" ".join(map(str, entry)) for entry in source["made_from"])
    chosen = f", selection {source['selection']}" if source["selection"] else ""
    return f"- `{source['root']}`, manifest {source['manifest']}, made from {made_from}{chosen}"


def _spell(identity: Mapping[str, Any]) -> str:
    digest = str(identity["weights_sha256"])[:12]
    return f"CLIP {identity['model']}/{identity['pretrained']} (sha256 {digest}…)"


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Written as bytes, so that a full disk is an OSError and the umask sets the permissions.
    path.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def _flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
