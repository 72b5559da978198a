"""The frozen CLIP (METHOD §1): pixels or token ids in, tokens and joint embeddings out.

Letters: B images or texts, P = 1 + h*w image tokens (class token first), D vision width, L text
tokens, T text width, C joint width, H W pixels, h w patch grid. Images are float, normalized with
`normalize`; "unit" embeddings (…, C) are L2-normalized. The weights have no gradients, but
gradients flow through to the input (METHOD §5 needs them).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Self

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from codeseg.model.clip.blocks import run_block, run_block_after_prefix, run_block_for_one
from codeseg.model.clip.weights import build_clip, hash_weights, refuse_unsupported

# Training and evaluation use ImageNet's statistics, not CLIP's (METHOD §1).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# CLIP's own statistics, for 0..255 and rounded, as SCLIP and its successors evaluate.
CLIP_MEAN = (122.771, 116.746, 104.094)
CLIP_STD = (68.501, 66.632, 70.323)


def _in_own_type(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a tower in the dtype set by `hold_in`; autocast would return to fp32."""

    @wraps(run)
    def inside(self: "FrozenClip", *inputs: Tensor, **options: bool) -> Tensor:
        dtype = self.clip.visual.proj.dtype
        if dtype == torch.float32:
            return run(self, *inputs, **options)
        cast = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        with torch.autocast(inputs[0].device.type, enabled=False):
            return run(self, *cast, **options)

    return inside


class FrozenClip(nn.Module):
    """Any open_clip model with a plain ViT and a causal BPE text transformer, frozen.

    Attributes:
        name, pretrained: the arguments of `load`.
        weights_sha256: hash of every weight in fp32 and of QuickGELU; the file does not matter.
        image_size, patch_size: pixels; width (D), text_width (T), embed_dim (C).
        layers, text_layers: numbers of blocks.
        context_length: maximum number of text tokens, SOS and EOS included.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: open_clip.CLIP, name: str, pretrained: str) -> None:
        super().__init__()
        refuse_unsupported(clip, name)
        self.clip = clip.float().requires_grad_(False).eval()
        self.name, self.pretrained = name, pretrained
        self.weights_sha256 = hash_weights(self.clip)
        visual = clip.visual
        self.image_size: int = visual.image_size[0]
        self.patch_size: int = visual.patch_size[0]
        self.width: int = visual.transformer.width
        self.layers: int = visual.transformer.layers
        self.text_width: int = clip.transformer.width
        self.text_layers: int = clip.transformer.layers
        self.embed_dim: int = visual.proj.shape[1]
        self.context_length: int = clip.context_length
        self.tokenizer = open_clip.SimpleTokenizer(context_length=self.context_length)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, model: str, pretrained: str | None, device: str | torch.device = "cpu") -> Self:
        """Load a CLIP.

        Args:
            model: an open_clip model name, a path to an open_clip JSON config, or "storybook".
            pretrained: a hub tag, a path to .safetensors or .pt (read without pickle),
                "storybook", or "random[:seed]" (None is "random").
            device: the weights' device.

        Raises:
            ValueError: the model or the weights are unknown, unsupported or unavailable.
        """
        pretrained = pretrained or "random"
        return cls(build_clip(model, pretrained), model, pretrained).to(device)

    def hold_in(self, dtype: torch.dtype) -> None:
        """Keep and run the frozen towers in a smaller dtype; fold QuickGELU's 1.702 into weights.

        Training on a GPU uses it, where memory is the bottleneck; residuals and norms have that
        dtype too. Copy blocks before calling this. `weights_sha256` remains the original's.
        """
        for block in [*self.clip.visual.transformer.resblocks, *self.clip.transformer.resblocks]:
            if isinstance(block.mlp.gelu, QuickGELU):
                with torch.no_grad():
                    block.mlp.c_fc.weight *= 1.702
                    block.mlp.c_fc.bias *= 1.702
                    block.mlp.c_proj.weight /= 1.702
                block.mlp.gelu = nn.SiLU()
        self.clip.to(dtype)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the surrounding model does."""
        return super().train(False)

    @property
    def last_block(self) -> ResidualAttentionBlock:
        """The last vision block, which the segmenter copies."""
        return self.clip.visual.transformer.resblocks[-1]

    @property
    def last_text_block(self) -> ResidualAttentionBlock:
        """The last text block."""
        return self.clip.transformer.resblocks[-1]

    def normalize(self, pixels_BCHW: Tensor, statistics: str = "imagenet") -> Tensor:
        """Turn uint8 RGB pixels into floats, normalized by ImageNet's or CLIP's statistics."""
        if statistics == "imagenet":
            return (pixels_BCHW.float() / 255 - self.mean) / self.std
        mean, std = (pixels_BCHW.new_tensor(v, dtype=torch.float32) for v in (CLIP_MEAN, CLIP_STD))
        return (pixels_BCHW.float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def denormalize(self, images_BCHW: Tensor, statistics: str = "imagenet") -> Tensor:
        """Undo `normalize`: floats 0..255."""
        if statistics == "imagenet":
            return 255 * (images_BCHW * self.std + self.mean)
        mean, std = (images_BCHW.new_tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        return images_BCHW * std + mean

    def is_new(self, text: str) -> bool:
        """Return whether a text has an untrained token: one whose row equals another token's."""
        rows = self.clip.token_embedding.weight
        ids = self.tokenizer.encode(text)
        return any(int((rows[:, :4] == rows[index, :4]).all(1).sum()) > 1 for index in ids)

    # -- images ---------------------------------------------------------------------------------

    def grid(self, images_BCHW: Tensor) -> tuple[int, int]:
        """Return the patch grid (h, w) of images; refuse sides that are no multiple of a patch."""
        H, W = images_BCHW.shape[-2:]
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(
                f"image of {H}x{W} pixels: both sides must be multiples of the patch size "
                f"{self.patch_size}; pad or resize it"
            )
        return H // self.patch_size, W // self.patch_size

    def embed(self, images_BCHW: Tensor, *, by_factor: bool = False) -> Tensor:
        """Turn images into the tokens (B, P, D) that enter the first block.

        Args:
            images_BCHW: normalized, sides multiples of the patch size.
            by_factor: sample resized position embeddings by the factor (side + 0.1)/native, as
                SCLIP and its successors do, not by the size alone, as CLIP and the reference do.
        """
        visual, p = self.clip.visual, self.patch_size
        h, w = self.grid(images_BCHW)
        B = images_BCHW.shape[0]
        # A strided convolution is a product with flattened patches; its backward is cheaper.
        patches = images_BCHW.view(B, 3, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, -1)
        tokens_BPD = F.linear(patches, visual.conv1.weight.flatten(1)).to(visual.proj.dtype)
        class_token = visual.class_embedding.expand(B, 1, -1)
        tokens_BPD = torch.cat([class_token, tokens_BPD], dim=1)
        tokens_BPD = tokens_BPD + self._positions(h, w, by_factor)
        normed_BPD: Tensor = visual.ln_pre(tokens_BPD)
        return normed_BPD

    @_in_own_type
    def trunk(self, images_BCHW: Tensor, *, by_factor: bool = False) -> Tensor:
        """Return the output (B, P, D) of block layers-2, class token included (METHOD §2.1)."""
        tokens_BPD = self.embed(images_BCHW, by_factor=by_factor)
        for block in self.clip.visual.transformer.resblocks[:-1]:
            tokens_BPD = run_block(block, tokens_BPD)
        return tokens_BPD

    def states(self, images_BCHW: Tensor, *, by_factor: bool = False) -> list[Tensor]:
        """Return the tokens (B, P, D) of `embed`, then every block's output but the last one's."""
        states = [self.embed(images_BCHW, by_factor=by_factor)]
        for block in self.clip.visual.transformer.resblocks[:-1]:
            states.append(run_block(block, states[-1]))
        return states

    @_in_own_type
    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Return E^v (B, C), unit, by the normal class-token forward."""
        return self.class_embedding(self.trunk(images_BCHW))

    def class_embedding(self, tokens_BPD: Tensor) -> Tensor:
        """Return E^v (B, C), unit, from the trunk's output: the last block for the class token."""
        class_token_B = torch.zeros(len(tokens_BPD), dtype=torch.int64, device=tokens_BPD.device)
        token_BD = run_block_for_one(self.last_block, tokens_BPD, class_token_B)
        return F.normalize(self.project(token_BD).float(), dim=-1)

    def project(self, tokens: Tensor) -> Tensor:
        """Apply ln_post and the projection: (…, D) to (…, C), not normalized."""
        projected: Tensor = self.clip.visual.ln_post(tokens) @ self.clip.visual.proj
        return projected

    def _positions(self, h: int, w: int, by_factor: bool) -> Tensor:
        """Return position embeddings (P, D), bicubically resized unless the grid is the native."""
        positions_PD: Tensor = self.clip.visual.positional_embedding
        native_h, native_w = self.clip.visual.grid_size
        # A traced graph must serve every size; resizing the native grid to itself changes nothing.
        if not torch.compiler.is_exporting() and (h, w) == (native_h, native_w):
            return positions_PD
        grid_DHW = positions_PD[1:].T.reshape(-1, native_h, native_w)
        size: dict[str, Any] = {"size": (h, w)}
        if by_factor:
            size = {"scale_factor": ((h + 0.1) / native_h, (w + 0.1) / native_w)}
        grid_DHW = F.interpolate(grid_DHW[None], **size, mode="bicubic", align_corners=False)[0]
        return torch.cat([positions_PD[:1], grid_DHW.flatten(1).T])

    # -- text -----------------------------------------------------------------------------------

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return token ids (B, context_length) int64: SOS, text, EOS, zeros; long texts are cut."""
        tokens_BL: Tensor = self.tokenizer(texts)
        return tokens_BL

    def embed_tokens(self, tokens_BL: Tensor) -> Tensor:
        """Look up token embeddings (B, L, T), without positions."""
        embeddings_BLT: Tensor = self.clip.token_embedding(tokens_BL).float()
        return embeddings_BLT

    def _early_states(self, embeddings_BLT: Tensor) -> Tensor:
        """Run all text blocks but the last on token embeddings: (B, L, T)."""
        L = embeddings_BLT.shape[1]
        self._check_length(L)
        states_BLT: Tensor = embeddings_BLT + self.clip.positional_embedding[:L]
        for block in self.clip.transformer.resblocks[:-1]:
            states_BLT = run_block(block, states_BLT, causal=True)
        return states_BLT

    @_in_own_type
    def text_states(self, tokens_BL: Tensor) -> Tensor:
        """Return the last hidden states (B, L, T) before ln_final, for any L up to the context."""
        states_BLT = self._early_states(self.clip.token_embedding(tokens_BL))
        return run_block(self.last_text_block, states_BLT, causal=True)

    @_in_own_type
    def encode_embeddings(self, embeddings_BLT: Tensor, eos_B: Tensor, unit: bool = True) -> Tensor:
        """Encode token embeddings and read position `eos_B` (int64): E^t (B, C), raw or unit."""
        states_BLT = self._early_states(embeddings_BLT)
        state_BT = run_block_for_one(self.last_text_block, states_BLT, eos_B, causal=True)
        text_BC = self.project_text(state_BT).float()
        return F.normalize(text_BC, dim=-1) if unit else text_BC

    @_in_own_type
    def encode_after_prefix(
        self, prefix_PT: Tensor, embeddings_UMT: Tensor, eos_U: Tensor
    ) -> Tensor:
        """Encode U texts that share their first P token embeddings: E^t (U, C), unit.

        Attention is causal, so the prefix does not depend on what follows and is computed once.
        `eos_U` counts from the end of the prefix.
        """
        P, (U, M, _) = len(prefix_PT), embeddings_UMT.shape
        self._check_length(P + M)
        positions = self.clip.positional_embedding
        prefix_PT = prefix_PT + positions[:P]
        states_UMT = embeddings_UMT + positions[P : P + M]
        for block in self.clip.transformer.resblocks[:-1]:
            prefix_PT, states_UMT = run_block_after_prefix(block, prefix_PT, states_UMT)
        states_ULT = torch.cat([prefix_PT.expand(U, -1, -1), states_UMT], dim=1)
        state_UT = run_block_for_one(self.last_text_block, states_ULT, P + eos_U, causal=True)
        return F.normalize(self.project_text(state_UT).float(), dim=-1)

    def _check_length(self, length: int) -> None:
        if length > self.context_length:
            raise ValueError(
                f"a text of {length} tokens does not fit the context of {self.context_length}"
            )

    def project_text(self, states: Tensor) -> Tensor:
        """Apply ln_final and the text projection: (…, T) to (…, C), not normalized."""
        projected: Tensor = self.clip.ln_final(states) @ self.clip.text_projection
        return projected

    @property
    def text_projection(self) -> Tensor | None:
        """The projection (T, C) of words into the joint space; None if T = C."""
        if self.text_width == self.embed_dim:
            return None
        projection: Tensor = self.clip.text_projection
        return projection

    def encode_text(
        self, tokens_BL: Tensor, lengths_B: Tensor | None = None, unit: bool = True
    ) -> Tensor:
        """Encode token ids: E^t (B, C).

        Args:
            tokens_BL: SOS, text, EOS, then any padding: attention is causal, so it has no effect.
            lengths_B: tokens up to and including EOS; None finds EOS, the highest id.
            unit: normalize.
        """
        eos_B = tokens_BL.argmax(dim=-1) if lengths_B is None else lengths_B - 1
        longest = int(eos_B.max()) + 1
        return self.encode_embeddings(self.embed_tokens(tokens_BL[:, :longest]), eos_B, unit)
