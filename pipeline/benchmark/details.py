"""Pairs of label maps -> boundary IoU, and the share of objects found by size. NumPy only.

Boundary IoU as in Cheng et al. (CVPR 2021): only the pixels of a mask within a band along its
outline count, 2 % of the image's diagonal wide. Objects are 4-connected regions of one label.
Unscored pixels are left out. Letters: K classes, H W pixels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from codeseg.pipeline.benchmark.metrics import ignored_label

WIDTH = 0.02  # of the band, as a share of the image's diagonal
SIZES = {"small": 0, "medium": 32**2, "large": 96**2}
"""Least number of pixels of an object (COCO's bounds), at the image's own size."""


class Details:
    """The counts of K classes over all images added so far."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.intersection, self.union = np.zeros((2, classes), np.int64)
        self.objects = np.zeros((len(SIZES), 3), np.int64)
        """For each of SIZES: objects, their pixels, and those predicted as their class."""

    def add(self, label_HW: npt.NDArray[Any], prediction_HW: npt.NDArray[Any]) -> None:
        """Count one image."""
        unscored = ignored_label(self.classes)
        scored_HW = label_HW != unscored
        prediction_HW = np.where(scored_HW, prediction_HW, unscored)  # so that holes get no outline
        reach = max(1, round(WIDTH * float(np.hypot(*label_HW.shape))))
        for k in np.union1d(np.unique(label_HW[scored_HW]), np.unique(prediction_HW[scored_HW])):
            ours, theirs = (outline(x == k, reach) & scored_HW for x in (label_HW, prediction_HW))
            self.intersection[k] += np.count_nonzero(ours & theirs)
            self.union[k] += np.count_nonzero(ours | theirs)
        from codeseg.model.regions.grouping import connected_components

        numbers = connected_components(label_HW)[scored_HW]
        areas = np.bincount(numbers)
        right = np.bincount(numbers[(label_HW == prediction_HW)[scored_HW]], minlength=len(areas))
        sizes = np.digitize(areas, list(SIZES.values())) - 1
        np.add.at(self.objects, sizes, np.stack([areas > 0, areas, right], axis=1))

    def summary(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return boundary IoUs and shares of objects in percent; None if there were no pixels."""
        pairs = zip(self.intersection.tolist(), self.union.tolist(), strict=True)
        iou = [100 * i / u if u else None for i, u in pairs]
        known = [value for value in iou if value is not None]
        return {
            "boundary_miou": sum(known) / len(known) if known else None,
            "boundary_per_class": dict(zip(names, iou, strict=True)),
            "objects": {
                name: {"count": count, "found": 100 * right / area if area else None}
                for name, (count, area, right) in zip(SIZES, self.objects.tolist(), strict=True)
            },
        }


def outline(mask_HW: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask within `reach` pixels of its outside or of the image's edge."""
    side = 2 * reach + 1
    padded = np.pad(mask_HW, ((reach + 1, reach), (reach + 1, reach))).astype(np.int32)
    sums = padded.cumsum(0).cumsum(1)
    filled = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    inner: npt.NDArray[np.bool_] = filled == side * side
    return mask_HW & ~inner
