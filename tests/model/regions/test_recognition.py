"""All regions in one forward equal each region alone; the one-way loss equals a plain loop."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.regions.recognition import (
    members,
    noun_region_loss,
    noun_region_scores,
    recognize,
)

TINY = str(Path(__file__).parents[2] / "data" / "tiny_clip.json")


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load(TINY, "random:1")


def one_region_by_full_mask(block, tokens, patches):
    """One region alone, with open_clip's own block and a full attention mask.

    The sequence is [class, patches, copy]; class and patches see class and patches; the copy sees
    the region's patches and itself.
    """
    L = tokens.shape[1]
    tokens = torch.cat([tokens, tokens[:, :1]], dim=1)
    hidden = torch.zeros(L + 1, L + 1)
    hidden[:L, L] = -math.inf
    hidden[L, :L] = -math.inf
    hidden[L, 1:L][patches] = 0
    return block(tokens, attn_mask=hidden)[:, -1]


def test_all_regions_at_once_equal_each_region_alone(clip):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    regions = torch.randint(5, (3, 16), generator=torch.Generator().manual_seed(1))
    block, tokens = clip.last_block, clip.trunk(images)
    with torch.no_grad():
        together = recognize(block, tokens, members(regions))
        for b in range(3):
            for r in range(5):
                patches = regions[b] == r
                alone = one_region_by_full_mask(block, tokens[b : b + 1], patches)[0]
                if patches.any():
                    torch.testing.assert_close(together[b, r], alone, rtol=1e-5, atol=1e-5)


def test_region_of_the_whole_picture_is_the_image_embedding(clip):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = torch.zeros(2, 16, dtype=torch.int64)
    with torch.no_grad():
        copies = recognize(clip.last_block, clip.trunk(images), members(whole))
        embedding = torch.nn.functional.normalize(clip.project(copies[:, 0]), dim=-1)
        torch.testing.assert_close(embedding, clip.encode_image(images), rtol=1e-5, atol=1e-5)


def test_region_knows_nothing_of_other_patches(clip):
    tokens = torch.randn(1, 17, 64)
    regions = (torch.arange(16) >= 4).long()[None]
    changed = tokens.clone()
    changed[:, 5:] = torch.randn(1, 12, 64)  # the patches of region 1
    with torch.no_grad():
        before, after = (recognize(clip.last_block, t, members(regions)) for t in (tokens, changed))
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-3


def test_gradients_are_finite_with_padding_regions(clip):
    tokens = torch.randn(2, 17, 64, requires_grad=True)
    regions = torch.stack([torch.zeros(16, dtype=torch.int64), torch.arange(16)])
    of_patches = members(regions)
    copies = recognize(clip.last_block, tokens, of_patches)
    unit = torch.nn.functional.normalize(copies, dim=-1)
    scores = noun_region_scores(unit[0, :3], unit, of_patches.any(-1))
    noun_region_loss(scores, torch.tensor([0, 1, 0]), torch.arange(3), 10.0).backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.abs().max() > 0


def test_members_ignore_patches_without_region():
    expected = [[[True, False, False], [False, False, True]]]
    assert members(torch.tensor([[0, -1, 1]])).tolist() == expected


def loss_by_loops(nouns, regions, real, image, noun, scale, pool, temperature):
    """The loss as its sentence says, without a tensor operation on more than one number pair."""

    def score(n, b):
        found = [float(nouns[n] @ regions[b, r]) for r in range(real.shape[1]) if real[b, r]]
        if pool == "max":
            return max(found)
        weights = [math.exp(s / temperature) for s in found]
        return sum(w * s for w, s in zip(weights, found, strict=True)) / sum(weights)

    total = 0.0
    for n in range(len(nouns)):
        own = math.exp(scale * score(n, int(image[n])))
        everywhere = own
        for b in range(len(regions)):
            named = {int(noun[m]) for m in range(len(nouns)) if int(image[m]) == b}
            if b != int(image[n]) and int(noun[n]) not in named:
                everywhere += math.exp(scale * score(n, b))
        total -= math.log(own / everywhere)
    return total / len(nouns)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10_000))
@settings(max_examples=25)
@pytest.mark.parametrize("pool", ["max", "soft"])
def test_loss_equals_a_plain_loop(pool, images, nouns_per_image, most_regions, seed):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        random = torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(random, dim=-1)

    N = images * nouns_per_image
    nouns, regions = unit(N), unit(images, most_regions)
    real = torch.rand(images, most_regions, generator=generator) < 0.6
    real[:, 0] = True
    image = torch.arange(images).repeat(nouns_per_image)
    noun = torch.randint(3, (N,), generator=generator)
    scores = noun_region_scores(nouns, regions, real, pool=pool, temperature=0.2)
    loss = noun_region_loss(scores, image, noun, 7.0)
    expected = loss_by_loops(nouns, regions, real, image, noun, 7.0, pool, 0.2)
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_loss_is_one_way():
    """A region that no noun names costs nothing: only the best match counts."""
    nouns = torch.eye(2, 4)
    regions = torch.stack([torch.eye(4)[[0, 2]], torch.eye(4)[[1, 3]]])
    real = torch.ones(2, 2, dtype=torch.bool)
    scores = noun_region_scores(nouns, regions, real)
    image, noun = torch.arange(2), torch.arange(2)
    alone = noun_region_scores(nouns, regions[:, :1], real[:, :1])
    assert noun_region_loss(scores, image, noun, 50.0) < 1e-6
    torch.testing.assert_close(
        noun_region_loss(scores, image, noun, 5.0), noun_region_loss(alone, image, noun, 5.0)
    )


def test_picture_without_regions_never_wins():
    real = torch.tensor([[False, False], [True, False]])
    for pool in ("max", "soft"):
        nouns, regions = -torch.eye(1, 4), torch.eye(4).view(2, 2, 4)
        scores = noun_region_scores(nouns, regions, real, pool=pool)
        assert scores[0, 0] < scores[0, 1]
