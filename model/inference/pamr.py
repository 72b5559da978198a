"""Pixel-adaptive mask refinement (METHOD §8): an image and soft masks in, refined masks out.

Letters: B images, K classes, H W mask rows and columns, S = 8 neighbors per dilation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
ITERATIONS = 10
NEIGHBORS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]


def refine(
    masks_BKHW: Tensor,
    images_BCHW: Tensor,
    *,
    iterations: int = ITERATIONS,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Fit soft masks to the image's edges: (B, K, H, W).

    Args:
        masks_BKHW: soft masks.
        images_BCHW: images, resized (bilinear, align_corners) to the masks' size.
        iterations: how often every mask pixel becomes the affinity-weighted sum of its neighbors.
        dilations: of the 3 x 3 neighborhoods.
    """
    size = masks_BKHW.shape[-2:]
    images_BCHW = F.interpolate(images_BCHW, size, mode="bilinear", align_corners=True)
    weights_BSHW = affinity(images_BCHW, dilations)
    for _ in range(iterations):  # one shifted view at a time: memory for a few masks, whatever K is
        padded = _pad(masks_BKHW, dilations)
        refined = torch.zeros_like(masks_BKHW)
        for s, (row, column) in enumerate(_offsets(dilations)):
            refined.addcmul_(_shift(padded, dilations, row, column), weights_BSHW[:, s : s + 1])
        masks_BKHW = refined
    return masks_BKHW


def affinity(images_BCHW: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Return the similarity of every pixel to its neighbors: (B, S, H, W), summing to 1 over S.

    It is the softmax over S of the channels' mean of −|I_i − I_j| / (1e-8 + 0.1 σ_i), where σ_i is
    the unbiased deviation of the values of all 3 x 3 neighborhoods (54 values for six dilations).
    """
    padded = _pad(images_BCHW, dilations)
    offsets = _offsets(dilations)
    neighbors = torch.stack([_shift(padded, dilations, *offset) for offset in offsets])
    centers = images_BCHW.expand(len(dilations), *images_BCHW.shape)
    deviation_BCHW = torch.cat([neighbors, centers]).std(dim=0)
    distance = (neighbors - images_BCHW).abs() / (1e-8 + 0.1 * deviation_BCHW)
    return (-distance.mean(dim=2)).softmax(dim=0).transpose(0, 1)


def _offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    return [(row * d, column * d) for d in dilations for row, column in NEIGHBORS]


def _pad(x_BCHW: Tensor, dilations: Sequence[int]) -> Tensor:
    """Replicate the border by the largest dilation."""
    return F.pad(x_BCHW, (max(dilations),) * 4, mode="replicate")


def _shift(padded: Tensor, dilations: Sequence[int], row: int, column: int) -> Tensor:
    """Return a view of a padded map, shifted by `row` and `column` pixels down and right."""
    edge = max(dilations)
    H, W = padded.shape[-2] - 2 * edge, padded.shape[-1] - 2 * edge
    return padded[:, :, edge + row : edge + row + H, edge + column : edge + column + W]
