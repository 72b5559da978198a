"""Grouping of patch features into regions: properties on random pictures, and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codeseg.model.regions.config import Grouping
from codeseg.model.regions.grouping import (
    connected_components,
    group_patches,
    kmeans,
    merge_small,
    normalized_cut,
)

label_maps = hnp.arrays(
    np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
)
features = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.integers(0, 999))
groupings = st.builds(
    Grouping,
    method=st.sampled_from(["kmeans", "spectral"]),
    regions=st.integers(1, 60),
    min_patches=st.integers(1, 6),
    seed=st.integers(0, 3),
)


def flood_fill(labels):
    """Components by the plainest loop there is."""
    h, w = labels.shape
    found = np.full((h, w), -1)
    count = 0
    for i in range(h):
        for j in range(w):
            if found[i, j] >= 0:
                continue
            stack = [(i, j)]
            while stack:
                y, x = stack.pop()
                if not (0 <= y < h and 0 <= x < w):
                    continue
                if found[y, x] >= 0 or labels[y, x] != labels[i, j]:
                    continue
                found[y, x] = count
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            count += 1
    return found


def blocks_picture(h=8, w=8, noise=0.05, seed=0):
    """Four quadrants of one feature each, with a little noise; the true map beside it."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(h, w, dtype=torch.int64)
    truth[h // 2 :] += 2
    truth[:, w // 2 :] += 1
    kinds = torch.randn(4, 16, generator=generator)
    points = kinds[truth.flatten()] + noise * torch.randn(h * w, 16, generator=generator)
    return points, truth.numpy()


@given(label_maps)
def test_components_equal_flood_fill(labels):
    np.testing.assert_array_equal(connected_components(labels), flood_fill(labels))


def test_components_follow_a_spiral_to_its_end():
    spiral = np.array(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 0, 1],
            [1, 0, 0, 0, 1, 0, 1],
            [1, 0, 1, 1, 1, 0, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 1, 1],
        ]
    )
    assert connected_components(spiral).max() == 1


@given(features, groupings)
@settings(max_examples=80)
def test_regions_are_connected_contiguous_large_and_few(shape, grouping):
    h, w, D, seed = shape
    points = torch.randn(h * w, D, generator=torch.Generator().manual_seed(seed))
    regions = group_patches(points, (h, w), grouping)
    assert regions.shape == (h, w)
    assert regions.dtype == np.uint8
    np.testing.assert_array_equal(regions, flood_fill(regions))  # connected, numbered in order
    sizes = np.bincount(regions.ravel())
    assert len(sizes) <= grouping.regions
    assert len(sizes) == 1 or sizes.min() >= grouping.min_patches


@given(features, groupings)
@settings(max_examples=30)
def test_same_features_and_settings_give_the_same_regions(shape, grouping):
    h, w, D, seed = shape
    points = torch.randn(h * w, D, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(1)
    first = group_patches(points, (h, w), grouping)
    torch.manual_seed(2)  # the global generator has no say
    np.testing.assert_array_equal(first, group_patches(points.clone(), (h, w), grouping))


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("seed", range(4))
def test_plain_parts_are_found_exactly(method, seed):
    points, truth = blocks_picture(seed=seed)
    regions = group_patches(points, (8, 8), Grouping(method=method, regions=4))
    np.testing.assert_array_equal(regions, truth)


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_asking_for_many_regions_does_not_tear_equal_patches_apart(method):
    points, truth = blocks_picture(noise=0)
    regions = group_patches(points, (8, 8), Grouping(method=method, regions=40))
    np.testing.assert_array_equal(regions, truth)


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_one_color_picture_is_one_region(method, value):
    noise = 1e-6 * torch.randn(36, 8, generator=torch.Generator().manual_seed(0))
    points = torch.full((36, 8), value) + (noise if value else 0)
    regions = group_patches(points, (6, 6), Grouping(method=method))
    np.testing.assert_array_equal(regions, np.zeros((6, 6)))


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_more_regions_than_patches_gives_at_most_a_region_a_patch(method):
    points = torch.eye(3)
    grouping = Grouping(method=method, regions=16, min_patches=1)
    assert sorted(group_patches(points, (1, 3), grouping).ravel()) == [0, 1, 2]


def test_single_patch_is_one_region():
    assert group_patches(torch.ones(1, 4), (1, 1), Grouping()).tolist() == [[0]]


def test_small_region_joins_the_most_similar_neighbor():
    components = np.array([[0, 0, 1, 2, 2]])
    points = np.array([[1, 0], [1, 0], [0.1, 1], [0, 1], [0, 1]], dtype=np.float32)
    assert merge_small(components, points, 2, 9).tolist() == [[0, 0, 1, 1, 1]]
    points[2] = [1, 0.1]
    assert merge_small(components, points, 2, 9).tolist() == [[0, 0, 0, 1, 1]]


def test_half_precision_features_are_taken():
    points, truth = blocks_picture()
    regions = group_patches(points.half(), (8, 8), Grouping(regions=4))
    np.testing.assert_array_equal(regions, truth)


def test_clusters_are_better_than_their_random_start():
    points, _ = blocks_picture(noise=0.8)
    for cluster in (kmeans, normalized_cut):
        labels = cluster(points, 4, 0)
        centers = torch.stack([points[labels == k].mean(0) for k in labels.unique()])
        inertia = torch.cdist(points, centers).square().min(dim=-1).values.sum()
        total = (points - points.mean(0)).square().sum()
        assert inertia < 0.6 * total


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    points = torch.ones(4, 3)
    points[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        group_patches(points, (2, 2), Grouping())


def test_features_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="patch grid of 3x3"):
        group_patches(torch.ones(4, 3), (3, 3), Grouping())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "dbscan"}, "kmeans, spectral"),
        ({"regions": 0}, "1 to 256"),
        ({"regions": 257}, "1 to 256"),
        ({"min_patches": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Grouping(**setting)
