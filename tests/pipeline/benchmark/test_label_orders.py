"""Every manifest's class list against the producer of its label maps, index by index."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.benchmark.metrics import IGNORE, misplaced
from codeseg.stages.cli import app
from tests.helpers.toy_benchmark import TINY_CLIP, toy

ORDERS = json.loads((Path(__file__).parents[2] / "data/label_orders.json").read_text())


def from_one(names):
    return dict(enumerate(names, start=1))


def contiguous(ids):
    """COCO's usage: the things' ids in ascending order, numbered without the gaps."""
    return {raw: name for raw, name in sorted((int(k), v) for k, v in ids.items()) if raw <= 90}


# Raw value in the published label map -> class name, by each producer's own rule; None: no class.
STUFF = {int(raw) - 1: name for raw, name in ORDERS["coco"]["names"].items()}
PRODUCERS = {
    "voc": {0: "background", **from_one(ORDERS["voc"]["names"])},
    "voc20": {0: None, **from_one(ORDERS["voc"]["names"])},
    "context": {0: "background", **from_one(sorted(ORDERS["context"]["names"]))},
    "context59": {0: None, **from_one(sorted(ORDERS["context"]["names"]))},
    "coco_object": {0: "background", **contiguous(ORDERS["coco"]["names"])},
    "coco_stuff": STUFF,
    "cityscapes": {int(raw): name for raw, (name, _) in ORDERS["cityscapes"]["names"].items()},
    "ade20k": {0: None, **from_one(ORDERS["ade20k"]["names"])},
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_every_raw_value_reaches_the_class_that_its_producer_means(name):
    benchmark, producer = load_benchmark(name), PRODUCERS[name]
    form = benchmark.forms[0]
    if form.rule == "coco_instances":
        reached = {0: "background"} | {r: benchmark.classes[k] for r, k in form.mapping.items()}
    else:
        table = form.table(len(benchmark.classes))
        classes = [benchmark.classes[k] if 0 <= k < IGNORE else None for k in table]
        reached = {raw: classes[raw] for raw in producer}
        assert set(classes) == {None, *benchmark.classes}  # nothing else reaches a class
        assert all(c is None for raw, c in enumerate(classes) if raw not in producer)
    assert reached == producer


LISTED = {"pc459": 459, "ade847": 847}
"""Benchmarks whose class names come with the data, and how many the producer lists."""


def lay_out_listed(folder, name):
    """One picture of three classes beside a list of the producer's form; returns its raw values."""
    benchmark, first = load_benchmark(name), {"pc459": 1, "ade847": 0}[name]
    raw = np.array([[0, 1, LISTED[name] - 1, 65535]] * 2, np.uint16)
    for pattern in (benchmark.image_pattern, benchmark.forms[0].pattern, benchmark.names_file):
        (folder / pattern).parent.mkdir(parents=True, exist_ok=True)
    numbered = [f"{k + first}: thing {k}, number {k}" for k in range(LISTED[name])]
    (folder / benchmark.names_file).write_text("\n".join(numbered[::-1]) + "\n\n")
    Image.new("RGB", raw.shape[::-1]).save(folder / benchmark.image_pattern.format(id="x"))
    Image.fromarray(raw).save(folder / benchmark.forms[0].pattern.format(id="x"))
    if benchmark.split:
        (folder / benchmark.split).parent.mkdir(parents=True)
        (folder / benchmark.split).write_text("x\n")
    return raw


@pytest.mark.parametrize("name", LISTED)
def test_a_right_predictor_scores_100_at_16_bits_with_the_names_of_the_data(tmp_path, name):
    raw = lay_out_listed(tmp_path / "data", name)
    (tmp_path / "out/labels").mkdir(parents=True)
    Image.fromarray(np.where(raw == 65535, 0, raw)).save(tmp_path / "out/labels/x.png")
    (tmp_path / "clip.json").write_text(json.dumps(TINY_CLIP))
    words = [
        *("evaluate", "--method", "naclip", "--benchmark", name),
        *("--data", tmp_path / "data", "--out", tmp_path / "out"),
        *("--clip", tmp_path / "clip.json", "--pretrained", "random", "--device", "cpu"),
    ]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    found = {k: v for k, v in scores["per_class"].items() if v is not None}
    last = LISTED[name] - 1
    assert found == {f"thing {k}, number {k}": 100 for k in (0, 1, last)}
    assert scores["miou"] == 100 and len(scores["per_class"]) == LISTED[name]
    done = CliRunner().invoke(app, ["report", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"thing {last}, number {last}" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    "text", ["1: a\n3: c", "2: a\n3: b", "1: a\n1: b", "1: a\nb", "1: a\n2:", ""]
)
def test_a_list_of_names_with_gaps_or_of_another_form_is_refused(tmp_path, text):
    lay_out_listed(tmp_path, "pc459")
    benchmark = load_benchmark("pc459")
    (tmp_path / benchmark.names_file).write_text(text)
    with pytest.raises(ValueError, match=r"not a list of class names|name is blank"):
        benchmark.open(tmp_path)
    (tmp_path / benchmark.names_file).unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.txt: the list of class names is missing"):
        benchmark.open(tmp_path)


def test_train_ids_of_cityscapes_are_the_order_of_its_list():
    names = dict(sorted((t, n) for n, t in ORDERS["cityscapes"]["names"].values()))
    assert tuple(names.values()) == load_benchmark("cityscapes").classes


def test_the_context_map_that_mmsegmentation_1940_shows_reads_tv_and_window():
    classes = load_benchmark("context").classes
    assert (classes[55], classes[58]) == ("tvmonitor", "window")


def lay_out(folder, name):
    """One picture whose label map holds every raw value; returns the names at its pixels."""
    benchmark, producer = load_benchmark(name), PRODUCERS[name]
    root = folder / next((r for r in benchmark.roots if r != "."), ".")
    city = {"*": "ulm"}
    image = root / benchmark.image_pattern.format(id="x").replace("*", city["*"])
    image.parent.mkdir(parents=True)
    raw = np.repeat(np.array([sorted(producer)]), 2, axis=0)
    Image.new("RGB", raw.shape[::-1]).save(image)
    if benchmark.split:
        (root / benchmark.split).parent.mkdir(parents=True)
        (root / benchmark.split).write_text("x\n")
    label = root / benchmark.forms[0].pattern.format(id="x").replace("*", city["*"])
    label.parent.mkdir(parents=True)
    if label.suffix == ".json":
        label.write_text(json.dumps(instances(raw)))
    else:
        Image.fromarray(raw.astype(np.uint8)).save(label)
    return [[producer[value] for value in row] for row in raw.tolist()]


def instances(raw):
    """COCO's annotations of the same picture: a column is an instance."""
    height, width = raw.shape
    columns = [
        {
            "image_id": 1,
            "iscrowd": 0,
            "category_id": int(raw[0, x]),
            "segmentation": [[x, 0, x + 1, 0, x + 1, height, x, height]],
        }
        for x in range(width)
        if raw[0, x]
    ]
    images = [{"id": 1, "file_name": "x.jpg", "height": height, "width": width}]
    return {"images": images, "annotations": columns}


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_predictor_that_is_right_by_name_scores_100_through_evaluate(tmp_path, name):
    if name == "coco_object":
        pytest.importorskip("pycocotools")
    names = lay_out(tmp_path / "data", name)
    classes = load_benchmark(name).classes
    right = [[classes.index(n) if n else 0 for n in row] for row in names]
    (tmp_path / "out/labels").mkdir(parents=True)
    Image.fromarray(np.array(right, np.uint8)).save(tmp_path / "out/labels/x.png")
    (tmp_path / "clip.json").write_text(json.dumps(TINY_CLIP))
    words = [
        *("evaluate", "--method", "naclip", "--benchmark", name),
        *("--data", tmp_path / "data", "--out", tmp_path / "out"),
        *("--clip", tmp_path / "clip.json", "--pretrained", "random", "--device", "cpu"),
    ]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["miou"] == 100 and set(scores["per_class"].values()) == {100.0}
    assert "hint" not in done.output


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda k: (k + 1) % 6, "one too high: subtract 1"),
        (lambda k: (k - 1) % 6, "one too low: add 1"),
        (lambda k: (0, 3, 1, 2, 5, 4)[k], "like another list's order"),
    ],
)
def test_predictions_of_other_class_numbers_get_a_hint(tmp_path, wrong, hint):
    label = np.arange(6).repeat(6).reshape(6, 6)
    manifest = toy(tmp_path, raw=label, classes=6)
    (tmp_path / "theirs").mkdir()
    theirs = np.vectorize(wrong)(label).astype(np.uint8)
    Image.fromarray(theirs).save(tmp_path / "theirs/a.png")
    words = ["score", manifest, "--data", tmp_path, "--predictions", tmp_path / "theirs"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0 and f"hint: the predicted class numbers look {hint}" in " ".join(
        done.output.split()
    )


def test_poor_but_unmoved_predictions_get_no_hint():
    rng = np.random.default_rng(0)
    for _ in range(50):
        confusion = rng.integers(0, 100, (8, 8)) + np.diag(rng.integers(0, 60, 8))
        assert misplaced(confusion, list("abcdefgh")) is None
