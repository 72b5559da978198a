"""Compare the model with the reference implementation's numbers.

`python -m tests.reference FILE.json FILE.npz` builds the CLIP and the CoDe that FILE.json
describes, fills them by the rule below, and prints the largest difference of every array, loss and
gradient norm of the two files; exit status 1 if any is out of tolerance, 2 on a wrong use.

The rule: for each parameter, x = standard normal from PCG64(crc32(f"{seed_tag}:{name}")), scaled by
its kind, rounded through float16. Letters are those of `codeseg.model.code.codecomposition`.
"""

import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import Templates, template_embeddings
from codeseg.model.code.batch import Batch
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.composition import Losses
from codeseg.model.code.config import CoDeConfig
from codeseg.model.inference.masks import pad_to_patches, resize
from codeseg.model.inference.segmenter import Segmenter, TextEmbeddings
from codeseg.model.inference.settings import PredictionSettings

ARRAY_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # relative

# The reference's names -> ours. The last block's index is that of the block it was copied from.
PARAMETERS = {
    r"learnable_image_bg": "region_prompt",
    r"bg_text": "word_prompt",
    r"clip_text_encoder\.prompt_learner\.ctx": "noun_prompt.context",
    r"masker\.image_encoder\.backbone\.transformer\.resblocks\.\d+\.": "image_segmenter.block.",
    r"masker\.image_encoder\.decoder\.decoder\.net\.(\d+)\.conv\.norm\.": (
        r"image_segmenter.stages.\1.norm."
    ),
    r"masker\.image_encoder\.decoder\.decoder\.net\.(\d+)\.conv\.conv\.": (
        r"image_segmenter.stages.\1.conv."
    ),
    r"masker\.image_encoder\.decoder\.decoder\.net\.(\d+)\.conv\.gate\.gate": (
        r"image_segmenter.stages.\1.gate"
    ),
    r"masker\.image_encoder\.decoder\.image_proj\.ln\.": "image_segmenter.ln_post.",
    r"masker\.image_encoder\.decoder\.image_proj\.proj": "image_segmenter.proj",
    r"masker\.sim2mask\.w": "image_segmenter.mask_scale",
    r"masker\.sim2mask\.b": "image_segmenter.mask_bias",
    r"text_decoder\.transformer\.resblocks\.": "text_segmenter.blocks.",
    r"text_mask_w": "text_segmenter.mask_scale",
    r"text_mask_b": "text_segmenter.mask_bias",
    r"tclf_loss\.logit_scale": "tcl_feature_temperature",
    r"tcli_loss\.logit_scale": "tcl_image_temperature",
    r"hcl_loss\.logit_scale": "hcl_temperature",
    r"clip\.": "clip.clip.",
}
TERMS = {
    "kg_loss": "kg",
    "hlf_noun_loss": "tcl_feature",
    "hli_noun_loss": "tcl_image",
    "tv_img_loss": "tv_embedding",
    "tv_mask_loss": "tv_mask",
    "area_loss": "area_positive",
    "neg_area_loss": "area_negative",
    "tseg_loss": "word",
    "hcl_loss": "hcl",
}
SCALES = {
    "norm_weight": lambda x: 1 + 0.1 * x,
    "bias": lambda x: 0.02 * x,
    "embedding": lambda x: 0.1 * x,
    "gate": lambda x: 0.5 + 0.1 * x,
    "prompt": lambda x: 0.3 * x,
    "matrix": lambda x: x / np.sqrt(prod(x.shape[1:])),
    "proj": lambda x: x / np.sqrt(x.shape[0]),
}


@dataclass(frozen=True)
class Difference:
    """One line of the report."""

    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Within tolerance (a NaN is not)."""
        return self.difference <= self.tolerance


def our_name(name: str) -> str:
    """Translate a reference parameter's name."""
    for pattern, ours in PARAMETERS.items():
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", ours, name)
    raise ValueError(f"parameter {name} is not one of the model's")


def draw(seed_tag: str, name: str, shape: list[int], kind: str) -> Tensor:
    """Draw a parameter's values by the rule."""
    if kind not in SCALES:
        raise ValueError(f"parameter {name} is of unknown kind {kind!r}")
    seed = zlib.crc32(f"{seed_tag}:{name}".encode())
    x = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return torch.from_numpy(np.asarray(SCALES[kind](x)).astype(np.float16).astype(np.float32))


def build(spec: dict[str, Any]) -> CoDe:
    """Build the model that the JSON file describes and fill it."""
    shape = spec["clip"]
    clip = open_clip.CLIP(
        embed_dim=shape["embed_dim"],
        vision_cfg={
            "image_size": shape["image_size"],
            "layers": shape["vision_layers"],
            "width": shape["vision_width"],
            "patch_size": shape["patch_size"],
        },
        text_cfg={
            "context_length": shape["context_length"],
            "vocab_size": shape["vocab_size"],
            "width": shape["text_width"],
            "heads": shape["text_heads"],
            "layers": shape["text_layers"],
        },
        quick_gelu=shape["act"] == "quick_gelu",
    )
    config = CoDeConfig(nouns_per_image=len(spec["selected_nouns"]), attend_padding=True)
    code = CoDe(FrozenClip(clip, "reference", "reference"), config)
    parameters = dict(code.named_parameters())
    for name, parameter in spec["parameters"].items():
        ours = parameters[our_name(name)]
        value = draw(spec["seed_tag"], name, parameter["shape"], parameter["kind"])
        if ours is code.region_prompt:  # its size need not be the image's
            ours.data = value[0]
        elif ours.numel() == value.numel():
            ours.data.copy_(value.view_as(ours))
        else:
            raise ValueError(f"{name} has shape {parameter['shape']}, ours {list(ours.shape)}")
    return code


def noun_tokens(code: CoDe, nouns: list[str]) -> tuple[Tensor, Tensor]:
    """Return BPE ids (U, M) without SOS and EOS, zero-padded, and their counts (U)."""
    ids = [code.clip.tokenizer.encode(noun) for noun in nouns]
    longest = max(map(len, ids))
    padded = [row + [0] * (longest - len(row)) for row in ids]
    return torch.tensor(padded), torch.tensor([len(row) for row in ids])


def batch_of(code: CoDe, spec: dict[str, Any], arrays: dict[str, Tensor]) -> Batch:
    """Make the batch that the two files describe, as the trainer would pass it."""
    nouns = [noun for row in spec["selected_nouns"] for noun in row]
    distinct = sorted(set(nouns))
    tokens_UM, lengths_U = noun_tokens(code, distinct)
    captions_BL = arrays["input/caption_tokens"]
    return Batch(
        pixels_BCHW=arrays["input/image"],
        caption_tokens_BL=captions_BL,
        caption_lengths_B=captions_BL.argmax(dim=1) + 1,
        labels_BL=arrays["input/pseudo_label"],
        noun_tokens_UM=tokens_UM,
        noun_lengths_U=lengths_U,
        noun_index_N=torch.tensor([distinct.index(noun) for noun in nouns]),
        knowledge_UC=Templates(code.clip)(
            code.clip, torch.zeros_like(lengths_U), tokens_UM, lengths_U
        ),
    )


def training_arrays(code: CoDe, batch: Batch) -> tuple[dict[str, Tensor], Losses]:
    """Run one step; return the arrays under the reference's names, and the losses."""
    composition = code.decompose(batch)
    captions = composition.captions
    assert captions is not None
    pixels_BCHW, nouns_AC = composition.pixels_BCHW, composition.nouns_AC
    soft_BAHW = code.image_segmenter.mask_logits(pixels_BCHW, nouns_AC).sigmoid()
    arrays = {
        "feature_map": composition.pixels_BCHW,
        "noun_embedding": composition.nouns_NC,
        "knowledge_embedding": composition.knowledge_NC,
        "mask/pos": composition.hard_JBHW.flatten(0, 1)[:, None],
        "mask/soft_pos": composition.masks.soft_JBHW.flatten(0, 1)[:, None],
        "mask/soft_all": soft_BAHW.repeat(code.config.nouns_per_image, 1, 1, 1),
        "region_embedding": composition.regions_NC,
        "word_features": captions.words_BLC,
        "word_logits": captions.logits_BKL,
        "word_mask": captions.masks_NL,
        "word_segment_embedding": captions.embeddings_NC,
    }
    return arrays, code.losses(composition)


def evaluation_arrays(code: CoDe, spec: dict[str, Any], image: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of METHOD §8 for one window."""
    classes = spec["eval_classes"]
    tokens = noun_tokens(code, classes)
    class_KC = code.noun_embeddings(*tokens)
    template_KC = template_embeddings(code.clip, classes).mean(1)
    template_KC = torch.nn.functional.normalize(template_KC, dim=-1)
    yield "eval/class_embedding", class_KC
    yield "eval/template_embedding", template_KC
    padded, (left, right, top, bottom) = pad_to_patches(image, code.clip.patch_size)
    H, W = padded.shape[-2:]
    for refine in (False, True):
        for weight in (0.0, 0.3):
            refinement = "pamr" if refine else "none"
            settings = PredictionSettings.for_clip(
                code.clip, refinement=refinement, knowledge_weight=weight
            )
            masks = Segmenter(code.clip, code, settings).window_masks(
                padded, TextEmbeddings(class_KC, template_KC)
            )
            masks = resize(masks, padded)[:, :, top : H - bottom, left : W - right]
            yield f"eval/masks_pamr{int(refine)}_kp{weight}", masks


def compare(json_file: Path, npz_file: Path) -> list[Difference]:
    """Compare everything in the two files with our model."""
    spec = json.loads(json_file.read_text())
    with np.load(npz_file) as arrays:
        expected = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    code = build(spec)
    ours, losses = training_arrays(code, batch_of(code, spec, expected))
    losses.total.backward()
    with torch.no_grad():
        ours |= dict(evaluation_arrays(code, spec, expected["input/eval_image"]))
    known = {*ours, *(name for name in expected if name.startswith(("input/", "loss/")))}
    if unknown := expected.keys() - known:
        raise ValueError(f"{npz_file} has arrays that nothing here computes: {sorted(unknown)}")

    report = []
    for name in sorted(ours.keys() & expected.keys()):
        difference = (ours[name] - expected[name]).abs().max()
        report.append(Difference(name, difference.item(), ARRAY_TOLERANCE))
    terms = {"total": losses.total} | {theirs: losses[name] for theirs, name in TERMS.items()}
    for name, value in spec["losses"].items():
        difference = abs(terms[name.removeprefix("loss/")].item() - value)
        report.append(Difference(name, difference, LOSS_TOLERANCE))
    parameters = dict(code.named_parameters())
    for name, norm in spec["grad_norms"].items():
        gradient = parameters[our_name(name)].grad
        ours_norm = float("nan") if gradient is None else gradient.norm().item()
        relative = abs(ours_norm - norm) / max(norm, 1e-12)
        report.append(Difference(f"grad {name}", relative, GRADIENT_TOLERANCE))
    return report


def show(
    program: str, compare: Callable[[Path, Path], list[Difference]], arguments: list[str]
) -> int:
    """Print what `compare` reports of two files and return the exit status."""
    if len(arguments) != 2:
        print(f"usage: python -m {program} FILE.json FILE.npz", file=sys.stderr)
        return 2
    try:
        report = compare(Path(arguments[0]), Path(arguments[1]))
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in report:
        mark = "ok " if line.ok else "OUT"
        print(f"{mark} {line.difference:9.2e} (<= {line.tolerance:.0e})  {line.name}")
    wrong = sum(not line.ok for line in report)
    print(f"{len(report) - wrong} of {len(report)} within tolerance")
    return int(wrong > 0)


main = partial(show, "tests.reference", compare)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
