"""Cosines of every name, a few at a time -> a label map by softmax over all names (EVALUATION §2).

A class may have several names; its score is the best probability of any of them. Memory does not
grow with the number of names. Letters: Q names, H W rows and columns.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Maps = Iterator[tuple[slice, Tensor]]
"""Ranges of names and their cosines (k, H, W), as `sliding.stitched` yields them."""


def decide(
    maps: Callable[[], Maps],
    owners_Q: Tensor,
    scale: float,
    probability_threshold: float = 0.0,
    area_threshold: float = 0.0,
) -> Tensor:
    """Return the class of every pixel, int64 (H, W); ties go to the first class.

    Args:
        maps: makes the cosines; called a second time if a class is dropped.
        owners_Q: int64, the class of each name; with thresholds, class 0 is the background.
        scale: τ of softmax(τ·cosine) over all names.
        probability_threshold: pixels whose best class is less probable become class 0.
        area_threshold: classes above 0 that cover no larger share of the foreground are dropped.
    """
    owners_Q, none = owners_Q.to(torch.int64), torch.zeros(len(owners_Q), dtype=torch.bool)
    label_HW, best_HW = _best(maps(), owners_Q, none, scale)
    if area_threshold > 0:
        counts = torch.bincount(label_HW.flatten(), minlength=int(owners_Q.max()) + 1)
        shares = counts / counts[1:].sum().clamp(min=1)
        dropped = (shares <= area_threshold).cpu()
        dropped[0] = False
        if bool((counts.cpu()[dropped] > 0).any()):
            label_HW, best_HW = _best(maps(), owners_Q, dropped[owners_Q.cpu()], scale)
    if probability_threshold > 0:
        label_HW = label_HW.where(best_HW >= probability_threshold, 0)
    return label_HW


def _best(maps: Maps, owners_Q: Tensor, dropped_Q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the class of the best name that is not dropped, and its softmax over all names."""
    best = total = label = None
    for chunk, cosines_kHW in maps:
        logits = scale * cosines_kHW
        sum_HW = logits.logsumexp(0)
        logits[dropped_Q[chunk].to(logits.device)] = -torch.inf
        values, index = logits.max(0)
        if best is None or label is None or total is None:
            best, total, label = values, sum_HW, index
            continue
        total = torch.logaddexp(total, sum_HW)
        label = torch.where(values > best, index + chunk.start, label)
        best = torch.maximum(best, values)
    assert best is not None and label is not None and total is not None
    return owners_Q.to(label.device)[label], (best - total).exp()
