"""Prompts: learned contexts, templates and highlights are put together as METHOD §3 and §5 say."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import (
    TEMPLATES,
    NounPrompt,
    Templates,
    highlight_region,
    highlight_words,
    template_embeddings,
)

TINY = str(Path(__file__).parents[2] / "data" / "tiny_clip.json")


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return FrozenClip.load(TINY, "random:1")


def bpe(clip, names):
    ids = [clip.tokenizer.encode(name) for name in names]
    longest = max(map(len, ids))
    return (
        torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        torch.tensor([len(row) for row in ids]),
    )


def test_the_templates_are_clips_80():
    assert len(TEMPLATES) == 80
    assert TEMPLATES[0] == "a bad photo of a {}."


def test_context_starts_as_a_photo_of(clip):
    prompt = NounPrompt(clip, 16)
    names = ["car", "parking meter", "pterodactyl"]
    fillers = " x" * 13
    texts = clip.tokenize([f"A photo of{fillers} {name}" for name in names])
    torch.testing.assert_close(prompt(clip, *bpe(clip, names)), clip.encode_text(texts))


def test_template_of_token_ids_equals_template_of_text(clip):
    names = ["car", "parking meter", "pterodactyl"]
    encode = Templates(clip)
    for number, template in enumerate(TEMPLATES):
        texts = clip.tokenize([template.format(name) for name in names])
        torch.testing.assert_close(
            encode(clip, torch.full((len(names),), number), *bpe(clip, names)),
            clip.encode_text(texts),
        )


def test_template_embeddings_are_unit_and_in_order(clip):
    embeddings = template_embeddings(clip, ["dog", "red car"], TEMPLATES[:3])
    assert embeddings.shape == (2, 3, 64)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 3))
    one = clip.encode_text(clip.tokenize([TEMPLATES[2].format("red car")]))[0]
    torch.testing.assert_close(embeddings[1, 2], one)


def test_region_keeps_inside_and_puts_the_prompt_outside():
    image, prompt = torch.rand(1, 3, 8, 8), torch.rand(3, 4, 4)
    mask = torch.zeros(1, 1, 2, 2)
    mask[0, 0, 0, 0] = 1
    out = highlight_region(image, mask, prompt)
    resized = F.interpolate(prompt[None], (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out[..., :4, :4], image[..., :4, :4])
    torch.testing.assert_close(out[..., 4:, :], resized[..., 4:, :])
    torch.testing.assert_close(out[..., :4, 4:], resized[..., :4, 4:])


def test_sos_eos_and_padding_are_never_replaced():
    tokens, prompt = torch.rand(1, 6, 5), torch.rand(9, 5)
    out = highlight_words(tokens, torch.zeros(1, 6), torch.tensor([4]), prompt)
    for kept in (0, 3, 4, 5):
        torch.testing.assert_close(out[0, kept], tokens[0, kept])
    torch.testing.assert_close(out[0, 1:3], prompt[1:3])


def test_soft_word_masks_mix():
    tokens, prompt = torch.rand(1, 5, 4), torch.rand(5, 4)
    out = highlight_words(tokens, torch.full((1, 5), 0.25), torch.tensor([5]), prompt)
    torch.testing.assert_close(out[0, 2], 0.25 * tokens[0, 2] + 0.75 * prompt[2])
