"""SCG by the ordinary trainer: recipes, resume, checkpoints, and the loss over several ranks."""

import math
import os
import shutil
from dataclasses import asdict, replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from codeseg.model.checkpoint import checkpoints, load_model
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.regions.config import Grouping
from codeseg.model.regions.recognition import RegionRecognizer, noun_keys
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.regions.settings import RegionSettings
from codeseg.pipeline.regions.worker import RegionsWorker
from codeseg.stages.training.loop import fit
from codeseg.stages.training.recipes import resolve
from codeseg.stages.training.runlog import read_metrics
from tests.helpers.tiny_run import assignments, make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = make_root(tmp_path_factory.mktemp("data"), shards=1, rows=12)
    storage = Storage.open(root)
    settings = asdict(RegionSettings(views=2, grouping=Grouping(regions=4)))
    Ledger(storage).write_settings("regions", settings)
    worker = RegionsWorker(storage.uri, settings)
    worker.process(0, Ledger(storage).record("features", 0).output)
    return root


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("recipe", ["scg_vitb16", "code_scg_vitb16"])
def test_run_learns_of_regions_resumes_exactly_and_loads(root, tmp_path, recipe):
    run = tmp_path / "run"
    settings = resolve(recipe, None, assignments(root, "train.steps=4"))
    assert fit(root, run, settings)
    metrics = read_metrics(run)
    assert all(math.isfinite(loss) and loss > 0 for loss in metrics["loss_region"].to_pylist())
    assert ("loss_hcl" in metrics.column_names) == (recipe == "code_scg_vitb16")
    last = checkpoints(run)[-1]
    weights = (last / "model.safetensors").read_bytes()
    recognizer = load_model(run).region_recogniser
    untrained = FrozenClip.load(*settings.clip.__dict__.values()).last_block
    moved = recognizer.block.mlp.c_fc.weight - untrained.mlp.c_fc.weight
    assert moved.abs().max() > 0
    shutil.rmtree(last)  # as if killed before it was written
    assert fit(root, run, settings)
    assert (checkpoints(run)[-1] / "model.safetensors").read_bytes() == weights


def test_regions_missing_is_one_line(tmp_path):
    root = make_root(tmp_path, shards=1, rows=8)
    with pytest.raises(FileNotFoundError, match="holds no regions; run `codeseg regions"):
        fit(root, tmp_path / "run", resolve("scg_vitb16", None, assignments(root)))


def test_nothing_to_learn_from_is_refused(root):
    clip = FrozenClip.load(str(root.parent / "clip.json"), "random:1")
    for config in (CoDeConfig(masks=False), CoDeConfig(masks=False, co_decomposition=False)):
        with pytest.raises(ValueError, match=r"set model\.region_weight above 0"):
            CoDe(clip, replace(config, context_tokens=4))


def test_noun_keys_tell_nouns_apart_whatever_the_padding():
    tokens = torch.tensor([[5, 7, 0], [7, 5, 0], [5, 0, 0], [5, 7, 0], [49405, 49405, 49405]])
    keys = noun_keys(tokens)
    assert keys[0] == keys[3]
    assert len(set(keys.tolist())) == 4
    assert torch.equal(noun_keys(torch.nn.functional.pad(tokens, (0, 30))), keys)


# -- several ranks ----------------------------------------------------------------------------


def region_batch(images: int):
    """Tokens, regions, nouns and noun keys of a global batch, J = 2, noun-major (J, B)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(images, 17, 64, generator=generator)
    regions = torch.randint(3, (images, 16), generator=generator)
    regions[0] = 0  # ranks differ in their number of regions
    nouns = torch.nn.functional.normalize(torch.randn(2, images, 32, generator=generator), dim=-1)
    return tokens, regions, nouns, torch.randint(4, (2, images), generator=generator)


def loss_and_gradients(clip, share: slice, pool: str):
    """Loss and gradients of one rank's share of the batch."""
    torch.manual_seed(0)
    recognizer = RegionRecognizer(FrozenClip.load(clip, "random:1"), pool)
    tokens, regions, nouns, keys = region_batch(4)
    mine = nouns[:, share].clone().requires_grad_()
    loss = recognizer.loss(
        tokens[share], regions[share], mine.flatten(0, 1), keys[:, share].flatten()
    )
    loss.backward()
    return loss.detach(), mine.grad, [p.grad for p in recognizer.parameters()]


def one_rank(rank: int, clip: str, folder: str, pool: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{pool}", world_size=2, rank=rank)
    share = slice(0, 2) if rank == 0 else slice(2, 4)
    torch.save(loss_and_gradients(clip, share, pool), f"{folder}/{pool}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["max", "soft"])
def test_two_ranks_together_are_one_process(root, tmp_path, pool):
    clip = str(root.parent / "clip.json")
    loss, nouns, weights = loss_and_gradients(clip, slice(0, 4), pool)
    mp.spawn(one_rank, (clip, str(tmp_path), pool), nprocs=2)
    (loss_0, nouns_0, weights_0), (loss_1, nouns_1, weights_1) = (
        torch.load(tmp_path / f"{pool}-{rank}.pt") for rank in (0, 1)
    )
    torch.testing.assert_close(loss_0, loss)
    torch.testing.assert_close(loss_1, loss)
    # each rank holds the sum over ranks, DDP takes the mean over ranks
    torch.testing.assert_close(torch.cat([nouns_0, nouns_1], dim=1) / 2, nouns)
    for a, b, whole in zip(weights_0, weights_1, weights, strict=True):
        torch.testing.assert_close((a + b) / 2, whole, rtol=1e-4, atol=1e-6)
