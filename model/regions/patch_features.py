"""Pixels or trunk tokens -> the patch features that grouping compares (METHOD §9), (B, Q, D).

Letters: B images, P = 1 + Q image tokens, Q = h*w patches in scan order, D feature width, H W
pixels. There are two sources: the frozen CLIP's own keys, or a self-supervised ViT of timm. Both
use the CLIP's patch grid, so that a region is a set of CLIP patches and nothing is resampled.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.hub import hub_or_cache


def clip_keys(clip: FrozenClip, tokens_BPD: Tensor) -> Tensor:
    """Return the keys (B, Q, D) of the last block.

    Args:
        clip: the frozen CLIP.
        tokens_BPD: output of `clip.trunk`, class token first.
    """
    D, block = clip.width, clip.last_block
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    keys = slice(D, 2 * D)  # rows of the joint projection: queries, keys, values
    patches_BQD = block.ln_1(tokens_BPD[:, 1:])
    return F.linear(patches_BQD, weight[keys], None if bias is None else bias[keys])


class SelfSupervisedVit(nn.Module):
    """A frozen ViT of timm (DINO, DINOv2, DINOv3 …): its last layer's patch tokens.

    Args:
        name: timm's, with its tag: "vit_small_patch14_dinov2.lvd142m".
        weights: a file of weights in timm's or the authors' format; None takes them from the hub.

    Raises:
        ValueError: the model is unknown or not a ViT, or its weights are not available.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | None = None) -> None:
        super().__init__()
        self.vit = _create(name, weights).requires_grad_(False).eval()
        config = self.vit.pretrained_cfg
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return patch tokens (B, Q, D).

        Args:
            pixels_BCHW: uint8 RGB; resized (bilinear, antialiased) so that the ViT's patches match
                the grid.
            grid: (h, w).
        """
        size = [side * self.patch_size for side in grid]
        images = F.interpolate(
            pixels_BCHW.float() / 255, size, mode="bilinear", align_corners=False, antialias=True
        )
        tokens: Tensor = self.vit.forward_features((images - self.mean) / self.std)
        return tokens[:, self.vit.num_prefix_tokens :]


def _create(name: str, weights: str | None) -> Any:
    """Build timm's model with its weights."""
    import timm

    if not timm.is_model(name):
        raise ValueError(
            f"unknown model {name!r} to group by: take clip or a ViT of timm, for example "
            "vit_small_patch16_dinov3.lvd1689m (timm.list_models('*dino*') names more)"
        )
    overlay = {} if weights is None else {"file": weights}
    try:
        with hub_or_cache():
            vit = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
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
            "and the network, or give --weights FILE, or group by clip"
        ) from error
    if not hasattr(vit, "patch_embed") or not hasattr(vit, "num_prefix_tokens"):
        line = f"{name} has no patch tokens on one grid: take clip or a plain ViT of timm"
        raise ValueError(line)
    return vit
