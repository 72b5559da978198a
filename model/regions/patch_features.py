"""Pixels or trunk tokens -> the patch features that grouping compares (METHOD §9), (B, Q, D).

Letters: B images, P = 1 + Q image tokens, Q = h*w patches in scan order, D feature width, H W
pixels. There are two sources: the frozen CLIP's own keys, or a self-supervised ViT of timm. Both
use the CLIP's patch grid, so that a region is a set of CLIP patches and nothing is resampled.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeseg.model.clip.blocks import project
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.hub import hub_or_cache


def clip_keys(clip: FrozenClip, tokens_BPD: Tensor) -> Tensor:
    """Return the last block's keys (B, Q, D) for the output of `clip.trunk`."""
    block = clip.last_block
    return project(block.attn, block.ln_1(tokens_BPD[:, 1:]), 1, 2)


class SelfSupervisedVit(nn.Module):
    """A frozen ViT of timm (DINO, DINOv2, DINOv3 …) that returns its last layer's patch tokens.

    Args:
        name: timm's model name with a tag, such as "vit_small_patch14_dinov2.lvd142m".
        weights: a weight file in timm's or the authors' format; None downloads it from the hub.

    Raises:
        ValueError: the model is unknown or not a ViT, or its weights are unavailable.
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
        """Return patch tokens (B, Q, D) of uint8 RGB pixels.

        The pixels are resized (bilinear, antialiased) so that the ViT's patches match the h×w grid.
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
            f"unknown model {name!r} to group by: use clip or a ViT of timm, for example "
            "vit_small_patch16_dinov3.lvd1689m (timm.list_models('*dino*') lists more)"
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
            "and the network, use --weights FILE, or group by clip"
        ) from error
    if not hasattr(vit, "patch_embed") or not hasattr(vit, "num_prefix_tokens"):
        raise ValueError(f"{name} has no single grid of patch tokens: use clip or a plain ViT")
    return vit
