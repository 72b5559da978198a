"""Compare training-free methods, and Talk2DINO, with numbers of their authors' own code.

`python -m tests.reference_dense FILE.json FILE.npz` builds the CLIP that FILE.json describes, fills
it by the rule of tests.reference, runs every method of the file as `codeseg evaluate` does, trains
and scores texts against patches as method align does, and prints the largest difference of each
array, loss and gradient; a label map counts the pixels that differ but for ties. Exit status 1 if
any is out of tolerance, 2 on a wrong use. Letters: Q names, K classes.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from codeseg.model.align.alignment import Projection, caption_loss, own_vectors
from codeseg.model.align.backbone import class_attention, head_vectors
from codeseg.model.align.config import AlignConfig
from codeseg.model.clip import encoder, sc_clip
from codeseg.model.clip.dense import VARIANTS
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import TEMPLATES, template_embeddings
from codeseg.model.inference.decision import decide
from codeseg.model.inference.masks import clean, cut_to_patches, dense_logits, pad_to_patches
from codeseg.model.inference.segmenter import Segmenter, TextEmbeddings
from codeseg.model.inference.settings import PredictionSettings
from codeseg.model.inference.sliding import layout
from codeseg.model.pictures.resize import resize_pixels
from tests.reference import Difference, draw, show

TOLERANCE = 1e-5
LOOSER = {"before_projection": 1e-4, "probability": 2e-5, "outlier_score": 1e-3}
GRADIENT_TOLERANCE = 1e-4  # relative
PREFIX = "talk2dino/"
TIE = 1e-6
"""Probabilities, or a probability and its threshold, that count as equal."""


def build_clip(spec: dict[str, Any]) -> FrozenClip:
    """Build the CLIP and fill it."""
    shape = spec["clip"]
    clip = open_clip.CLIP(
        embed_dim=shape["embed_dim"],
        vision_cfg={
            "image_size": shape["image_size"],
            "layers": shape["vision_layers"],
            "width": shape["vision_width"],
            "head_width": shape["vision_width"] // shape["vision_heads"],
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
    parameters = dict(clip.named_parameters())
    for name, parameter in spec["parameters"].items():
        if not name.startswith("clip."):
            continue  # another method's
        ours = parameters[name.removeprefix("clip.")]
        value = draw(spec["seed_tag"], name, parameter["shape"], parameter["kind"])
        ours.data.copy_(value.view_as(ours))
    return FrozenClip(clip, "reference", "reference")


def settings_of(spec: dict[str, Any], method: dict[str, Any], name: str) -> PredictionSettings:
    """Say in our settings what the file says of a method."""
    refined = bool(method.get("pamr_iterations"))
    base = max((known for known in VARIANTS if name.startswith(known)), key=len)
    return PredictionSettings(
        method=base,
        normalisation="clip",
        resize="opencv",
        positions="factor",
        edges="pad" if "ClearCLIP" in method["code"] else "cut",
        short_side=spec["resize"]["short_side"],
        long_side=spec["resize"]["long_side"],
        window=method["window"],
        stride=method["stride"] or 1,
        refinement="pamr" if refined else "none",
        refine_at="picture",
        dilations=tuple(method.get("pamr_dilations") or (1,)),
        score="softmax",
        background="names",
        logit_scale=method["logit_scale"],
        probability_threshold=method["probability_threshold"] or 0.0,
        area_threshold=method["area_threshold"] or 0.0,
    )


def embed(clip: FrozenClip, names: list[str], templates: tuple[str, ...]) -> Tensor:
    """Return unit means over templates (Q, C)."""
    return F.normalize(template_embeddings(clip, names, templates).mean(1), dim=-1)


def text_arrays(clip: FrozenClip, spec: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names' embeddings and token ids."""
    names = [name for group in spec["classes"] for name in group]
    sentences = [[t.format(name) for t in spec["templates"]] for name in names]
    yield "input/tokens", torch.stack([clip.tokenize(rows) for rows in sentences])
    yield "text/embedding", embed(clip, names, tuple(spec["templates"]))
    yield "text/embedding_80", embed(clip, names, TEMPLATES)


def method_arrays(
    clip: FrozenClip, spec: dict[str, Any], name: str, pixels: Any, texts_QC: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Yield every array of one method, as our code computes it."""
    method = spec["methods"][name]
    settings = settings_of(spec, method, name)
    segmenter = Segmenter(clip, None, settings)
    owners = torch.tensor([k for k, group in enumerate(spec["classes"]) for _ in group])
    texts = TextEmbeddings(texts_QC, texts_QC, tuple(map(len, spec["classes"])))

    resized = resize_pixels(pixels, tuple(spec["resize"]["size"]))
    image = clip.normalize(torch.from_numpy(resized.copy()).permute(2, 0, 1), "clip")
    windows = layout(*resized.shape[:2], settings.window or max(resized.shape), settings.stride)
    corners = [list(corner) for corner in windows.corners]
    if "windows" in method and corners != method["windows"]:
        raise ValueError(f"{name}: windows at {method['windows']}, ours at {corners}")
    patch = clip.patch_size
    crops = windows.crops(image)
    crops = pad_to_patches(crops, patch)[0] if settings.edges == "pad" else crops
    window = cut_to_patches(crops, patch)[method["feature_window"]][None]
    states, grid = clip.states(window, by_factor=True), clip.grid(window)
    before = VARIANTS[settings.masks_by or ""](clip.last_block, states, *grid)[0, 1:]
    yield "before_projection", before
    yield "features", F.normalize(clip.project(before), dim=-1)
    if settings.masks_by == "scclip":
        yield "outlier_score", sc_clip.outlier_scores(states[-1][0, 1:])

    masks, finish = segmenter.stitching(pixels, texts)
    yield "window_logits", masks[[0, -1]] if len(masks) > 1 else masks
    yield "window_logits/last", masks[-1:]
    logits = torch.cat([maps for _, maps in finish(masks)])
    yield "logits", logits
    yield "probability", probabilities(logits, owners, settings, method)
    for label, thresholds in (
        ("label_argmax", (0.0, 0.0)),
        ("label_background", (settings.probability_threshold, settings.area_threshold)),
    ):
        yield label, decide(lambda: finish(masks), owners, settings.logit_scale, *thresholds)


def probabilities(
    logits_QHW: Tensor, owners_Q: Tensor, settings: PredictionSettings, method: dict[str, Any]
) -> Tensor:
    """Return class scores (K, H, W) after classes of little area lost theirs."""
    p_QHW = (settings.logit_scale * logits_QHW).softmax(0)
    classes = range(int(owners_Q.max()) + 1)
    p_KHW = torch.stack([p_QHW[owners_Q == k].amax(0) for k in classes])
    if settings.area_threshold:
        counts = torch.bincount(p_KHW.argmax(0).flatten(), minlength=len(classes))
        small = counts / counts[1:].sum().clamp(min=1) <= settings.area_threshold
        small[0] = False
        p_KHW[small] = 0
    return p_KHW / p_KHW.sum(0) if method.get("probability_divided_by_sum") else p_KHW


def differing(name: str, ours: Tensor, expected: Tensor, logits: Tensor, about: Any) -> float:
    """Count label pixels that differ and are no tie of two probabilities or of a threshold."""
    owners, settings, method = about
    p_KHW = probabilities(logits, owners, settings, {**method, "probability_divided_by_sum": False})
    if name == "label_argmax":
        raw = PredictionSettings(logit_scale=settings.logit_scale)
        p_KHW = probabilities(logits, owners, raw, {})
    both = [p_KHW.gather(0, label[None].long())[0] for label in (ours, expected)]
    tie = (both[0] - both[1]).abs() <= TIE
    if name == "label_background":
        tie |= (p_KHW.amax(0) - settings.probability_threshold).abs() <= TIE
    return float(((ours != expected) & ~tie).sum())


@torch.no_grad()
def compare(json_file: Path, npz_file: Path) -> list[Difference]:
    """Compare everything in the two files with our code."""
    spec = json.loads(json_file.read_text())
    with np.load(npz_file) as stored:
        expected = {
            name: torch.from_numpy(np.asarray(stored[name]).astype(_kind(stored[name])))
            for name in stored.files
        }
        pixels = stored["input/pixels"]
    encoder.CLIP_MEAN, encoder.CLIP_STD = spec["pixel_mean"], spec["pixel_std"]
    clip = build_clip(spec)
    resized = resize_pixels(pixels, tuple(spec["resize"]["size"])).astype(np.float32)
    ours = dict(text_arrays(clip, spec)) | {"input/resized": torch.from_numpy(resized)}
    ours["input/pixels"] = torch.from_numpy(pixels.astype(np.float32))
    report = [_difference(n, ours[n], expected[n]) for n in ours if n in expected]
    owners = torch.tensor([k for k, group in enumerate(spec["classes"]) for _ in group])
    for name, method in spec["methods"].items():
        about = (owners, settings_of(spec, method, name), method)
        arrays = dict(method_arrays(clip, spec, name, pixels, ours["text/embedding"]))
        for key, value in arrays.items():
            ours[full := f"{name}/{key}"] = value
            if full not in expected:
                continue
            if key.startswith("label"):
                wrong = differing(key, value, expected[full], arrays["logits"], about)
                report.append(Difference(full, wrong, 0.0))
                continue
            if key == "window_logits" and len(expected[full]) < len(value):
                value = arrays["window_logits/last"]
            report.append(_difference(full, value, expected[full]))
    if "talk2dino" in spec:
        report += talk2dino(spec, expected, ours)
    unknown = expected.keys() - ours.keys()
    if unknown:
        raise ValueError(f"{npz_file} has arrays that nothing here computes: {sorted(unknown)}")
    return report


def talk2dino(
    spec: dict[str, Any], expected: dict[str, Tensor], ours: dict[str, Tensor]
) -> Iterator[Difference]:
    """Compare every array, loss and gradient of Talk2DINO; the arrays are added to `ours`."""
    about = spec["talk2dino"]
    given = {n.removeprefix(PREFIX): v for n, v in expected.items() if n.startswith(PREFIX)}
    with torch.enable_grad():
        arrays, numbers = alignment_values(spec, given)
    for name, value in arrays.items():
        ours[PREFIX + name] = value
        yield _difference(PREFIX + name, value.detach(), expected[PREFIX + name])
    for name, value in numbers.items():
        wanted = about[name] if name in about else about["grad_norms"][name]
        tolerance = TOLERANCE if name in about else GRADIENT_TOLERANCE * abs(wanted)
        full = PREFIX + name.removeprefix("talk2dino.")
        yield Difference(full, abs(value - wanted), tolerance)


def alignment_values(
    spec: dict[str, Any], given: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return Talk2DINO's arrays, and its losses and norms of gradients, as our code computes them.

    Args:
        spec: the JSON file.
        given: the arrays that begin with `input/`; others are not read.
    """
    about, arrays = spec["talk2dino"], {n: v for n, v in given.items() if n.startswith("input/")}
    qkv, patches, texts = (arrays[f"input/{name}"] for name in ("qkv", "patches", "text"))
    heads, grid = about["heads"], (about["grid_rows"], about["grid_columns"])
    query, key, _ = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    arrays["attention_raw"] = raw = class_attention(query, key, about["global_tokens"])
    arrays["attention"], average = raw.softmax(-1), raw.mean(1, keepdim=True)
    arrays["attention_mean"] = average[:, 0].softmax(-1)
    arrays["head_vectors"] = vectors = head_vectors(patches, raw)
    mean_vectors = head_vectors(patches, average)
    arrays["mean_vector"] = mean_vectors[:, 0]

    projection = Projection(texts.shape[1], patches.shape[2])
    theirs = {"talk2dino.linear_layer": projection.first}
    theirs["talk2dino.hidden_layers.0"] = projection.second
    weights = {f"{n}.{k}": w for n, layer in theirs.items() for k, w in layer.named_parameters()}
    for name, weight in weights.items():
        parameter = spec["parameters"][name]
        value = draw(spec["seed_tag"], name, parameter["shape"], parameter["kind"])
        weight.data.copy_(value.view_as(weight))
    scale = torch.tensor(about["logit_scale"], requires_grad=True)
    config = AlignConfig(temperature=(-scale).exp())  # type: ignore[arg-type]  # for its gradient
    projected = projection(texts)
    arrays["text_projected"] = F.normalize(projected, dim=-1)
    numbers: dict[str, float] = {}
    for suffix, offered in (("_mean_vector", mean_vectors), ("", vectors)):
        own = own_vectors(projected, offered)
        scores = arrays["text_projected"] @ own.T
        arrays[f"scores{suffix}"] = scores
        loss = caption_loss(scores, config)
        numbers[f"loss{suffix}"] = loss.item()
    arrays["head_index"] = (F.normalize(vectors, dim=-1) == own[:, None]).all(-1).int().argmax(1)
    gradients = torch.autograd.grad(loss, [*weights.values(), scale])
    numbers |= {n: g.norm().item() for n, g in zip(weights, gradients, strict=False)}
    numbers["talk2dino.logit_scale"] = gradients[-1].item()

    words = arrays["class_embedding"] = projection.things(arrays["input/class_sentences"])
    units = F.normalize(patches[:1], dim=-1).mT.unflatten(-1, grid)
    arrays["similarity"] = cosines = dense_logits(units, words, 1.0, 0.0)
    arrays["mask"] = masks = torch.sigmoid(cosines)
    arrays["mask_cleaned"] = clean(masks, words, patches[:1], raw[:1], about["lambda_background"])
    return arrays, numbers


def _kind(array: Any) -> type:
    return np.int64 if array.dtype.kind in "iu" and array.ndim == 2 else np.float32


def _difference(name: str, ours: Tensor, expected: Tensor) -> Difference:
    tolerance = LOOSER.get(name.rpartition("/")[2], TOLERANCE)
    if ours.shape != expected.shape:
        return Difference(f"{name} {tuple(ours.shape)}", float("nan"), tolerance)
    return Difference(name, (ours.float() - expected.float()).abs().max().item(), tolerance)


main = partial(show, "tests.reference_dense", compare)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
