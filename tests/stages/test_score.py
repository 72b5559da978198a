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
from codeseg.stages.score import score_folder, write_scores
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
