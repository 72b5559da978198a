"""Method align: words projected to a ViT's patches, alone, with regions and with the CLIP."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeseg.model.align.alignment import Align
from codeseg.model.align.backbone import Backbone
from codeseg.model.align.config import AlignConfig
from codeseg.model.checkpoint import save_checkpoint
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.export import SegmenterNetworks
from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.inference.settings import SENTENCES, PredictionSettings, default_method

WORDS = ["cat", "red car", "grass"]


@pytest.fixture(scope="module")
def align():
    torch.manual_seed(0)
    backbone = Backbone("storybook")
    clip = FrozenClip.load("storybook", "storybook")
    facts = {name: getattr(backbone, name) for name in ("name", "weights_sha256", "width")}
    return Align(clip, AlignConfig("storybook"), facts | {"weights": None}, backbone).eval()


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def segmenter(align, **changes):
    changes = {"method": "align", "refinement": "none", "short_side": 64, "window": 96} | changes
    return Segmenter(align.clip, align, PredictionSettings.for_clip(align.clip, **changes))


def masks_of(align, photo, **changes):
    by = segmenter(align, **changes)
    return torch.cat([maps for _, maps in by.maps(photo, by.embed_texts(WORDS))])


@torch.no_grad()
def test_a_mask_is_the_sigmoid_of_the_cosine_of_the_projected_sentences_and_the_patches(
    align, photo
):
    by = segmenter(align)
    sentences = SENTENCES[by.settings.templates]
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    patches = F.normalize(align.backbone(pixels, (8, 12)), dim=-1)
    for k, word in enumerate(WORDS):
        tokens = align.clip.tokenize([template.format(word) for template in sentences])
        states = align.clip.text_states(tokens)[torch.arange(len(tokens)), tokens.argmax(-1)]
        mean = align.clip.project_text(states).mean(0)  # of raw embeddings
        cosines = (patches @ F.normalize(align.projection(mean), dim=-1)).view(8, 12)
        image = align.clip.normalize(pixels)
        found = by.window_masks(image, by.embed_texts(WORDS))[0, k]
        expected = torch.sigmoid(by.settings.align_scale * (cosines - by.settings.align_threshold))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_trained_alignment_is_used_unless_another_method_is_named(align, photo):
    by = Segmenter(align.clip, align)
    assert by.settings.method == "align" and by.settings.knowledge_weight == 0
    assert {"align", "align+scg", "naclip"} < set(by.methods) and "code" not in by.methods
    result = by.segment(photo, "cat, red car")
    assert result.label_map.shape == photo.shape[:2]


def test_the_clips_image_encoder_runs_only_if_it_is_mixed_in(align, photo, monkeypatch):
    alone = masks_of(align, photo)
    dense = masks_of(align, photo, method="maskclip")
    mixed = masks_of(align, photo, knowledge_weight=0.25)
    torch.testing.assert_close(mixed, torch.lerp(alone, dense, 0.25), atol=1e-5, rtol=0)

    def refuse(*_, **__):
        raise AssertionError("the CLIP was run")

    monkeypatch.setattr(FrozenClip, "trunk", refuse)
    monkeypatch.setattr(FrozenClip, "states", refuse)
    torch.testing.assert_close(masks_of(align, photo), alone)
    masks_of(align, photo, method="align+scg")


def test_with_regions_a_region_has_one_score(align, photo):
    image = align.clip.normalize(torch.from_numpy(photo).permute(2, 0, 1)[None])

    def found(**changes):
        by = segmenter(align, **changes)
        return by.window_masks(image, by.embed_texts(WORDS))[0].flatten(1)

    labels = found(method="align+scg", region_weight=1.0, regions=4)
    assert 1 < len(labels.T.mul(1e4).round().unique(dim=0)) <= 4
    averaged = found(method="align+scg", region_weight=0.0, regions=1)
    torch.testing.assert_close(averaged, found().mean(1, keepdim=True).expand_as(averaged))


def test_regions_of_another_method_can_come_from_the_vit(align, photo):
    keys = masks_of(align, photo, method="scg", regions=4)
    tokens = masks_of(align, photo, method="scg", regions=4, region_features="storybook")
    assert keys.shape == tokens.shape and not torch.equal(keys, tokens)


def test_cleaning_and_softmax_change_labels_but_keep_their_form(align, photo):
    by = {"score": "softmax", "background": "names"}
    plain, cleaned = (masks_of(align, photo, **by, cleaning=weight) for weight in (0.0, 0.5))
    assert plain.shape == cleaned.shape and not torch.allclose(plain, cleaned)
    assert plain.abs().max() <= 1 and cleaned.abs().max() <= 1  # cosines


def test_a_run_of_an_alignment_is_known_by_its_config(align, tmp_path):
    save_checkpoint(tmp_path / "checkpoints" / "step-000001", align, {}, version="0")
    assert default_method(tmp_path, "storybook") == "align"
    (tmp_path / "settings.toml").write_text('method = "align+scg"\n')
    assert default_method(tmp_path, "storybook") == "align+scg"


def test_a_saved_alignment_comes_back_to_the_same_masks(align, photo, tmp_path):
    save_checkpoint(tmp_path / "checkpoints" / "step-000001", align, {}, version="0")
    opened = Segmenter.open(tmp_path, {"refinement": "none"}, device="cpu")
    again = Segmenter(align.clip, align, opened.settings)
    assert opened.settings.method == "align" and opened.backbone is opened.align.backbone
    one, two = (by.segment(photo, WORDS) for by in (opened, again))
    for mine, other in zip(one.segments, two.segments, strict=True):
        assert mine.score == other.score and np.array_equal(mine.mask, other.mask)


def test_methods_that_a_model_was_not_trained_for_are_refused(align):
    with pytest.raises(ValueError, match="method code needs a trained model that makes masks"):
        segmenter(align, method="code")
    settings = PredictionSettings.for_clip(align.clip, method="align")
    with pytest.raises(ValueError, match="method align needs a trained model that aligns words"):
        Segmenter(align.clip, None, settings)
    with pytest.raises(ValueError, match="cleaning must not be negative"):
        replace(settings, cleaning=-0.1).check()
    with pytest.raises(ValueError, match="cleaning cannot be exported: set it to 0"):
        SegmenterNetworks(segmenter(align, cleaning=0.2))


def test_a_vits_weights_are_refused_where_no_vit_is_used():
    with pytest.raises(
        ValueError, match=r"leave out --weights vit\.pt: only a RUN of an alignment"
    ):
        Segmenter.open(clip="storybook", weights="vit.pt", device="cpu")


def test_only_settings_that_matter_to_the_method_are_recorded(align):
    align_only = {"align_scale", "align_threshold", "cleaning"}
    recorded = {m: segmenter(align, method=m).settings.record() for m in ("align", "naclip")}
    assert align_only < recorded["align"].keys() and "knowledge_weight" in recorded["align"]
    assert not align_only & recorded["naclip"].keys()
    by_regions = segmenter(align, method="align+scg").settings.record()
    assert "region_weight" in by_regions and "region_features" not in by_regions
