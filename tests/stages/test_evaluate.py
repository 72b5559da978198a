import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from codeseg.model.checkpoint import save_checkpoint
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.stages.cli import app
from tests.helpers.toy_benchmark import TINY_CLIP, toy


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.json"
    path.write_text(json.dumps(TINY_CLIP))
    return path


@pytest.fixture
def data(tmp_path):
    """Five noise images of two sizes with random labels."""
    manifest = toy(tmp_path / "data")
    rng = np.random.default_rng(0)
    for i in range(5):
        shape = (20, 30) if i % 2 else (33, 25)
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data/images" / f"{'abcde'[i]}.png")
        label = rng.integers(0, 3, shape).astype(np.uint8)
        Image.fromarray(label).save(tmp_path / "data/labels" / f"{'abcde'[i]}.png")
    return manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory, clip_file):
    """A RUN with one (untrained) checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    code = CoDe(FrozenClip.load(str(clip_file), "random:1"), CoDeConfig())
    save_checkpoint(folder / "checkpoints" / "step-000007", code, {"steps": 7}, version="0")
    return folder


def evaluate(manifest, *arguments):
    words = ["--benchmark", manifest, "--data", manifest.parent, "--device", "cpu", *arguments]
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def label_bytes(out):
    return {path.name: path.read_bytes() for path in sorted((out / "labels").iterdir())}


def test_predicts_scores_and_records_its_settings(tmp_path, data, clip_file):
    done = evaluate(
        data, "--clip", clip_file, "--pretrained", "random:1", "--method", "naclip",
        "--out", tmp_path / "out", "--json", tmp_path / "s.json", "--set", "window=48",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["method"] == "naclip" and scores["images"] == 5 and scores["failed"] == {}
    assert scores["settings"]["window"] == 48 and scores["settings"]["stride"] == 16
    assert scores["settings"]["protocol"] == "naclip"
    assert scores == json.loads((tmp_path / "out/scores.json").read_text())
    assert json.loads((tmp_path / "out/settings.json").read_text()) == scores["settings"]
    assert f"{scores['miou']:.2f}" in done.output and '"window": 48' in done.output
    assert np.asarray(Image.open(tmp_path / "out/labels/a.png")).shape == (33, 25)


@pytest.mark.slow
def test_a_run_goes_on_image_by_image_to_the_same_bytes(tmp_path, data, run):
    out = tmp_path / "out"
    assert evaluate(data, run, "--out", out).exit_code == 0
    whole, kept = label_bytes(out), (out / "labels/a.png").stat().st_mtime_ns
    (out / "labels/b.png").unlink()
    (out / "labels/d.png").unlink()
    again = evaluate(data, run, "--out", out)
    assert again.exit_code == 0 and "3 of 5 images were already done" in again.output
    assert label_bytes(out) == whole
    assert (out / "labels/a.png").stat().st_mtime_ns == kept
    other = evaluate(
        data, run, "--out", out, "--set", "refinement=none", "--set", "knowledge_weight=0"
    )
    assert isinstance(other.exception, ValueError)
    message = str(other.exception)
    assert "knowledge_weight was 0.3, now 0.0" in message
    assert "refinement was 'pamr', now 'none'" in message


def test_a_protocol_is_recorded_and_two_give_different_label_maps(tmp_path, data, run):
    maps = {}
    for protocol in ("code", "sclip", "plain"):
        out = tmp_path / protocol
        assert evaluate(data, run, "--protocol", protocol, "--out", out).exit_code == 0
        settings = json.loads((out / "settings.json").read_text())
        assert settings["protocol"] == protocol and len(settings["protocol_sha256"]) == 64
        assert ("logit_scale" in settings) == (protocol != "code")
        maps[protocol] = label_bytes(out)
    assert maps["code"] != maps["sclip"]
    done = evaluate(data, run, "--protocol", "sclip", "--set", "background=constant")
    assert "score softmax does not go with background constant" in str(done.exception)


@pytest.mark.parametrize("protocol", ["code", "sclip"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.slow
def test_the_oracle_predicts_no_class_that_the_image_lacks(
    tmp_path, data, run, protocol, background
):
    if background:
        text = data.read_text().replace("background = false", "background = true")
        data.write_text(text.replace('"c0"', '"background"'))
    for path in (data.parent / "labels").iterdir():
        label = np.asarray(Image.open(path)) % 2 + (path.stem > "b")  # two of the three classes
        Image.fromarray(label.astype(np.uint8)).save(path)
    plain, out = tmp_path / "plain", tmp_path / "oracle"
    assert evaluate(data, run, "--protocol", protocol, "--out", plain).exit_code == 0
    done = evaluate(data, run, "--protocol", protocol, "--oracle", "--out", out)
    assert done.exit_code == 0, done.output
    for path in (out / "labels").iterdir():
        present = set(np.unique(np.asarray(Image.open(data.parent / "labels" / path.name))))
        assert set(np.unique(np.asarray(Image.open(path)))) <= present
    assert json.loads((out / "settings.json").read_text())["oracle"] is True
    again = evaluate(data, run, "--protocol", protocol, "--out", out)
    assert "oracle was True, now None" in str(again.exception)


def test_the_cost_of_predicting_lies_beside_the_scores_and_not_in_them(tmp_path, data, run):
    assert evaluate(data, run, "--out", tmp_path / "out").exit_code == 0
    cost = json.loads((tmp_path / "out/cost.json").read_text())
    assert cost["images"] == 5 and cost["device"] == "cpu"
    assert cost["milliseconds_an_image"] > 0 and cost["peak_memory_bytes"] > 1e7
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["protocol"] == "code"
    assert scores["miou_interval"]["low"] <= scores["miou"] <= scores["miou_interval"]["high"]


@pytest.mark.filterwarnings("ignore:the CLIP storybook was never trained on")
def test_background_words_are_chosen_from_the_lexicon_and_recorded(tmp_path, data):
    text = data.read_text().replace("background = false", "background = true")
    text = text.replace('"c0"', '"background"')
    data.write_text(text.replace("[layout]", 'lexicon = ["sky", "sea", "c1"]\n[layout]'))
    words = ("--protocol", "sclip", "--set", "background=vabs", "--out", tmp_path / "out")
    done = evaluate(data, "--clip", "storybook", *words)
    assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert set(settings["background_words"]) <= {"sky", "sea"}
    assert np.asarray(Image.open(tmp_path / "out/labels/a.png")).max() <= 2


def test_training_free_methods_run_on_a_runs_own_clip(tmp_path, data, run):
    done = evaluate(data, run, "--method", "maskclip", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["method"] == "maskclip" and "checkpoint" not in settings


def test_default_folder_lies_in_the_run(data, run):
    assert evaluate(data, run, "--limit", "2").exit_code == 0
    scores = json.loads((run / "evaluations/toy/code/scores.json").read_text())
    assert scores["images"] == 2 and scores["settings"]["checkpoint"] == "step-000007"


def test_settings_of_the_manifest_hold_unless_the_user_says_otherwise(tmp_path, data, run):
    table = "\n[evaluate]\nwindow = 40\nstride = 40\nshort_side = 40\n"
    table += '[evaluate.code]\nrefinement = "none"\n'
    data.write_text(data.read_text() + table)
    assert evaluate(data, run, "--out", tmp_path / "out", "--set", "stride=24").exit_code == 0
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert (settings["window"], settings["stride"], settings["refinement"]) == (40, 24, "none")


def test_bad_images_are_counted_and_the_rest_is_scored(tmp_path, data, run):
    folder = data.parent
    whole = (folder / "images/a.png").read_bytes()
    (folder / "images/a.png").write_bytes(whole[: len(whole) // 2])
    (folder / "labels/b.png").unlink()
    Image.new("L", (7, 7)).save(folder / "labels/c.png")
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(folder / "labels/d.png")
    done = evaluate(data, run, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "4 images failed" in done.output
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["images"] == 1
    reasons = scores["failed"]
    assert "a.png: cannot be read as an image" in reasons["a"]
    assert "b.png: no such label map" in reasons["b"]
    assert "the prediction is 25×33 but the label map is 7×7" in reasons["c"]
    assert "d.png: label 77 is outside" in reasons["d"]


def test_check_looks_and_predicts_nothing(tmp_path, data):
    done = evaluate(data, "--check")
    assert (
        done.exit_code == 1 and "1 × image count: 5 images here, 1 in the official" in done.output
    )
    data.write_text(data.read_text().replace("images = 1", "images = 5"))
    done = evaluate(data, "--check")
    assert done.exit_code == 0 and "nothing is missing" in done.output
    (data.parent / "labels/e.png").unlink()
    done = evaluate(data, "--check")
    assert done.exit_code == 1 and "e.png: no such label map" in done.output
    assert "DIR/labels/{id}.png" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "code"], "needs a trained model"),
        (["--set", "windo=3"], "unknown setting windo: did you mean window"),
        (["--set", "refinement=maybe"], "refinement 'maybe' is none of"),
        (["--method", "magic"], "method 'magic' is none of"),
        (["nowhere/run"], "nowhere/run is neither a checkpoint"),
    ],
)
def test_wrong_use_is_one_line(data, clip_file, arguments, message):
    done = evaluate(data, "--clip", clip_file, "--pretrained", "random", *arguments)
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception) and "\n" not in str(done.exception)


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one(tmp_path, data, run):
    assert evaluate(data, run, "--out", tmp_path / "one").exit_code == 0
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "codeseg", "evaluate", run, "--benchmark", data, "--data", data.parent,
        "--out", tmp_path / "two", "--device", "cpu",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert label_bytes(tmp_path / "one") == label_bytes(tmp_path / "two")
    one, two = (json.loads((tmp_path / n / "scores.json").read_text()) for n in ("one", "two"))
    assert one == two
