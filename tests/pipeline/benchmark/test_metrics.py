import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from codeseg.pipeline.benchmark.metrics import Scores, confusion_matrix


@st.composite
def splits(draw):
    """A few images of random sizes; some classes absent, some images all ignored."""
    classes = draw(st.integers(2, 9))
    images = []
    for _ in range(draw(st.integers(1, 3))):
        shape = (draw(st.integers(1, 17)), draw(st.integers(1, 17)))
        rng = np.random.default_rng(draw(st.integers(0, 2**31)))
        present = rng.permutation(classes)[: draw(st.integers(1, classes))]
        label = rng.choice(present, shape).astype(np.uint8)
        label[rng.random(shape) < draw(st.sampled_from([0, 0.2, 1]))] = 255
        images.append((label, rng.choice(present, shape).astype(np.uint8)))
    return classes, images


@settings(max_examples=60)
@given(splits())
def test_scores_equal_torchmetrics(split):
    classes, images = split
    ours = Scores(sum(confusion_matrix(label, guess, classes) for label, guess in images))
    label = torch.from_numpy(np.concatenate([x.ravel() for x, _ in images])).long()
    guess = torch.from_numpy(np.concatenate([x.ravel() for _, x in images])).long()
    theirs = multiclass_confusion_matrix(guess, label, classes, ignore_index=255)
    assert np.array_equal(ours.confusion, theirs.numpy())
    if (label == 255).all():
        assert np.isnan(ours.miou) and np.isnan(ours.pixel_accuracy)
        return
    keep = label != 255
    guess, label = guess[keep].double(), label[keep]
    options = {"num_classes": classes}
    iou = multiclass_jaccard_index(guess.long(), label, average="none", **options).numpy()
    occurs = ~np.isnan(ours.iou)
    # torchmetrics divides in float32: 1e-9 is asked of the integers above and of this quotient
    assert np.abs(ours.iou[occurs] - iou[occurs]).max() < 1e-7
    exact = theirs.double()
    union = exact.sum(0) + exact.sum(1) - exact.diagonal()
    expected = (exact.diagonal() / union)[union > 0].mean().item()
    assert abs(ours.miou - expected) < 1e-9
    macro = multiclass_jaccard_index(guess.long(), label, average="macro", **options).item()
    assert abs(ours.miou - macro) < 1e-6
    accuracy = multiclass_accuracy(guess.long(), label, average="micro", **options).item()
    assert abs(ours.pixel_accuracy - accuracy) < 1e-6


def test_a_class_in_neither_labels_nor_predictions_is_left_out_of_the_mean():
    label = np.array([[0, 0], [1, 255]], np.uint8)
    guess = np.array([[0, 1], [1, 2]], np.uint8)
    scores = Scores(confusion_matrix(label, guess, 4))
    assert scores.iou[0] == 0.5 and scores.iou[1] == 0.5
    assert np.isnan(scores.iou[2]) and np.isnan(scores.iou[3])  # 2 only under an ignored pixel
    assert scores.miou == 0.5


def test_merging_shards_is_exact_in_any_split():
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 5, (9, 7)), rng.integers(0, 5, (9, 7))) for _ in range(7)]
    parts = [confusion_matrix(label, guess, 5) for label, guess in images]
    assert np.array_equal(sum(parts[0::2]) + sum(parts[1::2]), sum(parts))


@pytest.mark.parametrize(
    ("label", "guess", "message"),
    [
        ([[0, 4]], [[0, 0]], "label 4 is outside the 4 classes 0..3"),
        ([[0, 1]], [[0, 255]], "prediction 255 is outside the 4 classes"),
        ([[0, 1]], [[0, -1]], "prediction -1 is outside"),
        ([[0, 1]], [[0], [1]], "the prediction is 1×2 but the label map is 2×1"),
    ],
)
def test_values_out_of_range_and_sizes_that_differ_are_refused(label, guess, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(label), np.array(guess), 4)
