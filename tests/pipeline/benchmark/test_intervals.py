import numpy as np
import pytest

from codeseg.pipeline.benchmark.details import Details, outline
from codeseg.pipeline.benchmark.intervals import difference_interval, miou_interval
from codeseg.pipeline.benchmark.metrics import Scores, confusion_matrix
from codeseg.stages.score import image_score


def images(seed, count, noise, classes=5, size=(12, 12)):
    """Random label maps and predictions that are wrong at a share of the pixels."""
    rng = np.random.default_rng(seed)
    total = np.zeros((classes, classes), np.int64)
    scores = []
    for _ in range(count):
        label = rng.integers(0, classes, size)
        guess = np.where(rng.random(size) < noise, rng.integers(0, classes, size), label)
        confusion = confusion_matrix(label, guess, classes)
        total += confusion
        scores.append(image_score(confusion))
    return scores, Scores(total).miou


def test_the_estimate_is_the_splits_own_miou_and_lies_within():
    scores, miou = images(0, 40, 0.4)
    interval = miou_interval(scores, 5)
    assert interval.value == pytest.approx(miou, abs=1e-12)
    assert interval.low < miou < interval.high < interval.low + 0.1


def test_intervals_shrink_with_more_images_and_cover_the_truth():
    _, truth = images(99, 2000, 0.4)
    widths, covered = [], 0
    for count in (20, 200):
        interval = miou_interval(images(1, count, 0.4)[0], 5)
        widths.append(interval.high - interval.low)
    assert 2 < widths[0] / widths[1] < 5  # about the root of ten
    for seed in range(40):
        interval = miou_interval(images(seed, 30, 0.4)[0], 5)
        covered += interval.low <= truth <= interval.high
    assert covered >= 32  # of 40, at 95 %


def test_a_pair_is_sharper_than_two_results_apart_and_equal_ones_do_not_differ():
    hard = np.random.default_rng(3).random(60) ** 2
    better, worse = [], []
    for seed, noise in enumerate(hard):  # images differ far more than the methods
        better += images(seed, 1, noise * 0.9)[0]
        worse += images(seed, 1, noise)[0]
    interval, p = difference_interval(better, worse, 5)
    assert 0 < interval.low < interval.value < interval.high and p < 0.05
    alone = miou_interval(better, 5)
    assert interval.high - interval.low < (alone.high - alone.low) / 2
    none, p = difference_interval(better, better, 5)
    assert (none.low, none.value, none.high, p) == (0, 0, 0, 1)


def test_no_scored_image_has_no_interval():
    assert miou_interval([], 3) is None


def test_an_outline_is_what_lies_within_reach_of_the_outside():
    mask = np.zeros((9, 11), bool)
    mask[1:8, 0:8] = True
    ours = outline(mask, 2)
    for y, x in np.ndindex(mask.shape):
        around = [(y + dy, x + dx) for dy in range(-2, 3) for dx in range(-2, 3)]
        outside = any(not (0 <= v < 9 and 0 <= u < 11) or not mask[v, u] for v, u in around)
        assert ours[y, x] == (mask[y, x] and outside)


def test_boundaries_and_objects_are_counted_where_pixels_are_scored():
    label = np.zeros((40, 40), np.uint8)
    label[:10, :10] = 1
    label[20:, 20:] = 1
    label[:, 39] = 255
    guess = label.copy()
    guess[label == 255] = 0
    guess[:10, :5] = 0
    details = Details(3)
    details.add(label, guess)
    found = details.summary(("a", "b", "c"))
    assert found["boundary_per_class"]["c"] is None and 0 < found["boundary_miou"] < 100
    area = 100 + 20 * 19 + (40 * 39 - 100 - 20 * 19)
    small = found["objects"]["small"]
    assert small["count"] == 2 and small["found"] == pytest.approx(100 * (480 - 50) / 480)
    assert found["objects"]["medium"]["count"] == 1 and area == 40 * 39
    assert found["objects"]["large"] == {"count": 0, "found": None}
    right = Details(3)
    right.add(label, np.where(label == 255, 0, label))
    assert right.summary(("a", "b", "c"))["boundary_miou"] == 100
