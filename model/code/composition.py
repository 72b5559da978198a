"""The decomposition of a batch, and the small steps on masks and labels between the modules.

Letters: B images of this rank, J nouns per image, N = J*B pairs of this rank (noun-major), A pairs
of all ranks, L caption tokens, K = 1+J word classes, C joint width, H W mask rows and columns.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Losses(dict[str, Tensor]):
    """Weighted loss terms by name, scalars; their mean over ranks is the global batch's."""

    @property
    def total(self) -> Tensor:
        """Return the sum of all terms, which training minimizes."""
        return torch.stack(list(self.values())).sum()


@dataclass(frozen=True)
class CaptionParts:
    """The decomposition of one batch's captions."""

    words_BLC: Tensor
    """Word features x^t, unit."""
    logits_BKL: Tensor
    """Word logits: "none" (zero), then each noun."""
    masks_NL: Tensor
    """Word masks M^t, before SOS and EOS are kept."""
    labels_BL: Tensor
    """Pseudo labels: −1 ignored, 0 none, 1..J."""
    embeddings_NC: Tensor
    """Embeddings e^t of the highlighted captions, unit."""


class Masks(NamedTuple):
    """What is kept of the masks of every image with all nouns."""

    logits_JBHW: Tensor
    """Mask logits of the pairs."""
    soft_JBHW: Tensor
    """Soft masks M^v of the pairs."""
    pooled_BA: Tensor
    """How like each noun is to what its soft mask pools from each image."""
    sum: Tensor
    """Of all soft masks' pixels, scalar."""
    variation: Tensor
    """Total variation of all soft masks, scalar."""


@dataclass(frozen=True)
class Composition:
    """The decomposition of this rank's batch."""

    pixels_BCHW: Tensor
    """Pixel embedding x^v, unit."""
    nouns_NC: Tensor
    """Noun embeddings n, unit."""
    nouns_AC: Tensor
    """Noun embeddings of all ranks."""
    knowledge_NC: Tensor
    """Template embeddings n', or their mean."""
    masks: Masks
    hard_JBHW: Tensor
    """The pairs' masks, hard, straight-through."""
    regions_NC: Tensor
    """Embeddings e^v of the highlighted images, unit."""
    captions: CaptionParts | None
    """None without co-decomposition (the baseline)."""


def own_pairs(x_BAHW: Tensor, nouns: int, first: int) -> Tensor:
    """Take each image's maps of its own nouns: (J, B, H, W).

    Args:
        x_BAHW: maps with the pairs of all ranks, noun-major.
        nouns: J.
        first: index of this rank's first image among those of all ranks.
    """
    B, _, H, W = x_BAHW.shape
    of_rank = x_BAHW.view(B, nouns, -1, H, W)[:, :, first : first + B]
    return of_rank.diagonal(dim1=0, dim2=2).permute(0, 3, 1, 2).contiguous()


def harden(logits: Tensor, noise: Tensor | None) -> Tensor:
    """Return the Gumbel-sigmoid at temperature 1: 0 or 1 forward, its gradient backward."""
    soft = torch.sigmoid(logits if noise is None else logits + noise)
    return (soft > 0.5).float() - soft.detach() + soft


def argmax_labels(logits_BKL: Tensor, lengths_B: Tensor) -> Tensor:
    """Label every word with its most probable class; SOS, EOS and padding are ignored."""
    position_L = torch.arange(logits_BKL.shape[2], device=logits_BKL.device)
    word_BL = (position_L > 0) & (position_L < lengths_B[:, None] - 1)
    return logits_BKL.argmax(dim=1).masked_fill(~word_BL, -1)
