"""A model name and a hub tag, weight file or seed -> an open_clip model, if it is supported."""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from codeseg.model.clip.hub import announce, hub_or_cache
from codeseg.model.clip.weight_files import check_fit, read_weights

BPE_VOCABULARY = 49408  # CLIP's byte-pair tokens, SOS and EOS the last two
MOST_LAYERS = 256  # per tower; the largest CLIP has 56
WEIGHTS = Path(__file__).parents[1] / "weights"


def build_clip(model: str, pretrained: str) -> open_clip.CLIP:
    """Build a CLIP and load its weights; arguments and errors are those of `FrozenClip.load`."""
    config = read_config(model)
    if pretrained.split(":")[0] == "random":
        seed = pretrained.partition(":")[2] or "0"
        if not re.fullmatch("[0-9]{1,18}", seed):
            raise ValueError(f"pretrained {pretrained!r}: random[:seed] takes a number")
        return _build(config, model, int(seed))
    path, quick_gelu = find_weights(model, pretrained)
    config["quick_gelu"] = config.get("quick_gelu", False) or quick_gelu
    other = f"{model}-quickgelu"
    if Path(pretrained).is_file() and not config["quick_gelu"] and other in open_clip.list_models():
        warnings.warn(
            f"{pretrained} runs with GELU; if it was trained with QuickGELU, as OpenAI's, "
            f"MetaCLIP's and DFN's CLIPs were, use the model name {other}",
            stacklevel=2,
        )
    clip = _build(config, model, 0)
    _fill(clip, path, model)
    return clip


def read_config(model: str) -> dict[str, Any]:
    """Return an open_clip config by name, JSON path or "storybook"; refuse any other name."""
    path = WEIGHTS / "storybook.json" if model == "storybook" else Path(model)
    if path.suffix == ".json":
        if not path.is_file():
            raise ValueError(f"CLIP config {path} does not exist")
        try:
            config = json.loads(path.read_text())
            config = dict(config.get("model_cfg", config))
        except (ValueError, TypeError, AttributeError):
            config = {}
        if not all(isinstance(config.get(name), dict) for name in ("vision_cfg", "text_cfg")):
            raise ValueError(f"{path} is not an open_clip config: it lacks vision_cfg or text_cfg")
        return config
    config = open_clip.get_model_config(model) if ":" not in model else None
    if config is None:
        raise ValueError(
            f"unknown CLIP {model!r}: name a model of open_clip (open_clip.list_models()), "
            "a JSON config, or storybook"
        )
    return dict(config)


def find_weights(model: str, pretrained: str) -> tuple[Path, bool]:
    """Return the weight file and whether, according to its tag, QuickGELU was used in training."""
    if pretrained == "storybook":
        return WEIGHTS / "storybook.safetensors", False
    if Path(pretrained).is_file():
        return Path(pretrained), False
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(
            f"weights {pretrained!r} of {model} are neither a file nor a known tag ({known})"
        )
    # The hub's client logs every retry; without a network, the user should see only our error.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    try:
        with hub_or_cache():
            announce(tag.get("hf_hub", ""), f"{model}/{pretrained}")
            path = open_clip.download_pretrained(tag)
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(
            f"the weights {pretrained!r} of {model} are not on this machine and cannot be fetched "
            f"from the hub ({type(error).__name__}): connect it to a network, give a file with "
            "--pretrained FILE, or take --clip storybook, which knows drawings only"
        ) from error
    return Path(path), bool(tag.get("quick_gelu", False))


def _build(config: dict[str, Any], model: str, seed: int) -> open_clip.CLIP:
    """Build a CLIP with random weights from a config, the same for the same seed."""
    layers = [config[tower].get("layers") for tower in ("vision_cfg", "text_cfg")]
    unsupported = {
        f"more than {MOST_LAYERS} layers": any(
            isinstance(n, int) and n > MOST_LAYERS for n in layers
        ),
        "timm_model_name": config["vision_cfg"].get("timm_model_name"),
        "hf_model_name": config["text_cfg"].get("hf_model_name"),
        "hf_tokenizer_name": config["text_cfg"].get("hf_tokenizer_name"),
        "custom_text": config.get("custom_text"),
        "multimodal_cfg": config.get("multimodal_cfg"),
    }
    for key, value in unsupported.items():
        if value:
            raise _unsupported(model, f"its config has {key}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return open_clip.CLIP(**{k: v for k, v in config.items() if k != "custom_text"})
        except Exception as error:  # sizes that are invalid or exceed the memory
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"CLIP {model} cannot be built from its config: {reason}") from error


def _fill(clip: open_clip.CLIP, path: Path, model: str) -> None:
    """Load a file's weights as open_clip does, converting other names and grid sizes."""
    state = read_weights(path)
    try:
        state = convert_state_dict(clip, state)
        if "logit_scale" in state:
            state["logit_scale"] = state["logit_scale"].reshape(clip.logit_scale.shape)
        resize_pos_embed(state, clip)
        resize_text_pos_embed(state, clip)
        check_fit(clip, state)
    except Exception as error:  # open_clip raises many kinds
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"CLIP weights {path} do not fit {model}: {reason}") from error
    clip.load_state_dict(state)


def refuse_unsupported(clip: Any, name: str) -> None:
    """Refuse a CLIP other than a plain ViT with a class token and a causal text tower read at EOS.

    The ValueError names the reason.
    """
    visual = getattr(clip, "visual", None)
    if type(clip) is not open_clip.CLIP or not isinstance(visual, VisionTransformer):
        raise _unsupported(name, f"it is a {type(clip).__name__} with {type(visual).__name__}")
    blocks = [*visual.transformer.resblocks, *clip.transformer.resblocks]
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        raise _unsupported(name, "its transformer blocks are not the standard ones")
    if visual.pool_type != "tok" or visual.attn_pool is not None or visual.proj is None:
        raise _unsupported(name, "its image embedding is not a projected class token")
    if clip.attn_mask is None or clip.text_pool_type not in ("argmax", "eos"):
        raise _unsupported(name, "its text encoder is not causal and read at EOS")
    if not isinstance(clip.text_projection, nn.Parameter):
        raise _unsupported(name, "its text projection is not a plain matrix")
    if clip.vocab_size < BPE_VOCABULARY:
        raise _unsupported(name, "its vocabulary is not CLIP's byte pairs")
    if visual.transformer.layers < 2:
        raise _unsupported(name, "it has fewer than two vision blocks")


def _unsupported(name: str, why: str) -> ValueError:
    return ValueError(
        f"CLIP {name!r} is not supported ({why}): use a plain ViT with CLIP's own text encoder"
    )


def hash_weights(clip: open_clip.CLIP) -> str:
    """Return the SHA-256 of all weights' names, shapes and fp32 bytes, and of QuickGELU.

    The activation is not a weight, and no weight file names it, but it changes the model.
    """
    quick = isinstance(clip.transformer.resblocks[0].mlp.gelu, QuickGELU)
    return hash_state(clip.state_dict(), b"QuickGELU" if quick else b"")


def hash_state(state: Mapping[str, Tensor], more: bytes = b"") -> str:
    """Return the SHA-256 over `more` and the names, shapes and fp32 bytes of all weights."""
    digest = hashlib.sha256(more)
    for name, weight in sorted(state.items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
