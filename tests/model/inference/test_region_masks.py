"""Regions at inference: labels, averages, and every method with regions through the segmenter."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.inference.region_masks import (
    Regions,
    average_inside,
    embed_regions,
    find_regions,
    label_regions,
)
from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.inference.settings import METHODS, PredictionSettings
from codeseg.model.regions.config import Grouping
from codeseg.model.regions.patch_features import clip_keys
from tests.helpers.toy_benchmark import TINY_CLIP

HALVES = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).expand(3, 2, 4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.json"
    path.write_text(json.dumps(TINY_CLIP))
    return FrozenClip.load(str(path), "random:1")


@pytest.fixture(scope="module")
def code(clip):
    torch.manual_seed(0)
    return CoDe(clip, CoDeConfig(region_weight=1.0)).eval()


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)


def two_regions() -> Regions:
    """A left and a right half of 3 x 4 pixels."""
    shares = HALVES.transpose(0, 1)[None]
    return Regions(shares.flatten(2).bool(), shares)


def test_average_is_the_mean_within_each_region():
    masks = torch.rand(1, 5, 3, 4)
    averaged = average_inside(masks, two_regions())
    expected = masks.clone()
    expected[..., :2] = masks[..., :2].mean(dim=(-2, -1), keepdim=True)
    expected[..., 2:] = masks[..., 2:].mean(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(averaged, expected)


def test_labels_are_the_sigmoid_of_each_regions_cosine():
    embeddings = torch.nn.functional.normalize(torch.randn(1, 2, 6), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 6), dim=-1)
    masks = label_regions(two_regions(), embeddings, texts, scale=10, threshold=0.25)
    for k in range(4):
        for column, region in ((0, 0), (3, 1)):
            expected = torch.sigmoid(10 * (embeddings[0, region] @ texts[k] - 0.25))
            torch.testing.assert_close(masks[0, k, :, column], expected.expand(3))


@pytest.mark.parametrize("follow_edges", [False, True])
@torch.no_grad()
def test_shares_of_a_pixel_sum_to_one(clip, follow_edges):
    side = clip.image_size
    images = torch.randn(2, 3, side, 2 * side)
    found = find_regions(
        clip_keys(clip, clip.trunk(images)),
        images,
        clip.grid(images),
        Grouping(regions=5),
        follow_edges=follow_edges,
    )
    scale = 4 if follow_edges else 1
    h, w = (scale * n for n in clip.grid(images))
    assert found.shares_WRHW.shape[-2:] == (h, w)
    torch.testing.assert_close(found.shares_WRHW.sum(dim=1), torch.ones(2, h, w))


@torch.no_grad()
def test_untrained_recogniser_says_what_the_frozen_clip_says(clip, code):
    images = torch.randn(1, 3, clip.image_size, clip.image_size)
    tokens = clip.trunk(images)
    keys, grid = clip_keys(clip, tokens), clip.grid(images)
    found = find_regions(keys, images, grid, Grouping(regions=4), follow_edges=False)
    frozen = embed_regions(clip, None, tokens, found)
    torch.testing.assert_close(embed_regions(clip, code.region_recogniser, tokens, found), frozen)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if "scg" in m and not m.startswith(("scclip", "align"))]
)
def test_every_method_with_regions_segments(clip, code, photo, method):
    settings = PredictionSettings.for_clip(clip, method=method, regions=4)
    result = Segmenter(clip, code, settings).segment(photo, ["dog", "red car"], background=True)
    assert result.label_map.shape == (50, 90)
    masks = np.stack([segment.mask for segment in result.segments])
    assert np.isfinite(masks).all() and 0 <= masks.min() <= masks.max() <= 1


def test_weight_goes_from_averaged_masks_to_labels(clip, code, photo):
    def masks(**changes):
        settings = PredictionSettings.for_clip(clip, regions=4, **changes)
        result = Segmenter(clip, code, settings).segment(photo, ["dog", "car"])
        return np.stack([segment.mask for segment in result.segments])

    labels = masks(method="scg")
    np.testing.assert_allclose(masks(method="code+scg", region_weight=1.0), labels, atol=1e-6)
    averaged = masks(method="code+scg", region_weight=0.0)
    half = masks(method="code+scg", region_weight=0.5)
    np.testing.assert_allclose(half, (averaged + labels) / 2, atol=1e-6)
    assert np.abs(averaged - labels).max() > 1e-3


def test_one_region_makes_every_mask_flat(clip, code, photo):
    settings = PredictionSettings.for_clip(
        clip, method="code+scg", regions=1, region_weight=0.0, window=1000, stride=1000
    )
    for segment in Segmenter(clip, code, settings).segment(photo, ["dog", "car"]).segments:
        assert segment.mask.max() - segment.mask.min() < 1e-4


def test_model_of_regions_alone_makes_no_masks(clip):
    config = CoDeConfig(masks=False, co_decomposition=False, region_weight=1.0)
    alone = CoDe(clip, config)
    with pytest.raises(ValueError, match="scg for one trained on regions alone"):
        Segmenter(clip, alone)
    settings = PredictionSettings.for_clip(clip, method="scg")
    assert Segmenter(clip, alone, settings).embed_texts(["dog"]).words_KC.shape[0] == 1


@pytest.mark.parametrize(
    "setting", [{"regions": 0}, {"region_weight": 1.5}, {"method": "dog+scg"}, {"method": "scg+"}]
)
def test_settings_out_of_range_are_refused(clip, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        replace(PredictionSettings.for_clip(clip, method="scg"), **setting).check()


def test_record_names_region_settings_only_where_regions_take_part():
    assert not [k for k in PredictionSettings(method="naclip").record() if "region" in k]
    assert "region_weight" not in PredictionSettings(method="scg").record()
    both = PredictionSettings(method="naclip+scg").record()
    assert {"regions", "region_weight", "region_scale", "prompts"} <= both.keys()
    assert "knowledge_weight" not in both
