"""train.compile: the losses of eager, few graphs however long the captions, resumable."""

import os
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from codeseg.model.checkpoint import checkpoints
from codeseg.stages.training.loop import fit
from codeseg.stages.training.runlog import read_metrics
from tests.helpers.tiny_run import make_root, tiny_recipe

SETTINGS = ("train.steps=4", "train.phase1_fraction=1", "train.checkpoint_every=3")


@pytest.fixture
def traced(monkeypatch):
    """Trace as always, but run the graphs as they are: the code generator takes minutes of g++.

    CODESEG_INDUCTOR=1 runs the test with it.
    """
    plain = torch.nn.Module.compile
    if not os.environ.get("CODESEG_INDUCTOR"):
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend="eager"))
    counters.clear()
    yield
    torch._dynamo.reset()


def losses(run):
    table = read_metrics(run)
    names = [name for name in table.column_names if name.startswith("loss") or name == "grad_norm"]
    return torch.tensor([table[name].to_pylist() for name in names])


@pytest.mark.slow
def test_compiled_run_has_the_losses_of_eager_in_few_graphs_and_resumes(traced, tmp_path):
    root = make_root(tmp_path)
    assert fit(root, tmp_path / "eager", tiny_recipe(root, *SETTINGS))
    compiled = tiny_recipe(root, "train.compile=true", *SETTINGS)
    run = tmp_path / "run"
    assert fit(root, run, compiled)
    expected = losses(tmp_path / "eager")
    torch.testing.assert_close(losses(run), expected, rtol=1e-4, atol=1e-6)
    assert 1 <= counters["stats"]["unique_graphs"] <= 3, (
        "captions of another length must not make another graph each"
    )
    assert not counters["graph_break"]

    shutil.rmtree(checkpoints(run)[-1])
    assert fit(root, run, compiled)
    torch.testing.assert_close(losses(run), expected, rtol=1e-4, atol=1e-6)
