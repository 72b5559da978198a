"""A straightforward version of the reference's prediction (METHOD §8), with which ours is compared.

It takes one window at a time; the image encoder runs once for the segmenter and again for the
knowledge branch; the decoder convolves at full resolution; PAMR stacks the 48 neighbors of all
classes; all classes are kept at full size until the argmax. The numbers are the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.plain_step import _pixel_embedding
from codeseg.model.clip.dense import dense_embedding
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.inference.masks import KNOWLEDGE_SCALE, KNOWLEDGE_THRESHOLD, pad_to_patches
from codeseg.model.inference.pamr import DILATIONS, ITERATIONS

WINDOW, STRIDE, KNOWLEDGE_WEIGHT = 448, 224, 0.3


@torch.no_grad()
def plain_maps(
    code: CoDe,
    image_1CHW: Tensor,
    words_KC: Tensor,
    templates_KC: Tensor,
    size: tuple[int, int],
    *,
    pamr: bool,
) -> Tensor:
    """Return all classes' masks at the picture's size (1, K, H, W) from the resized image."""
    H, W = image_1CHW.shape[-2:]
    total = image_1CHW.new_zeros(1, len(words_KC), H, W)
    count = image_1CHW.new_zeros(1, 1, H, W)
    for row in range(max(H - WINDOW + STRIDE - 1, 0) // STRIDE + 1):
        for column in range(max(W - WINDOW + STRIDE - 1, 0) // STRIDE + 1):
            bottom, right = min(row * STRIDE + WINDOW, H), min(column * STRIDE + WINDOW, W)
            top, left = max(bottom - WINDOW, 0), max(right - WINDOW, 0)
            window = image_1CHW[:, :, top:bottom, left:right]
            masks = _window(code, window, words_KC, templates_KC, pamr)
            total += F.pad(masks, (left, W - right, top, H - bottom))
            count[:, :, top:bottom, left:right] += 1
    return F.interpolate(total / count, size, mode="bilinear", align_corners=False)


def _window(
    code: CoDe, window: Tensor, words_KC: Tensor, templates_KC: Tensor, pamr: bool
) -> Tensor:
    padded, (left, right, top, bottom) = pad_to_patches(window, code.clip.patch_size)
    H, W = padded.shape[-2:]
    grid = (H // code.clip.patch_size, W // code.clip.patch_size)
    pixels = _pixel_embedding(code, _trunk(code, padded), grid)
    segmenter = code.image_segmenter
    logits = torch.einsum("bchw,kc->bkhw", pixels, words_KC)
    masks = torch.sigmoid(segmenter.mask_scale * logits + segmenter.mask_bias)
    if pamr:
        masks = _pamr(masks, padded)
    dense = dense_embedding(code.clip, [_trunk(code, padded)], grid, "maskclip")
    dense = torch.einsum("bchw,kc->bkhw", dense, templates_KC)
    knowledge = torch.sigmoid(KNOWLEDGE_SCALE * (dense - KNOWLEDGE_THRESHOLD))
    knowledge = F.interpolate(knowledge, masks.shape[-2:], mode="bilinear", align_corners=False)
    masks = (1 - KNOWLEDGE_WEIGHT) * masks + KNOWLEDGE_WEIGHT * knowledge
    masks = F.interpolate(masks, (H, W), mode="bilinear", align_corners=False)
    return masks[:, :, top : H - bottom, left : W - right]


def _trunk(code: CoDe, images: Tensor) -> Tensor:
    """Run the image encoder up to its last block with open_clip's own modules."""
    tokens = code.clip.embed(images)
    for block in code.clip.clip.visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return tokens


def _pamr(masks_1KHW: Tensor, image: Tensor) -> Tensor:
    image = F.interpolate(image, masks_1KHW.shape[-2:], mode="bilinear", align_corners=True)
    near = _neighbors(image)
    centers = image[:, :, None].expand(-1, -1, len(DILATIONS), -1, -1)
    deviation = torch.cat([near, centers], dim=2).std(dim=2, keepdim=True)
    distance = (near - image[:, :, None]).abs() / (1e-8 + 0.1 * deviation)
    weights = (-distance.mean(dim=1, keepdim=True)).softmax(dim=2)
    for _ in range(ITERATIONS):
        masks_1KHW = (_neighbors(masks_1KHW) * weights).sum(dim=2)
    return masks_1KHW


def _neighbors(x_1KHW: Tensor) -> Tensor:
    """Stack the 8 neighbors at every dilation: (1, K, 48, H, W)."""
    H, W = x_1KHW.shape[-2:]
    stacked = []
    for d in DILATIONS:
        padded = F.pad(x_1KHW, (d, d, d, d), mode="replicate")
        places = [(r, c) for r in range(3) for c in range(3) if (r, c) != (1, 1)]
        stacked += [padded[:, :, r * d : r * d + H, c * d : c * d + W] for r, c in places]
    return torch.stack(stacked, dim=2)
