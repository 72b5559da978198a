"""Soft masks and an image -> masks that follow the image's edges: a sparse linear system on a grid.

A far cheaper refinement than PAMR: every mask is resized to a grid of at most 80 × 80, where
(1 + L) x = m is solved by conjugate gradients; L is the Laplacian of the grid's 8-neighborhood,
weighted by the similarity of two neighbors' colors. Our implementation of the idea of PEARL's
propagation, not its code: weights and constants are our own.

Letters: B images, K classes, H W mask rows and columns, h w rows and columns of the grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 80
"""Most rows, and columns, of the grid."""
STEPS = 25
"""Steps of conjugate gradients."""
STRENGTH = 16.0
"""Weight of two neighbors of the same color; a pixel's own mask has weight 1."""
CONTRAST = 0.1
"""Difference of normalized colors (mean over channels) at which that weight falls to 1/e."""
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def propagate(masks_BKHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Spread the masks between similar neighbors.

    Args:
        masks_BKHW: soft masks or cosines.
        images_BCHW: normalized images of any size.

    Returns:
        (B, K, H, W), within the range of each mask.
    """
    H, W = masks_BKHW.shape[-2:]
    grid = (min(H, GRID), min(W, GRID))
    small_BKhw = F.interpolate(masks_BKHW, grid, mode="area")
    colours_BChw = F.interpolate(images_BCHW, grid, mode="area")
    weights = [_alike(colours_BChw, *step) for step in NEIGHBOURS]
    solved_BKhw = _solve(small_BKhw, weights)
    return F.interpolate(solved_BKhw, (H, W), mode="bilinear", align_corners=False)


def _alike(colours_BChw: Tensor, row: int, column: int) -> Tensor:
    """Return the weight (B, 1, h', w') of every pair of pixels a step apart."""
    here, there = _pair(colours_BChw, row, column)
    difference = (here - there).abs().mean(dim=1, keepdim=True)
    return STRENGTH * torch.exp(-difference / CONTRAST)


def _pair(x: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Return views of the first and the second pixel of every pair a step apart."""
    h, w = x.shape[-2:]
    left, right = max(-column, 0), max(column, 0)
    return x[..., : h - row, left : w - right], x[..., row:, right : w - left]


def _solve(masks_BKhw: Tensor, weights: list[Tensor]) -> Tensor:
    """Solve (1 + L) x = m by conjugate gradients, with every mask as a right-hand side."""

    def apply(x: Tensor) -> Tensor:
        y = x.clone()
        for weight, step in zip(weights, NEIGHBOURS, strict=True):
            here, there = _pair(x, *step)
            flow = weight * (here - there)
            first, second = _pair(y, *step)
            first += flow
            second -= flow
        return y

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(-2, -1), keepdim=True)

    x = masks_BKhw.clone()
    residual = masks_BKhw - apply(x)
    direction, error = residual, dot(residual, residual)
    for _ in range(STEPS):
        moved = apply(direction)
        step = error / dot(direction, moved).clamp(min=1e-20)
        x = x + step * direction
        residual = residual - step * moved
        before, error = error, dot(residual, residual)
        direction = residual + error / before.clamp(min=1e-20) * direction
    return x
