"""Transformer blocks of open_clip with faster arithmetic: tokens (B, L, D) -> tokens (B, L, D).

Letters: B sequences, L tokens, D width, H heads, d width of a head; P tokens of a prefix that U
sequences of M more tokens share.
The weights stay in open_clip's `ResidualAttentionBlock`; only the arithmetic is ours. Its
`nn.MultiheadAttention(batch_first=True)` works on a transposed view. Under bf16 autocast the
projections of that view become a batched product that copies the weight L times (2.5x the time of
a whole step); `F.linear` on contiguous (B, L, D) and fused attention give the same numbers.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from codeseg.model import device


def heads(
    attention: nn.MultiheadAttention, x_BLD: Tensor, first: int = 0, last: int = 3
) -> tuple[Tensor, ...]:
    """Project normed tokens into queries (0), keys (1) and values (2), each (B, H, L, d).

    Only `first` (included) to `last` (excluded) of the three are returned.
    """
    return _split(attention, project(attention, x_BLD, first, last))


def join(attention: nn.MultiheadAttention, y_BHLd: Tensor) -> Tensor:
    """Join the heads' outputs by the output projection: (B, L, D)."""
    joined_BLD: Tensor = attention.out_proj(y_BHLd.transpose(1, 2).flatten(2))
    return joined_BLD


def project(attention: nn.MultiheadAttention, x: Tensor, first: int, last: int) -> Tensor:
    """Project normed tokens (…, D) as `heads` does, without splitting: (…, (last − first)·D)."""
    D, bias = x.shape[-1], attention.in_proj_bias
    rows = slice(first * D, last * D)
    return F.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows])


def _split(attention: nn.MultiheadAttention, projected: Tensor) -> tuple[Tensor, ...]:
    B, L, width = projected.shape
    D, H = attention.embed_dim, attention.num_heads
    return projected.view(B, L, width // D, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)


def attend(
    attention: nn.MultiheadAttention, x_BLD: Tensor, *, mask: Tensor | None = None, causal: bool
) -> Tensor:
    """Run multi-head self-attention on normed tokens.

    `mask` is bool, broadcastable to (B, H, L, L), and True where a key is visible. With `causal`,
    token i sees only tokens 0..i.
    """
    q, k, v = heads(attention, x_BLD)
    if q.dtype == torch.bfloat16 and mask is None and not causal and not device.is_gpu(q):
        # The fused kernel's bf16 backward has no fast path on CPUs: 27 ms against 7 at ViT-B/16.
        y_BHLd = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1) @ v
    else:
        y_BHLd = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return join(attention, y_BHLd)


def attend_across(
    attention: nn.MultiheadAttention,
    queries_BRD: Tensor,
    keys_BLD: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Let R tokens of each sequence attend to L others: (B, R, D); `mask` as in `attend`."""
    (q,) = heads(attention, queries_BRD, 0, 1)
    k, v = heads(attention, keys_BLD, 1, 3)
    return join(attention, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def attend_to_self(attention: nn.MultiheadAttention, x_BLD: Tensor) -> Tensor:
    """Let every token attend only to itself: out_proj(v_proj(x)) (METHOD §1, "dense")."""
    attended_BLD: Tensor = attention.out_proj(project(attention, x_BLD, 2, 3))
    return attended_BLD


def feed_forward(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Run the block's second half with its residual on (…, D): x + mlp(ln_2(x))."""
    hidden = _activate(block.mlp.gelu, block.mlp.c_fc(block.ln_2(x)))
    residual: Tensor = block.ls_2(block.mlp.c_proj(hidden))
    return x + residual


def _activate(activation: nn.Module, x: Tensor) -> Tensor:
    """Run the block's activation; QuickGELU, x·sigmoid(1.702 x), runs as the equivalent fused SiLU.

    On a CPU this takes a quarter of the time of open_clip's form in fp32, two thirds in bf16.
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
    """Run the last block of an encoder for the one token that is read: (B, D).

    The other tokens give only keys and values, which saves 20 of the block's 24 D² multiply-adds
    per token. The result equals `run_block(...)[:, index]`.
    """
    rows_B = torch.arange(len(x_BLD), device=x_BLD.device)
    mask = None
    if causal:
        mask = torch.arange(x_BLD.shape[1], device=x_BLD.device) <= index_B[:, None]
        mask = mask[:, None, None]
    normed_BLD = block.ln_1(x_BLD)
    asking_B1D = normed_BLD[rows_B, index_B][:, None]
    attended_BD = attend_across(block.attn, asking_B1D, normed_BLD, mask)[:, 0]
    token_BD = x_BLD[rows_B, index_B]
    return feed_forward(block, token_BD + block.ls_1(attended_BD))


def run_block_after_prefix(
    block: ResidualAttentionBlock, prefix_PD: Tensor, x_UMD: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a causal block on U sequences of M tokens after a shared prefix of P, which runs once.

    Return prefix and sequences after the block, equal to `run_block` on U sequences of P + M.
    """
    (P, D), (U, M, _) = prefix_PD.shape, x_UMD.shape
    tokens_KD = torch.cat([prefix_PD, x_UMD.reshape(U * M, D)])  # K = P + U·M
    qkv = project(block.attn, block.ln_1(tokens_KD), 0, 3)
    q_P, k_P, v_P = _split(block.attn, qkv[None, :P])
    q, k, v = _split(block.attn, qkv[P:].view(U, M, -1))
    k = torch.cat([k_P.expand(U, -1, -1, -1), k], dim=2)
    v = torch.cat([v_P.expand(U, -1, -1, -1), v], dim=2)
    mask = torch.ones(M, P + M, dtype=torch.bool, device=x_UMD.device).tril(diagonal=P)
    y_prefix = F.scaled_dot_product_attention(q_P, k_P, v_P, is_causal=True)
    y_own = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y_KD = torch.cat([y.transpose(1, 2).reshape(-1, D) for y in (y_prefix, y_own)])
    tokens_KD = feed_forward(block, tokens_KD + block.ls_1(block.attn.out_proj(y_KD)))
    return tokens_KD[:P], tokens_KD[P:].view(U, M, D)


def run_dense_block(block: ResidualAttentionBlock, x_BLD: Tensor) -> Tensor:
    """Run one block with MaskCLIP's self-only attention, otherwise unchanged."""
    attended_BLD = attend_to_self(block.attn, block.ln_1(x_BLD))
    return feed_forward(block, x_BLD + block.ls_1(attended_BLD))
