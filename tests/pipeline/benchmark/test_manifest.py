import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeseg.pipeline.benchmark.check import check_data
from codeseg.pipeline.benchmark.manifest import benchmark_names, load_benchmark
from tests.helpers.toy_benchmark import REALDATA, real, toy


@pytest.mark.parametrize("name", benchmark_names())
def test_every_manifest_loads(name):
    benchmark = load_benchmark(name)
    assert benchmark.name == name
    if not benchmark.names_file:
        assert benchmark.background == (benchmark.classes[0] == "background")
        assert len(benchmark.forms[0].table(len(benchmark.classes))) == 256


def test_class_and_image_counts_are_the_official_ones():
    expected = {
        "voc": (21, 1449),
        "voc20": (20, 1449),
        "context": (60, 5104),
        "context59": (59, 5104),
        "coco_object": (81, 5000),
        "coco_stuff": (171, 5000),
        "cityscapes": (19, 500),
        "ade20k": (150, 2000),
    }
    for name, (classes, images) in expected.items():
        benchmark = load_benchmark(name)
        assert (len(benchmark.classes), benchmark.images) == (classes, images), name


@pytest.mark.parametrize("name", ["coco_object", "coco_stuff", "cityscapes"])
def test_maps_reach_every_class_once(name):
    benchmark = load_benchmark(name)
    reached = sorted(benchmark.forms[0].mapping.values())
    first = 1 if benchmark.background else 0
    assert reached == list(range(first, len(benchmark.classes)))


@pytest.mark.parametrize(
    ("labels", "raw", "expected"),
    [
        ('rule = "identity"', [[0, 2, 255]], [[0, 2, 255]]),
        ('rule = "zero_is_ignored"', [[0, 3, 255]], [[255, 2, 255]]),
        ('rule = "map"\nmap = { 7 = 0, 9 = 2 }', [[7, 8, 9, 255]], [[0, 255, 2, 255]]),
        ('rule = "identity"\nignore = 200', [[1, 200]], [[1, 255]]),
    ],
)
def test_label_rules(tmp_path, labels, raw, expected):
    benchmark = load_benchmark(toy(tmp_path, raw=raw, labels=labels))
    assert benchmark.open(tmp_path).label("a").tolist() == expected


@pytest.mark.parametrize(
    ("labels", "raw"),
    [
        ('rule = "identity"', [[3]]),
        ('rule = "zero_is_ignored"', [[4]]),
        ('rule = "map"\nraw_max = 9\nmap = { 7 = 0 }', [[10]]),
    ],
)
def test_a_label_outside_the_class_list_is_refused_by_name(tmp_path, labels, raw):
    data = load_benchmark(toy(tmp_path, raw=raw, labels=labels)).open(tmp_path)
    with pytest.raises(ValueError, match=rf"a\.png: label {raw[0][0]} is outside"):
        data.label("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 0}, "class list is empty"),
        ({"classes": 1, "background": "true"}, "class list is empty"),
        ({"labels": 'rule = "guess"'}, "unknown label rule 'guess'"),
        ({"labels": 'rule = "map"\nmap = { 0 = 0, 255 = 1 }'}, "scores and ignores the value 255"),
        ({"labels": 'rule = "identity"\nignore = 0'}, "scores and ignores the value 0"),
        ({"labels": 'rule = "map"\nmap = { -1 = 0 }'}, r"names the value -1, outside 0\.\.255"),
        ({"labels": 'rule = "map"\nmap = { 300 = 0 }'}, "names the value 300"),
        ({"labels": 'rule = "map"\nraw_max = 3\nmap = { 9 = 0 }'}, "beyond raw_max = 3"),
        ({"labels": 'rule = "map"\nmap = { 1 = 3 }'}, "outside the class list"),
    ],
)
def test_wrong_manifests_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(toy(tmp_path, **change))


def test_unknown_benchmark_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown benchmark 'vox'.*voc20"):
        load_benchmark("vox")


def test_missing_folder_and_split_say_how_the_folder_should_look(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data folder"):
        load_benchmark("voc").open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"Segmentation/val\.txt is missing; expected"):
        load_benchmark("voc").open(tmp_path)
    (tmp_path / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "VOC2012/ImageSets/Segmentation/val.txt").write_text("\n")
    (tmp_path / "VOC2012/SegmentationClass").mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "VOC2012/SegmentationClass/x.png")
    with pytest.raises(ValueError, match="the split lists no image"):
        _ = load_benchmark("voc").open(tmp_path).ids


def test_check_names_each_kind_of_problem(tmp_path):
    path = toy(tmp_path, raw=np.zeros((4, 5)))
    for name in ("size", "value", "lonely", "torn"):
        Image.new("RGB", (5, 4)).save(tmp_path / "images" / f"{name}.png")
    Image.new("L", (4, 4)).save(tmp_path / "labels" / "size.png")
    Image.new("L", (5, 4), 9).save(tmp_path / "labels" / "value.png")
    whole = (tmp_path / "labels" / "a.png").read_bytes()
    (tmp_path / "labels" / "torn.png").write_bytes(whole[:-20])
    check = check_data(load_benchmark(path), tmp_path)
    assert check.images == 1
    assert set(check.problems) == {
        "size mismatch",
        "wrong label map",
        "missing label map",
        "image count",
    }
    text = "\n".join(check.lines())
    assert "size: image 5×4, label map 4×4" in text
    assert "value.png: label 9 is outside" in text and "torn.png" in text and "lonely.png" in text


def test_check_of_a_right_folder_has_no_problem(tmp_path):
    check = check_data(load_benchmark(toy(tmp_path)), tmp_path)
    assert not check.problems and check.images == 1


def test_coco_later_instances_overwrite_earlier_and_crowds_are_drawn(tmp_path):
    pytest.importorskip("pycocotools")
    square = {"image_id": 1, "iscrowd": 0}
    annotations = [
        {**square, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]},
        {**square, "category_id": 90, "segmentation": [[2, 0, 6, 0, 6, 4, 2, 4]]},
        {
            "image_id": 1,
            "iscrowd": 1,
            "category_id": 2,
            "segmentation": {"size": [6, 8], "counts": [42, 6]},  # the last column
        },
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "x.jpg", "height": 6, "width": 8}],
                "annotations": annotations,
            }
        )
    )
    (tmp_path / "images/val2017").mkdir(parents=True)
    data = load_benchmark("coco_object").open(tmp_path)
    assert data.ids == ("x",)
    label = data.label("x")
    assert label[1].tolist() == [1, 1, 80, 80, 80, 80, 0, 2]
    assert label[5].tolist() == [0] * 7 + [2]


def test_cityscapes_is_found_in_city_folders_in_either_label_form(tmp_path):
    images, labels = tmp_path / "leftImg8bit/val/ulm", tmp_path / "gtFine/val/ulm"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(images / "ulm_0_0_leftImg8bit.png")
    trained = labels / "ulm_0_0_gtFine_labelTrainIds.png"
    Image.fromarray(np.array([[0, 18, 255]], np.uint8)).save(trained)
    benchmark = load_benchmark("cityscapes")
    assert benchmark.open(tmp_path).label("ulm_0_0").tolist() == [[0, 18, 255]]
    raw = labels / "ulm_0_0_gtFine_labelIds.png"
    Image.fromarray(np.array([[7, 33, 4]], np.uint8)).save(raw)
    data = benchmark.open(tmp_path)
    assert data.ids == ("ulm_0_0",) and data.label_path("ulm_0_0") == raw
    assert data.label("ulm_0_0").tolist() == [[0, 18, 255]]


@real
def test_real_samples_read_as_they_come():
    voc = load_benchmark("voc").open(REALDATA)
    voc20 = load_benchmark("voc20").open(REALDATA)
    for image_id in voc.ids[:10]:
        label, things = voc.label(image_id), voc20.label(image_id)
        assert set(np.unique(label)) <= {*range(21), 255}
        scored = (label > 0) & (label < 255)
        assert np.array_equal(things[scored], label[scored] - 1) and (things[~scored] == 255).all()
    for name, folder in (("ade20k", ""), ("coco_stuff", "coco_stuff")):
        check = check_data(load_benchmark(name), REALDATA / folder)
        assert set(check.problems) == {"image count"}, check.lines()


@real
def test_real_coco_instances_give_the_areas_the_annotations_state():
    pytest.importorskip("pycocotools")
    data = load_benchmark("coco_object").open(REALDATA / "coco")
    content = json.loads((REALDATA / "coco/annotations/instances_val2017.json").read_text())
    by_image: dict[int, list] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    single = [(stems[i], a[0]) for i, a in by_image.items() if len(a) == 1 and not a[0]["iscrowd"]]
    assert single
    for image_id, annotation in single:
        drawn = int((data.label(image_id) > 0).sum())
        assert abs(drawn - annotation["area"]) <= 0.02 * annotation["area"] + 20
