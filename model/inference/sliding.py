"""The windows of a picture, and the stitching of their masks into one map (METHOD §8).

Letters: K classes, W windows of one picture, H W rows and columns of pixels, h w of a mask.
Every operation is per class, so maps are made for a few classes at a time: memory does not grow
with the number of classes, and the results are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_FLOATS = 1 << 22  # size of the largest temporary map: 16 MiB, a few classes of a photo


@dataclass(frozen=True)
class Layout:
    """The windows of one picture: all of the same size, in reading order."""

    height: int
    width: int
    window_height: int
    window_width: int
    corners: tuple[tuple[int, int], ...]  # (top, left) of each window

    def crops(self, image_CHW: Tensor) -> Tensor:
        """Cut the windows out: (W, C, window_height, window_width)."""
        h, w = self.window_height, self.window_width
        return torch.stack([image_CHW[:, y : y + h, x : x + w] for y, x in self.corners])


def layout(height: int, width: int, window: int, stride: int) -> Layout:
    """Cover height×width with windows; shift the last row and column inward to fit."""
    h, w = min(window, height), min(window, width)
    corners = [(y, x) for y in _starts(height, h, stride) for x in _starts(width, w, stride)]
    return Layout(height, width, h, w, tuple(corners))


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = -(-(length - window) // stride)
    return [min(i * stride, length - window) for i in range(steps + 1)]


def working_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return (rows, columns) with the given short side, or smaller to respect `long_side`."""
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
        masks_WKhw: every window's masks, at any resolution.
        windows: their layout on the resized picture.
        padded: (rows, columns) of a padded window, which the masks cover.
        offset: (top, left) padding.
        size: (H, W) of the result.

    Yields:
        A range of classes and their maps (k, H, W): resized to the padded window (bilinear),
        cropped to the window, averaged where windows overlap, and resized to (H, W) (bilinear).
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
    """Return the argmax, int64 (H, W), of maps that come a few classes at a time.

    Ties go to the first class. `background` is the constant score of an extra class 0, which
    shifts the other classes by one, or None.
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
