"""`codeseg export`: the file alone gives the segmenter's masks, or there is no file."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from codeseg.model import export_check
from codeseg.model.align.alignment import Align
from codeseg.model.align.backbone import Backbone
from codeseg.model.align.config import AlignConfig
from codeseg.model.checkpoint import save_checkpoint
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.inference.segmenter import Segmenter
from codeseg.stages.cli import app
from tests.helpers.small_code import TINY, small_code

TEXTS = ("red car", "dog")
EMBEDDED = ("--clip", "storybook", "--pretrained", "storybook")  # deep enough for scclip
WORDS = [part for text in TEXTS for part in ("--text", text)]
DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "export.md"
pytestmark = pytest.mark.slow


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    code = small_code(FrozenClip.load(TINY, "random:1"))
    save_checkpoint(folder / "checkpoints" / "step-000001", code, {}, version="0")
    return folder


@pytest.fixture(scope="module")
def exported(run):
    out = run / "out" / "segmenter.onnx"
    done = export(run, "--out", out, *WORDS)
    assert done.exit_code == 0, done.output
    assert "eager" in done.output and "onnxruntime" in done.output
    return out


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_graph_the_embeddings_and_what_runs_them_lie_side_by_side(exported):
    assert files(exported.parent) == ["segmenter.json", "segmenter.npz", "segmenter.onnx"]
    about = json.loads(exported.with_suffix(".json").read_text())
    assert about["texts"] == list(TEXTS) and about["patch_size"] == 16
    assert about["inputs"] == ["image", "classes", "templates"]
    assert about["settings"]["refinement"] == "none"
    assert 0 <= about["agreement"]["largest_difference"] <= 1e-4
    assert about["agreement"]["milliseconds"].keys() == {"eager", "onnxruntime"}


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (5, 3)])
def test_onnx_and_npz_give_the_masks_of_the_segmenter(run, exported, grid):
    segmenter = Segmenter.open(run, {"refinement": "none"})
    image = torch.randn(1, 3, *(16 * side for side in grid))
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    embeddings = dict(np.load(exported.with_suffix(".npz")))
    _, masks = session.run(None, {"image": image.numpy(), **embeddings})
    expected = segmenter.window_masks(image, segmenter.embed_texts(TEXTS))
    assert masks.shape == expected.shape
    assert np.abs(masks - expected.numpy()).max() < 1e-4


def test_the_documented_program_needs_no_codeseg_and_labels_as_codeseg_does(
    run, exported, tmp_path
):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for path in exported.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    colours = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((128, 128)).save(tmp_path / "photo.jpg")
    check = "\nimport sys\nassert not {'torch', 'model', 'stages', 'pipeline'} & set(sys.modules)\n"
    command = [sys.executable, "-I", "-c", code + check]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    segmenter = Segmenter.open(run, {"refinement": "none"})
    ours = segmenter.segment(tmp_path / "photo.jpg", TEXTS, background=True).label_map
    theirs = np.asarray(Image.open(tmp_path / "label.png"))
    assert (ours == theirs).mean() > 0.999
    assert len(np.unique(ours)) > 1


def test_a_clip_alone_is_exported_for_torch_too(tmp_path):
    out = tmp_path / "naclip.pt2"
    arguments = ("--method", "naclip", "--clip", TINY, "--pretrained", "random")
    done = export("--out", out, *arguments, *WORDS)
    assert done.exit_code == 0, done.output
    assert json.loads(out.with_suffix(".json").read_text())["inputs"] == ["image", "classes"]
    segmenter = Segmenter.open(None, {"method": "naclip"}, clip=TINY, pretrained="random")
    image = torch.randn(1, 3, 48, 80)
    classes = torch.from_numpy(np.load(out.with_suffix(".npz"))["classes"])
    _, masks = torch.export.load(out).module()(image, classes)
    expected = segmenter.window_masks(image, segmenter.embed_texts(TEXTS))
    torch.testing.assert_close(masks, expected)


@pytest.mark.parametrize(("suffix", "share"), [("onnx", 0.3), ("onnx", 0.0), ("pt2", 0.0)])
def test_an_alignment_is_exported_with_its_vit(tmp_path, suffix, share):
    vit = Backbone("storybook")
    facts = {"name": "storybook", "weights": None, "weights_sha256": vit.weights_sha256}
    facts["width"] = vit.width
    clip = FrozenClip.load("storybook", "storybook")
    align = Align(clip, AlignConfig("storybook"), facts, vit)
    run, out = tmp_path / "run", tmp_path / f"segmenter.{suffix}"
    save_checkpoint(run / "checkpoints" / "step-000001", align, {}, version="0")
    done = export(run, "--out", out, "--set", f"knowledge_weight={share}", *WORDS)
    assert done.exit_code == 0, done.output
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["settings"]["method"] == "align"
    assert about["inputs"] == ["image", "classes", "templates"][: 3 if share else 2]
    assert np.load(out.with_suffix(".npz"))["classes"].shape == (len(TEXTS), vit.width)


def test_a_graph_that_differs_is_exit_1_and_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "segmenter.pt2"
    out.write_bytes(b"older")
    true = export_check.open_torch

    def a_little_off(path):
        graph = true(path)
        return lambda inputs: tuple(output + 2e-4 for output in graph(inputs))

    monkeypatch.setattr(export_check, "open_torch", a_little_off)
    done = export("--out", out, "--clip", TINY, "--pretrained", "random", *WORDS)
    assert done.exit_code == 1 and "OVER" in done.output
    assert files(tmp_path) == ["segmenter.pt2"] and out.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "segmenter.tflite"), "FILE.onnx or FILE.pt2"),
        (("--method", "scg"), "clustering"),
        (
            (*EMBEDDED, "--method", "scclip"),
            "choose code, align, maskclip, sclip, clearclip or naclip",
        ),
        (("--set", "refinement=pamr"), "refinement pamr cannot be exported: set it to none"),
        (
            ("--set", "normalisation=clip"),
            "normalisation clip cannot be exported: set it to imagenet",
        ),
        (("--text", " "), "name the things to find"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    done = export("--clip", TINY, "--pretrained", "random", *arguments)
    assert isinstance(done.exception, ValueError) and message in str(done.exception)
    assert not files(tmp_path)


def test_without_onnx_the_error_names_the_extra(tmp_path):
    code = (
        "import sys\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'onnxscript' else find(name)\n"
        "from codeseg.stages.cli import main\n"
        "sys.argv = ['codeseg', 'export']\nmain()"
    )
    command = [sys.executable, "-c", code]
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "onnxscript" in failed.stderr and "codeseg[export]" in failed.stderr
