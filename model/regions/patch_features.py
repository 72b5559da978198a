"""Trunk tokens -> the frozen CLIP's own patch features for grouping (METHOD §9): keys (B, Q, D).

Letters: B images, P = 1 + Q image tokens, Q = h*w patches in scan order, D feature width. The other
source of such features is a self-supervised ViT (model/align/backbone.py).
"""

from torch import Tensor

from codeseg.model.clip.blocks import project
from codeseg.model.clip.encoder import FrozenClip


def clip_keys(clip: FrozenClip, tokens_BPD: Tensor) -> Tensor:
    """Return the last block's keys (B, Q, D) for the output of `clip.trunk`."""
    block = clip.last_block
    return project(block.attn, block.ln_1(tokens_BPD[:, 1:]), 1, 2)
