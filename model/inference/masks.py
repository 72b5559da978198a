"""Soft masks of one window (METHOD §8): images and class embeddings in, masks at image size out.

Letters: B images, K classes, C joint width, H W image rows and columns; of a self-supervised ViT:
Q patches, D width, h heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codeseg.model.align.cleaning import clean
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


def aligned_masks(
    patches_BQD: Tensor,
    logits_BhQ: Tensor | None,
    words_KD: Tensor,
    scale: float | None,
    threshold: float,
    cleaning: float,
) -> Tensor:
    """Return masks (B, K, Q), sigmoid(scale · (cosine − threshold)) of patches and words.

    Args:
        patches_BQD: of the self-supervised ViT, not normalized.
        logits_BhQ: of its class token's attention; None: no cleaning.
        words_KD: the things' unit embeddings, projected to the ViT's width.
        scale: None: the cosine itself.
        threshold: the cosine where a mask is one half.
        cleaning: weight of where the heads look, see `clean`.
    """
    masks_BKQ = (words_KD @ F.normalize(patches_BQD.float(), dim=-1).mT).float()
    if scale is not None:
        masks_BKQ = torch.sigmoid(scale * (masks_BKQ - threshold))
    if logits_BhQ is None:
        return masks_BKQ
    return clean(masks_BKQ, words_KD, patches_BQD, logits_BhQ, cleaning)


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
