"""The drawn world: a pure function of (seed, index), exact labels, held-out benchmarks."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.storybook import scenes as storybook
from codeseg.pipeline.storybook.scenes import CLASSES, THING_NAMES, draw_scene

WEIGHTS = Path(storybook.__file__).parents[2] / "model/weights/storybook.safetensors"


def digest(count: int) -> str:
    value = hashlib.sha256()
    for scene in storybook.scenes(storybook.TRAIN_SEED, count):
        value.update(scene.image.tobytes() + scene.label.tobytes() + scene.caption.encode())
    return value.hexdigest()


def test_scenes_are_the_same_bytes_in_any_process():
    code = "from tests.pipeline.storybook.test_scenes import digest; print(digest(8))"
    for hash_seed in ("0", "1"):
        shown = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(WEIGHTS.parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.strip() == digest(8)


def test_pinned_scenes_do_not_drift():
    assert digest(50)[:16] == "189d2b566668deae"


def test_composition_does_not_depend_on_size():
    small, large = draw_scene(5, 7, 48), draw_scene(5, 7, 240)
    assert small.caption == large.caption and small.things == large.things
    again = large.label[2::5, 2::5]  # the center of each 5×5 block
    assert (again == small.label).mean() > 0.97


def test_every_class_and_every_ground_occurs():
    seen = set()
    for scene in storybook.scenes(storybook.TRAIN_SEED, 300):
        seen |= set(np.unique(scene.label).tolist())
    assert seen == set(range(len(CLASSES)))
    assert len(THING_NAMES) >= 16 and len(storybook.GROUNDS) >= 5


def test_label_map_shows_the_things_in_front():
    for scene in storybook.scenes(3, 60):
        if scene.things:
            front = THING_NAMES.index(scene.things[-1].name)
            assert (scene.label == front).sum() > 0.015 * scene.label.size
        drawn = {CLASSES[number] for number in np.unique(scene.label)}
        assert drawn <= {thing.name for thing in scene.things} | set(scene.grounds)


def test_captions_are_mostly_right_and_sometimes_useless():
    right = useless = alone = 0
    for scene in storybook.scenes(storybook.TRAIN_SEED, 1000):
        words = set(scene.caption.split())
        named = words & set(CLASSES)
        truth = {thing.name for thing in scene.things} | set(scene.grounds)
        right += bool(named) and named <= truth
        useless += scene.caption in storybook.USELESS
        alone += len(words) <= 3
    assert right > 700 and 5 < useless < 60 and alone > 150


def test_seeds_of_the_worlds_differ():
    seeds = [storybook.TRAIN_SEED, storybook.CLIP_SEED, storybook.DEV_SEED]
    seeds += storybook.BENCHMARK_SEEDS.values()
    assert len(set(seeds)) == len(seeds)


def test_url_list_has_the_rows_real_lists_have(tmp_path):
    captions = storybook.write_world(tmp_path / "images", 210)
    storybook.write_url_list(tmp_path / "urls.tsv", "http://127.0.0.1:1", captions)
    rows = [line.split("\t") for line in (tmp_path / "urls.tsv").read_text().splitlines()]
    assert all(len(row) == 2 for row in rows)
    urls = [url.rsplit("/", 1)[1] for _, url in rows]
    missing = [name for name in urls if not (tmp_path / "images" / name).exists()]
    assert len(missing) == 5 and len(urls) - len(set(urls)) >= 2
    assert "broken.png" in urls
    assert sum(not caption for caption, _ in rows) == 1


@pytest.mark.parametrize("name", storybook.BENCHMARK_SEEDS)
def test_benchmark_folder_agrees_with_its_manifest(name, tmp_path):
    storybook.write_benchmark(tmp_path, name, 20)
    benchmark = load_benchmark(name)
    assert len(benchmark.classes) == (21 if benchmark.background else 26)
    labels = [np.array(Image.open(path)) for path in sorted((tmp_path / "labels").glob("*.png"))]
    assert len(labels) == 20 and max(label.max() for label in labels) < len(benchmark.classes)
    assert len(benchmark.open(tmp_path).ids) == 20


def test_unknown_benchmark_is_refused(tmp_path):
    with pytest.raises(ValueError, match="storybook_things"):
        storybook.write_benchmark(tmp_path, "voc", 1)


@pytest.mark.slow
def test_tiny_clip_finds_single_nouns_in_held_out_scenes():
    from bench.storybook_clip import judge_weights
    from codeseg.model.clip.encoder import FrozenClip

    assert WEIGHTS.stat().st_size <= 12_000_000
    scores = judge_weights(FrozenClip.load("storybook", "storybook"), seed=21, count=500)
    assert scores["precision"] >= 75
