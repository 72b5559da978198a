"""Soft masks of one window (METHOD §8): images and class embeddings in, masks at image size out.

Letters: B images, K classes, C joint width, H W image rows and columns, h w patch grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codeseg.model.code.codecomposition import CoDe

KNOWLEDGE_SCALE, KNOWLEDGE_THRESHOLD = 10.0, 0.25


def segmenter_masks(
    code: CoDe, images_BCHW: Tensor, class_KC: Tensor, *, tokens_BPD: Tensor, cosines: bool = False
) -> Tensor:
    """Return the trained segmenter's masks (B, K, 4h, 4w), 0..1, or with `cosines` its cosines.

    Args:
        code: the trained model.
        images_BCHW: normalized, sides multiples of the patch size.
        class_KC: embeddings of the classes, unit.
        tokens_BPD: the trunk's output.
        cosines: return the cosines of pixels and classes instead of masks.
    """
    segmenter = code.image_segmenter
    bands = segmenter.bands(tokens_BPD, code.clip.grid(images_BCHW))
    logits = [segmenter.mask_logits(band, class_KC) for band in bands]
    logits_BKHW = torch.cat(logits, dim=2).float()
    if cosines:
        return (logits_BKHW - segmenter.mask_bias) / segmenter.mask_scale
    return torch.sigmoid(logits_BKHW)


def dense_logits(dense_BChw: Tensor, template_KC: Tensor, scale: float, threshold: float) -> Tensor:
    """Return scale · (cosine − threshold) of patch and text embeddings: (B, K, h, w)."""
    similarity = torch.einsum("bchw,kc->bkhw", dense_BChw, template_KC).float()
    return scale * (similarity - threshold)


def clean(
    masks_BKhw: Tensor, words_KD: Tensor, patches_BQD: Tensor, logits_BHQ: Tensor, weight: float
) -> Tensor:
    """Mix attention maps of a ViT into masks, as Talk2DINO cleans the background: (B, K, h, w).

    Args:
        masks_BKhw: masks of things, or cosines.
        words_KD: the things' unit embeddings, projected to the ViT's width D.
        patches_BQD: the ViT's Q = h*w patch tokens, not normalized.
        logits_BHQ: its class token's attention logits, of each head.
        weight: lambda; the result is (mask + lambda * map) / (1 + lambda).
    """
    pooled_BHD = F.normalize(logits_BHQ @ patches_BQD, dim=-1)
    heads_BKH = torch.einsum("kd,bhd->bkh", words_KD, pooled_BHD).softmax(-1)
    maps_BKhw = (heads_BKH @ logits_BHQ).softmax(-1).view_as(masks_BKhw)
    (low, high), (least, most) = _extremes(masks_BKhw), _extremes(maps_BKhw)
    maps_BKhw = low + (high - low) * (maps_BKhw - least) / most
    return (masks_BKhw + weight * maps_BKhw) / (1 + weight)


def _extremes(values_BKhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each image, (B, 1, 1, 1)."""
    dims = (1, 2, 3)
    return values_BKhw.amin(dims, keepdim=True), values_BKhw.amax(dims, keepdim=True)


def cut_to_patches(images_BCHW: Tensor, patch: int) -> Tensor:
    """Drop the last rows and columns that do not fill a patch, as a strided convolution does."""
    H, W = images_BCHW.shape[-2:]
    return images_BCHW[..., : H // patch * patch, : W // patch * patch]


def pad_to_patches(images_BCHW: Tensor, patch: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Zero-pad images symmetrically to multiples of the patch size.

    Return the images and the padding (left, right, top, bottom); an odd pixel goes right or down.
    """
    missing_rows, missing_columns = (-side % patch for side in images_BCHW.shape[-2:])
    top, left = missing_rows // 2, missing_columns // 2
    padding = (left, missing_columns - left, top, missing_rows - top)
    return F.pad(images_BCHW, padding), padding


def resize(masks_BKHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """Resize bilinearly to the rows and columns of `like_BCHW`."""
    size = (like_BCHW.shape[-2], like_BCHW.shape[-1])
    return F.interpolate(masks_BKHW, size, mode="bilinear", align_corners=False)
