import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from codeseg.model.checkpoint import save_checkpoint
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.inference.settings import PredictionSettings
from codeseg.model.pictures.overlay import colors, edges, overlay
from codeseg.pipeline.storybook.scenes import DEV_SEED, THING_NAMES, draw_scene
from codeseg.stages.cli import app
from codeseg.stages.segment import split_formats
from tests.helpers.toy_benchmark import TINY_CLIP


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.json").write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(0)
    code = CoDe(FrozenClip.load(str(folder / "tiny.json"), "random:1"), CoDeConfig())
    save_checkpoint(folder / "checkpoints" / "step-000001", code, {}, version="0")
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG"):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def segment(*arguments):
    words = ["segment", *map(str, arguments), "--device", "cpu"]
    return CliRunner().invoke(app, words)


def test_every_picture_gets_its_files_and_a_row(tmp_path, photos, run):
    out = tmp_path / "out"
    (tmp_path / "words.txt").write_text("red car / auto\n\ndog\n")
    words = ("--text-file", tmp_path / "words.txt")
    done = segment(photos, *words, "--run", run, "--out", out, "--threshold", "0.45")
    assert done.exit_code == 0, done.output
    told = json.loads((out / "segments.json").read_text())
    assert told["settings"]["background_threshold"] == 0.45
    rows = told["images"]
    assert [row["folder"] for row in rows] == ["a", "b"]
    for row in rows:
        folder = out / row["folder"]
        label = np.asarray(Image.open(folder / "label.png"))
        assert label.shape == (30, 40)
        assert np.asarray(Image.open(folder / "overlay.png")).shape[0] > 30  # the legend is below
        assert [part["text"] for part in row["segments"]] == ["red car", "dog"]
        for k, part in enumerate(row["segments"], start=1):
            mask = np.asarray(Image.open(folder / part["mask"]))
            assert mask.shape == (30, 40) and abs(mask.max() / 255 - part["score"]) < 0.01
            assert part["area"] == pytest.approx((label == k).mean())


def test_every_format_in_one_run_and_none_overwritten(tmp_path, photos, run):
    out = tmp_path / "out"
    words = (photos, "--text", "dog, red car", "--run", run, "--out", out)
    done = segment("--format", "png", "coco", "--format", "yolo", *words)
    assert done.exit_code == 0, done.output
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [
        str(photos / name) for name in ("a.png", "b.JPG")
    ]
    assert {path.name for path in (out / "labels").iterdir()} == {"a.txt", "b.txt"}
    refused = segment(*words)
    assert isinstance(refused.exception, ValueError) and "--overwrite" in str(refused.exception)
    assert segment(*words, "--overwrite").exit_code == 0
    assert not (out / "coco.json").exists() and (out / "segments.json").exists()


@pytest.mark.slow
def test_ten_pictures_in_every_format_are_read_back_by_its_own_reader(tmp_path):
    coco_api, supervision = (
        pytest.importorskip("pycocotools.coco"),
        pytest.importorskip("supervision"),
    )
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(10):
        name, size = f"{index:02d}.{('png', 'jpg', 'webp')[index % 3]}", 60 + 7 * index
        draw_scene(DEV_SEED, index, size).image.save(photos / name)
    things = list(THING_NAMES)
    words = ("--clip", "storybook", "--text", ", ".join(things))
    done = segment(photos, *words, "--format", "png", "coco", "yolo", "--out", out)
    assert done.exit_code == 0, done.output
    written = {p.stem: np.asarray(Image.open(out / p.stem / "label.png")) for p in photos.iterdir()}
    rows = json.loads((out / "segments.json").read_text())["images"]
    assert [row["folder"] for row in rows] == sorted(written) and len(rows) == 10
    for row in rows:
        label = written[row["folder"]]
        assert label.shape == (row["height"], row["width"])
        for k, part in enumerate(row["segments"], start=1):
            assert part["area"] == (label == k).mean()
            assert Image.open(out / row["folder"] / part["mask"]).size == label.shape[::-1]
    coco = coco_api.COCO(out / "coco.json")
    for image in coco.loadImgs(coco.getImgIds()):
        label = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            label[coco.annToMask(annotation) > 0] = annotation["category_id"]
        assert np.array_equal(label, written[Path(image["file_name"]).stem])
    folders = [str(place) for place in (photos, out / "labels", out / "data.yaml")]
    found = supervision.DetectionDataset.from_yolo(*folders, force_masks=True)
    assert found.classes == things and len(found) == 10
    for path, _, detections in found:
        label = written[Path(path).stem]
        masks = np.zeros((0, *label.shape), bool) if detections.mask is None else detections.mask
        for k in range(len(things)):
            drawn = np.asarray(masks)[detections.class_id == k].any(0)
            assert drawn[label == k + 1].all()  # nothing is lost
            assert (drawn & (label != k + 1)).mean() < 0.02  # the cuts to holes, a pixel wide
    assert len(np.unique(np.concatenate([label.ravel() for label in written.values()]))) > 4


def test_formats_may_stand_apart_by_spaces_commas_or_repeats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for images, formats in (
        (["a.jpg", "coco", "yolo"], ["png"]),
        (["a.jpg"], ["png, coco,yolo"]),
        (["coco", "a.jpg", "yolo"], ["png"]),
    ):
        assert split_formats(images, formats) == (["a.jpg"], ["png", "coco", "yolo"])
    assert split_formats(["coco"], None) == (["coco"], ["png"])  # a folder of this name
    (tmp_path / "coco").mkdir()
    with pytest.raises(ValueError, match=r"coco is a format and also a file: write \./coco"):
        split_formats(["a.jpg", "coco"], ["png"])
    assert split_formats(["./coco"], ["png"]) == (["./coco"], ["png"])


def test_globs_classes_of_a_benchmark_and_the_same_name_twice(tmp_path, photos, run):
    (tmp_path / "more").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "more" / "a.png")
    out = tmp_path / "out"
    globs = (f"{photos}/*.png", f"{tmp_path}/more/*")
    done = segment(*globs, "--classes-from", "voc", "--run", run, "--out", out, "--no-background")
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "segments.json").read_text())["images"]
    assert [row["folder"] for row in rows] == ["a", "a-2"]
    assert [part["text"] for part in rows[0]["segments"]][:2] == ["aeroplane", "bicycle"]
    assert sum(part["area"] for part in rows[0]["segments"]) == pytest.approx(1)
    for row in rows:  # a class that is nowhere has no mask: there may be 171 of them
        there = {part["mask"] for part in row["segments"] if part["area"] > 0}
        assert {path.name for path in (out / row["folder"]).glob("mask-*.png")} == there
        assert {part["mask"] for part in row["segments"] if not part["area"]} == {None}


def test_a_damaged_picture_is_counted_and_the_others_are_done(tmp_path, photos, run):
    (photos / "c.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    done = segment(photos, "--text", "dog", "--run", run, "--out", out)
    assert done.exit_code == 1
    assert "c.png: cannot be read as an image" in done.output
    rows = json.loads((out / "segments.json").read_text())["images"]
    assert ["error" in row for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "name the things to find"),
        (["nowhere/*.png", "--text", "dog"], "no image in nowhere"),
        (["nowhere.png", "--text", "dog"], "nowhere.png"),
        ([__file__, "--text", "dog", "--format", "gif"], "format 'gif' is none of png"),
        ([__file__, "--text", "background"], "'background' means pixels that no word fits"),
        (["a.png", "--text", " "], "name the things to find"),
        (["a.png", "--text", "dog, dog"], "'dog' is named twice"),
        (["a.png", "--text-file", "nowhere.txt"], "nowhere.txt"),
        (["a.png", "--classes-from", "vox"], "unknown benchmark 'vox'"),
    ],
)
def test_wrong_use_is_one_line(run, arguments, message):
    done = segment(*arguments, "--run", run)
    assert isinstance(done.exception, ValueError | FileNotFoundError)
    assert message in str(done.exception)


def test_the_snippet_of_a_model_card_runs(run, photos, monkeypatch, capsys):
    checkpoint = run / "checkpoints" / "step-000001"
    (code,) = re.findall(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), re.DOTALL)
    (photos / "photo.jpg").write_bytes((photos / "b.JPG").read_bytes())
    monkeypatch.chdir(photos)
    exec(code.replace("THIS FOLDER OR ITS HUB ID", str(checkpoint)), {})
    assert "<Segmentation 40×30: " in capsys.readouterr().out


def test_word_segments_name_every_word_once_and_sum_to_at_most_one(run):
    segmenter = Segmenter.open(run)
    result = segmenter.word_segments("A red car, beside a dog!", ["red car", "dog"])
    assert result.words == ("a", "red", "car", ",", "beside", "a", "dog", "!")
    assert len(result.labels) == len(result.probabilities) == 8
    for label, row in zip(result.labels, result.probabilities, strict=True):
        none = 1 - sum(row)
        assert 0 <= none <= 1
        expected = int(np.argmax(row)) if max(row) > none else -1
        assert label == expected
    with pytest.raises(ValueError, match="1 to 75 tokens"):
        segmenter.word_segments("dog " * 90, ["dog"])
    naclip = PredictionSettings.for_clip(segmenter.clip, method="naclip")
    with pytest.raises(ValueError, match="word segments need method code"):
        Segmenter(segmenter.clip, settings=naclip).word_segments("a dog", ["dog"])


def test_overlay_paints_classes_leaves_background_and_outlines():
    pixels = np.full((4, 6, 3), 100, np.uint8)
    label = np.zeros((4, 6), np.uint8)
    label[:, 3:] = 1
    painted = np.asarray(overlay(pixels, label, [None, (200, 0, 0)], opacity=0.5))
    assert (painted[:, :2] == 100).all()
    assert (painted[:, 3:] == (150, 50, 50)).all()
    assert (painted[:, 2] == 255).all() and edges(label)[:, 2].all()


def test_colors_are_distinct():
    assert len(set(colors(171))) == 171
