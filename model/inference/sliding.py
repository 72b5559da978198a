"""The windows of a picture, and the stitching of their masks into one map (METHOD §8).

Letters: K classes, W windows of one picture, H W rows and columns of pixels, h w of a mask.
Everything here is per class, so maps are made a few classes at a time: the memory does not grow
with the number of classes, and the numbers do not change.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_FLOATS = 1 << 22
"""Floats of the largest temporary map: 16 MiB, a few classes of an ordinary photo."""


@dataclass(frozen=True)
class Layout:
    """The windows of one picture: all of the same size, in reading order."""

    height: int
    width: int
    window_height: int
    window_width: int
    corners: tuple[tuple[int, int], ...]
    """(top, left) of each window."""

    def crops(self, image_CHW: Tensor) -> Tensor:
        """Cut the windows out: (W, C, window_height, window_width)."""
        h, w = self.window_height, self.window_width
        return torch.stack([image_CHW[:, y : y + h, x : x + w] for y, x in self.corners])


def layout(height: int, width: int, window: int, stride: int) -> Layout:
    """Cover height×width with windows; the last row and column are shifted inward to fit."""
    h, w = min(window, height), min(window, width)
    corners = [(y, x) for y in _starts(height, h, stride) for x in _starts(width, w, stride)]
    return Layout(height, width, h, w, tuple(corners))


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = -(-(length - window) // stride)
    return [min(i * stride, length - window) for i in range(steps + 1)]


def working_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return rows and columns with the given short side, or less if the long side exceeds its."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def stitched(
    masks_WKhw: Tensor,
    windows: Layout,
    padded: tuple[int, int],
    offset: tuple[int, int],
    size: tuple[int, int],
) -> Iterator[tuple[slice, Tensor]]:
    """Yield maps of the picture's own size from window masks, a few classes at a time.

    Args:
        masks_WKhw: of every window, at any resolution.
        windows: their layout on the resized picture.
        padded: (rows, columns) of a padded window, which the masks cover.
        offset: (top, left) padding.
        size: (H, W) of the result.

    Yields:
        A range of classes and their maps (k, H, W): bilinear to the padded window, padding cut off,
        averaged where windows overlap, bilinear to (H, W).
    """
    classes = masks_WKhw.shape[1]
    largest = max(size[0] * size[1], windows.height * windows.width)
    step = max(1, min(classes, CHUNK_FLOATS // largest))
    for start in range(0, classes, step):
        chunk = slice(start, min(start + step, classes))
        merged_KHW = _merge(masks_WKhw[:, chunk], windows, padded, offset)
        if size != (windows.height, windows.width):
            merged_KHW = F.interpolate(
                merged_KHW[None], size, mode="bilinear", align_corners=False
            )[0]
        yield chunk, merged_KHW


def _merge(
    masks_WKhw: Tensor, windows: Layout, padded: tuple[int, int], offset: tuple[int, int]
) -> Tensor:
    h, w = windows.window_height, windows.window_width
    top, left = offset
    total = masks_WKhw.new_zeros(masks_WKhw.shape[1], windows.height, windows.width)
    count = masks_WKhw.new_zeros(windows.height, windows.width)
    for mask_Khw, (y, x) in zip(masks_WKhw, windows.corners, strict=True):
        full = F.interpolate(mask_Khw[None], padded, mode="bilinear", align_corners=False)[0]
        total[:, y : y + h, x : x + w] += full[:, top : top + h, left : left + w]
        count[y : y + h, x : x + w] += 1
    return total.div_(count)


def best_class(
    maps: Iterator[tuple[slice, Tensor]], size: tuple[int, int], background: float | None
) -> Tensor:
    """Return the argmax over maps that come a few classes at a time; of equals the first.

    Args:
        maps: from `stitched`.
        size: (H, W).
        background: constant score of an extra class 0 in front, or None.

    Returns:
        int64 (H, W): class numbers, shifted by one if there is a background.
    """
    best = label = None
    shift = 0 if background is None else 1
    for chunk, maps_KHW in maps:
        values, index = maps_KHW.max(0)
        if best is None or label is None:
            start = -torch.inf if background is None else background
            best = values.new_full(size, start)
            label = torch.zeros(size, dtype=torch.int64, device=values.device)
        better = values > best
        best = torch.where(better, values, best)
        label = torch.where(better, index + (chunk.start + shift), label)
    assert label is not None
    return label
