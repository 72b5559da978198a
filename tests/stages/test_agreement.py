"""evaluate, segment, the page, Python and an exported graph label the same picture alike."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from codeseg import Segmenter, load_benchmark
from codeseg.model.checkpoint import save_checkpoint
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.pipeline.storybook.scenes import DEV_SEED, write_benchmark
from codeseg.stages.cli import app

BENCHMARK = "storybook_things"


def run(*words):
    done = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
    assert done.exit_code == 0, done.output


def read(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_benchmark(folder, BENCHMARK, 6, DEV_SEED)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A RUN (of no steps) with settings of its own."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    code = CoDe(FrozenClip.load("storybook", "storybook"), CoDeConfig(context_tokens=4))
    save_checkpoint(folder / "checkpoints" / "step-000001", code, {}, version="0")
    (folder / "settings.toml").write_text('method = "code+scg"\nstride = 24\nregions = 5\n')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"method": "maskclip", "stride": "32"}, "a run"])
def test_four_ways_to_segment_a_picture_agree_on_every_pixel(
    data, trained, tmp_path, monkeypatch, given
):
    of_run = given == "a run"
    given = {} if of_run else given
    options = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    chosen = ("--run", trained) if of_run else ("--clip", "storybook", *options)
    model = (trained,) if of_run else chosen
    run("evaluate", *model, "--benchmark", BENCHMARK, "--data", data, "--out", tmp_path / "eval")
    benchmark = load_benchmark(BENCHMARK).open(data)
    pictures = {name: benchmark.image_path(name) for name in benchmark.ids}
    words = ("--classes-from", BENCHMARK, "--out", tmp_path / "segments")
    run("segment", *pictures.values(), *words, *chosen)
    opening = {"run": trained} if of_run else {"settings": given, "clip": "storybook"}
    python = Segmenter.open(**opening, device="cpu")
    assert not of_run or (python.settings.method, python.settings.stride) == ("code+scg", 24)
    opened = []

    class Page:
        def block_thread(self):
            pass

    def build(segmenter, *_):
        opened.append(segmenter)
        return Page()

    monkeypatch.setattr("codeseg.stages.browser.page.build", build)
    monkeypatch.setattr("codeseg.stages.browser.serve.serve", lambda *_: "")
    if given.keys() <= {"method"}:  # the page takes no --set
        run("app", *chosen)
    texts, seen = benchmark.benchmark.texts, set()
    for name, path in pictures.items():
        evaluated = read(tmp_path / "eval" / "labels" / f"{name}.png")
        assert np.array_equal(evaluated, read(tmp_path / "segments" / name / "label.png"))
        for segmenter in (python, *opened):
            assert np.array_equal(evaluated, segmenter.segment(path, ", ".join(texts)).label_map)
        seen |= set(np.unique(evaluated).tolist())
    assert len(seen) > 2  # the background and several things


@pytest.mark.slow
def test_an_exported_graph_labels_as_evaluate_does_but_for_a_pixel_in_a_thousand(data, tmp_path):
    chosen = ("--clip", "storybook", "--method", "maskclip")
    run("evaluate", "--benchmark", BENCHMARK, "--data", data, "--out", tmp_path / "eval", *chosen)
    words = [*chosen, "--classes-from", BENCHMARK, "--out", tmp_path / "graph.pt2"]
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    assert done.exit_code == 0, done.output
    graph = torch.export.load(tmp_path / "graph.pt2").module()
    classes = torch.from_numpy(np.load(tmp_path / "graph.npz")["classes"])
    about = json.loads((tmp_path / "graph.json").read_text())
    mean, std = (torch.tensor(about[name])[:, None, None] for name in ("mean", "std"))
    benchmark, agree = load_benchmark(BENCHMARK).open(data), []
    for name in benchmark.ids:  # each is one window, at its own size
        pixels = torch.from_numpy(read(benchmark.image_path(name)).copy()).permute(2, 0, 1)
        _, masks = graph(((pixels / 255 - mean) / std)[None], classes)
        masks = F.interpolate(masks, pixels.shape[1:], mode="bilinear")[0]
        background = torch.full_like(masks[:1], about["settings"]["background_threshold"])
        label = torch.cat([background, masks]).argmax(0).numpy()
        agree.append((label == read(tmp_path / "eval" / "labels" / f"{name}.png")).mean())
    assert len(agree) == 6 and min(agree) > 0.999
