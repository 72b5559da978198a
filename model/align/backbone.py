"""Pixels -> patch tokens of a frozen self-supervised ViT, and its class token's attention to them.

Letters: B images, Q = h*w patches in scan order, D width, H heads of the last block. The patches
lie on the frozen CLIP's grid, so that a region or a mask covers the same pixels in both models.
"""

import json
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codeseg.model.clip.hub import hub_or_cache
from codeseg.model.clip.weights import WEIGHTS, hash_state
from codeseg.model.regions.config import Grouping
from codeseg.model.regions.grouping import group_patches
from codeseg.model.regions.recognition import members


class Backbone(nn.Module):
    """A frozen ViT of timm (DINO, DINOv2, DINOv3 …) that returns its last layer's patch tokens.

    Args:
        name: timm's model name with a tag, such as "vit_small_patch14_dinov2.lvd142m"; or
            "storybook", the embedded ViT for drawings.
        weights: a weight file in timm's or the authors' format; None downloads it from the hub.

    Attributes:
        width: D; patch_size: pixels.

    Raises:
        ValueError: the model is unknown or not a ViT, or its weights are unavailable.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.vit = _create(name, weights).requires_grad_(False).eval()
        config = self.vit.pretrained_cfg
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.width: int = self.vit.num_features
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)

    @cached_property
    def weights_sha256(self) -> str:
        """The hash of all weights in fp32, which does not depend on the file's format."""
        return hash_state(self.vit.state_dict())

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode, whatever the surrounding model does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return patch tokens (B, Q, D) of RGB pixels, 0..255.

        The pixels are resized (bilinear, antialiased) so that the ViT's patches match the h×w grid.
        """
        size = [side * self.patch_size for side in grid]
        images = F.interpolate(
            pixels_BCHW.float() / 255, size, mode="bilinear", align_corners=False, antialias=True
        )
        tokens: Tensor = self.vit.forward_features((images - self.mean) / self.std)
        return tokens[:, self.vit.num_prefix_tokens :]

    @torch.no_grad()
    def attend(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return `forward`'s patch tokens, and the class token's attention logits (B, H, Q).

        Raises:
            ValueError: the ViT has no class token, or its attention does not go through torch's
                scaled_dot_product_attention.
        """
        with _LastAttention() as last:
            patches_BQD = self(pixels_BCHW, grid)
        if last.query is None or getattr(self.vit, "cls_token", None) is None:
            raise ValueError(
                f"the attention of {self.name}'s class token cannot be read: pool by regions, or "
                "use a plain ViT with a class token"
            )
        return patches_BQD, class_attention(last.query, last.key, self.vit.num_prefix_tokens)


class _LastAttention(TorchFunctionMode):
    """Keep query and key (B, H, tokens, d) of the last attention computed in this context."""

    query: Tensor | None = None
    key: Tensor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.query, self.key = args[:2]
        return func(*args, **(kwargs or {}))


def class_attention(query_BHPd: Tensor, key_BHPd: Tensor, prefix: int) -> Tensor:
    """Return the first token's attention logits (B, H, Q) to the tokens after the prefix."""
    scale = float(query_BHPd.shape[-1]) ** -0.5
    logits_BHQ1: Tensor = scale * (key_BHPd[:, :, prefix:] @ query_BHPd[:, :, :1].mT)
    return logits_BHQ1[..., 0]


def head_vectors(patches_BQD: Tensor, logits_BHQ: Tensor) -> Tensor:
    """Return each head's mean over the patches of attention * patch token: (B, H, D).

    Source: Talk2DINO's weighted embeddings.
    """
    return logits_BHQ.softmax(-1) @ patches_BQD / patches_BQD.shape[1]


def region_vectors(patches_BQD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean patch token of each region of an h×w grid: (B, R, D), padded with zeros.

    The regions come from the default grouping of the patches, which must be finite.
    """
    grouping = Grouping()
    maps = [group_patches(patches_QD, grid, grouping) for patches_QD in patches_BQD]
    regions_BQ = torch.from_numpy(np.stack(maps)).flatten(1).to(patches_BQD.device)
    inside_BRQ = members(regions_BQ.long(), grouping.regions).to(patches_BQD.dtype)
    return inside_BRQ @ patches_BQD / inside_BRQ.sum(-1, keepdim=True).clamp(min=1)


def _create(name: str, weights: str | None) -> Any:
    """Build timm's model with its weights."""
    import timm

    sizes: dict[str, Any] = {"model_name": name}
    if name == "storybook":
        sizes = json.loads((WEIGHTS / "storybook_vit.json").read_text())
        weights = weights or str(WEIGHTS / "storybook_vit.safetensors")
    elif not timm.is_model(name):
        raise ValueError(
            f"unknown ViT {name!r}: use storybook (the embedded ViT) or a ViT of timm, for example "
            "vit_small_patch16_dinov3.lvd1689m (timm.list_models('*dino*') lists more); regions "
            "can also be grouped by clip"
        )
    try:
        with hub_or_cache():
            vit = timm.create_model(
                **sizes,
                pretrained=True,
                pretrained_cfg_overlay={"file": weights} if weights else {},
                num_classes=0,
                dynamic_img_size=True,
            )
    except TypeError:  # it takes no dynamic_img_size
        vit = None
    except Exception as error:  # the hub's client and torch raise many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        source = f"in {weights}" if weights else "on the hub"
        raise ValueError(
            f"the weights of {name} were not found {source} ({reason}): check its tag "
            "and the network, or use --weights FILE"
        ) from error
    if not hasattr(vit, "patch_embed") or not hasattr(vit, "num_prefix_tokens"):
        raise ValueError(f"{name} has no single grid of patch tokens: use a plain ViT")
    return vit
