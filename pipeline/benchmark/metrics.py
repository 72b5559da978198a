"""Label maps -> confusion matrix -> IoU, mIoU and pixel accuracy. NumPy only, exact integers.

Conventions (METHOD §8, as in MMSegmentation and torchmetrics): the matrix is accumulated over the
whole split, pixels labeled 255 are left out, and mIoU is the mean over the classes that occur in
the labels or the predictions; a class that occurs in neither has IoU NaN and is left out.
Letters: K classes, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORE = 255  # label of a pixel that is not scored
IGNORE_16 = 65535  # the same in label maps of more than 254 classes, which need 16 bits

Confusion = npt.NDArray[np.int64]
"""int64 K×K; row = label, column = prediction."""


def ignored_label(classes: int) -> int:
    """Return the label that is not scored: 255, or 65535 if the classes need 16 bits."""
    return IGNORE if classes < IGNORE else IGNORE_16


def confusion_matrix(
    label_HW: npt.NDArray[np.integer], prediction_HW: npt.NDArray[np.integer], classes: int
) -> Confusion:
    """Count the pairs of label and prediction over the scored pixels.

    Labels are 0..K−1 or `ignored_label(K)`; predictions are 0..K−1 everywhere.

    Raises:
        ValueError: the sizes differ, or a value is outside its range.
    """
    if label_HW.shape != prediction_HW.shape:
        raise ValueError(
            f"the prediction is {_size(prediction_HW)} but the label map is {_size(label_HW)}"
        )
    scored = label_HW != ignored_label(classes)
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
        hint = ""
        if wrong == classes and what == "prediction":
            hint = ": if your class numbers start at 1, subtract 1 (0 is the first class here)"
        elif wrong in (IGNORE, IGNORE_16) and what == "prediction":
            hint = ": a prediction must name a class at every pixel, the unscored ones included"
        raise ValueError(f"{what} {wrong} is outside the {classes} classes 0..{classes - 1}{hint}")


@dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix."""

    confusion: Confusion

    @property
    def intersection(self) -> npt.NDArray[np.int64]:
        """The correctly predicted pixels of each class, K."""
        return np.diagonal(self.confusion)

    @property
    def union(self) -> npt.NDArray[np.int64]:
        """The pixels labeled or predicted as each class, K."""
        union: npt.NDArray[np.int64] = self.confusion.sum(0) + self.confusion.sum(1)
        return union - self.intersection

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """The intersection over union of each class, K, in 0..1; NaN if it never occurs."""
        union = self.union
        iou = np.full(len(union), np.nan)
        np.divide(self.intersection, union, out=iou, where=union > 0)
        return iou

    @property
    def miou(self) -> float:
        """The mean IoU over the classes that occur, 0..1; NaN if no pixel was scored."""
        iou = self.iou
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """The correct share of the scored pixels, 0..1; NaN if no pixel was scored."""
        pixels = int(self.confusion.sum())
        return int(self.intersection.sum()) / pixels if pixels else float("nan")


def misplaced(confusion: Confusion, names: Sequence[str]) -> str | None:
    """Return a hint if the predictions fit far better under other class numbers, else None.

    It tries every prediction one number higher or lower (1-based maps), and a one-to-one
    renumbering by the largest counts (another list's order, a re-indexed palette).
    """
    miou = Scores(confusion).miou
    predicted = int((confusion.sum(0) > 0).sum())
    if not miou < 0.5 or predicted < 3:  # right, nothing scored (NaN), or too few classes
        return None
    taken = renumbering(confusion)
    moved = Scores(confusion[:, taken]).miou
    for step in (1, -1):
        shifted = Scores(np.roll(confusion, -step, axis=1)).miou
        if shifted > max(0.05 + 2 * miou, 0.8 * moved):
            words = "too high: subtract 1" if step == 1 else "too low: add 1"
            return (
                f"the predicted class numbers look one {words}, and mIoU would be "
                f"{100 * shifted:.2f}, not {100 * miou:.2f}"
            )
    if moved < 0.2 + 2 * miou:
        return None
    changed = [k for k, other in enumerate(taken) if k != other and confusion[k, other]]
    changed.sort(key=lambda k: -int(confusion[k, taken[k]]))
    shown = ", ".join(f"{taken[k]} ({names[taken[k]]}) lies on {names[k]}" for k in changed[:3])
    return (
        "the predicted class numbers look like another list's order or a re-indexed palette: "
        f"{shown}; renumbered one to one, mIoU would be {100 * moved:.2f}, not {100 * miou:.2f}"
    )


def renumbering(confusion: Confusion) -> list[int]:
    """Return the predicted number that fits each class best, each number used once."""
    taken = [-1] * len(confusion)
    free = set(range(len(confusion)))
    for place in np.argsort(-confusion, axis=None, kind="stable"):
        label, predicted = divmod(int(place), len(confusion))
        if taken[label] < 0 and predicted in free:
            taken[label] = predicted
            free.remove(predicted)
    return taken
