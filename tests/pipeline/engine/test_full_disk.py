"""A disk that is really full (a small tmpfs): said; nothing half-written; done once it is not."""

import os
import shutil
import subprocess
from dataclasses import asdict

import pytest

from bench.make_nouns import make_nouns
from codeseg.model.checkpoint import checkpoints, load_checkpoint
from codeseg.pipeline.download.pairs import DownloadSettings, DownloadWorker
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.shards import _RayWorker
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.worker import FeaturesWorker
from codeseg.pipeline.nouns.tagger import NounWorker, resolve_tagger
from codeseg.stages.training.loop import fit
from tests.helpers.tiny_run import make_root, tiny_recipe
from tests.pipeline.engine.test_object_store import prepare
from tests.pipeline.features.test_worker import options


@pytest.fixture
def disk(tmp_path):
    """An empty disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def fill(disk, leave):
    """Fill the disk but for some bytes; the file to delete to free it again."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return ballast


def download_shard(root, tmp_path, image_server):
    urls = [image_server.add_image(f"/{i}.jpg", 300, 280, seed=i) for i in range(4)]
    prepare(tmp_path, Storage.open(root), urls)
    settings = asdict(DownloadSettings(shard_size=4, threads=2, allow_private=True, retries=0))
    return "pairs", DownloadWorker, settings


def nouns_shard(root, tmp_path, image_server):
    make_nouns(root, shards=1)
    (root / "ledger/nouns/00000.json").unlink()
    (root / "nouns/00000.parquet").unlink()
    return "nouns", NounWorker, asdict(resolve_tagger())


def features_shard(root, tmp_path, image_server):
    make_nouns(root, shards=1)
    return "features", FeaturesWorker, options(root)


@pytest.mark.parametrize(
    ("make", "leave"), [(download_shard, 100_000), (nouns_shard, 0), (features_shard, 20_000)]
)
def test_a_stage_says_so_and_finishes_with_the_same_bytes(
    disk, tmp_path, image_server, make, leave
):
    def attempt(root):
        stage, worker, settings = make(root, tmp_path, image_server)
        work = _RayWorker(stage, worker, str(root), settings, "")
        ballast = fill(disk, leave) if root == disk else None
        failed = work({"shard": [0], "input": ["i"]})["error"][0] if ballast else ""
        if ballast:
            assert "No space left on device" in failed
            assert Ledger(Storage.open(root)).records(stage) == {}
            assert not (root / stage).exists() or os.listdir(root / stage) == []
            ballast.unlink()
        assert work({"shard": [0], "input": ["i"]})["error"] == [""]
        [path] = (root / stage).iterdir()
        return path.read_bytes()

    elsewhere = tmp_path / "elsewhere"
    assert attempt(disk) == attempt(elsewhere)


@pytest.mark.slow
def test_the_trainer_keeps_its_last_checkpoint_and_goes_on_from_it(disk, tmp_path):
    root = make_root(tmp_path)
    recipe = tiny_recipe(root, "train.steps=4")
    undisturbed = tmp_path / "undisturbed"
    assert fit(root, undisturbed, recipe)
    first = checkpoints(undisturbed)[0]
    size = sum(path.stat().st_size for path in first.rglob("*"))
    resize(disk, size * 3 // 2)
    with pytest.raises(OSError, match=r"No space left on device.* free space"):
        fit(root, disk / "run", recipe)
    assert [path.name for path in checkpoints(disk / "run")] == [first.name]
    load_checkpoint(checkpoints(disk / "run")[0])
    resize(disk, size * 8)
    assert fit(root, disk / "run", recipe)
    model = "model.safetensors"
    ours, theirs = (checkpoints(run)[-1] / model for run in (disk / "run", undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()
