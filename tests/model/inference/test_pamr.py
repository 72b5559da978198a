"""Mask refinement follows METHOD §8 written out pixel by pixel, and keeps what a mask is."""

import torch

from codeseg.model.inference.pamr import DILATIONS, affinity, refine


def test_affinity_written_out_for_a_pixel():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 9, 11)
    weights = affinity(image)
    assert weights.shape == (1, 48, 9, 11)

    def at(row, column):  # replicate padding
        return image[0, :, min(max(row, 0), 8), min(max(column, 0), 10)]

    row, column = 2, 7
    steps = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
    values = torch.stack([at(row + d * r, column + d * c) for d in DILATIONS for r, c in steps])
    assert len(values) == 54
    sigma = values.std(0)
    neighbors = torch.stack(
        [at(row + d * r, column + d * c) for d in DILATIONS for r, c in steps if (r, c) != (0, 0)]
    )
    distance = (neighbors - at(row, column)).abs() / (1e-8 + 0.1 * sigma)
    expected = (-distance.mean(1)).softmax(0)
    torch.testing.assert_close(weights[0, :, row, column], expected)


def test_one_iteration_is_the_weighted_sum_of_neighbors():
    torch.manual_seed(0)
    image, masks = torch.rand(1, 3, 6, 5), torch.rand(1, 2, 6, 5)
    weights = affinity(image)[0]
    expected = torch.zeros(2, 6, 5)
    offsets = [(r * d, c * d) for d in DILATIONS for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c]
    for s, (dr, dc) in enumerate(offsets):
        for row in range(6):
            for column in range(5):
                r, c = min(max(row + dr, 0), 5), min(max(column + dc, 0), 4)
                expected[:, row, column] += weights[s, row, column] * masks[0, :, r, c]
    torch.testing.assert_close(refine(masks, image, iterations=1)[0], expected)


def test_flat_masks_stay_and_masks_stay_in_range():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 24, 20)
    flat = torch.full((2, 3, 12, 10), 0.3)
    torch.testing.assert_close(refine(flat, image), flat)
    refined = refine(torch.rand(2, 3, 12, 10), image)
    assert refined.min() >= 0 and refined.max() <= 1


def test_classes_do_not_see_each_other():
    torch.manual_seed(0)
    image, masks = torch.rand(1, 3, 16, 16), torch.rand(1, 4, 16, 16)
    one = refine(masks[:, 2:3], image)
    torch.testing.assert_close(refine(masks, image)[:, 2:3], one)


def test_a_mask_moves_to_the_edge_of_the_image():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 10:] = 1  # two columns short of the edge
    refined = refine(mask, image)[0, 0, 8]
    assert refined[8:].min() > 0.5 > refined[:8].max()
