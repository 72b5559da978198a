"""Learned prompts of the frozen encoders (METHOD §3, §5), and CLIP's template sentences.

Noun tokens in, noun embeddings out; pixels or token embeddings and a mask in, highlighted ones out.
Letters: U distinct nouns, M noun tokens, T text width, C joint width, N image-noun pairs, L caption
tokens, H W pixels, K templates.
"""

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from codeseg.model.clip.encoder import FrozenClip

TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
CUSTOM_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)
"""The nine templates that the reference's evaluation names `custom` (METHOD §8)."""
CONTEXT_START = "A photo of"


class NounPrompt(nn.Module):
    """KgCoOp's learnable context: [SOS] + context + noun + [EOS] through the frozen text encoder.

    The context starts as the token embeddings of "A photo of x x x …".
    """

    sos: Tensor
    eos: Tensor

    def __init__(self, clip: FrozenClip, context_tokens: int) -> None:
        super().__init__()
        fillers = " x" * (context_tokens - len(CONTEXT_START.split()))
        ids = clip.tokenizer.encode(CONTEXT_START + fillers)[:context_tokens]
        with torch.no_grad():
            self.context = nn.Parameter(clip.embed_tokens(torch.tensor(ids)).clone())
        for name, token in (
            ("sos", clip.tokenizer.sot_token_id),
            ("eos", clip.tokenizer.eot_token_id),
        ):
            self.register_buffer(name, torch.tensor([token]), persistent=False)

    def forward(self, clip: FrozenClip, tokens_UM: Tensor, lengths_U: Tensor) -> Tensor:
        """Return n (U, C), unit, of nouns given by their BPE ids.

        `tokens_UM` has no SOS and EOS and is zero-padded; `lengths_U` counts each noun's tokens.
        """
        sos = clip.embed_tokens(self.sos)
        place_M = torch.arange(tokens_UM.shape[1] + 1, device=tokens_UM.device)
        ended_UM = F.pad(tokens_UM, (0, 1)).where(place_M != lengths_U[:, None], self.eos)
        nouns = clip.embed_tokens(ended_UM)
        return clip.encode_after_prefix(torch.cat([sos, self.context]), nouns, lengths_U)


class Templates(nn.Module):
    """The template sentences as tables of BPE ids: the parts before and after a noun."""

    heads: Tensor
    tails: Tensor
    head_lengths: Tensor
    tail_lengths: Tensor

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__()
        tokenizer = clip.tokenizer
        parts = [template.partition("{}") for template in TEMPLATES]
        sides = {
            "head": [[tokenizer.sot_token_id, *tokenizer.encode(before)] for before, _, _ in parts],
            "tail": [[*tokenizer.encode(after), tokenizer.eot_token_id] for _, _, after in parts],
        }
        for side, rows in sides.items():
            lengths = [len(row) for row in rows]
            padded = [row + [0] * (max(lengths) - len(row)) for row in rows]
            self.register_buffer(f"{side}s", torch.tensor(padded), persistent=False)
            self.register_buffer(f"{side}_lengths", torch.tensor(lengths), persistent=False)

    @torch.no_grad()
    def forward(
        self, clip: FrozenClip, template_N: Tensor, tokens_NM: Tensor, lengths_N: Tensor
    ) -> Tensor:
        """Embed each noun, given as in `NounPrompt`, in its own template: n' (N, C), unit.

        `template_N` is int64, an index into TEMPLATES.
        """
        heads, tails = self.heads[template_N], self.tails[template_N]
        pieces = torch.cat([heads, tokens_NM, tails], dim=1)
        noun_N = self.head_lengths[template_N]
        tail_N = noun_N + lengths_N
        place_L = torch.arange(pieces.shape[1], device=pieces.device)
        # Tokens after EOS are arbitrary: the encoder is causal.
        skipped_NL = torch.where(
            place_L < noun_N[:, None],
            0,
            torch.where(
                place_L < tail_N[:, None],
                (heads.shape[1] - noun_N)[:, None],
                (heads.shape[1] + tokens_NM.shape[1] - tail_N)[:, None],
            ),
        )
        index_NL = (place_L + skipped_NL).clamp(max=pieces.shape[1] - 1)
        eos_N = tail_N + self.tail_lengths[template_N] - 1
        return clip.encode_embeddings(clip.embed_tokens(pieces.gather(1, index_NL)), eos_N)


@torch.no_grad()
def template_embeddings(
    clip: FrozenClip, names: list[str], templates: tuple[str, ...] = TEMPLATES, unit: bool = True
) -> Tensor:
    """Embed names in every template: (U, K, C), unit or not normalized.

    The mean over K of unit ones, not normalized, is the vocabulary's knowledge embedding (METHOD
    §3); the normalized mean is the zero-shot class embedding (METHOD §8).
    """
    device = clip.mean.device
    rows = [
        clip.encode_text(clip.tokenize([t.format(name) for t in templates]).to(device), unit=unit)
        for name in names
    ]
    return torch.stack(rows)


def highlight_region(images_NCHW: Tensor, mask_N1HW: Tensor, prompt_CHW: Tensor) -> Tensor:
    """Keep the masked part of normalized images, fill in the prompt: H^v = X·M + P^v·(1 − M).

    The mask, 0..1 at any resolution, is upsampled to the images' (nearest); P^v is resized to it
    (bilinear).
    """
    size = (images_NCHW.shape[-2], images_NCHW.shape[-1])
    mask = F.interpolate(mask_N1HW, size, mode="nearest")
    prompt = prompt_CHW[None]
    if prompt.shape[-2:] != size:
        prompt = F.interpolate(prompt, size, mode="bilinear", align_corners=False)
    return torch.lerp(prompt.to(images_NCHW.dtype), images_NCHW, mask)


def highlight_words(
    embeddings_NLT: Tensor, mask_NL: Tensor, lengths_N: Tensor, prompt_LT: Tensor
) -> Tensor:
    """Keep the masked words: H^t = T·M + P^t·(1 − M); SOS, EOS and padding are always kept.

    Args:
        embeddings_NLT: token embeddings, without positions.
        mask_NL: 0..1.
        lengths_N: tokens up to and including EOS.
        prompt_LT: P^t for every position of the context; cut to the first L.
    """
    L = embeddings_NLT.shape[1]
    position_L = torch.arange(L, device=mask_NL.device)
    kept_NL = (position_L == 0) | (position_L >= lengths_N[:, None] - 1)
    mask_NL1 = mask_NL.masked_fill(kept_NL, 1.0)[:, :, None]
    return torch.lerp(prompt_LT[:L].expand_as(embeddings_NLT), embeddings_NLT, mask_NL1)
