import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeseg.model.inference.background import choose_background
from codeseg.model.inference.decision import decide
from codeseg.model.inference.laplacian import CONTRAST, GRID, STRENGTH, propagate

OWNERS = torch.tensor([0, 0, 1, 2, 2, 2, 3])


def chunks(cosines, step):
    def maps():
        for start in range(0, len(cosines), step):
            yield slice(start, start + step), cosines[start : start + step]

    return maps


def by_hand(cosines, scale, prob_thd, area_thd):
    """EVALUATION's rules on whole tensors."""
    p = (scale * cosines).softmax(0)
    scores = torch.stack([p[k == OWNERS].amax(0) for k in range(4)])
    plain = scores.argmax(0)
    if area_thd:
        foreground = (plain > 0).sum()
        for k in range(1, 4):
            if (plain == k).sum() / foreground <= area_thd:
                scores[k] = 0
    label = scores.argmax(0)
    return torch.where(scores.amax(0) < prob_thd, 0, label)


@pytest.mark.parametrize("step", [1, 3, 7])
@pytest.mark.parametrize(("prob_thd", "area_thd"), [(0, 0), (0.4, 0), (0, 0.35), (0.3, 0.3)])
def test_decision_in_chunks_equals_the_rules_on_whole_tensors(step, prob_thd, area_thd):
    cosines = torch.randn(7, 20, 30, generator=torch.Generator().manual_seed(step)) / 8
    label = decide(chunks(cosines, step), OWNERS, 20.0, prob_thd, area_thd)
    expected = by_hand(cosines, 20.0, prob_thd, area_thd)
    assert torch.equal(label, expected)


def test_more_than_256_classes_keep_their_numbers():
    cosines = torch.zeros(300, 1, 2)
    cosines[299, 0, 1] = 1.0
    label = decide(chunks(cosines, 64), torch.arange(300), 40.0)
    assert label.tolist() == [[0, 299]]


def test_background_words_are_the_greedy_best_and_none_that_names_a_class():
    draw = torch.Generator().manual_seed(0)
    words = F.normalize(torch.randn(12, 4, generator=draw), dim=1)
    classes = F.normalize(torch.randn(2, 4, generator=draw), dim=1)
    words[3] = classes[0]
    chosen = choose_background(words, classes, 3)
    kept = [i for i in range(12) if float((words[i] @ classes.T).max()) < 0.9]
    assert 3 not in kept and set(chosen) <= set(kept) and len(set(chosen)) == 3

    def covered(some):
        return sum(max(float(words[u] @ words[w]) for w in some) for u in kept)

    greedy = []
    for _ in range(3):
        greedy.append(
            max((w for w in kept if w not in greedy), key=lambda w: covered([*greedy, w]))
        )
    assert chosen == greedy
    with pytest.raises(ValueError, match="every word of the lexicon names a class"):
        choose_background(words[3:4], classes)


def test_propagation_solves_its_equations_and_keeps_to_edges():
    image = torch.zeros(1, 3, 6, 8)
    image[..., 4:] = 3.0
    mask = torch.zeros(1, 2, 6, 8)
    mask[0, 0, 2, 1] = 1.0
    mask[0, 1] = 0.25
    spread = propagate(mask, image)[0]
    assert torch.allclose(spread[1], torch.full((6, 8), 0.25), atol=1e-5)  # a constant stays
    assert spread[0].sum().item() == pytest.approx(1.0, abs=1e-4)  # nothing is lost
    assert spread[0, :, :4].sum() > 20 * spread[0, :, 4:].sum()  # little crosses the edge
    assert spread[0, 2, 1] == spread[0].max() < 1
    dense = np.zeros((48, 48))
    for y, x in np.ndindex(6, 8):
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            y1, x1 = y + dy, x + dx
            if 0 <= y1 < 6 and 0 <= x1 < 8:
                i, j = y * 8 + x, y1 * 8 + x1
                step = 3.0 if (x < 4) != (x1 < 4) else 0.0
                weight = STRENGTH * np.exp(-step / CONTRAST)
                dense[i, i] += weight
                dense[j, j] += weight
                dense[i, j] -= weight
                dense[j, i] -= weight
    exact = np.linalg.solve(np.eye(48) + dense, mask[0, 0].numpy().ravel())
    assert np.abs(spread[0].numpy().ravel() - exact).max() < 1e-6


def test_propagation_of_a_large_mask_works_on_the_grid():
    mask = torch.rand(1, 1, 2 * GRID, GRID + 7)
    spread = propagate(mask, torch.randn(1, 3, 50, 40))
    assert spread.shape == mask.shape and mask.min() <= spread.min() <= spread.max() <= mask.max()
