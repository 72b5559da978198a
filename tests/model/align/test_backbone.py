"""The embedded ViT, the attention of its class token, and background cleaning by it."""

import pytest
import torch
import torch.nn.functional as F

from codeseg.model.align.backbone import Backbone, head_vectors
from codeseg.model.clip.weights import WEIGHTS
from codeseg.model.inference.masks import clean

LARGEST = 6_000_000  # bytes of the embedded weights


@pytest.fixture(scope="module")
def backbone():
    return Backbone("storybook")


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8, generator=generator)


def test_the_embedded_vit_has_a_token_for_every_patch_of_any_grid(backbone, pixels):
    assert (WEIGHTS / "storybook_vit.safetensors").stat().st_size < LARGEST
    for h, w in ((12, 8), (8, 8), (16, 16), (3, 5)):
        assert backbone(pixels, (h, w)).shape == (2, h * w, backbone.width)


def test_floats_of_pixels_are_as_good_as_bytes(backbone, pixels):
    torch.testing.assert_close(backbone(pixels.float(), (6, 4)), backbone(pixels, (6, 4)))


def test_the_logits_are_those_of_the_class_tokens_own_attention(backbone, pixels):
    seen = []

    def watch(module, inputs):
        (tokens,) = inputs
        query, key, _ = module.qkv(tokens).unflatten(-1, (3, module.num_heads, -1)).unbind(2)
        attention = torch.einsum("bhd,bphd->bhp", query[:, 0], key) * module.head_dim**-0.5
        seen.append(attention.softmax(-1)[..., 1:])

    handle = backbone.vit.blocks[-1].attn.register_forward_pre_hook(watch)
    patches, logits = backbone.attend(pixels, (12, 8))
    handle.remove()
    among_patches = F.normalize(seen[0], p=1, dim=-1)
    torch.testing.assert_close(logits.softmax(-1), among_patches, atol=1e-6, rtol=1e-4)
    pooled = (among_patches[..., None] * patches[:, None]).mean(2)
    torch.testing.assert_close(head_vectors(patches, logits), pooled)


def test_cleaning_lowers_masks_outside_the_attention_of_the_things_heads():
    patches = F.one_hot(torch.tensor([[0, 0, 1, 1]]), 4).float()
    logits = torch.tensor([[[9.0, 9, 0, 0], [0, 0, 9, 9]]])  # a head for each half
    words = 20 * torch.eye(4)[:2]  # sure of its head
    masks = torch.tensor([0.8, 0.2, 0.8, 0.2]).expand(1, 2, 4).reshape(1, 2, 1, 4)
    cleaned = clean(masks, words, patches, logits, 1.0)
    low, high = masks.amin(), masks.amax()
    left = torch.tensor([[1.0, 1, 0, 0]])
    attended = torch.stack([left, 1 - left])[None]
    expected = (masks + low + (high - low) * attended) / 2
    torch.testing.assert_close(cleaned, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(clean(masks, words, patches, logits, 0.0), masks)
