"""The decomposition of a batch, and the small operations on masks and labels between the modules.

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

    words_BLC: Tensor  # word features x^t, unit
    logits_BKL: Tensor  # word logits: "none" (zero), then each noun
    masks_NL: Tensor  # word masks M^t, before SOS and EOS are kept
    labels_BL: Tensor  # pseudo labels: −1 ignored, 0 none, 1..J
    embeddings_NC: Tensor  # embeddings e^t of the highlighted captions, unit


class Masks(NamedTuple):
    """The results that are kept of the masks of every image with all nouns."""

    logits_JBHW: Tensor  # mask logits of the pairs
    soft_JBHW: Tensor  # soft masks M^v of the pairs
    pooled_BA: Tensor  # similarity of each noun and the embedding that its soft mask pools
    sum: Tensor  # sum of all soft masks' pixels, scalar
    variation: Tensor  # total variation of all soft masks, scalar


@dataclass(frozen=True)
class Composition:
    """The decomposition of this rank's batch."""

    pixels_BCHW: Tensor  # pixel embedding x^v, unit
    nouns_NC: Tensor  # noun embeddings n, unit
    nouns_AC: Tensor  # noun embeddings of all ranks
    knowledge_NC: Tensor  # template embeddings n', or their mean
    masks: Masks
    hard_JBHW: Tensor  # hard masks of the pairs, with a straight-through gradient
    regions_NC: Tensor  # embeddings e^v of the highlighted images, unit
    captions: CaptionParts | None  # None without co-decomposition (the baseline)


def own_pairs(x_BAHW: Tensor, nouns: int, first: int) -> Tensor:
    """Select each image's maps with its own J = `nouns` nouns: (J, B, H, W).

    `x_BAHW` has the pairs of all ranks, noun-major; `first` is the index of its first image among
    the images of all ranks.
    """
    B, _, H, W = x_BAHW.shape
    of_rank = x_BAHW.view(B, nouns, -1, H, W)[:, :, first : first + B]
    return of_rank.diagonal(dim1=0, dim2=2).permute(0, 3, 1, 2).contiguous()


def harden(logits: Tensor, noise: Tensor | None) -> Tensor:
    """Return the Gumbel-sigmoid at temperature 1: 0 or 1 forward, the soft gradient backward."""
    soft = torch.sigmoid(logits if noise is None else logits + noise)
    return (soft > 0.5).float() - soft.detach() + soft


def argmax_labels(logits_BKL: Tensor, lengths_B: Tensor) -> Tensor:
    """Label every word with its most probable class; SOS, EOS and padding are ignored."""
    position_L = torch.arange(logits_BKL.shape[2], device=logits_BKL.device)
    word_BL = (position_L > 0) & (position_L < lengths_B[:, None] - 1)
    return logits_BKL.argmax(dim=1).masked_fill(~word_BL, -1)
