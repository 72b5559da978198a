"""Embeddings of words and of classes -> the words that represent the background (VABS).

Only text is used. Words that nearly name a class are left out; among the others, the few that are
together closest to all are chosen. Letters: L words, K classes, C joint width.
"""

import torch
from torch import Tensor

WORDS = 64
SAME = 0.9  # cosine above which a word counts as another name of a class


def choose_background(words_LC: Tensor, classes_KC: Tensor, count: int = WORDS) -> list[int]:
    """Choose background words greedily, by facility location.

    Args:
        words_LC: the lexicon, unit.
        classes_KC: the classes to find, unit.
        count: maximum number of words.

    Returns:
        Indices into the lexicon. Each word adds most to the sum, over the kept words, of the
        cosine with the closest chosen one; ties go to the first.

    Raises:
        ValueError: every word nearly names a class.
    """
    kept = torch.nonzero((words_LC @ classes_KC.T).amax(1) < SAME).flatten()
    if not len(kept):
        raise ValueError("every word of the lexicon names a class: use a lexicon of other words")
    cosines_LL = words_LC[kept] @ words_LC[kept].T
    covered_L = torch.full_like(cosines_LL[0], -1.0)
    chosen: list[int] = []
    for _ in range(min(count, len(kept))):
        gains_L = (cosines_LL - covered_L[:, None]).clamp(min=0).sum(0)
        gains_L[chosen] = -1.0
        best = int(gains_L.argmax())
        chosen.append(best)
        covered_L = torch.maximum(covered_L, cosines_LL[:, best])
    return kept[chosen].tolist()
