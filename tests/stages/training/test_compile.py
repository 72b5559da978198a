"""train.compile: the losses of eager, one graph a phase whatever the captions' lengths."""

import json
import os
import shutil
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch._dynamo.utils import counters

from bench.gpu_step import make_batch
from codeseg.model.checkpoint import checkpoints
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.stages.training.loop import fit, initial_state
from codeseg.stages.training.processes import Processes
from codeseg.stages.training.recipes import TrainConfig, resolve
from codeseg.stages.training.runlog import read_metrics
from codeseg.stages.training.stepper import Stepper, compiles
from tests.helpers.small_code import TINY
from tests.helpers.tiny_run import make_root, tiny_recipe

CPU = torch.device("cpu")
TWO = ("train.steps=2", "train.phase1_fraction=1")


def trace_alone():
    """Trace as always, but run the graphs as they are: the code generator takes minutes of g++.

    CODESEG_INDUCTOR=1 runs the tests with it.
    """
    plain = torch.nn.Module.compile
    backend = "inductor" if os.environ.get("CODESEG_INDUCTOR") else "eager"
    torch.nn.Module.compile = lambda self: plain(self, backend=backend)
    counters.clear()
    return plain


@pytest.fixture(autouse=True)
def traced():
    plain = trace_alone()
    yield
    torch.nn.Module.compile = plain
    torch._dynamo.reset()


def losses(run):
    table = read_metrics(run)
    names = [name for name in table.column_names if name.startswith("loss") or name == "grad_norm"]
    return torch.tensor([table[name].to_pylist() for name in names])


def test_model_is_compiled_on_a_gpu_and_where_it_is_asked_for():
    assert compiles(TrainConfig(), torch.device("cuda")) and not compiles(TrainConfig(), CPU)
    assert compiles(TrainConfig(compile=True), CPU)
    assert not compiles(TrainConfig(compile=False), torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "graphs"),
    [
        ("code_vitb16", 2),
        ("code_vitb16_c", 2),
        ("code_vitb16_cw", 2),
        ("baseline_vitb16", 2),
        ("scg_vitb16", 1),  # trains the same in both phases
        ("code_scg_vitb16", 2),
    ],
)
def test_recipe_is_one_graph_a_phase_however_long_captions_and_nouns_are(name, graphs):
    steps = ("train.steps=6", "train.phase1_fraction=0.5", "train.precision=fp32")
    recipe = resolve(name, None, ["train.compile=true", "train.device=cpu", *steps])
    code = CoDe(FrozenClip.load(TINY, "random:1"), recipe.model)
    state = initial_state(code, recipe.train, CPU)
    stepper = Stepper(state, recipe.train, Processes(0, 1, CPU))
    for L, M, U in [(8, 4, 8), (16, 4, 5), (24, 8, 8)] * 2:
        batch = make_batch(code.clip, recipe, 4, "int8", L, M, U)
        stepper.enter_phase(batch)
        stepper.forward_backward([batch])
        state.step += 1
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compiled_run_has_the_losses_of_eager_and_resumes(tmp_path):
    root = make_root(tmp_path)
    settings = ("train.steps=4", "train.phase1_fraction=1", "train.checkpoint_every=3")
    assert fit(root, tmp_path / "eager", tiny_recipe(root, *settings))
    compiled = tiny_recipe(root, "train.compile=true", *settings)
    run = tmp_path / "run"
    assert fit(root, run, compiled)
    expected = losses(tmp_path / "eager")
    torch.testing.assert_close(losses(run), expected, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    shutil.rmtree(checkpoints(run)[-1])
    assert fit(root, run, compiled)
    torch.testing.assert_close(losses(run), expected, rtol=1e-4, atol=1e-6)


def _rank(rank, root, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    trace_alone()
    fit(root, folder / "run", tiny_recipe(root, "train.compile=true", *TWO))
    told = [counters["stats"]["unique_graphs"], counters["graph_break"]]
    (folder / f"told{rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_ranks_compile_once_too_and_have_the_losses_of_one(tmp_path):
    root = make_root(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (root, tmp_path, port), nprocs=2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"told{rank}.json").read_text()) == [1, {}]
    assert fit(root, tmp_path / "eager", tiny_recipe(root, *TWO))
    eager = losses(tmp_path / "eager")
    torch.testing.assert_close(losses(tmp_path / "run"), eager, rtol=1e-4, atol=1e-6)
