"""The text segmenter F^t (METHOD §4): frozen text states in, word features and logits out.

Letters: B captions, L tokens, T text width, C joint width, J nouns per caption.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from codeseg.model.clip.blocks import run_block
from codeseg.model.clip.encoder import FrozenClip

BLOCKS = 2


class TextSegmenter(nn.Module):
    """Two more transformer blocks on the frozen text encoder's last hidden states.

    With `clip_start` their weights are initialized like CLIP's own, not by PyTorch's default.
    """

    def __init__(self, clip: FrozenClip, *, clip_start: bool = False) -> None:
        super().__init__()
        like = clip.clip.transformer.resblocks[0]
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(
                clip.text_width, like.attn.num_heads, act_layer=type(like.mlp.gelu)
            )
            for _ in range(BLOCKS)
        )
        self.mask_scale = nn.Parameter(torch.tensor(10.0))
        self.mask_bias = nn.Parameter(torch.tensor(0.0))
        for block in self.blocks if clip_start else ():
            _initialize(block, clip.text_width)

    def forward(
        self, states_BLT: Tensor, lengths_B: Tensor | None, projection_TC: Tensor | None
    ) -> Tensor:
        """Return the word features x^t (B, L, C), unit.

        Args:
            states_BLT: hidden states before ln_final.
            lengths_B: tokens up to and including EOS; later tokens are masked. None: all tokens
                are attended to, padding included (the reference's form).
            projection_TC: the CLIP's frozen text projection if text and joint width differ; None
                if they are equal, as in the paper's CLIP, whose word features are not projected.
        """
        mask = None
        if lengths_B is not None:
            position_L = torch.arange(states_BLT.shape[1], device=states_BLT.device)
            mask = (position_L < lengths_B[:, None])[:, None, None, :]
        x_BLT = states_BLT
        for block in self.blocks:
            x_BLT = run_block(block, x_BLT, mask=mask)
        x_BLC = x_BLT if projection_TC is None else x_BLT @ projection_TC
        return F.normalize(x_BLC.float(), dim=-1)

    def word_logits(self, words_BLC: Tensor, nouns_JBC: Tensor) -> Tensor:
        """Return logits (B, 1+J, L): zero for "none", then w <x^t, n_j> + b."""
        similarity_BJL = torch.einsum("blc,jbc->bjl", words_BLC, nouns_JBC)
        return F.pad(self.mask_scale * similarity_BJL + self.mask_bias, (0, 0, 1, 0))


def _initialize(block: ResidualAttentionBlock, width: int) -> None:
    """Initialize weights like CLIP's text transformer."""
    std = width**-0.5
    nn.init.normal_(block.attn.in_proj_weight, std=std)
    nn.init.normal_(block.attn.out_proj.weight, std=std * (2 * BLOCKS) ** -0.5)
    nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
    nn.init.normal_(block.mlp.c_proj.weight, std=std * (2 * BLOCKS) ** -0.5)
