"""Regions at inference (METHOD §9): label them, or average masks inside them.

Letters: W windows of a picture, K texts, P = 1 + Q image tokens, Q = h*w patches, R largest number
of regions of a window, C joint width, H W rows and columns of a mask.
Regions come from the frozen CLIP's own keys, or a ViT's patches, window by window.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.image_segmenter import MASK_PIXELS
from codeseg.model.inference.masks import resize
from codeseg.model.inference.pamr import refine
from codeseg.model.regions.config import Grouping
from codeseg.model.regions.grouping import group_patches
from codeseg.model.regions.recognition import RegionRecognizer, members, recognize


@dataclass(frozen=True)
class Regions:
    """The regions of some windows."""

    patches_WRQ: Tensor  # bool, which patches belong to which region; a region without is padding
    shares_WRHW: Tensor  # share of each pixel that belongs to each region, summing to 1 over R


def find_regions(
    features_WQD: Tensor,
    windows_WCHW: Tensor,
    grid: tuple[int, int],
    grouping: Grouping,
    *,
    follow_edges: bool,
) -> Regions:
    """Group each window's patches.

    Args:
        features_WQD: of the patches: the CLIP's keys, or another ViT's tokens.
        windows_WCHW: normalized, sides multiples of the patch size.
        grid: (h, w) of the patches.
        grouping: the settings.
        follow_edges: refine the regions by the picture's colors (PAMR), with as many mask pixels
            per patch as the segmenter; if off, regions consist of whole patches.
    """
    maps = [group_patches(features_QD, grid, grouping) for features_QD in features_WQD]
    regions_WQ = torch.stack([torch.from_numpy(m).flatten() for m in maps]).long()
    patches_WRQ = members(regions_WQ.to(features_WQD.device))
    shares_WRHW = patches_WRQ.to(features_WQD.dtype).view(*patches_WRQ.shape[:2], *grid)
    if follow_edges:
        shares_WRHW = F.interpolate(shares_WRHW, scale_factor=MASK_PIXELS, mode="bilinear")
        shares_WRHW = refine(shares_WRHW, windows_WCHW)
    return Regions(patches_WRQ, shares_WRHW)


def embed_regions(
    clip: FrozenClip, recognizer: RegionRecognizer | None, tokens_WPD: Tensor, regions: Regions
) -> Tensor:
    """Embed regions with the trained recognizer, or else the frozen CLIP: (W, R, C), unit."""
    if recognizer is not None:
        trained: Tensor = recognizer(tokens_WPD, regions.patches_WRQ)
        return trained
    copies_WRD = recognize(clip.last_block, tokens_WPD, regions.patches_WRQ)
    return F.normalize(clip.project(copies_WRD), dim=-1)


def label_regions(
    regions: Regions,
    embeddings_WRC: Tensor,
    texts_KC: Tensor,
    scale: float,
    threshold: float,
    *,
    cosines: bool = False,
) -> Tensor:
    """Return masks (W, K, H, W') with each region's score, sigmoid(scale · (cosine − threshold)).

    With `cosines`, the score is the cosine itself.
    """
    cosines_WRK = embeddings_WRC @ texts_KC.T
    scores_WRK = cosines_WRK if cosines else torch.sigmoid(scale * (cosines_WRK - threshold))
    return _paint(scores_WRK, regions)


def average_inside(masks_WKHW: Tensor, regions: Regions) -> Tensor:
    """Return masks (W, K, H, W') averaged within each region."""
    shares_WRHW = regions.shares_WRHW
    masks_WKHW = resize(masks_WKHW, shares_WRHW)
    sums_WRK = torch.einsum("wrxy,wkxy->wrk", shares_WRHW, masks_WKHW)
    areas_WR1 = shares_WRHW.sum(dim=(-2, -1))[..., None]
    return _paint(sums_WRK / areas_WR1.clamp(min=1e-6), regions)


def _paint(values_WRK: Tensor, regions: Regions) -> Tensor:
    """Return every pixel's mean over its regions, weighted by their shares."""
    return torch.einsum("wrk,wrxy->wkxy", values_WRK, regions.shares_WRHW)
