"""SC-CLIP's last block (Bai et al., 2024): the outputs of every block in, patch tokens out.

The method repairs outlier tokens, averages patches that are similar in a middle block, and adds the
features of earlier blocks. It was published for twelve blocks; models of other depths use the
blocks at the same relative depth.

Letters: B images, P = 1 + Q tokens (class token first), Q = h·w patches, D width, H heads, d width
of a head, N neighbors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from codeseg.model.clip.blocks import heads, join

NEIGHBORS = 30
CONTAMINATION = 0.05  # share of the patches that are repaired
SIMILAR = 0.4  # cosine from which two patches are averaged
SHARPNESS = 3.0
CLASS_TOKEN = 0.3  # share of the class token that is added to every patch
FEWEST_BLOCKS = 6  # of a CLIP; `Segmenter` refuses smaller ones


def sc_clip(block: ResidualAttentionBlock, states: Sequence[Tensor], h: int, w: int) -> Tensor:
    """Run the last block on `FrozenClip.states`, the tokens (B, P, D) of an h×w patch grid.

    Return the tokens (B, P, D) before ln_post, without the residual and the MLP.
    """
    blocks = len(states)
    early, middle, late = (round(twelfths * blocks / 12) for twelfths in (4, 9, 10))
    class_B1D, patches_BQD = states[-1][:, :1], states[-1][:, 1:]
    flagged_BQ = torch.stack([outliers(x) for x in patches_BQD])
    patches_BQD = repair(patches_BQD, flagged_BQ, h, w)
    cosines_BQQ = cosines(repair(states[middle][:, 1:], flagged_BQ, h, w))
    patches_BQD = average_similar(cosines_BQQ) @ patches_BQD
    sharp_BQQ = SHARPNESS * (cosines_BQQ - cosines_BQQ.mean(dim=(1, 2), keepdim=True))
    similar_B1QQ = sharp_BQQ.masked_fill(sharp_BQQ < 0, -torch.inf).softmax(-1)[:, None]

    def attend(x_BQD: Tensor) -> Tensor:
        _, k, v = heads(block.attn, block.ln_1(x_BQD))
        keys_BHQQ = ((k * k.shape[-1] ** -0.5) @ k.mT).softmax(-1)
        attended_BQD: Tensor = block.ls_1(join(block.attn, (keys_BHQQ + similar_B1QQ) / 2 @ v))
        return attended_BQD

    spread_BQQ = average_similar(cosines(states[early][:, 1:]))
    patches_BQD = spread_BQQ @ (attend(patches_BQD) + CLASS_TOKEN * class_B1D)
    levels_BPD = torch.stack(list(states[early : late + 1])).sum(0)
    levels_BQD = attend(levels_BPD[:, 1:]) + CLASS_TOKEN * levels_BPD[:, :1]
    return torch.cat([class_B1D, patches_BQD + spread_BQQ @ levels_BQD], dim=1)


def outlier_scores(x_QD: Tensor) -> Tensor:
    """Return local outlier scores (Q,): about 1 for a patch as dense as its neighbors.

    Unlike in the standard local outlier factor, the reach distance is the patch's own k-distance.
    """
    squared_QQ = torch.cdist(x_QD, x_QD, compute_mode="donot_use_mm_for_euclid_dist").square()
    squared_QQ.fill_diagonal_(torch.inf)
    count = min(NEIGHBORS, len(x_QD) - 1)
    if count < 1:
        return torch.ones_like(x_QD[:, 0])
    nearest_QN, index_QN = squared_QQ.topk(count, largest=False)
    reach_Q = nearest_QN[:, -1]
    return (reach_Q[:, None] / reach_Q[index_QN]).mean(1)


def outliers(x_QD: Tensor) -> Tensor:
    """Return which patches are outliers: bool (Q,)."""
    scores_Q = outlier_scores(x_QD)
    return scores_Q > torch.quantile(scores_Q, 1 - CONTAMINATION)


def repair(x_BQD: Tensor, flagged_BQ: Tensor, h: int, w: int) -> Tensor:
    """Replace flagged patches by the mean of their 8 neighbors that are not flagged, if any."""
    D = x_BQD.shape[-1]
    good_BQ1 = (~flagged_BQ).to(x_BQD)[..., None]
    both_BQE = torch.cat([x_BQD * good_BQ1, good_BQ1], dim=2)  # sums and counts together
    both_BEhw = F.pad(both_BQE.mT.reshape(len(x_BQD), D + 1, h, w), (1, 1, 1, 1))
    around = [(r, c) for r in range(3) for c in range(3) if (r, c) != (1, 1)]
    summed_BEhw = torch.stack([both_BEhw[..., r : r + h, c : c + w] for r, c in around]).sum(0)
    summed_BQE = summed_BEhw.flatten(2).mT
    counts_BQ1 = summed_BQE[..., D:]
    replaced_BQ1 = flagged_BQ[..., None] & (counts_BQ1 > 0)
    return torch.where(replaced_BQ1, summed_BQE[..., :D] / counts_BQ1.clamp(min=1), x_BQD)


def cosines(x_BQD: Tensor) -> Tensor:
    """Return the cosines between all patches: (B, Q, Q)."""
    unit_BQD = F.normalize(x_BQD, dim=-1)
    return unit_BQD @ unit_BQD.mT


def average_similar(cosines_BQQ: Tensor) -> Tensor:
    """Return the weights (B, Q, Q) of each patch's mean over sufficiently similar patches."""
    kept_BQQ = cosines_BQQ.where(cosines_BQQ >= SIMILAR, 0.0)
    return kept_BQQ / (kept_BQQ.sum(-1, keepdim=True) + 1e-6)
