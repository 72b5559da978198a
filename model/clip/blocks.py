"""Transformer blocks of open_clip, run our way: tokens (B, L, D) in, tokens (B, L, D) out.

Letters: B sequences, L tokens, D width, H heads, d width of a head; P tokens that U
sequences of M more begin with.
The weights stay in open_clip's `ResidualAttentionBlock`; only the arithmetic is ours. Its own
`nn.MultiheadAttention(batch_first=True)` works on a transposed view, whose projections under bf16
autocast become a batched product that copies the weight L times (2.5x the time of a whole step);
`F.linear` on contiguous (B, L, D) and fused attention give the same numbers without it.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn


def attend(
    attention: nn.MultiheadAttention, x_BLD: Tensor, *, mask: Tensor | None = None, causal: bool
) -> Tensor:
    """Run multi-head self-attention.

    Args:
        attention: holds the projections and the number of heads.
        x_BLD: normed tokens.
        mask: bool, broadcastable to (B, H, L, L), True where the key may be seen; or None.
        causal: token i sees tokens 0..i only.
    """
    B, L, D = x_BLD.shape
    H = attention.num_heads
    qkv = F.linear(x_BLD, attention.in_proj_weight, attention.in_proj_bias)
    q_BHLd, k_BHLd, v_BHLd = qkv.view(B, L, 3, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
    if (
        x_BLD.device.type == "cpu"
        and q_BHLd.dtype == torch.bfloat16
        and mask is None
        and not causal
    ):
        # The fused kernel's bf16 backward has no fast path on CPUs: 27 ms against 7 at ViT-B/16.
        y_BHLd = ((q_BHLd * q_BHLd.shape[-1] ** -0.5) @ k_BHLd.mT).softmax(dim=-1) @ v_BHLd
    else:
        y_BHLd = F.scaled_dot_product_attention(
            q_BHLd, k_BHLd, v_BHLd, attn_mask=mask, is_causal=causal
        )
    y_BLD = y_BHLd.transpose(1, 2).reshape(B, L, D)
    return F.linear(y_BLD, attention.out_proj.weight, attention.out_proj.bias)


def attend_from_one(
    attention: nn.MultiheadAttention, x_BLD: Tensor, index_B: Tensor, *, causal: bool
) -> Tensor:
    """Run the same attention for one query a sequence: (B, D).

    Args:
        attention: as in `attend`.
        x_BLD: normed tokens.
        index_B: int64, the token that asks.
        causal: it sees the tokens 0..index only.
    """
    B, L, D = x_BLD.shape
    H = attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    rows_B = torch.arange(B, device=x_BLD.device)
    q_BD = F.linear(x_BLD[rows_B, index_B], weight[:D], bias[:D])
    kv = F.linear(x_BLD, weight[D:], bias[D:])
    k_BHLd, v_BHLd = kv.view(B, L, 2, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
    mask = None
    if causal:
        mask = (torch.arange(L, device=x_BLD.device) <= index_B[:, None])[:, None, None]
    y_BH1d = F.scaled_dot_product_attention(
        q_BD.view(B, H, 1, D // H), k_BHLd, v_BHLd, attn_mask=mask
    )
    return F.linear(y_BH1d.reshape(B, D), attention.out_proj.weight, attention.out_proj.bias)


def attend_to_self(attention: nn.MultiheadAttention, x_BLD: Tensor) -> Tensor:
    """Let every token attend only to itself: out_proj(v_proj(x)) (METHOD §1, "dense")."""
    D = x_BLD.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    v_BLD = F.linear(x_BLD, weight[2 * D :], None if bias is None else bias[2 * D :])
    return F.linear(v_BLD, attention.out_proj.weight, attention.out_proj.bias)


def feed_forward(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """The block's second half with its residual, on (…, D): x + mlp(ln_2(x))."""
    hidden = _activate(block.mlp.gelu, block.mlp.c_fc(block.ln_2(x)))
    residual: Tensor = block.ls_2(block.mlp.c_proj(hidden))
    return x + residual


def _activate(activation: nn.Module, x: Tensor) -> Tensor:
    """Run the block's activation; QuickGELU, x·sigmoid(1.702 x), as the fused SiLU that it is.

    A quarter of the time of open_clip's form on a CPU in fp32, two thirds in bf16.
    """
    if isinstance(activation, QuickGELU):
        return F.silu(1.702 * x) * (1 / 1.702)
    activated: Tensor = activation(x)
    return activated


def run_block(
    block: ResidualAttentionBlock,
    x_BLD: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Run one pre-norm transformer block; `mask` and `causal` as in `attend`."""
    attended_BLD = attend(block.attn, block.ln_1(x_BLD), mask=mask, causal=causal)
    return feed_forward(block, x_BLD + block.ls_1(attended_BLD))


def run_block_for_one(
    block: ResidualAttentionBlock, x_BLD: Tensor, index_B: Tensor, *, causal: bool = False
) -> Tensor:
    """Run a block for the one token that will be read, (B, D): the last block of an encoder.

    The other tokens give keys and values only; 20 of the block's 24 D² multiply-adds a token fall
    away. The same numbers as `run_block(...)[:, index]`.
    """
    attended_BD = attend_from_one(block.attn, block.ln_1(x_BLD), index_B, causal=causal)
    token_BD = x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), index_B]
    return feed_forward(block, token_BD + block.ls_1(attended_BD))


def run_block_after_prefix(
    block: ResidualAttentionBlock, prefix_PD: Tensor, x_UMD: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a causal block on U sequences that begin with the same P tokens, which run once.

    Args:
        block: the block.
        prefix_PD: the P tokens that all sequences begin with.
        x_UMD: each sequence's own M tokens behind them.

    Returns:
        Both, one block later: the same numbers as `run_block` on U sequences of P + M tokens.
    """
    (P, D), (U, M, _) = prefix_PD.shape, x_UMD.shape
    attention, H = block.attn, block.attn.num_heads
    tokens_KD = torch.cat([prefix_PD, x_UMD.reshape(U * M, D)])  # K = P + U·M
    qkv = F.linear(block.ln_1(tokens_KD), attention.in_proj_weight, attention.in_proj_bias)
    prefix = qkv[:P].view(1, P, 3, H, D // H).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[P:].view(U, M, 3, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
    k = torch.cat([prefix[1].expand(U, -1, -1, -1), k], dim=2)
    v = torch.cat([prefix[2].expand(U, -1, -1, -1), v], dim=2)
    mask = torch.ones(M, P + M, dtype=torch.bool, device=x_UMD.device).tril(diagonal=P)
    y_prefix = F.scaled_dot_product_attention(prefix[0], prefix[1], prefix[2], is_causal=True)
    y_own = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y_KD = torch.cat([y.transpose(1, 2).reshape(-1, D) for y in (y_prefix, y_own)])
    attended_KD = F.linear(y_KD, attention.out_proj.weight, attention.out_proj.bias)
    tokens_KD = feed_forward(block, tokens_KD + block.ls_1(attended_KD))
    return tokens_KD[:P], tokens_KD[P:].view(U, M, D)


def run_dense_block(block: ResidualAttentionBlock, x_BLD: Tensor) -> Tensor:
    """Run one block with the self-only attention of MaskCLIP, the rest unchanged."""
    attended_BLD = attend_to_self(block.attn, block.ln_1(x_BLD))
    return feed_forward(block, x_BLD + block.ls_1(attended_BLD))
