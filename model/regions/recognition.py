"""Recognition of all regions in one forward pass, and the one-way noun->region loss (METHOD §9).

    tokens (B, P, D) entering the last block, regions (B, h*w) -> region embeddings (B, R, C)

Letters: B images, P = 1 + h*w image tokens (class token first), D width, R largest number of
regions of a picture, C joint width, N nouns (noun-major).
Every region has its own copy of the class token, which sees the region's patches and itself;
regions do not see each other. A region that covers the picture yields the image embedding.
"""

import copy

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from codeseg.model import distributed
from codeseg.model.clip.blocks import attend_across, feed_forward
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.regions.config import Pool

LOG_SCALE = torch.tensor(1 / 0.07).log().item()
MAX_SCALE = 100.0
NO_REGION = -1e4  # score of a picture without regions: finite, so that no gradient is NaN


class RegionRecognizer(nn.Module):
    """Trainable copies of CLIP's last block and projection that embed regions, not pictures.

    `pool` combines a noun's scores with a picture's regions into one (see `noun_region_scores`).
    """

    def __init__(self, clip: FrozenClip, pool: Pool = "max") -> None:
        super().__init__()
        self.block = copy.deepcopy(clip.last_block).requires_grad_(True)
        self.ln_post = copy.deepcopy(clip.clip.visual.ln_post).requires_grad_(True)
        self.proj = nn.Parameter(clip.clip.visual.proj.detach().clone())
        self.log_scale = nn.Parameter(torch.tensor(LOG_SCALE))
        self.pool = pool

    def forward(self, tokens_BPD: Tensor, members_BRQ: Tensor) -> Tensor:
        """Return region embeddings (B, R, C), unit, from trunk tokens and `members`."""
        copies_BRD = recognize(self.block, tokens_BPD, members_BRQ)
        return F.normalize((self.ln_post(copies_BRD) @ self.proj).float(), dim=-1)

    def loss(
        self,
        tokens_BPD: Tensor,
        regions_BQ: Tensor,
        nouns_NC: Tensor,
        noun_N: Tensor,
        count: int | None = None,
    ) -> Tensor:
        """Return the `one_way_loss` of nouns and regions.

        Args:
            tokens_BPD: trunk tokens of this rank's pictures.
            regions_BQ: their region maps, int64.
            nouns_NC: unit embeddings of this rank's nouns, noun-major: N = J·B.
            noun_N: int64, equal for equal nouns on any rank.
            count: maximum number of regions; None reads it, for which a GPU has to wait.
        """
        members_BRQ = members(regions_BQ, count)
        regions_BRC = self(tokens_BPD, members_BRQ)
        with torch.autocast(tokens_BPD.device.type, enabled=False):
            scale = self.log_scale.exp().clamp(max=MAX_SCALE)
            real_BR = members_BRQ.any(dim=-1)
            return one_way_loss(nouns_NC.float(), noun_N, regions_BRC, real_BR, scale, self.pool)


def noun_keys(tokens_UM: Tensor) -> Tensor:
    """Return an int64 hash of each noun's zero-padded BPE ids, independent of the padding."""
    powers_M = torch.full_like(tokens_UM[0], 1_000_003).cumprod(dim=0)
    return (tokens_UM * powers_M).sum(dim=-1)  # may wrap around


def members(regions_BQ: Tensor, count: int | None = None) -> Tensor:
    """Return which of the Q = h*w patches belong to which region: bool (B, R, Q).

    `regions_BQ` holds region numbers, int64; negative is no region. R is `count`, by default the
    largest number plus 1. A region without patches is padding.
    """
    count = int(regions_BQ.max()) + 1 if count is None else count
    numbers_R1 = torch.arange(count, device=regions_BQ.device)[:, None]
    return regions_BQ[:, None] == numbers_R1


def recognize(block: ResidualAttentionBlock, tokens_BPD: Tensor, members_BRQ: Tensor) -> Tensor:
    """Run every region's copy of the class token through the last block, for `members_BRQ`.

    Return the copies (B, R, D) after the block, before ln_post: each attended to its region's
    patches and to itself. In a region without patches it attended only to itself: the result is
    finite, and the caller must mask it.
    """
    R = members_BRQ.shape[1]
    normed_BPD = block.ln_1(tokens_BPD)
    copies_BRD = normed_BPD[:, :1].expand(-1, R, -1)
    itself_BRR = torch.eye(R, dtype=torch.bool, device=members_BRQ.device)
    seen = torch.cat([members_BRQ, itself_BRR.expand(len(members_BRQ), -1, -1)], dim=-1)
    keys_BLD = torch.cat([normed_BPD[:, 1:], copies_BRD], dim=1)
    attended_BRD = attend_across(block.attn, copies_BRD, keys_BLD, seen[:, None])
    return feed_forward(block, tokens_BPD[:, :1] + block.ls_1(attended_BRD))


def one_way_loss(
    nouns_NC: Tensor,
    noun_N: Tensor,
    regions_BRC: Tensor,
    real_BR: Tensor,
    scale: Tensor | float,
    pool: Pool = "max",
) -> Tensor:
    """Return `noun_region_loss` over the pictures of all ranks, equal on every rank.

    Ranks exchange nouns, then scores: N·B numbers, regardless of R. The nouns and pictures are
    this rank's, N = J·B noun-major; `noun_N` is equal for equal nouns on any rank.
    """
    B = len(regions_BRC)
    scores_AB = noun_region_scores(
        distributed.gather(nouns_NC), regions_BRC, real_BR, pool=pool, temperature=1 / scale
    )
    ranks = torch.arange(distributed.world_size(), device=noun_N.device)
    own_N = torch.arange(len(nouns_NC), device=noun_N.device) % B
    image_A = (ranks[:, None] * B + own_N).flatten()
    scores_AA = distributed.gather(scores_AB, dim=1)
    return noun_region_loss(scores_AA, image_A, distributed.gather(noun_N), scale)


def noun_region_scores(
    nouns_NC: Tensor,
    regions_BRC: Tensor,
    real_BR: Tensor,
    *,
    pool: Pool = "max",
    temperature: float | Tensor = 0.07,
) -> Tensor:
    """Return how well each noun matches a region of each picture.

    Args:
        nouns_NC: unit noun embeddings.
        regions_BRC: unit region embeddings.
        real_BR: bool, false for padding.
        pool: "max" takes the best region; "soft" the mean over regions weighted by the softmax of
            similarity / temperature, so that regions near the best one learn too.
        temperature: of "soft", cosine units.

    Returns:
        Scores (N, B), cosines; `NO_REGION` for a picture without regions.
    """
    similarity_NBR = torch.einsum("nc,brc->nbr", nouns_NC, regions_BRC).float()
    if pool == "max":
        return similarity_NBR.masked_fill(~real_BR, NO_REGION).amax(dim=-1)
    logits_NBR = (similarity_NBR / temperature).masked_fill(~real_BR, NO_REGION)
    soft_NB = (logits_NBR.softmax(dim=-1) * similarity_NBR).sum(dim=-1)
    return soft_NB.masked_fill(~real_BR.any(dim=-1), NO_REGION)


def noun_region_loss(
    scores_NB: Tensor, image_N: Tensor, noun_N: Tensor, scale: Tensor | float
) -> Tensor:
    """Return one-way InfoNCE, the mean over nouns: each must find its own picture.

    Regions need no noun. A picture that names the same noun is not used as a negative: with few
    distinct nouns it would be the most common one.

    Args:
        scores_NB: of all nouns and all pictures of the (global) batch.
        image_N: int64, the picture each noun comes from.
        noun_N: int64, equal for equal nouns.
        scale: inverse temperature of the logits.
    """
    own_NB = (image_N[:, None] == torch.arange(scores_NB.shape[1], device=image_N.device)).float()
    same_NN = (noun_N[:, None] == noun_N).float()
    also_names_NB = (same_NN @ own_NB > 0) & (own_NB == 0)
    logits_NB = (scale * scores_NB).masked_fill(also_names_NB, float("-inf"))
    return F.cross_entropy(logits_NB, image_N)
