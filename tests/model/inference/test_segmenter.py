import copy
import json
import re
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeseg.model.checkpoint import save_checkpoint
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.weights import WEIGHTS
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.code.image_segmenter import BAND_ROWS
from codeseg.model.inference import segmenter as segmenter_module
from codeseg.model.inference.masks import pad_to_patches
from codeseg.model.inference.segmenter import Segmenter, TextEmbeddings
from codeseg.model.inference.settings import PredictionSettings, lexicon
from codeseg.model.inference.sliding import CHUNK_FLOATS, layout, stitched
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.benchmark.protocol import load_protocol
from codeseg.pipeline.storybook.scenes import CLASSES
from tests.helpers.toy_benchmark import TINY_CLIP
from tests.reference import build

DATA = Path(__file__).parents[2] / "data"


METHODS = {"naclip": {}, "scclip": {"score": "softmax", "background": "names"}, "naclip+scg": {}}


@pytest.mark.parametrize("method", [*METHODS, "code", "code+scg"])
def test_bf16_moves_masks_a_little(method, code, photo):
    masks = []
    for precision in ("fp32", "bf16"):
        changes = {"method": method, "precision": precision, "refinement": "laplacian"}
        if method in METHODS:
            segmenter = Segmenter.open(None, changes | METHODS[method], clip="storybook")
        else:
            segmenter = Segmenter(
                code.clip, code, PredictionSettings.for_clip(code.clip, **changes)
            )
        embeddings = segmenter.embed_texts(["red car", "green grass"])
        masks.append(torch.cat([maps for _, maps in segmenter.maps(photo, embeddings)]))
    assert masks[1].dtype == torch.float32
    difference = (masks[0] - masks[1]).abs()
    assert 0 < difference.mean() < 0.01


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.json"
    path.write_text(json.dumps(TINY_CLIP))
    return FrozenClip.load(str(path), "random:1")


@pytest.fixture(scope="module")
def code(clip):
    torch.manual_seed(0)
    return CoDe(clip, CoDeConfig()).eval()


def soft(result):
    return np.stack([segment.mask for segment in result.segments])


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize("pamr", [0, 1])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@torch.no_grad()
@pytest.mark.slow
def test_one_window_equals_the_reference(pamr, weight):
    spec = json.loads((DATA / "code-small.json").read_text())
    arrays = {k: torch.from_numpy(v) for k, v in np.load(DATA / "code-small.npz").items()}
    code = build(spec)
    settings = PredictionSettings.for_clip(
        code.clip,
        refinement="pamr" if pamr else "none",
        knowledge_weight=weight,
        templates="imagenet",
    )
    segmenter = Segmenter(code.clip, code, settings)
    embeddings = segmenter.embed_texts(spec["eval_classes"])
    assert (embeddings.words_KC - arrays["eval/class_embedding"]).abs().max() < 1e-5
    assert (embeddings.templates_KC - arrays["eval/template_embedding"]).abs().max() < 1e-5
    image = arrays["input/eval_image"]
    windows = layout(90, 70, 448, 224)
    padded, (left, _, top, _) = pad_to_patches(windows.crops(image[0]), code.clip.patch_size)
    masks = segmenter.window_masks(padded, embeddings)
    maps = list(stitched(masks, windows, padded.shape[-2:], (top, left), (90, 70)))
    ours = torch.cat([part for _, part in maps])[None]
    tolerance = 1e-4 if pamr else 1e-5
    assert (ours - arrays[f"eval/masks_pamr{pamr}_kp{weight}"]).abs().max() < tolerance


def test_defaults_are_twice_the_clips_size(clip):
    settings = PredictionSettings.for_clip(clip)
    assert (settings.short_side, settings.window, settings.stride) == (64, 64, 32)
    assert settings.refinement == "pamr"
    assert PredictionSettings.for_clip(clip, method="naclip").refinement == "none"


@pytest.mark.parametrize("method", ["code", "maskclip", "sclip", "clearclip", "naclip"])
def test_result_has_the_pictures_own_size(clip, code, photo, method):
    settings = PredictionSettings.for_clip(clip, method=method, refinement="pamr")
    segmenter = Segmenter(clip, code, settings)
    result = segmenter.segment(photo, ["red car", "dog"], background=True)
    assert result.names == ("background", "red car", "dog")
    assert result.label_map.shape == (50, 90) and result.label_map.dtype == np.uint8
    masks = soft(result)
    assert masks.shape == (2, 50, 90) and masks.min() >= 0 and masks.max() <= 1
    best = np.concatenate([np.full((1, 50, 90), 0.4, np.float32), masks]).argmax(0)
    assert np.array_equal(result.label_map, best)
    label = segmenter.label_map(photo, segmenter.embed_texts(["red car", "dog"]), True)
    assert np.array_equal(label, result.label_map)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (64, 64)])
def test_pictures_of_any_shape_are_right(clip, code, size):
    result = Segmenter(clip, code).segment(np.full((*size, 3), 99, np.uint8), ["dog", "cat"])
    assert result.label_map.shape == size and np.isfinite(soft(result)).all()


def test_order_of_texts_only_renames_the_classes(clip, code, photo):
    segmenter = Segmenter(clip, code)
    one = soft(segmenter.segment(photo, ["dog", "cat"]))
    other = soft(segmenter.segment(photo, ["cat", "dog"]))
    assert np.allclose(one, other[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one text"),
        (["dog", " "], "is blank"),
        ([" ".join(["dog"] * 200)], "has 200 tokens; at most 59 fit"),
    ],
)
def test_texts_that_cannot_be_are_refused(clip, code, texts, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(clip, code).embed_texts(texts)


@pytest.mark.parametrize("method", ["code", "naclip"])
def test_a_thing_is_where_any_of_its_names_is(clip, code, photo, method):
    segmenter = Segmenter(clip, code, PredictionSettings.for_clip(clip, method=method))
    apart = soft(segmenter.segment(photo, "sofa, couch, dog"))
    joined = segmenter.segment(photo, [("sofa", "couch"), "dog"])
    assert joined.names == ("background", "sofa", "dog")
    expected = np.stack([np.maximum(apart[0], apart[1]), apart[2]])
    assert np.allclose(soft(joined), expected, atol=1e-6)


def test_pictures_of_one_size_go_together_and_keep_their_order(clip, code, monkeypatch):
    rng = np.random.default_rng(1)
    sizes = [(40, 60), (40, 60), (40, 60), (50, 30), (40, 60)]
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    segmenter = Segmenter(clip, code)
    alone = [segmenter.segment(picture, "dog, cat") for picture in pictures]
    seen, resized = [], segmenter_module._of_one_size
    monkeypatch.setattr(
        segmenter_module,
        "_of_one_size",
        lambda *given: (seen.append(len(group)) or group for group in resized(*given)),
    )
    together = list(segmenter.segment_many(pictures, "dog, cat", batch=2))
    assert seen == [2, 1, 1, 1]
    for one, other, picture in zip(alone, together, pictures, strict=True):
        assert np.array_equal(other.pixels, picture)
        assert np.allclose(soft(one), soft(other), atol=1e-5)
    batch = torch.from_numpy(np.stack(pictures[:2])).movedim(-1, 1)
    for one, other in zip(alone, segmenter.segment_many(batch, "dog, cat"), strict=False):
        assert np.array_equal(one.label_map, other.label_map)


def test_words_the_embedded_clip_was_never_trained_on_are_named():
    segmenter = Segmenter.open(clip="storybook", device="cpu")
    message = "storybook was never trained on: giraffe, red sofa; .*--clip ViT-B-16"
    with pytest.warns(UserWarning, match=message):
        segmenter.embed_texts(["giraffe", ("red sofa", "house")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.embed_texts(CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method 'magic' is none of code, align, maskclip"),
        ({"stride": 65}, "stride 65 exceeds window 64"),
        ({"window": 0, "stride": 0}, "stride must be at least 1"),
        ({"knowledge_weight": 1.5}, "must be in 0..1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(clip, code, change, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(clip, code, PredictionSettings.for_clip(clip, **change))


def test_more_things_than_a_label_map_of_bytes_can_hold_are_refused(clip, photo):
    segmenter = Segmenter(clip, settings=PredictionSettings.for_clip(clip, method="naclip"))
    with pytest.raises(ValueError, match="256 things to find: find at most 255 in one run"):
        segmenter.segment(photo, [f"thing {k}" for k in range(256)])


def test_method_code_needs_a_trained_model(clip):
    with pytest.raises(ValueError, match="needs a trained model"):
        Segmenter(clip, None, PredictionSettings.for_clip(clip))


def test_sc_clip_asks_for_another_method_where_a_clip_has_too_few_blocks(clip):
    with pytest.raises(ValueError, match=r"6 blocks, .* has 2: use another method, such as nac"):
        Segmenter(clip)
    assert Segmenter(clip, settings=PredictionSettings.for_clip(clip, method="naclip"))


@pytest.fixture
def run(tmp_path):
    code = CoDe(FrozenClip.load("storybook", "storybook"), CoDeConfig(context_tokens=4))
    save_checkpoint(tmp_path / "run" / "checkpoints" / "step-000001", code, {}, version="0")
    return tmp_path / "run"


def test_settings_recorded_in_a_run_hold_wherever_it_is_opened(run):
    assert Segmenter.open(run).settings.background_threshold == 0.5  # the embedded CLIP's
    recorded = 'method = "naclip"\nstride = 24\n[naclip]\nbackground_threshold = 0.25\n'
    (run / "settings.toml").write_text(recorded + "[code]\nbackground_threshold = 0.75\n")
    for place in (run, run / "checkpoints" / "step-000001"):
        settings = Segmenter.open(place).settings
        assert (settings.method, settings.stride) == ("naclip", 24)
        assert (settings.background_threshold, settings.window) == (0.25, 96)
    given = Segmenter.open(run, {"method": "code", "stride": 12}).settings
    assert (given.background_threshold, given.stride) == (0.75, 12)
    protocol = load_protocol("sclip").settings_for(load_benchmark("voc"))
    published = Segmenter.open(run, protocol=protocol).settings
    assert published.background_threshold == PredictionSettings.background_threshold
    (run / "settings.toml").unlink()
    inside = run / "checkpoints" / "step-000001" / "settings.toml"  # as it comes from the hub
    inside.write_text("stride = 16\n")
    assert Segmenter.open(inside.parent).settings.stride == 16


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("strid = 3", r"settings\.toml: unknown setting strid: did you mean stride"),
        ("[cod]\nstride = 3", r"settings\.toml: \[cod\] is no method; did you mean code"),
        ("[naclip]\nstride = true", r"settings\.toml: setting stride is a whole number"),
        ("stride", r"settings\.toml: "),
    ],
)
def test_a_run_whose_settings_are_wrong_is_refused_by_the_files_name(run, written, message):
    (run / "settings.toml").write_text(written)
    with pytest.raises(ValueError, match=message):
        Segmenter.open(run)


@pytest.mark.slow
def test_many_classes_need_no_more_memory_than_few(clip, photo, monkeypatch):
    big = np.kron(photo, np.ones((20, 20, 1), np.uint8))
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(254, 32, generator=generator), dim=1)
    resize, largest = F.interpolate, []

    def watched(*args, **kwargs):
        resized = resize(*args, **kwargs)
        largest.append(resized.numel())
        return resized

    monkeypatch.setattr(F, "interpolate", watched)
    segmenter = Segmenter(clip, settings=PredictionSettings.for_clip(clip, method="maskclip"))
    label = segmenter.label_map(big, TextEmbeddings(texts, texts), False)
    assert label.shape == big.shape[:2]
    assert max(largest) <= CHUNK_FLOATS < 254 * label.size


@torch.no_grad()
@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (9, 2), (13, 3)])
def test_bands_of_the_pixel_embedding_are_the_whole(code, grid):
    segmenter = copy.deepcopy(code.image_segmenter)
    for stage in segmenter.stages:
        stage.gate.fill_(0.7)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 1 + grid[0] * grid[1], code.clip.width, generator=generator)
    bands = list(segmenter.bands(tokens, grid))
    assert len(bands) == -(-2 * grid[0] // BAND_ROWS)
    assert torch.allclose(torch.cat(bands, dim=2), segmenter(tokens, grid), atol=1e-6)


def test_the_embedded_clip_has_its_recorded_settings_and_others_win_over_them():
    settings = Segmenter.open(clip="storybook", device="cpu").settings
    assert (settings.method, settings.short_side, settings.stride) == ("naclip", 96, 48)
    assert settings.background_threshold == 0.375
    changed = {"method": "code+scg", "stride": "24", "window": 48}
    settings = PredictionSettings.for_clip(FrozenClip.load("storybook", "storybook"), **changed)
    assert (settings.stride, settings.window, settings.short_side) == (24, 48, 96)
    assert (settings.background_threshold, settings.knowledge_weight) == (0.5, 0.0)
    assert settings.region_weight == 0.3 and settings.refinement == "pamr"
    random = PredictionSettings.for_clip(FrozenClip.load("storybook", "random"))
    assert (random.short_side, random.background_threshold) == (128, 0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"windo": 3}}, "unknown setting windo: did you mean window"),
        ({"settings": {"stride": 2.5}}, "setting stride is a whole number, not 2.5"),
        ({"settings": {"method": "code+scg"}}, "needs a trained model"),
        ({"run": "nowhere", "clip": "storybook"}, "has its own CLIP: leave out --clip"),
        ({"device": "abacus"}, "none of auto, cpu, cuda"),
        ({"clip": "ViT-B-32", "pretrained": "novel"}, "neither a file nor a known tag"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        Segmenter.open(**arguments)


def test_the_lexicon_and_the_settings_for_photographs_are_those_of_the_benchmarks():
    names = [n for b in ("coco_stuff", "ade20k") for n in load_benchmark(b).classes]
    plain = (re.sub("-(other|stuff)$", "", name).replace("-", " ") for name in names)
    assert lexicon() == list(dict.fromkeys(plain))
    assert {"wall brick", "building"} < set(lexicon()) and len(lexicon()) > 250
    published = load_protocol("scclip").settings
    ours = tomllib.loads((WEIGHTS / "photographs.toml").read_text())["scclip"]
    differ = {key for key in published if published[key] != ours.get(key)}
    assert differ == {"background", "templates", "resize"}  # resize: opencv is the default
    assert published["resize"] == PredictionSettings.resize


def test_pixels_that_fit_a_background_word_best_are_background(tmp_path, photo):
    deep = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], "layers": 6}}
    (tmp_path / "deep.json").write_text(json.dumps(deep))
    given = {"clip": str(tmp_path / "deep.json"), "pretrained": "random:1", "device": "cpu"}
    segmenter = Segmenter.open(**given)
    assert (segmenter.settings.method, segmenter.settings.background) == ("scclip", "vabs")
    result = segmenter.segment(photo, "dog, red car/auto")
    names = segmenter.background_words(["dog", "red car", "auto"], lexicon())
    embeddings = segmenter.embed_texts([names, "dog", ("red car", "auto")])
    assert np.array_equal(result.label_map, segmenter.label_map(photo, embeddings, True))
    assert result.names == ("background", "dog", "red car") and len(result.segments) == 2
    assert 0 < soft(result).sum(0).max() <= 1
    strict = Segmenter.open(settings={"probability_threshold": 1.0}, **given)
    assert not strict.segment(photo, "dog, red car").label_map.any()
