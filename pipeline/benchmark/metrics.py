"""Label maps -> confusion matrix -> IoU, mIoU and pixel accuracy. NumPy only, exact integers.

Conventions (METHOD §8, as MMSegmentation and torchmetrics): the matrix is accumulated over the
whole split, pixels labelled 255 do not count, and mIoU is the mean over the classes that occur in
the labels or the predictions; a class that occurs in neither has IoU NaN and is left out.
Letters: K classes, H W pixels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORE = 255

Confusion = npt.NDArray[np.int64]
"""int64 K×K; row = label, column = prediction."""


def confusion_matrix(
    label_HW: npt.NDArray[np.integer], prediction_HW: npt.NDArray[np.integer], classes: int
) -> Confusion:
    """Count label–prediction pairs over the pixels that are not labelled 255.

    Args:
        label_HW: Integer H×W, 0..K−1 or 255.
        prediction_HW: Integer H×W, 0..K−1 everywhere.
        classes: K.

    Returns:
        int64 K×K; row = label, column = prediction.

    Raises:
        ValueError: The sizes differ, or a value is outside its range.
    """
    if label_HW.shape != prediction_HW.shape:
        raise ValueError(
            f"the prediction is {_size(prediction_HW)} but the label map is {_size(label_HW)}"
        )
    scored = label_HW != IGNORE
    label = label_HW[scored].astype(np.int64)
    _check_range(label, classes, "label")
    _check_range(prediction_HW, classes, "prediction")
    pairs = label * classes + prediction_HW[scored]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _size(array: npt.NDArray[np.integer]) -> str:
    return "×".join(str(n) for n in reversed(array.shape))


def _check_range(values: npt.NDArray[np.integer], classes: int, what: str) -> None:
    if values.size and (values.min() < 0 or values.max() >= classes):
        wrong = values.max() if values.max() >= classes else values.min()
        raise ValueError(f"{what} {wrong} is outside the {classes} classes 0..{classes - 1}")


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says."""

    confusion: Confusion

    @property
    def intersection(self) -> npt.NDArray[np.int64]:
        """Pixels of each class that are right, K."""
        return np.diagonal(self.confusion)

    @property
    def union(self) -> npt.NDArray[np.int64]:
        """Pixels labelled or predicted as each class, K."""
        union: npt.NDArray[np.int64] = self.confusion.sum(0) + self.confusion.sum(1)
        return union - self.intersection

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class, K, in 0..1; NaN where the class never occurs."""
        union = self.union
        iou = np.full(len(union), np.nan)
        np.divide(self.intersection, union, out=iou, where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, 0..1; NaN if no pixel was scored."""
        iou = self.iou
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the scored pixels that are right, 0..1; NaN if no pixel was scored."""
        pixels = int(self.confusion.sum())
        return int(self.intersection.sum()) / pixels if pixels else float("nan")
