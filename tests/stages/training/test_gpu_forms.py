"""What can be known of a GPU's step without one: counts, devices, and that nothing waits."""

import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from bench.gpu_step import count, fake, make_batch
from codeseg.model.checkpoint import checkpoints
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.stages.training.loop import fit
from codeseg.stages.training.recipes import RECIPES, resolve
from codeseg.stages.training.runlog import read_metrics
from codeseg.stages.training.stepper import hold_frozen
from tests.helpers.small_code import TINY
from tests.helpers.tiny_run import make_root, tiny_recipe

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.slow
def test_step_of_64_images_keeps_to_what_an_h100_can_move_and_waits_for_nothing():
    counter = count(resolve("code_vitb16"), 64, 2, "int8", H100)
    parts = counter.parts.values()
    assert counter.syncs == 0
    assert sum(part.kernels for part in parts) <= 2_200
    assert sum(part.seconds for part in parts) <= 0.050


@pytest.mark.parametrize(
    ("name", "tokens"), [*((name, "int8") for name in RECIPES), ("code_vitb16", "none")]
)
def test_forward_of_every_recipe_stays_on_the_gpu(name, tokens):
    """On fake CUDA tensors: an operator on two devices raises, and so does reading a value."""
    recipe = resolve(name)
    model = replace(recipe.model, random_template=name == "code_vitb16")
    code = CoDe(FrozenClip.load(TINY, "random:1"), model)
    hold_frozen(code, "bf16")
    available = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    bf16 = mock.patch("torch.cuda.is_bf16_supported", lambda *_: True)
    with FakeTensorMode() as mode, available, bf16:
        fake(code, mode, "cuda")
        batch = make_batch(code.clip, recipe, 4, tokens).to("cuda")
        noise = torch.zeros(2, 4, 16, 16, device="cuda")
        drawn = torch.zeros(8, dtype=torch.int64, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            losses = code(batch, noise, drawn if model.random_template else None)
    assert all(leaf.device.type == "cuda" for leaf in tree_leaves(dict(losses)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("more", [("bf16", "false"), ("fp16", "false"), ("bf16", "true")])
def test_twenty_steps_on_a_gpu_learn_resume_and_stay_near_a_cpu(tmp_path, more):
    precision, compiled = more
    root = make_root(tmp_path)
    settings = ("train.steps=20", "train.checkpoint_every=10", "train.log_every=5")
    types = (f"train.precision={precision}", f"train.compile={compiled}")
    assert fit(root, tmp_path / "cpu", tiny_recipe(root, *settings))
    run = tmp_path / "gpu"
    recipe = tiny_recipe(root, *settings, *types, "train.device=cuda")
    assert fit(root, run, recipe)
    mine, cpu = read_metrics(run)["loss"].to_pylist(), read_metrics(tmp_path / "cpu")["loss"]
    assert mine[0] == pytest.approx(cpu[0].as_py(), rel=0.05)
    shutil.rmtree(checkpoints(run)[-1])
    assert fit(root, run, recipe)
    assert read_metrics(run)["loss"].to_pylist() == pytest.approx(mine, rel=0.02)
