"""RGB pixels -> pixels of another size, uint8: OpenCV's bilinear rule, or an antialiased one."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from codeseg.model.pictures.pixels import Pixels

RESIZES = ("opencv", "antialiased")


def resize_pixels(pixels: Pixels, size: tuple[int, int], how: str = "opencv") -> Pixels:
    """Resize uint8 H×W×3 pixels to `size`, (rows, columns), bilinearly.

    `how` is opencv (bit for bit cv2.INTER_LINEAR, as used for published numbers: each pixel mixes
    four, however much the picture shrinks) or antialiased.
    """
    if pixels.shape[:2] == size:
        return pixels
    if how == "opencv":
        return _opencv(pixels, size)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    resized = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
    antialiased: Pixels = resized[0].permute(1, 2, 0).numpy()
    return antialiased


def _opencv(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize in OpenCV's integer arithmetic: 11-bit weights; mixing rows drops 4 and 16 bits."""
    columns, weights = _places(pixels.shape[1], size[1])
    outside = (columns < 0) | (columns >= pixels.shape[1] - 1)
    weights = np.where(outside, np.array([[2048], [0]]), weights)
    columns = columns.clip(0, pixels.shape[1] - 1)
    beside = (columns + 1).clip(max=pixels.shape[1] - 1)
    rows, v = _places(pixels.shape[0], size[0])
    wide = pixels.astype(np.int32)
    mixed = wide[:, columns] * weights[0][:, None] + wide[:, beside] * weights[1][:, None]
    mixed >>= 4
    upper, lower = (mixed[(rows + step).clip(0, pixels.shape[0] - 1)] for step in (0, 1))
    v = v[:, :, None, None]
    resized: Pixels = ((((v[0] * upper) >> 16) + ((v[1] * lower) >> 16) + 2) >> 2).astype(np.uint8)
    return resized


def _places(before: int, after: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return each pixel's source position, and the weights (2, after) of it and the next."""
    middles = np.arange(after, dtype=np.float64) + 0.5
    places = (middles * (before / after) - 0.5).astype(np.float32)
    first = np.floor(places)
    fraction = places - first
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2048)).astype(np.int32)
    return first.astype(np.int64), weights
