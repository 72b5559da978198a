"""Counts of every image -> bootstrap intervals of a mIoU or of a difference. NumPy only.

Images are drawn with replacement, the same draws for both results of a comparison; the counts are
summed as for the split itself. Letters: N images, K classes, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 1000
SEED = 0
LEVEL = 95  # percent of the draws that lie within an interval


@dataclass(frozen=True)
class ImageScore:
    """The counts of an image, for the classes in its label or prediction."""

    miou: float  # mean over those classes, 0..1
    pixel_accuracy: float
    labeled: int  # number of labeled classes
    classes: npt.NDArray[np.int64]
    intersection: npt.NDArray[np.int64]
    union: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval of LEVEL percent of the draws, all in 0..1."""

    value: float
    low: float
    high: float

    def percent(self) -> dict[str, float]:
        """Return all three in percent, for JSON."""
        return {"value": 100 * self.value, "low": 100 * self.low, "high": 100 * self.high}


def miou_interval(images: Sequence[ImageScore], classes: int) -> Interval | None:
    """Return the mIoU with its interval; None without a scored image."""
    if not any(len(image.classes) for image in images):
        return None
    value, draws = _mious(images, classes)
    return _interval(value, draws)


def difference_interval(
    ours: Sequence[ImageScore], theirs: Sequence[ImageScore], classes: int
) -> tuple[Interval, float]:
    """Return the mIoU of `ours` minus that of `theirs`, for the same images in the same order.

    Returns:
        The difference with its interval, and a two-sided p: twice the smaller share of draws on
        one side of zero.
    """
    (value, draws), (other, others) = (_mious(images, classes) for images in (ours, theirs))
    differences = draws - others
    sided = min((differences <= 0).mean(), (differences >= 0).mean())
    return _interval(value - other, differences), min(1.0, 2 * float(sided))


def _mious(images: Sequence[ImageScore], classes: int) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the mIoU of the images and of R draws of them."""
    counts_2NK = np.zeros((2, len(images), classes))
    for n, image in enumerate(images):
        counts_2NK[0, n, image.classes] = image.intersection
        counts_2NK[1, n, image.classes] = image.union
    rng = np.random.default_rng(SEED)
    even = np.full(len(images), 1 / len(images))
    drawn_RN = rng.multinomial(len(images), even, size=DRAWS).astype(np.float64)
    times_RN = np.concatenate([np.ones((1, len(images))), drawn_RN])
    intersection_RK, union_RK = times_RN @ counts_2NK
    present_RK = union_RK > 0
    iou_RK = np.divide(intersection_RK, union_RK, out=np.zeros_like(union_RK), where=present_RK)
    mious_R = iou_RK.sum(1) / np.maximum(present_RK.sum(1), 1)
    return float(mious_R[0]), mious_R[1:]


def _interval(value: float, draws: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
