import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeseg.model.clip.dense import VARIANTS, dense_embedding, neighbourhood
from codeseg.model.clip.encoder import FrozenClip


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("ViT-B-32", "random:3")


def attention_by_hand(block, x_PD, logits):
    """Multi-head attention in plain loops: `logits(q, k)` gives the head's scores."""
    attention, normed = block.attn, block.ln_1(x_PD)
    D, d = x_PD.shape[1], x_PD.shape[1] // attention.num_heads
    q, k, v = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias).split(D, dim=1)
    heads = []
    for i in range(attention.num_heads):
        part = slice(i * d, (i + 1) * d)
        weights = sum(s.softmax(-1) for s in logits(q[:, part], k[:, part], d**-0.5))
        heads.append(weights @ v[:, part])
    return attention.out_proj(torch.cat(heads, 1))


def by_hand(clip, x_PD, grid, variant):
    """The papers' last blocks, one image, one head at a time."""
    block = clip.last_block
    kept = x_PD  # the residual stream
    if variant == "sclip":
        kept = x_PD + attention_by_hand(block, x_PD, lambda q, k, s: (q @ q.T * s, k @ k.T * s))
        kept = kept + block.mlp(block.ln_2(kept))
    elif variant == "clearclip":
        kept = attention_by_hand(block, x_PD, lambda q, k, s: (q @ q.T * s,))
    else:
        bias = torch.zeros(len(x_PD), len(x_PD))
        for i in range(grid[0] * grid[1]):
            for j in range(grid[0] * grid[1]):
                dy, dx = i // grid[1] - j // grid[1], i % grid[1] - j % grid[1]
                bias[1 + i, 1 + j] = np.exp(-(dy * dy + dx * dx) / 50)
        kept = attention_by_hand(block, x_PD, lambda q, k, s: (k @ k.T * s + bias,))
    return F.normalize(clip.project(kept[1:]), dim=-1).T.unflatten(1, grid)


@pytest.mark.parametrize("variant", ["sclip", "clearclip", "naclip"])
@torch.no_grad()
def test_variant_equals_its_paper_written_out(clip, variant):
    grid = (2, 3)
    x_BPD = torch.randn(2, 7, clip.width, generator=torch.Generator().manual_seed(0))
    ours = dense_embedding(clip, x_BPD, grid, variant)
    theirs = torch.stack([by_hand(clip, x, grid, variant) for x in x_BPD])
    assert (ours - theirs).abs().max() < 1e-5


@torch.no_grad()
def test_maskclip_is_the_frozen_clips_own_dense_forward(clip):
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    ours = dense_embedding(clip, clip.trunk(image), (2, 3), "maskclip")
    assert torch.equal(ours, clip.dense(image))


@torch.no_grad()
def test_variants_differ_and_are_unit(clip):
    x_BPD = torch.randn(1, 5, clip.width, generator=torch.Generator().manual_seed(0))
    maps = [dense_embedding(clip, x_BPD, (2, 2), variant) for variant in VARIANTS]
    for i, one in enumerate(maps):
        assert torch.allclose(one.norm(dim=1), torch.ones(1, 2, 2), atol=1e-5)
        assert all((one - other).abs().max() > 1e-3 for other in maps[:i])


def test_neighbourhood_is_one_at_the_patch_itself_and_falls_with_distance():
    near = neighbourhood(3, 4)
    assert torch.equal(near.diagonal(), torch.ones(12))
    assert torch.equal(near, near.T)
    assert near[0, 1] == near[0, 4] > near[0, 5] > near[0, 2]


def test_unknown_method_is_refused(clip):
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        dense_embedding(clip, torch.zeros(1, 2, clip.width), (1, 1), "magic")
