"""Patch features of a picture (P, D) -> spatially consistent regions, uint8 (h, w) (METHOD §9).

Letters: P = h*w patches in scan order, D feature width, K requested clusters, S restarts, R
connected components. Nothing is trained. The result is a pure function of features and settings.

Features are compared by the cosine of their deviation from the picture's mean feature: patches of
one picture share a large common component that would hide their differences.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from codeseg.model.regions.config import Grouping

SAME = 1e-4  # squared distance of unit features below which two patches are the same (0.6 degrees)
LEAST_DEVIATION = 1e-3  # shorter deviations from the mean are not stretched to unit length
FAR = 1e3  # a coordinate far from any unit feature
RESTARTS = 3
ITERATIONS = 30
LEAST_AFFINITY = 1e-5  # keeps the graph of the normalized cut connected


def group_patches(
    features_PD: Tensor, grid: tuple[int, int], grouping: Grouping
) -> NDArray[np.uint8]:
    """Divide one picture into regions.

    Args:
        features_PD: one feature per patch in scan order, of any float type and on any device.
        grid: (h, w) with h*w = P.
        grouping: the settings.

    Returns:
        Region numbers (h, w), contiguous from 0 in order of first occurrence. Every region is
        4-connected and has at least `min_patches` patches (unless it is the whole picture); there
        are at most `regions`. A picture whose patches are all the same is one region.

    Raises:
        ValueError: there are not h*w features, or they are not finite.
    """
    h, w = grid
    if features_PD.ndim != 2 or len(features_PD) != h * w or h * w == 0:
        shape = tuple(features_PD.shape)
        raise ValueError(f"features of shape {shape} do not fill a patch grid of {h}x{w}")
    if not bool(features_PD.isfinite().all()):
        raise ValueError(
            "patch features hold NaN or infinite values: the picture cannot be grouped"
        )
    points_PD = deviations(features_PD)
    cluster = normalized_cut if grouping.method == "spectral" else kmeans
    labels_P = cluster(points_PD, min(grouping.regions, h * w), grouping.seed)
    components = connected_components(labels_P.numpy().reshape(h, w))
    return merge_small(components, points_PD.numpy(), grouping.min_patches, grouping.regions)


def deviations(features_PD: Tensor) -> Tensor:
    """Return unit vectors (P, D) along each feature's deviation from the mean; fp32, on the CPU.

    Deviations below `LEAST_DEVIATION` (of unit features) are rounding errors and remain short.
    """
    unit_PD = F.normalize(features_PD.detach().float().cpu(), dim=-1)
    return F.normalize(unit_PD - unit_PD.mean(dim=0), dim=-1, eps=LEAST_DEVIATION)


def kmeans(points_PD: Tensor, clusters: int, seed: int) -> Tensor:
    """Run Lloyd's k-means from k-means++ centers on fp32 points; keep the best of `RESTARTS`.

    Return cluster numbers (P,), int64 in 0..K-1 with K = `clusters`, at most P. Numbers are missing
    if fewer points differ.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = [_first_centers(points_PD, clusters, generator) for _ in range(RESTARTS)]
    centers_SKD = torch.stack(starts)
    labels_SP = _nearest(points_PD, centers_SKD)[1]
    for _ in range(ITERATIONS):
        members_SKP = F.one_hot(labels_SP, clusters).mT.float()
        sizes_SK1 = members_SKP.sum(dim=-1, keepdim=True)
        means_SKD = members_SKP @ points_PD / sizes_SK1.clamp(min=1)
        centers_SKD = torch.where(sizes_SK1 > 0, means_SKD, centers_SKD)
        previous_SP, labels_SP = labels_SP, _nearest(points_PD, centers_SKD)[1]
        if torch.equal(previous_SP, labels_SP):
            break
    distances_SP, labels_SP = _nearest(points_PD, centers_SKD)
    return labels_SP[distances_SP.sum(dim=-1).argmin()]


def _first_centers(points_PD: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw k-means++ centers (K, D), each by its squared distance to the earlier ones."""
    first = torch.randint(len(points_PD), (), generator=generator)
    centers = [points_PD[first]]
    distance_P = (points_PD - centers[0]).square().sum(dim=-1)
    while len(centers) < clusters:
        if distance_P.max() <= SAME:  # no other patch differs: this cluster remains empty
            centers.append(torch.full_like(centers[0], FAR))
            continue
        drawn = torch.multinomial(distance_P, 1, generator=generator)[0]
        centers.append(points_PD[drawn])
        distance_P = distance_P.minimum((points_PD - centers[-1]).square().sum(dim=-1))
    return torch.stack(centers)


def _nearest(points_PD: Tensor, centers_SKD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance (S, P) to the nearest center, and its index (S, P).

    |p|² is the same for every center and is left out. The first of equal centers wins.
    """
    distances_SPK = centers_SKD.square().sum(dim=-1)[:, None] - 2 * points_PD @ centers_SKD.mT
    nearest = distances_SPK.min(dim=-1)
    return nearest.values, nearest.indices


def normalized_cut(points_PD: Tensor, clusters: int, seed: int) -> Tensor:
    """Run spectral clustering: k-means on leading eigenvectors of the normalized cosine affinity.

    Eigenvectors are weighted by their eigenvalues, so that meaningless directions (identical
    patches cause many) cannot separate equal patches. Arguments and result are those of `kmeans`.
    """
    if bool((points_PD - points_PD[0]).square().sum(dim=-1).max() <= SAME):
        return torch.zeros(len(points_PD), dtype=torch.int64)
    affinity_PP = (points_PD @ points_PD.T).clamp(min=LEAST_AFFINITY).double()
    scale_P = affinity_PP.sum(dim=-1).rsqrt()
    values_P, vectors_PP = torch.linalg.eigh(scale_P[:, None] * affinity_PP * scale_P)
    weighted_PK = vectors_PP[:, -clusters:] * values_P[-clusters:].clamp(min=0)
    return kmeans(F.normalize(weighted_PK, dim=-1).float(), clusters, seed)


def connected_components(labels_HW: NDArray[Any]) -> NDArray[np.int64]:
    """Number the 4-connected components of equal labels from 0, in order of first occurrence.

    Every patch starts with its own index, then takes the smallest number among its equal neighbors
    and of the patch with that number (pointer jumping), until nothing changes.
    """
    h, w = labels_HW.shape
    same_across = labels_HW[:, 1:] == labels_HW[:, :-1]
    same_down = labels_HW[1:] == labels_HW[:-1]
    numbers = np.arange(h * w).reshape(h, w)
    while True:
        lowest = numbers.copy()
        for same, one, other in (
            (same_across, lowest[:, 1:], lowest[:, :-1]),
            (same_down, lowest[1:], lowest[:-1]),
        ):
            smaller = np.minimum(one, other)
            np.minimum(one, smaller, out=one, where=same)  # the views overlap: never raise
            np.minimum(other, smaller, out=other, where=same)
        lowest = lowest.ravel()[lowest]
        if np.array_equal(lowest, numbers):
            return np.unique(numbers, return_inverse=True)[1].reshape(h, w)
        numbers = lowest


def merge_small(
    components_HW: NDArray[np.int64], points_PD: NDArray[np.float32], min_patches: int, at_most: int
) -> NDArray[np.uint8]:
    """Merge the smallest component into its most similar neighbor until all are large and few.

    Args:
        components_HW: 4-connected components, numbered from 0.
        points_PD: each patch's feature; a component's feature is the mean of its patches'.
        min_patches: minimum size of a remaining component.
        at_most: maximum number of remaining components.

    Returns:
        Region numbers (h, w), contiguous from 0 in order of first occurrence.
    """
    count = int(components_HW.max()) + 1
    members_RP = np.arange(count)[:, None] == components_HW.ravel()
    sizes_R, sums_RD = members_RP.sum(axis=1), members_RP.astype(np.float32) @ points_PD
    touching_RR = _touching(components_HW, count)
    region_R = np.arange(count)  # the component that each was merged into
    while count > 1:
        small = int(np.where(sizes_R > 0, sizes_R, sizes_R.sum() + 1).argmin())
        if sizes_R[small] >= min_patches and count <= at_most:
            break
        neighbors = np.flatnonzero(touching_RR[small])
        large = int(neighbors[_similarity(sums_RD[neighbors], sums_RD[small]).argmax()])
        sums_RD[large] += sums_RD[small]
        sizes_R[large] += sizes_R[small]
        sizes_R[small] = 0
        touching_RR[large] |= touching_RR[small]
        touching_RR[:, large] |= touching_RR[:, small]
        touching_RR[small] = touching_RR[:, small] = touching_RR[large, large] = False
        region_R[region_R == small] = large
        count -= 1
    return connected_components(region_R[components_HW]).astype(np.uint8)


def _similarity(sums_RD: NDArray[np.float32], sum_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines (R,) of summed features with another; 0 where one has no direction."""
    norms = np.linalg.norm(sums_RD, axis=1) * np.linalg.norm(sum_D)
    cosines: NDArray[np.float32] = sums_RD @ sum_D / np.maximum(norms, 1e-12)
    return cosines


def _touching(components_HW: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return which components are adjacent: (R, R), symmetric, false on the diagonal."""
    touching_RR = np.zeros((count, count), dtype=bool)
    touching_RR[components_HW[:, 1:], components_HW[:, :-1]] = True
    touching_RR[components_HW[1:], components_HW[:-1]] = True
    touching_RR |= touching_RR.T
    np.fill_diagonal(touching_RR, False)
    return touching_RR
