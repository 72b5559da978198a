import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeseg.model.clip.dense import VARIANTS, dense_embedding, neighborhood
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.sc_clip import sc_clip


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
    ours = dense_embedding(clip, [x_BPD], grid, variant)
    theirs = torch.stack([by_hand(clip, x, grid, variant) for x in x_BPD])
    assert (ours - theirs).abs().max() < 1e-5


def sc_clip_by_hand(block, states, h, w):
    """SC-CLIP's last block, one image, in loops: reference/README's six steps."""
    depth = len(states)
    deep, middle, early = (states[round(k * depth / 12)][1:] for k in (12 - 12 / depth, 9, 4))
    distance = [[float((a - b).square().sum()) for b in deep] for a in deep]
    near = [sorted((d, j) for j, d in enumerate(row) if j != i) for i, row in enumerate(distance)]
    near = [row[:30] for row in near]
    reach = [row[-1][0] for row in near]
    scores = np.array([np.mean([reach[i] / reach[j] for _, j in r]) for i, r in enumerate(near)])
    flagged = scores > np.quantile(scores, 0.95)

    def repaired(x):
        out = x.clone()
        for i in np.flatnonzero(flagged):
            y0, x0 = divmod(int(i), w)
            around = [
                y * w + x1
                for y in range(max(y0 - 1, 0), min(y0 + 2, h))
                for x1 in range(max(x0 - 1, 0), min(x0 + 2, w))
                if not flagged[y * w + x1]
            ]
            if around:
                out[i] = x[around].mean(0)
        return out

    def cosine(x):
        return F.normalize(x, dim=1) @ F.normalize(x, dim=1).T

    def rows(S):
        S = torch.where(S >= 0.4, S, torch.zeros(()))
        return S / (S.sum(1, keepdim=True) + 1e-6)

    S = cosine(repaired(middle))
    sharp = 3 * (S - S.mean())
    M = torch.where(sharp < 0, torch.tensor(-torch.inf), sharp).softmax(1)
    D, H = deep.shape[1], block.attn.num_heads

    def attend(x):
        normed = block.ln_1(x)
        _, k, v = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).split(D, 1)
        heads = []
        for part in torch.arange(D).split(D // H):
            own = (k[:, part] @ k[:, part].T * (D // H) ** -0.5).softmax(1)
            heads.append((own + M) / 2 @ v[:, part])
        return block.attn.out_proj(torch.cat(heads, 1))

    T = rows(cosine(early))
    y = T @ (attend(rows(S) @ repaired(deep)) + 0.3 * states[-1][0])
    low, high = round(4 * depth / 12), round(10 * depth / 12)
    m = sum(states[low : high + 1])
    return y + T @ (attend(m[1:]) + 0.3 * m[0])


@torch.no_grad()
def test_sc_clip_equals_its_definition_written_out(clip):
    image = torch.randn(2, 3, 224, 192, generator=torch.Generator().manual_seed(1))
    states = clip.states(image)
    assert torch.equal(states[-1], clip.trunk(image)) and len(states) == clip.layers
    ours = sc_clip(clip.last_block, states, 7, 6)[:, 1:]
    for i in range(2):
        theirs = sc_clip_by_hand(clip.last_block, [x[i] for x in states], 7, 6)
        assert (ours[i] - theirs).abs().max() < 1e-4


@torch.no_grad()
def test_sc_clip_takes_a_grid_of_one_patch(clip):
    states = clip.states(torch.zeros(1, 3, 32, 32))
    assert dense_embedding(clip, states, (1, 1), "scclip").isfinite().all()


@torch.no_grad()
def test_variants_differ_and_are_unit(clip):
    states = clip.states(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    maps = [dense_embedding(clip, states, (2, 2), variant) for variant in VARIANTS]
    for i, one in enumerate(maps):
        assert torch.allclose(one.norm(dim=1), torch.ones(1, 2, 2), atol=1e-5)
        assert all((one - other).abs().max() > 1e-3 for other in maps[:i])


def test_neighborhood_is_one_at_the_patch_itself_and_falls_with_distance():
    near = neighborhood(3, 4)
    assert torch.equal(near.diagonal(), torch.ones(12))
    assert torch.equal(near, near.T)
    assert near[0, 1] == near[0, 4] > near[0, 5] > near[0, 2]
