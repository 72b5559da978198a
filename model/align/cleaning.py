"""Masks of things and what the heads of a ViT look at -> masks that say less of the background.

Letters: B images, K things, H heads, Q patches, D width.

Source: Talk2DINO (Barsellotti et al., ICCV 2025), its background cleaning.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def clean(
    masks_BKQ: Tensor, words_KD: Tensor, patches_BQD: Tensor, logits_BHQ: Tensor, weight: float
) -> Tensor:
    """Mix masks with where those heads look whose pooled patches fit the thing: (B, K, Q).

    Args:
        masks_BKQ: of each thing, or its cosines.
        words_KD: the things' unit embeddings.
        patches_BQD: not normalized.
        logits_BHQ: of the class token's attention, from `Backbone.attend`.
        weight: lambda; the result is (mask + lambda * look) / (1 + lambda).
    """
    pooled_BHD = F.normalize(logits_BHQ @ patches_BQD / logits_BHQ.shape[-1], dim=-1)
    fit_BKH = torch.einsum("kd,bhd->bkh", words_KD, pooled_BHD).softmax(-1)
    look_BKQ = (fit_BKH @ logits_BHQ).softmax(-1)  # over patches
    look_BKQ = (look_BKQ - _least(look_BKQ)) / _most(look_BKQ)
    low, high = _least(masks_BKQ), _most(masks_BKQ)
    return (masks_BKQ + weight * (low + (high - low) * look_BKQ)) / (1 + weight)


def _least(values_BKQ: Tensor) -> Tensor:
    """Return the smallest value of each image (B, 1, 1)."""
    return values_BKQ.amin((-2, -1), keepdim=True)


def _most(values_BKQ: Tensor) -> Tensor:
    """Return the largest value of each image (B, 1, 1)."""
    return values_BKQ.amax((-2, -1), keepdim=True)
