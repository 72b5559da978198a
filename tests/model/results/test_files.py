"""What is written is read back by the readers of other programs."""

import json

import cv2
import numpy as np
import pytest
import supervision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools.coco import COCO

from codeseg.model.results.files import ResultFolder, polygons
from codeseg.model.results.segmentation import Segmentation

THINGS = ["dog", "red car", "sofa"]


@pytest.fixture
def result():
    """40×60: a dog with a hole, two pieces of red car, no sofa."""
    label = np.zeros((40, 60), np.uint8)
    label[5:25, 4:30] = 1
    label[10:15, 10:20] = 0
    label[30:38, 2:12] = label[20, 50] = label[28:30, 40:59] = 2
    rng = np.random.default_rng(0)
    masks = rng.random((3, 40, 60), dtype=np.float32)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Segmentation.of(pixels, label, masks, ("background", *THINGS))


def test_a_result_says_what_it_found(result):
    dog, car, sofa = result.segments
    assert (dog.text, dog.box, car.box) == ("dog", (4, 5, 30, 25), (2, 20, 59, 38))
    assert dog.area == (result.label_map == 1).mean() and dog.score == dog.mask.max()
    assert (sofa.area, sofa.box) == (0, None)
    assert result["red car"] is car
    assert repr(result) == f"<Segmentation 60×40: {dog!r}, {car!r}>"
    assert repr(dog) == f"dog 20% (score {dog.score:.2f})"
    with pytest.raises(KeyError, match="'cat' is none of dog, red car, sofa"):
        result["cat"]
    painted = np.asarray(result.overlay(opacity=0.0))[:40, :60]
    inner = np.zeros((40, 60), bool)
    inner[6:9, 5:28] = True
    assert np.array_equal(painted[inner], result.pixels[inner])


def test_pictures_hold_the_labels_and_the_soft_masks(tmp_path, result):
    result.save(tmp_path)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "label.png")), result.label_map)
    (row,) = json.loads((tmp_path / "segments.json").read_text())["images"]
    for segment, part in zip(result.segments, row["segments"], strict=True):
        stored = np.asarray(Image.open(tmp_path / part["mask"]))
        assert np.abs(stored / 255 - segment.mask).max() <= 0.5 / 255 + 1e-6
        assert part["box"] == (list(segment.box) if segment.box else None)
    assert [part["text"] for part in row["segments"]] == THINGS


@pytest.fixture
def dataset(tmp_path, result):
    """Two pictures with their results in coco and yolo, as `codeseg segment` writes them."""
    other = Segmentation.of(
        result.pixels[::-1], result.label_map[::-1], np.ones((3, 40, 60), np.float32), result.names
    )
    (tmp_path / "photos").mkdir()
    with ResultFolder(tmp_path, THINGS, ["coco", "yolo"], ["a", "b"]) as folder:
        for name, each in (("a", result), ("b", other)):
            Image.fromarray(each.pixels).save(tmp_path / "photos" / f"{name}.png")
            folder.add(name, f"{name}.png", each)
    return {"a": result.label_map, "b": other.label_map}


def test_coco_masks_and_boxes_are_read_by_pycocotools(tmp_path, dataset, result):
    coco = COCO(tmp_path / "coco.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == THINGS
    for image in coco.loadImgs(coco.getImgIds()):
        label = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation)
            assert annotation["area"] == mask.sum()
            x, y, w, h = annotation["bbox"]
            assert mask[int(y) : int(y + h), int(x) : int(x + w)].sum() == mask.sum()
            label[mask > 0] = annotation["category_id"]
        assert np.array_equal(label, dataset[image["file_name"][0]])
    assert coco.anns[1]["score"] == result["dog"].score


def read_back(found, dataset):
    """Label maps of a supervision dataset, beside those that were written."""
    for path, _, detections in found:
        expected = dataset[path.rsplit("/", 1)[1][0]]
        label = np.zeros(expected.shape, np.uint8)
        for mask, kind in zip(detections.mask, detections.class_id, strict=True):
            label[np.asarray(mask, bool)] = kind + 1
        yield expected, label


def test_supervision_reads_coco(tmp_path, dataset):
    found = supervision.DetectionDataset.from_coco(
        str(tmp_path / "photos"), str(tmp_path / "coco.json"), force_masks=True
    )
    assert found.classes == THINGS and len(found) == 2
    for expected, label in read_back(found, dataset):
        assert np.array_equal(label, expected)


def test_supervision_reads_yolo(tmp_path, dataset):
    found = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "photos"),
        str(tmp_path / "labels"),
        str(tmp_path / "data.yaml"),
        force_masks=True,
    )
    assert found.classes == THINGS and len(found) == 2
    for expected, label in read_back(found, dataset):
        assert np.array_equal(label, expected)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_polygons_fill_to_the_region_they_outline(region):
    filled = np.zeros(region.shape, np.uint8)
    for points in polygons(region):
        assert len(points) >= 3
        piece = np.zeros(region.shape, np.uint8)
        cv2.fillPoly(piece, [points], 1)
        filled |= piece
    assert (filled[region] == 1).all()  # nothing is lost
    assert (filled[~region]).sum() <= 0.2 * region.size  # a cut to a hole may cross another


def test_nothing_of_an_earlier_run_is_overwritten_unasked(tmp_path, result):
    result.save(tmp_path, ["png", "yolo", "coco"])
    (tmp_path / "mine.txt").write_text("stays")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="is from an earlier run: use another --out, or --overwr"):
        result.save(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result.save(tmp_path, overwrite=True)
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    masks = ["mask-001-dog.png", "mask-002-red-car.png", "mask-003-sofa.png"]
    assert names == ["label.png", *masks, "mine.txt", "overlay.png", "segments.json"]
    with pytest.raises(ValueError, match="format 'gif' is none of png, coco, yolo"):
        result.save(tmp_path / "new", ["gif"])
    assert not (tmp_path / "new").exists()
