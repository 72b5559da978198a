"""evaluate, segment, the page and Python give the same label map of the same picture and words."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from codeseg import Segmenter, load_benchmark
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


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"method": "maskclip", "stride": "32"}])
def test_four_ways_to_segment_a_picture_agree_on_every_pixel(data, tmp_path, monkeypatch, given):
    options = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    chosen = ("--clip", "storybook", *options)
    run("evaluate", "--benchmark", BENCHMARK, "--data", data, "--out", tmp_path / "eval", *chosen)
    benchmark = load_benchmark(BENCHMARK).open(data)
    pictures = {name: benchmark.image_path(name) for name in benchmark.ids}
    words = ("--classes-from", BENCHMARK, "--out", tmp_path / "segments")
    run("segment", *pictures.values(), *words, *chosen)
    python = Segmenter.open(settings=given, clip="storybook", device="cpu")
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
