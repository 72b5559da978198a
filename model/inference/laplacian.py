"""Soft masks and an image -> masks that follow the image's edges: a sparse linear system on a grid.

This refinement is cheaper than PAMR: every mask is resized to a grid of at most 80 × 80, where
(1 + L) x = m is solved; L is the Laplacian of the grid's 8-neighborhood, weighted by the
similarity of two neighbors' colors. All masks of an image share the matrix, so it is eliminated
once, one row of the grid after another. The idea is PEARL's propagation; code, weights and
constants are our own.

Letters: B images, K classes, H W mask rows and columns, h w rows and columns of the grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 80  # maximum number of rows, and columns, of the grid
STRENGTH = 16.0  # weight of two neighbors of the same color; a pixel's own mask has weight 1
CONTRAST = 0.1  # difference of normalized colors (mean of channels) where that weight is 1/e
NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))


def propagate(masks_BKHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Spread soft masks, or cosines, between neighbors of similar color: (B, K, H, W).

    The normalized images may have any size. Values remain within the range of each mask.
    """
    H, W = masks_BKHW.shape[-2:]
    grid = (min(H, GRID), min(W, GRID))
    small_BKhw = F.interpolate(masks_BKHW, grid, mode="area")
    colors_BChw = F.interpolate(images_BCHW, grid, mode="area")
    weights = [_alike(colors_BChw, *step) for step in NEIGHBORS]
    solved_BKhw = _solve(small_BKhw, weights)
    return F.interpolate(solved_BKhw, (H, W), mode="bilinear", align_corners=False)


def _alike(colors_BChw: Tensor, row: int, column: int) -> Tensor:
    """Return the weight (B, 1, h', w') of every pair of pixels a step apart."""
    here, there = _pair(colors_BChw, row, column)
    difference = (here - there).abs().mean(dim=1, keepdim=True)
    return STRENGTH * torch.exp(-difference / CONTRAST)


def _pair(x: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Return views of the first and the second pixel of every pair a step apart."""
    h, w = x.shape[-2:]
    left, right = max(-column, 0), max(column, 0)
    return x[..., : h - row, left : w - right], x[..., row:, right : w - left]


def _solve(masks_BKhw: Tensor, weights: list[Tensor]) -> Tensor:
    """Return x of (1 + L) x = m for every mask.

    Only neighboring rows of the grid touch, so the matrix is block tridiagonal: w × w blocks
    `own` on the diagonal and `down` below it, eliminated from the first row to the last.
    """
    right, down, down_right, down_left = (weight[:, 0] for weight in weights)
    degree_Bhw = torch.ones_like(masks_BKhw[:, 0])
    for weight, step in zip((right, down, down_right, down_left), NEIGHBORS, strict=True):
        for end in _pair(degree_Bhw, *step):
            end += weight
    own_Bhww = torch.diag_embed(degree_Bhw)
    own_Bhww -= torch.diag_embed(right, 1) + torch.diag_embed(right, -1)
    lower_Bhww = -torch.diag_embed(down)
    lower_Bhww -= torch.diag_embed(down_right, -1) + torch.diag_embed(down_left, 1)
    factors, moved = [torch.linalg.cholesky(own_Bhww[:, 0])], []
    rows = list(masks_BKhw.permute(2, 0, 3, 1))  # h times (B, w, K)
    for i, lower in enumerate(lower_Bhww.unbind(1), start=1):
        moved.append(torch.cholesky_solve(lower.mT, factors[-1]))
        factors.append(torch.linalg.cholesky(own_Bhww[:, i] - lower @ moved[-1]))
        rows[i] = rows[i] - moved[-1].mT @ rows[i - 1]
    rows[-1] = torch.cholesky_solve(rows[-1], factors[-1])
    for i in range(len(moved) - 1, -1, -1):
        rows[i] = torch.cholesky_solve(rows[i], factors[i]) - moved[i] @ rows[i + 1]
    return torch.stack(rows, dim=2).permute(0, 3, 2, 1)
