"""The losses of METHOD §6, one function each: embeddings, masks or logits in, a scalar out.

Letters: N image-noun pairs of the global batch (noun-major), B images, J nouns per image, L tokens,
C joint width, H W mask rows and columns. "Global" tensors are gathered from all ranks (by
model/distributed.py), so that every rank returns the same value.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codeseg.model import device
from codeseg.model.distributed import total

MAX_SCALE = 100.0


def knowledge_distance(nouns_NC: Tensor, knowledge_NC: Tensor, *, squared: bool = False) -> Tensor:
    """Return L_kg (METHOD §3): the mean of 1 − <n, n'>, or the paper's ‖n − n'‖² (`squared`).

    Args:
        nouns_NC: learned-prompt embeddings, unit.
        knowledge_NC: template embeddings, or their un-normalized mean over templates, which gives
            the expectation over templates exactly in both forms.
        squared: whether to use the paper's form.
    """
    distance = (1 - (nouns_NC * knowledge_NC).sum(-1)).mean()
    return 2 * distance if squared else distance


def info_nce(similarity_NN: Tensor, log_scale: Tensor) -> Tensor:
    """Return symmetric InfoNCE: the mean of both directions, positives on the diagonal."""
    logits_NN = similarity_NN * log_scale.exp().clamp(max=MAX_SCALE)
    target_N = torch.arange(len(logits_NN), device=logits_NN.device)
    return (F.cross_entropy(logits_NN, target_N) + F.cross_entropy(logits_NN.T, target_N)) / 2


def pooled_similarity(pixels_BCHW: Tensor, soft_BNHW: Tensor, nouns_NC: Tensor) -> Tensor:
    """Return TCL-feature's similarity s (B, N) of nouns and the embeddings that their masks pool.

    s_ij = <pool(x_i, mask_ij), n_j> with a unit pooled pixel embedding.
    """
    mask_BNP = soft_BNHW.flatten(2)
    pooled_BNC = mask_BNP @ pixels_BCHW.flatten(2).transpose(1, 2)
    pooled_BNC = pooled_BNC / (mask_BNP.sum(-1, keepdim=True) + 1e-6)
    return torch.einsum("bnc,nc->bn", F.normalize(pooled_BNC, dim=-1), nouns_NC)


def total_variation(x_BNHW: Tensor) -> Tensor:
    """Return the mean absolute difference of vertical plus that of horizontal neighbors."""
    if device.is_gpu(x_BNHW):
        varied: Tensor = _Variation.apply(x_BNHW)
        return varied
    vertical = (x_BNHW[:, :, 1:] - x_BNHW[:, :, :-1]).abs().mean()
    horizontal = (x_BNHW[:, :, :, 1:] - x_BNHW[:, :, :, :-1]).abs().mean()
    return vertical + horizontal


class _Variation(torch.autograd.Function):
    """`total_variation` with less memory: differences are recomputed for the gradient, in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        sums = [torch.linalg.vector_norm(d, 1) / d.numel() for d, _, _ in _Variation._ways(x)]
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad = torch.zeros_like(x)
        for difference, dim, length in _Variation._ways(x):
            share = 1 / difference.numel()
            sign = difference.sgn_()
            grad.narrow(dim, 1, length).add_(sign, alpha=share)
            grad.narrow(dim, 0, length).sub_(sign, alpha=share)
        grad *= grads[0]
        return grad

    @staticmethod
    def _ways(x: Tensor) -> Iterator[tuple[Tensor, int, int]]:
        """Yield the differences of rows, then columns, each with its dimension and their number."""
        for dim in (2, 3):
            length = x.shape[dim] - 1
            yield x.narrow(dim, 1, length) - x.narrow(dim, 0, length), dim, length


def areas(
    sum_all: Tensor, positive_JBHW: Tensor, nouns: int, prior: float
) -> tuple[Tensor, Tensor]:
    """Return |mean(M^v) − prior| over positives and |mean| over negatives of the global batch.

    Args:
        sum_all: sum of the soft masks of this rank's images with all nouns. An image counts once
            for each of its J nouns, so its mask with noun i is a negative of every other pair.
        positive_JBHW: the soft masks of this rank's own pairs.
        nouns: N.
        prior: the share of an image that a noun is expected to cover.
    """
    J, _, H, W = positive_JBHW.shape
    sums = total(torch.stack([positive_JBHW.sum(), J * sum_all]))
    positive = sums[0] / (nouns * H * W)
    negative = (sums[1] - sums[0]) / max(1, nouns * (nouns - 1) * H * W)
    return (positive - prior).abs(), negative.abs()


def word_segmentation(logits_BKL: Tensor, labels_BL: Tensor, none_weight: float) -> Tensor:
    """Return l^t_seg (METHOD §4): class-weighted cross-entropy averaged over the global batch.

    Class 0 is "none" and has `none_weight`; classes 1..J are the selected nouns, of weight 1.
    Label −1 is ignored.
    """
    weight_K = torch.ones_like(logits_BKL[0, :, 0])
    weight_K[0] = none_weight
    loss = F.cross_entropy(logits_BKL, labels_BL, weight=weight_K, ignore_index=-1, reduction="sum")
    weight_BL = torch.where(labels_BL > 0, 1.0, none_weight) * (labels_BL >= 0)
    sums = total(torch.stack([loss, weight_BL.sum()]))
    return sums[0] / sums[1].clamp(min=torch.finfo(sums.dtype).tiny)
