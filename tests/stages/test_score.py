import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.benchmark.predictions import PredictionFolder
from codeseg.stages.score import published_table, score_folder, write_scores
from tests.helpers.toy_benchmark import REALDATA, real, toy


def codeseg(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "codeseg", *map(str, arguments)], capture_output=True, text=True
    )


def predict(folder, label, name="a"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(label, np.uint8)).save(folder / f"{name}.png")


def test_score_command_writes_what_it_prints(tmp_path):
    manifest = toy(tmp_path, raw=[[0, 0, 1, 255]])
    predict(tmp_path / "theirs", [[0, 1, 1, 2]])
    done = codeseg(
        *("score", manifest, "--data", tmp_path, "--predictions", tmp_path / "theirs"),
        *("--json", tmp_path / "s.json", "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["miou"] == 50 and scores["per_class"] == {"c0": 50, "c1": 50, "c2": None}
    assert scores["pixel_accuracy"] == pytest.approx(200 / 3)
    assert "50.00" in done.stdout
    table = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert table["confusion"].to_pylist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert pq.read_table(tmp_path / "out" / "images.parquet")["id"].to_pylist() == ["a"]


@pytest.mark.slow
def test_two_results_are_compared_image_by_image_and_across_protocols_it_is_said(tmp_path):
    rng = np.random.default_rng(0)
    manifest = toy(tmp_path, raw=rng.integers(0, 3, (8, 8)))
    for name in "bcdefgh":
        label = rng.integers(0, 3, (8, 8))
        Image.new("RGB", (8, 8)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / f"labels/{name}.png")
    for path in (tmp_path / "labels").iterdir():
        label = np.asarray(Image.open(path))
        wrong = np.where(rng.random(label.shape) < 0.3, (label + 1) % 3, label)
        predict(tmp_path / "good/labels", label, path.stem)
        predict(tmp_path / "poor/labels", wrong, path.stem)
    for name, protocol in (("good", "code"), ("poor", "sclip")):
        (tmp_path / name / "settings.json").write_text(json.dumps({"protocol": protocol}))
    words = ("score", manifest, "--data", tmp_path, "--predictions")
    done = codeseg(
        *(*words, tmp_path / "good", "--against", tmp_path / "poor"),
        *("--details", "--json", tmp_path / "s.json"),
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    gain = scores["against"]["difference"]
    assert scores["miou"] == 100 and 0 < gain["low"] <= gain["value"] <= gain["high"]
    assert gain["value"] == pytest.approx(100 - scores["against"]["miou"])
    assert scores["against"]["p"] == 0 and "protocols differ: code and sclip" in done.stdout
    assert scores["boundary_miou"] == 100 and scores["objects"]["small"]["found"] == 100
    assert "95 % of 1000 draws" in done.stdout and "boundary mIoU" in done.stdout


def test_published_rows_of_the_same_protocol_come_first():
    benchmark = load_benchmark("voc")
    summary = {"miou": 50.0, "protocol": "naclip", "miou_interval": None}
    table = published_table(benchmark, "naclip", summary)
    protocols, styles = list(table.columns[2].cells), [row.style for row in table.rows]
    assert len(protocols) == len(benchmark.published) + 1
    border = styles.index("dim")
    assert set(protocols[:border]) == {"naclip"} and border >= 3
    assert "naclip" not in protocols[border:] and set(styles[border:]) == {"dim"}


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (None, "1 of 1 predictions are missing, the first is a.png"),
        ([[0, 0, 7, 0]], "a.png: prediction 7 is outside the 3 classes"),
        ([[0, 0, 0]], "a.png: the prediction is 3×1 but the label map is 4×1"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(tmp_path, predicted, message):
    manifest = toy(tmp_path, raw=[[0, 0, 1, 255]])
    (tmp_path / "theirs").mkdir()
    if predicted:
        predict(tmp_path / "theirs", predicted)
    done = codeseg("score", manifest, "--data", tmp_path, "--predictions", tmp_path / "theirs")
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_predictions_with_other_settings_are_refused_and_the_same_resume(tmp_path):
    folder = PredictionFolder(tmp_path / "out")
    folder.claim({"pamr": True, "window": 448})
    label = np.array([[0, 1]], np.uint8)
    folder.write("a", label, [(0, 0, 0), (9, 9, 9)])
    again = PredictionFolder(tmp_path / "out")
    again.claim({"pamr": True, "window": 448})
    assert again.pending(["a", "b"]) == ["b"]
    assert np.array_equal(np.asarray(Image.open(again.path("a"))), label)
    with pytest.raises(ValueError, match="other settings \\(window was 448, now 224\\)"):
        again.claim({"pamr": True, "window": 224})


@real
def test_real_voc_masks_score_as_torchmetrics_scores_them(tmp_path):
    import torch

    data = load_benchmark("voc").open(REALDATA)
    ids, rng = data.ids[:12], np.random.default_rng(0)
    for image_id in ids:  # the label itself, shifted and with noise: every kind of error
        guess = np.roll(data.label(image_id), 9, axis=1)
        guess = np.where(guess == 255, rng.integers(0, 21, guess.shape), guess)
        predict(tmp_path, guess, image_id)
    result = score_folder(data, tmp_path, ids)
    flat = [
        torch.cat([torch.from_numpy(x.astype(np.int64)).ravel() for x in maps])
        for maps in (
            [np.asarray(Image.open(tmp_path / f"{i}.png")) for i in ids],
            [data.label(i) for i in ids],
        )
    ]
    theirs = multiclass_confusion_matrix(*flat, num_classes=21, ignore_index=255).double()
    assert np.array_equal(result.scores.confusion, theirs.numpy())
    union = theirs.sum(0) + theirs.sum(1) - theirs.diagonal()
    expected = (theirs.diagonal() / union)[union > 0].mean().item()
    assert abs(result.scores.miou - expected) < 1e-9
    write_scores(tmp_path / "out", result, result.summary())
    assert pq.read_table(tmp_path / "out" / "images.parquet").num_rows == 12
