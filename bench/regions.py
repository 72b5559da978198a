"""The quality of regions before they are labeled: storybook pictures in, a table out.

    python -m bench.regions [--pictures 60] [--data demo-run/world/storybook_scenes]

Upper bound: mIoU if every region gets the label that most of its pixels have. Boundary F: the
F-score of region boundaries against label boundaries within 2 pixels, averaged over the pictures.
The time is that of `group_patches` alone, without the networks. Features: the tiny CLIP's keys, its
trunk's output, and the patches of a ViT (--vit, the embedded one). Without --data, the pictures are
development scenes (DEV_SEED), for choosing settings; with it, those of a storybook benchmark.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from codeseg.model.align.backbone import Backbone
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.inference.pamr import refine
from codeseg.model.pictures.pixels import rgb_pixels
from codeseg.model.regions.config import Grouping
from codeseg.model.regions.grouping import group_patches
from codeseg.model.regions.patch_features import clip_keys
from codeseg.model.regions.recognition import members
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.benchmark.metrics import Scores, confusion_matrix
from codeseg.pipeline.storybook import scenes as storybook

TOLERANCE = 2  # pixels
CLIP_SOURCES = ("keys", "trunk")


def edges(labels: NDArray[np.uint8]) -> torch.Tensor:
    """Return the pixels whose right or lower neighbor has another label: float (1, 1, H, W)."""
    found = np.zeros(labels.shape, dtype=np.float32)
    found[:, :-1] += labels[:, 1:] != labels[:, :-1]
    found[:-1] += labels[1:] != labels[:-1]
    return torch.from_numpy(found.clip(max=1))[None, None]


def covered(found: torch.Tensor, by: torch.Tensor) -> float:
    """Return the share of edge pixels that lie within the tolerance of another map's."""
    near = F.max_pool2d(by, 2 * TOLERANCE + 1, stride=1, padding=TOLERANCE)
    return float((found * near).sum() / found.sum().clamp(min=1))


def boundary_f(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Return the F-score of two label maps' boundaries, 0..1; 1 if neither has any."""
    ours, theirs = edges(found), edges(wanted)
    if not ours.any() and not theirs.any():
        return 1.0
    precision, recall = covered(ours, theirs), covered(theirs, ours)
    return 2 * precision * recall / max(precision + recall, 1e-12)


def region_labels(regions: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give every region the label that most of its pixels have."""
    votes = np.zeros((regions.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(votes, (regions, labels), 1)
    return votes.argmax(axis=1).astype(np.uint8)[regions]


@torch.no_grad()
def regions_of(
    clip: FrozenClip,
    image: torch.Tensor,
    source: str | Backbone,
    grouping: Grouping,
    pamr: bool,
) -> tuple[NDArray[np.uint8], int, float]:
    """Return regions at the picture's size, their number, and the grouping's seconds."""
    if isinstance(source, Backbone):
        features = source(clip.denormalize(image), clip.grid(image))
    else:
        tokens = clip.trunk(image)
        features = clip_keys(clip, tokens) if source == "keys" else tokens[:, 1:]
    start = time.perf_counter()
    regions = group_patches(features[0], clip.grid(image), grouping)
    seconds = time.perf_counter() - start
    flat = torch.from_numpy(regions).flatten()[None].long()
    shares = members(flat).float().view(1, -1, *regions.shape)
    if pamr:
        shares = refine(F.interpolate(shares, scale_factor=4, mode="bilinear"), image)
    mode = "bilinear" if pamr else "nearest"
    large = F.interpolate(shares, image.shape[-2:], mode=mode)[0].argmax(dim=0)
    return large.numpy().astype(np.uint8), shares.shape[1], seconds


def main() -> None:
    """Print one line per setting of the grouping."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--data", type=Path, help="folder of a storybook benchmark")
    parser.add_argument("--vit", default="storybook", help="the ViT beside the CLIP")
    parser.add_argument("--weights", help="file of its weights")
    arguments = parser.parse_args()
    clip = FrozenClip.load("storybook", "storybook")
    sources = (*CLIP_SOURCES, Backbone(arguments.vit, arguments.weights))
    if arguments.data:
        opened = load_benchmark(arguments.data.name).open(arguments.data)
        names = opened.ids[: arguments.pictures]
        drawn = [(rgb_pixels(opened.image_path(name)), opened.label(name)) for name in names]
    else:
        scenes = storybook.scenes(storybook.DEV_SEED, arguments.pictures)
        drawn = [(np.asarray(scene.image), scene.label) for scene in scenes]
    print("| features | method | K | edges | regions | upper bound | boundary F | ms |")
    print("|---|---|---|---|---|---|---|---|")
    for method in ("kmeans", "spectral"):
        for source in sources:
            for K in (8, 16, 32):
                for pamr in (False, True):
                    print(_line(clip, drawn, source, Grouping(method, K), pamr), flush=True)


def _line(
    clip: FrozenClip,
    drawn: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    source: str | Backbone,
    grouping: Grouping,
    pamr: bool,
) -> str:
    classes = len(storybook.CLASSES)
    matrix = np.zeros((classes, classes), dtype=np.int64)
    rows = []
    for pixels, labels in drawn:
        image = clip.normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        regions, number, seconds = regions_of(clip, image, source, grouping, pamr)
        matrix += confusion_matrix(labels, region_labels(regions, labels), classes)
        rows.append((number, boundary_f(regions, labels), seconds))
    number, f, seconds = np.mean(rows, axis=0)
    name = source.name if isinstance(source, Backbone) else source
    return (
        f"| {name} | {grouping.method} | {grouping.regions} | {'color' if pamr else 'patch'} "
        f"| {number:.1f} | {100 * Scores(matrix).miou:.1f} | {100 * f:.1f} | {1000 * seconds:.1f} |"
    )


if __name__ == "__main__":
    main()
