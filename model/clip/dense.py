"""Block outputs of the frozen CLIP -> a joint embedding per patch, without training (METHOD §11).

Each variant changes only the last block's attention; the weights remain CLIP's own:

    maskclip   every token sees only itself; residual and MLP kept (Zhou et al., ECCV 2022)
    maskclip_bare  the same without residual and MLP (as ClearCLIP's code is configured)
    sclip      softmax(q·q) + softmax(k·k), on v; residual and MLP kept (Wang et al., ECCV 2024)
    clearclip  softmax(q·q) on v; no residual, no MLP (Lan et al., ECCV 2024)
    naclip     softmax(k·k + Gaussian of the patch distance) on v; no residual, no MLP
               (Hajimiri et al., WACV 2025)
    scclip     see sc_clip.py; the only variant that also reads earlier blocks (Bai et al., 2024)

Letters: B images, P = 1 + h·w tokens (class token first), D width, H heads, d width of a head,
C joint width, h w patch grid.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from codeseg.model.clip.blocks import attend_to_self, feed_forward, heads, join, run_dense_block
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.sc_clip import sc_clip

NACLIP_SIGMA = 5.0  # standard deviation of NACLIP's neighborhood, in patches (the authors' value)
Variant = Callable[[ResidualAttentionBlock, Sequence[Tensor], int, int], Tensor]
"""The last block, earlier states (the last of them its input), the grid -> tokens (B, P, D)."""


def dense_embedding(
    clip: FrozenClip, states: Sequence[Tensor], grid: tuple[int, int], variant: str
) -> Tensor:
    """Run the last block in one of the dense forms and project every patch.

    Args:
        clip: the frozen CLIP.
        states: `clip.states`; except for scclip, the trunk's output alone is enough.
        grid: (h, w) patches.
        variant: a key of VARIANTS.

    Returns:
        Patch embeddings (B, C, h, w), L2-normalized over C.
    """
    tokens_BPD = VARIANTS[variant](clip.last_block, states, *grid)
    patches_BPC = F.normalize(clip.project(tokens_BPD[:, 1:]), dim=-1)
    return patches_BPC.transpose(1, 2).reshape(len(patches_BPC), -1, *grid)


def maskclip(block: ResidualAttentionBlock, states: Sequence[Tensor], h: int, w: int) -> Tensor:
    """Let each token attend only to itself; keep the residual and the MLP."""
    return run_dense_block(block, states[-1])


def maskclip_bare(
    block: ResidualAttentionBlock, states: Sequence[Tensor], h: int, w: int
) -> Tensor:
    """Let each token attend only to itself; omit the residual and the MLP."""
    attended_BPD: Tensor = block.ls_1(attend_to_self(block.attn, block.ln_1(states[-1])))
    return attended_BPD


def sclip(block: ResidualAttentionBlock, states: Sequence[Tensor], h: int, w: int) -> Tensor:
    """Attend by queries with queries plus keys with keys (correlative self-attention)."""
    q, k, v = heads(block.attn, block.ln_1(states[-1]))
    attended = F.scaled_dot_product_attention(q, q, v) + F.scaled_dot_product_attention(k, k, v)
    return feed_forward(block, states[-1] + _join(block, attended))


def clearclip(block: ResidualAttentionBlock, states: Sequence[Tensor], h: int, w: int) -> Tensor:
    """Attend by queries with queries; omit the residual and the MLP, which blur positions."""
    q, _, v = heads(block.attn, block.ln_1(states[-1]))
    return _join(block, F.scaled_dot_product_attention(q, q, v))


def naclip(block: ResidualAttentionBlock, states: Sequence[Tensor], h: int, w: int) -> Tensor:
    """Attend by keys with keys, with a bonus for nearby patches; omit the residual and the MLP."""
    _, k, v = heads(block.attn, block.ln_1(states[-1]))
    neighbors_PP = F.pad(neighborhood(h, w).to(v), (1, 0, 1, 0))  # 0 for the class token
    return _join(block, F.scaled_dot_product_attention(k, k, v, attn_mask=neighbors_PP))


def neighborhood(h: int, w: int, sigma: float = NACLIP_SIGMA) -> Tensor:
    """Return the Gaussian of the distance between patches, peak 1: float (h·w, h·w)."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    squared = (places[:, None] - places[None]).square().sum(-1)
    return torch.exp(-squared / (2 * sigma**2))


VARIANTS: dict[str, Variant] = {
    "maskclip": maskclip,
    "maskclip_bare": maskclip_bare,
    "sclip": sclip,
    "clearclip": clearclip,
    "naclip": naclip,
    "scclip": sc_clip,
}


def _join(block: ResidualAttentionBlock, x_BHPd: Tensor) -> Tensor:
    projected_BPD: Tensor = block.ls_1(join(block.attn, x_BHPd))
    return projected_BPD
