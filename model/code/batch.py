"""The input of a training step: one rank's share of a batch, as tensors. Torch only.

Letters: B images of this rank, J nouns per image, N = J·B pairs (noun-major: all first nouns, then
all second), U distinct nouns, M noun tokens (the longest), L caption tokens (the longest), H W
pixels, Q = h·w patches, P = 1 + Q image tokens, D vision width, T text width, C joint width.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

LEFT_OUT = torch.empty(0)
"""A tensor that the model does not read."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A model's input; fields that are None are computed or not needed.

    An alignment reads `captions_BC` and `vectors_BVD`; only its batches leave out the first four.
    """

    pixels_BCHW: Tensor = LEFT_OUT
    """uint8 RGB 0..255, or float already normalized."""
    caption_tokens_BL: Tensor = LEFT_OUT
    """int64: SOS, words, EOS, zeros."""
    caption_lengths_B: Tensor = LEFT_OUT
    """int64: tokens up to and including EOS."""
    labels_BL: Tensor = LEFT_OUT
    """int64: 1..J the selected nouns' tokens, 0 other nouns', −1 ignored (METHOD §4)."""
    noun_tokens_UM: Tensor
    """int64 BPE ids of the distinct nouns, without SOS and EOS, zero-padded."""
    noun_lengths_U: Tensor
    """int64: their token counts."""
    noun_index_N: Tensor
    """int64 into U."""
    knowledge_UC: Tensor
    """fp32: un-normalized mean of the template embeddings (METHOD §3)."""
    caption_states_BLT: Tensor | None = None
    """fp16: the frozen text encoder's hidden states before ln_final, zeros after EOS."""
    image_tokens_BPD: Tensor | None = None
    """fp16: the trunk's output, class token first."""
    image_tokens_int8_BPD: Tensor | None = None
    """int8: the same, to be multiplied with the scale."""
    image_token_scale_BP: Tensor | None = None
    """fp32: one scale per token."""
    captions_BC: Tensor | None = None
    """fp16: the CLIP's embedding of the caption, not normalized."""
    vectors_BVD: Tensor | None = None
    """fp16: pooled vectors of a self-supervised ViT (METHOD §13), padded with zeros."""
    regions_BQ: Tensor | None = None
    """int64: region of each patch in scan order; negative is none (METHOD §9)."""
    regions: int = 0
    """The maximum number of regions per picture, by the settings that made them."""

    def to(self, device: torch.device | str) -> "Batch":
        """Return the tensors on a device, without the other fields of a subclass."""
        values = {field.name: getattr(self, field.name) for field in fields(Batch)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device, non_blocking=True)
        return Batch(**values)

    def varying(self) -> list[tuple[Tensor, int]]:
        """Return tensors with the dimensions (L, M, U) whose size differs from batch to batch."""
        return [
            (value, dim)
            for name, value in vars(self).items()
            for dim, letter in enumerate(name.rpartition("_")[2])
            if letter in "LMU" and isinstance(value, Tensor) and value.numel()
        ]

    def trunk_tokens(self) -> Tensor | None:
        """Return the trunk's output (B, P, D), dequantized; None if it is not stored."""
        if self.image_tokens_int8_BPD is not None and self.image_token_scale_BP is not None:
            return self.image_tokens_int8_BPD.float() * self.image_token_scale_BP[..., None]
        return self.image_tokens_BPD
