"""Label maps, splits and pictures as people have them: read right, or refused in one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from codeseg.pipeline.benchmark.check import check_data
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.benchmark.predictions import PredictionFolder, read_prediction
from codeseg.stages.cli import app
from tests.helpers.toy_benchmark import toy

SQUARES = np.arange(4, dtype=np.uint8).repeat(8).reshape(4, 8)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_lossy_picture_under_the_name_png_is_no_label_map(tmp_path, kind):
    data = load_benchmark(toy(tmp_path, raw=SQUARES, classes=4)).open(tmp_path)
    Image.fromarray(SQUARES).save(tmp_path / "labels/a.png", kind)
    with pytest.raises(ValueError, match=f"a {kind} file holds no exact label values"):
        data.label("a")
    with pytest.raises(ValueError, match="save label maps as PNG"):
        read_prediction(tmp_path / "labels/a.png")
    assert "wrong label map" in check_data(data.benchmark, tmp_path).problems


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_label_maps_of_few_bits_hold_the_values_that_were_stored(tmp_path, bits, mode):
    """Pillow makes booleans of 1 bit and stretches 2 and 4 gray bits to 0..255."""
    stored = SQUARES % 2**bits
    data = load_benchmark(toy(tmp_path, raw=SQUARES, classes=4)).open(tmp_path)
    path = tmp_path / "labels/a.png"
    if mode == "P":
        image = Image.fromarray(stored).convert("P")
        image.putpalette(list(range(12)))
        image.save(path, bits=bits)
    else:
        path.write_bytes(grey_png(stored, bits))
    assert data.label("a").tolist() == stored.tolist()
    assert read_prediction(path).tolist() == stored.tolist()


def grey_png(values, bits):
    """A gray PNG of few bits, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape
    planes = np.unpackbits(values[..., None], axis=2)[:, :, -bits:].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_more_than_254_classes_take_16_bits_from_label_to_score(tmp_path):
    raw = np.array([[0, 300, 399, 65535]])
    manifest = toy(tmp_path, classes=400)
    Image.fromarray(raw.astype(np.uint16)).save(tmp_path / "labels/a.png")
    Image.new("RGB", (4, 1)).save(tmp_path / "images/a.png")
    benchmark = load_benchmark(manifest)
    assert benchmark.open(tmp_path).label("a").tolist() == raw.tolist()
    folder = PredictionFolder(tmp_path / "out")
    folder.claim({})
    folder.write("a", np.array([[0, 300, 1, 7]], np.uint16), benchmark.palette)
    words = ["score", manifest, "--data", tmp_path, "--predictions", tmp_path / "out"]
    done = CliRunner().invoke(app, [*map(str, words), "--json", str(tmp_path / "s.json")])
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "s.json").read_text())
    occurring = {k: v for k, v in scores["per_class"].items() if v is not None}
    assert occurring == {"c0": 100, "c1": 0, "c300": 100, "c399": 0}


def split_benchmark(folder, content):
    path = toy(folder, raw=SQUARES, classes=4)
    path.write_text(path.read_text().replace("[labels]", 'split = "val.txt"\n[labels]'))
    (folder / "val.txt").write_bytes(content)
    return load_benchmark(path).open(folder)


def test_a_split_saved_on_windows_reads_as_it_should(tmp_path):
    assert split_benchmark(tmp_path, b"\xef\xbb\xbfa\r\n").ids == ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"/images/a.png /labels/a.png\n", "lists an image and more; toy needs one image id"),
        (b"a 1\nb -1\n", "lists an image and more"),
        (b"/images/a.png\n", "lists a path"),
        (b"../../a\n", "lists a path"),
        (b"a\nb\na\n", "a is listed twice"),
        ("a\n".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_a_split_of_another_form_is_named_as_such(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        _ = split_benchmark(tmp_path, content).ids


def turned_picture(folder, label_size, orientation, **layout):
    """An 8×4 picture whose tag turns it, with a label map of some size."""
    path = toy(folder, raw=np.zeros(label_size[::-1]), size=(8, 4))
    if layout:
        line = f'exif = "{layout["exif"]}"'
        path.write_text(path.read_text().replace("[labels]", f"{line}\n[labels]"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3)).save(
        folder / "images/a.png", exif=exif
    )
    return load_benchmark(path).open(folder)


@pytest.mark.parametrize(
    ("label_size", "orientation", "layout", "shape"),
    [
        ((8, 4), 6, {}, (4, 8)),  # labeled as stored
        ((4, 8), 6, {}, (8, 4)),  # labeled upright
        ((8, 4), 3, {"exif": "stored"}, (4, 8)),
        ((8, 4), 3, {"exif": "upright"}, (4, 8)),
    ],
)
def test_a_turned_picture_is_read_as_its_label_map_was_drawn(
    tmp_path, label_size, orientation, layout, shape
):
    data = turned_picture(tmp_path, label_size, orientation, **layout)
    pixels = data.image("a")
    assert pixels.shape[:2] == shape
    stored = pixels[0, 0].tolist() == [0, 1, 2]
    assert stored == (label_size == (8, 4) and layout.get("exif") != "upright")
    check = check_data(data.benchmark, tmp_path)
    assert not check.problems
    reading = "stored" if stored else "upright"
    assert f"1 images with an EXIF rotation, read {reading}" in check.facts


@pytest.mark.parametrize(
    ("label_size", "orientation", "message"),
    [((8, 4), 3, "both readings fit"), ((5, 5), 6, "no reading fits")],
)
def test_a_turned_picture_that_its_label_map_does_not_settle_is_refused(
    tmp_path, label_size, orientation, message
):
    data = turned_picture(tmp_path, label_size, orientation)
    with pytest.raises(ValueError, match=f'{message} its label map: write exif = "stored"'):
        data.image("a")
    assert "turned image" in check_data(data.benchmark, tmp_path).problems


def test_the_dataset_folder_itself_is_understood(tmp_path):
    root = tmp_path / "VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("x\n")
    (root / "SegmentationClass").mkdir()
    Image.new("L", (1, 1)).save(root / "SegmentationClass/x.png")
    voc = load_benchmark("voc")
    assert voc.open(root).root == voc.open(tmp_path).root == tmp_path
    assert voc.open(root).label("x").tolist() == [[0]]


def test_check_of_a_right_part_says_so_and_exits_0(tmp_path):
    path = toy(tmp_path)
    path.write_text(path.read_text().replace("images = 1\n", "images = 9\n"))
    words = ["evaluate", "--benchmark", str(path), "--data", str(tmp_path), "--check"]
    done = CliRunner().invoke(app, [*words, "--limit", "1"])
    assert done.exit_code == 0 and "a subset: 1 images here, 9 in the official split" in done.output
    whole = CliRunner().invoke(app, words)
    assert whole.exit_code == 1 and "expected layout" not in whole.output


def test_a_terminal_of_ascii_gets_the_files_and_a_table(tmp_path):
    manifest = toy(tmp_path, raw=[[0, 0, 1, 255]])
    (tmp_path / "theirs").mkdir()
    Image.fromarray(np.array([[0, 0, 1, 1]], np.uint8)).save(tmp_path / "theirs/a.png")
    words = ["score", manifest, "--data", tmp_path, "--predictions", tmp_path / "theirs"]
    command = [sys.executable, "-m", "codeseg", *words, "--json", tmp_path / "s.json"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "100.00" in done.stdout and json.loads((tmp_path / "s.json").read_text())["miou"] == 100
