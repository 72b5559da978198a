"""An alignment by the ordinary trainer: resume, ranks, checkpoints, and what is refused."""

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import timm
import torch
from typer.testing import CliRunner

from bench.make_features import make_vectors
from codeseg.model.align.alignment import Align
from codeseg.model.align.backbone import Backbone
from codeseg.model.checkpoint import checkpoints, load_model, read_json
from codeseg.model.inference.segmenter import Segmenter
from codeseg.pipeline.stream.feature_settings import BackboneFacts
from codeseg.stages.cli import app
from codeseg.stages.training.loop import fit
from codeseg.stages.training.recipes import resolve
from codeseg.stages.training.runlog import read_metrics
from tests.helpers.feature_stage import VIT, save_vit
from tests.helpers.tiny_run import assignments, make_root
from tests.helpers.toy_benchmark import toy


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit") / "vit.pt")


def facts_of(vit_file, pool):
    vit = Backbone(VIT, vit_file)
    vectors = 16 if pool == "regions" else 2
    return BackboneFacts(VIT, vit_file, vit.weights_sha256, 16, vit.width, 4, pool, vectors)


@pytest.fixture(scope="module")
def root(tmp_path_factory, vit_file):
    root = make_root(tmp_path_factory.mktemp("data"), shards=2, rows=12)
    for pool in ("heads", "regions"):
        make_vectors(root, facts_of(vit_file, pool))
    return root


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe_of(root, name="align_dinov2b", *more):
    return resolve(name, None, assignments(root, f"model.backbone={VIT}", *more))


RECIPES = ["storybook_align", "storybook_align_nouns", "storybook_align_regions"]


@pytest.mark.parametrize("name", RECIPES)
def test_run_resumes_exactly_loads_no_vit_and_comes_back_with_it(
    root, tmp_path, vit_file, name, monkeypatch
):
    recipe, run = recipe_of(root, name), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "__init__", None)  # would fail
        assert fit(root, run, recipe)
        whole = (checkpoints(run)[-1] / "model.safetensors").read_bytes()
        losses = read_metrics(run)["loss"].to_pylist()
        shutil.rmtree(checkpoints(run)[-1])  # as if killed before they were written
        shutil.rmtree(checkpoints(run)[-1])
        assert fit(root, run, recipe)
    last = checkpoints(run)[-1]
    assert (last / "model.safetensors").read_bytes() == whole
    assert read_metrics(run)["loss"].to_pylist() == losses
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert ("loss_noun" in read_metrics(run).column_names) == (name != "storybook_align")
    config = read_json(last / "config.json")
    pool = recipe.model.pool
    assert config["backbone"] == asdict(facts_of(vit_file, pool))
    assert f"self-supervised ViT\n`{VIT}`" in (last / "README.md").read_text()
    model = load_model(run)
    assert isinstance(model, Align) and model.config == recipe.model
    assert model.backbone.weights_sha256 == config["backbone"]["weights_sha256"]
    names = {f"projection.{part}.{kind}" for part in ("first", "second")
             for kind in ("weight", "bias")}  # fmt: skip
    assert model.trainable_state_dict().keys() == names


def test_a_run_segments_is_evaluated_and_reported_as_an_alignment(root, tmp_path, vit_file):
    run, manifest = tmp_path / "run", toy(tmp_path / "data", raw=np.arange(30).reshape(5, 6) % 3)
    assert fit(root, run, recipe_of(root, "storybook_align_nouns", "train.steps=2"))
    picture, out = manifest.parent / "images/a.png", tmp_path / "out"
    for method in ("align", "align+scg"):
        words = ["evaluate", run, "--benchmark", manifest, "--data", manifest.parent,
                 "--device", "cpu", "--method", method, "--out", out / method]  # fmt: skip
        done = CliRunner().invoke(app, [*map(str, words)])
        assert done.exit_code == 0, done.output
        assert read_json(out / method / "scores.json")["method"] == method
        settings = read_json(out / method / "settings.json")
        assert settings["align_scale"] == 10
        assert settings["backbone_sha256"] == facts_of(vit_file, "heads").weights_sha256
    words = ["segment", picture, "--run", run, "--text", "dog, cat", "--out", out / "segments",
             "--weights", vit_file]  # fmt: skip
    done = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert read_json(out / "segments" / "segments.json")["method"] == "align"  # the run's own
    shutil.copytree(root / "ledger", out / "root" / "ledger")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(out / "report.html")])
    assert done.exit_code == 0, done.output
    page = (out / "report.html").read_text()
    for part in ("Aligned words", "Aligned words + SCG", "caption", f"features-{VIT}-regions"):
        assert part in page, part


def test_the_loss_falls(root, tmp_path):
    more = ("train.steps=60", "train.base_lr=5e-4", "train.batch_size=24")
    assert fit(root, tmp_path / "run", recipe_of(root, "storybook_align_nouns", *more))
    metrics = read_metrics(tmp_path / "run")
    for term in ("loss_caption", "loss_noun"):
        first, *_, last = metrics[term].to_pylist()
        assert last < 0.8 * first, term


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(root, tmp_path):
    name, run, alone = "storybook_align_nouns", tmp_path / "run", tmp_path / "alone"
    assert fit(root, alone, recipe_of(root, name))
    sets = [p for v in assignments(root, f"model.backbone={VIT}") for p in ("--set", v)]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "codeseg", "train", str(root), str(run), "--recipe", name, *sets,
        ],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for term in ("loss_caption", "loss_noun", "grad_norm"):
        mine, one = (read_metrics(folder)[term].to_pylist() for folder in (run, alone))
        assert mine == pytest.approx(one, rel=1e-5), term


def test_a_run_begins_with_another_ones_weights_but_not_with_another_vits(root, tmp_path, vit_file):
    first = tmp_path / "first"
    assert fit(root, first, recipe_of(root))
    still = recipe_of(root, "align_dinov2b", "train.steps=1", "train.base_lr=1e-12",
                      "train.base_final_lr=0")  # fmt: skip
    assert fit(root, tmp_path / "second", still, first)
    one, two = (load_model(run).projection.first.weight for run in (first, tmp_path / "second"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    config = checkpoints(first)[-1] / "config.json"
    own = facts_of(vit_file, "heads").weights_sha256
    config.write_text(config.read_text().replace(own, "0" * 64))
    message = r"was trained with ViT test_vit \(sha256 000000000000…\), but this is ViT"
    with pytest.raises(ValueError, match=message):
        fit(root, tmp_path / "third", still, first)
    with pytest.raises(ValueError, match=message):
        load_model(first)


def test_a_weight_file_that_has_moved_is_refused_until_its_new_location_is_given(
    root, tmp_path, vit_file
):
    run = tmp_path / "run"
    assert fit(root, run, recipe_of(root, "storybook_align", "train.steps=1"))
    config = checkpoints(run)[-1] / "config.json"
    config.write_text(config.read_text().replace(vit_file, "/gone/vit.pt"))
    for load in (load_model, Segmenter.open):
        with pytest.raises(
            ValueError, match=r"weights in /gone/vit.pt, which does not exist: give"
        ):
            load(run)
        assert load(run, weights=vit_file) is not None
    torch.save(timm.create_model(VIT, num_classes=0).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"was trained with ViT test_vit .* but this is ViT"):
        load_model(run, weights=str(tmp_path / "other.pt"))


def test_features_whose_weight_file_has_moved_are_the_same_data(root, tmp_path, vit_file):
    run, recipe = tmp_path / "run", recipe_of(root, "align_dinov2b", "train.steps=1")
    root = shutil.copytree(root, tmp_path / "copy")
    assert fit(root, run, recipe)
    settings = root / f"ledger/features-{VIT}/settings.json"
    settings.write_text(settings.read_text().replace(vit_file, "/elsewhere/vit.pt"))
    assert fit(root, run, recipe)


def test_a_table_of_another_vit_is_refused_in_one_line(root, tmp_path):
    other = resolve("align_dinov2b", None, assignments(root))
    with pytest.raises(FileNotFoundError) as refused:
        fit(root, tmp_path / "run", other)
    name = other.model.backbone
    line = str(refused.value)
    assert f"holds no features-{name}; run `codeseg features --backbone {name}" in line
    assert f"(there are: features, features-{VIT}, features-{VIT}-regions)" in line
    assert "\n" not in line and not (tmp_path / "run").exists()


def test_features_of_another_clip_are_refused_with_the_command_that_makes_the_table(root, tmp_path):
    recipe = recipe_of(root, "align_dinov2b", "clip.model=ViT-B-16")
    command = f"run `codeseg features --backbone {VIT} {root} --clip ViT-B-16 --pretrained"
    with pytest.raises(ValueError, match=re.escape(command)):
        fit(root, tmp_path / "run", recipe)


def test_other_weights_of_the_same_vit_are_other_data(root, tmp_path, vit_file):
    run, recipe = tmp_path / "run", recipe_of(root)
    root = shutil.copytree(root, tmp_path / "copy")
    assert fit(root, run, recipe)
    changed = asdict(facts_of(vit_file, "heads")) | {"weights_sha256": "1" * 64}
    make_vectors(root, BackboneFacts(**changed))
    with pytest.raises(ValueError, match=r"data\.features\.backbone\.weights_sha256: .* -> 1111"):
        fit(root, run, recipe)


@pytest.mark.slow
def test_compiled_training_reads_nothing_that_an_alignment_lacks(root, tmp_path):
    more = ("train.steps=2", "train.compile=true")
    assert fit(root, tmp_path / "run", recipe_of(root, "storybook_align_nouns", *more))


def test_a_selection_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="chooses rows of features, not of features-test_vit"):
        fit(root, tmp_path / "run", recipe_of(root, "align_dinov2b", "train.selection=mine"))
