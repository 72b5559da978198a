"""A straightforward version of the reference's step, on the same weights: a batch in, losses out.

`bench/train_step.py` compares our step with it, and a test holds our step to its losses. Blocks
call torch's own multi-head attention on (L, B, D), the layout of the reference (open_clip's
(B, L, D) would be 2.5 times slower in bf16, and the comparison unfair). It runs all text at the
full context length, encodes every noun and a template in each step, recomputes the trunk, upsamples
before convolving and masks every image once per pair. Letters as in model/code/codecomposition.py.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codeseg.model.clip.prompts import TEMPLATES, highlight_region, highlight_words
from codeseg.model.code import losses
from codeseg.model.code.batch import Batch
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.composition import Losses


def plain_step(
    code: CoDe, batch: Batch, noise_JBHW: Tensor | None = None, template_N: Tensor | None = None
) -> Losses:
    """Return the losses of `code(...)` with `attend_padding`, without any shortcut.

    Without `template_N`, every noun is put into template 0.
    """
    clip, config = code.clip, code.config
    J, L = config.nouns_per_image, clip.context_length
    images = batch.pixels_BCHW
    if not images.is_floating_point():
        images = clip.normalize(images)
    index_N = batch.noun_index_N
    noun_tokens, lengths_N = batch.noun_tokens_UM[index_N], batch.noun_lengths_U[index_N]
    padding = (0, L - batch.caption_tokens_BL.shape[1])
    caption_tokens = F.pad(batch.caption_tokens_BL, padding)
    labels = F.pad(batch.labels_BL, padding, value=-1)

    with torch.no_grad():
        trunk_BPD = _trunk(code, images)
        states_BLT = _text(code, clip.embed_tokens(caption_tokens))
        knowledge_NC = _template(code, template_N, noun_tokens, lengths_N)
    nouns_NC = _nouns(code, noun_tokens, lengths_N)
    pixels = _pixel_embedding(code, trunk_BPD, clip.grid(images)).repeat(J, 1, 1, 1)
    N = len(nouns_NC)
    logits_NNHW = code.image_segmenter.mask_logits(pixels, nouns_NC)
    soft_NNHW = torch.sigmoid(logits_NNHW)
    pair = torch.arange(N, device=images.device)
    noisy = logits_NNHW[pair, pair]
    if noise_JBHW is not None:
        noisy = noisy + noise_JBHW.flatten(0, 1)
    soft = torch.sigmoid(noisy)
    hard = ((soft > 0.5).float() - soft).detach() + soft.float()
    highlighted = highlight_region(images.repeat(J, 1, 1, 1), hard[:, None], code.region_prompt)
    visual = clip.clip.visual
    tokens_BPD = _run(visual.transformer.resblocks, visual._embeds(highlighted))
    regions_NC = F.normalize(visual.ln_post(tokens_BPD[:, 0]) @ visual.proj, dim=-1)

    own_NHW = soft_NNHW[pair, pair]
    other = soft_NNHW[~torch.eye(N, dtype=torch.bool, device=images.device)]
    pooled_NN = losses.pooled_similarity(pixels, soft_NNHW, nouns_NC)
    terms = Losses(
        kg=config.knowledge_weight * losses.knowledge_distance(nouns_NC, knowledge_NC),
        tcl_feature=config.tcl_feature_weight
        * losses.info_nce(pooled_NN, code.tcl_feature_temperature),
        tcl_image=config.tcl_image_weight
        * losses.info_nce(regions_NC @ nouns_NC.T, code.tcl_image_temperature),
        tv_embedding=config.tv_embedding_weight * losses.total_variation(pixels),
        tv_mask=config.tv_mask_weight * losses.total_variation(soft_NNHW),
        area_positive=config.area_positive_weight * (own_NHW.mean() - config.area_prior).abs(),
        area_negative=config.area_negative_weight * other.mean().abs(),
    )
    if not config.co_decomposition:
        return terms
    words_BLT = _run(code.text_segmenter.blocks, states_BLT)
    words_BLC = F.normalize(words_BLT, dim=-1)
    logits_BKL = code.text_segmenter.word_logits(words_BLC, nouns_NC.view(J, -1, clip.embed_dim))
    masks_NL = logits_BKL.float().softmax(dim=1)[:, 1:].transpose(0, 1).flatten(0, 1)
    lengths = batch.caption_lengths_B.repeat(J)
    embeddings = clip.embed_tokens(caption_tokens).repeat(J, 1, 1)
    text = highlight_words(embeddings, masks_NL, lengths, code.word_prompt)
    texts_NC = _read(code, _text(code, text), lengths - 1)
    weight = torch.ones(1 + J, device=images.device)
    weight[0] = config.none_class_weight
    word = F.cross_entropy(logits_BKL, labels, weight=weight, ignore_index=-1)
    terms["word"] = config.word_weight * word
    hcl = losses.info_nce(regions_NC @ texts_NC.T, code.hcl_temperature)
    terms["hcl"] = config.hcl_weight * hcl
    return terms


def _trunk(code: CoDe, images: Tensor) -> Tensor:
    visual = code.clip.clip.visual
    return _run(visual.transformer.resblocks[:-1], visual._embeds(images))


def _run(blocks: Iterable[Any], x_BLD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run whole blocks with torch's multi-head attention, in the layout (L, B, D)."""
    x = x_BLD.transpose(0, 1).contiguous()
    for block in blocks:
        attention, normed = block.attn, block.ln_1(x)
        attended, _ = F.multi_head_attention_forward(
            normed,
            normed,
            normed,
            attention.embed_dim,
            attention.num_heads,
            attention.in_proj_weight,
            attention.in_proj_bias,
            None,
            None,
            False,
            0.0,
            attention.out_proj.weight,
            attention.out_proj.bias,
            need_weights=False,
            attn_mask=mask,
        )
        x = x + attended
        x = x + block.mlp(block.ln_2(x))
    return x.transpose(0, 1)


def _pixel_embedding(code: CoDe, tokens_BPD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Run the dense last block and the decoder on (B, D, h, w) maps."""
    segmenter = code.image_segmenter
    block, attention = segmenter.block, segmenter.block.attn
    value = F.linear(
        block.ln_1(tokens_BPD),
        attention.in_proj_weight.chunk(3)[2],
        attention.in_proj_bias.chunk(3)[2],
    )
    tokens_BPD = tokens_BPD + attention.out_proj(value)
    tokens_BPD = tokens_BPD + block.mlp(block.ln_2(tokens_BPD))
    x = tokens_BPD[:, 1:].transpose(1, 2).unflatten(2, grid)
    for stage in segmenter.stages:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        y = stage.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + torch.tanh(stage.gate) * stage.conv(F.gelu(y))
    x = segmenter.ln_post(x.permute(0, 2, 3, 1)) @ segmenter.proj
    return F.normalize(x, dim=-1).permute(0, 3, 1, 2)


def _text(code: CoDe, embeddings_BLT: Tensor) -> Tensor:
    """Run the text transformer at the full context length, before ln_final."""
    text = code.clip.clip
    mask = text.attn_mask.to(embeddings_BLT.dtype)
    return _run(text.transformer.resblocks, embeddings_BLT + text.positional_embedding, mask)


def _read(code: CoDe, states_BLT: Tensor, eos_B: Tensor) -> Tensor:
    text = code.clip.clip
    states = text.ln_final(states_BLT)[torch.arange(len(eos_B), device=eos_B.device), eos_B]
    return F.normalize(states @ text.text_projection, dim=-1)


def _rows(code: CoDe, sequences: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids with EOS, zero-padded to the context, and the positions of EOS."""
    rows = torch.zeros(len(sequences), code.clip.context_length, dtype=torch.int64, device=device)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids) + 1] = torch.tensor([*ids, code.clip.tokenizer.eot_token_id])
    return rows, rows.argmax(dim=1)


def _template(
    code: CoDe, template_N: Tensor | None, tokens_NM: Tensor, lengths_N: Tensor
) -> Tensor:
    tokenizer = code.clip.tokenizer
    sequences = []
    chosen = [0] * len(tokens_NM) if template_N is None else template_N.tolist()
    for template, noun, length in zip(chosen, tokens_NM, lengths_N.tolist(), strict=True):
        before, _, after = TEMPLATES[template].partition("{}")
        noun_ids = [*noun[:length].tolist(), *tokenizer.encode(after)]
        sequences.append([tokenizer.sot_token_id, *tokenizer.encode(before), *noun_ids])
    rows, eos_N = _rows(code, sequences, tokens_NM.device)
    return _read(code, _text(code, code.clip.embed_tokens(rows)), eos_N)


def _nouns(code: CoDe, tokens_NM: Tensor, lengths_N: Tensor) -> Tensor:
    context = code.noun_prompt.context
    head = [code.clip.tokenizer.sot_token_id, *([0] * len(context))]
    nouns = [row[:length].tolist() for row, length in zip(tokens_NM, lengths_N, strict=True)]
    rows, eos_N = _rows(code, [head + noun for noun in nouns], tokens_NM.device)
    embeddings = code.clip.embed_tokens(rows)
    placed = context.expand(len(rows), -1, -1)
    embeddings = torch.cat([embeddings[:, :1], placed, embeddings[:, 1 + len(context) :]], dim=1)
    return _read(code, _text(code, embeddings), eos_N)
