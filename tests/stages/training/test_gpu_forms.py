"""What can be known of a GPU's step without one: counts, devices, and that nothing waits."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.gpu_step import count, fake, make_batch
from codeseg.model import distributed
from codeseg.model.align.alignment import Align
from codeseg.model.align.backbone import Backbone
from codeseg.model.align.config import AlignConfig
from codeseg.model.checkpoint import checkpoints
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.batch import Batch
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.inference.segmenter import Segmenter, TextEmbeddings
from codeseg.model.inference.settings import PredictionSettings
from codeseg.model.regions.patch_features import clip_keys
from codeseg.pipeline.features.encoder import Encoder, find_faults, to_int8
from codeseg.stages.training.loop import fit
from codeseg.stages.training.processes import Processes
from codeseg.stages.training.recipes import RECIPES, resolve
from codeseg.stages.training.runlog import read_metrics
from codeseg.stages.training.stepper import hold_frozen
from tests.helpers.small_code import TINY, gradients, small_batch, small_code
from tests.helpers.tiny_run import make_root, tiny_recipe

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.slow
def test_step_of_512_images_fits_an_h100():
    counter = count(resolve("code_vitb16"), 512, 2, "int8", H100)
    assert counter.peak <= 75e9
    assert sum(part.seconds for part in counter.parts.values()) <= 512 / 850


@pytest.mark.slow
def test_step_of_64_images_keeps_to_what_an_h100_can_move_and_waits_for_nothing():
    counter = count(resolve("code_vitb16"), 64, 2, "int8", H100)
    parts = counter.parts.values()
    assert counter.syncs == 0
    assert sum(part.kernels for part in parts) <= 2_200
    assert sum(part.seconds for part in parts) <= 0.050


@contextmanager
def fake_cuda(*modules):
    """Put modules on fake CUDA tensors: an operator on two devices raises, and so does reading."""
    available = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    bf16 = mock.patch("torch.cuda.is_bf16_supported", lambda *_: True)
    with FakeTensorMode() as mode, available, bf16:
        for module in modules:
            fake(module, mode, "cuda")
        yield


def on_gpu(*tensors):
    return all(tensor.device.type == "cuda" for tensor in tensors)


CODE = [name for name in RECIPES if isinstance(resolve(name).model, CoDeConfig)]


@pytest.mark.parametrize(
    ("name", "tokens"), [*((name, "int8") for name in CODE), ("code_vitb16", "none")]
)
def test_forward_of_every_recipe_stays_on_the_gpu(name, tokens):
    recipe = resolve(name)
    model = replace(recipe.model, random_template=name == "code_vitb16")
    code = CoDe(FrozenClip.load(TINY, "random:1"), model)
    hold_frozen(code, "bf16")
    with fake_cuda(code):
        batch = make_batch(code.clip, recipe, 4, tokens).to("cuda")
        noise = torch.zeros(2, 4, 16, 16, device="cuda")
        drawn = torch.zeros(8, dtype=torch.int64, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            losses = code(batch, noise, drawn if model.random_template else None)
    assert on_gpu(*losses.values())


def small_align(**settings):
    backbone = Backbone("storybook")
    clip, facts = FrozenClip.load(TINY, "random:1"), {"width": backbone.width}
    return Align(clip, AlignConfig(**settings), facts, backbone)


@pytest.mark.parametrize("noun_weight", [0.0, 1.0])
def test_forward_of_an_alignment_stays_on_the_gpu(noun_weight):
    align = small_align(noun_weight=noun_weight)
    hold_frozen(align, "bf16")
    with fake_cuda(align):
        unread = ("pixels_BCHW", "caption_tokens_BL", "caption_lengths_B", "labels_BL")
        batch = Batch(
            **{name: torch.empty(0) for name in unread},  # the default is no fake tensor
            noun_tokens_UM=torch.zeros(6, 2, dtype=torch.int64),
            noun_lengths_U=torch.ones(6, dtype=torch.int64),
            noun_index_N=torch.zeros(8, dtype=torch.int64),
            knowledge_UC=torch.zeros(6, align.clip.embed_dim),
            captions_BC=torch.zeros(4, align.clip.embed_dim, dtype=torch.float16),
            vectors_BVD=torch.zeros(4, 3, align.backbone.width, dtype=torch.float16),
        ).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            losses = align(batch)
    assert on_gpu(*losses.values()) and len(losses) == 1 + (noun_weight > 0)


@pytest.mark.parametrize("change", [{}, {"cleaning": 0.3, "knowledge_weight": 0.3}])
def test_windows_are_segmented_by_an_alignment_on_the_gpu(change):
    align = small_align()
    settings = PredictionSettings.for_clip(align.clip, method="align", **change)
    with fake_cuda(align), torch.no_grad():
        words = torch.zeros(5, align.backbone.width, device="cuda")
        texts = torch.zeros(5, align.clip.embed_dim, device="cuda")
        windows = torch.zeros(2, 3, 64, 64, device="cuda")
        segmenter = Segmenter(align.clip, align, settings)
        masks = segmenter.window_masks(windows, TextEmbeddings(words, texts))
    assert on_gpu(masks)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"refinement": "laplacian"},
        {"method": "naclip", "refinement": "none"},
        {"method": "sclip", "positions": "factor"},
    ],
)
def test_windows_are_segmented_on_the_gpu(change):
    code = CoDe(FrozenClip.load(TINY, "random:1"), CoDeConfig())
    settings = replace(PredictionSettings.for_clip(code.clip), knowledge_weight=0.3, **change)
    with fake_cuda(code), torch.no_grad():
        texts = torch.zeros(5, code.clip.embed_dim, device="cuda")
        windows = torch.zeros(2, 3, 64, 64, device="cuda")
        segmenter = Segmenter(code.clip, code, settings)
        masks = segmenter.window_masks(windows, TextEmbeddings(texts, texts))
    assert on_gpu(masks)


def encoder_of(precision, device):
    clip = FrozenClip.load(TINY, "random:1")
    facts = SimpleNamespace(model=TINY, pretrained="random:1", weights_sha256=clip.weights_sha256)
    return Encoder(SimpleNamespace(clip=facts, precision=precision, backbone=None), device)


def test_features_and_what_regions_group_by_are_made_on_the_gpu():
    encoder = encoder_of("bf16", "cpu")
    encoder._device, encoder._send = "cuda", lambda values: values.to("cuda")
    with fake_cuda(encoder.clip):
        tokens = encoder.image_tokens(torch.zeros(4, 2, 64, 64, 3, dtype=torch.uint8))
        assert on_gpu(tokens, *to_int8(tokens), find_faults(tokens))
        assert on_gpu(clip_keys(encoder.clip, tokens[:, 0].float()))


def test_vectors_of_a_vits_heads_are_made_on_the_gpu():
    encoder, vit = encoder_of("bf16", "cpu"), Backbone("storybook")
    encoder._device = "cuda"
    encoder._settings.backbone = SimpleNamespace(grid=4, pool="heads")
    with fake_cuda(encoder.clip, vit), torch.inference_mode():
        images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8, device="cuda")
        vectors, patches = encoder._pool(vit, images)
        assert on_gpu(vectors, patches) and vectors.shape[2] == vit.width


def needs_gpu(test):
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(missing(test))


@needs_gpu
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


@needs_gpu
def test_one_rank_of_nccl_has_the_gradients_of_none(tmp_path):
    gpu = torch.device("cuda", 0)
    code = small_code(FrozenClip.load(TINY, "random:1")).to(gpu)
    batch = small_batch(code.clip).to(gpu)
    code(batch).total.backward()
    alone = gradients(code)
    code.zero_grad()
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", world_size=1, rank=0)
    try:
        code.compile()
        Processes(0, 2, gpu).wrap(code)(batch).total.backward()
        assert torch.equal(distributed._Gather.apply(batch.labels_BL, 0), batch.labels_BL)
    finally:
        dist.destroy_process_group()
    for name, gradient in gradients(code).items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-2, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("method", ["code", "naclip"])
def test_gpu_segments_as_a_cpu_does(method):
    code = small_code(FrozenClip.load(TINY, "random:1"))
    settings = replace(PredictionSettings.for_clip(code.clip), method=method)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    texts = torch.nn.functional.normalize(torch.randn(5, code.clip.embed_dim), dim=-1)
    masks = []
    for device in ("cpu", "cuda"):
        embeddings = TextEmbeddings(texts.to(device), texts.to(device))
        segmenter = Segmenter(code.clip.to(device), code.to(device), settings)
        masks.append(segmenter.stitching(picture, embeddings)[0].cpu())
    torch.testing.assert_close(*masks, rtol=0, atol=0.01)


@needs_gpu
@pytest.mark.parametrize(("precision", "near"), [("fp32", 0.01), ("bf16", 0.05)])
def test_gpu_encodes_as_a_cpu_does(precision, near):
    pixels = torch.randint(256, (4, 2, 64, 64, 3), dtype=torch.uint8)
    cpu, gpu = (
        encoder_of(precision, device).image_tokens(pixels).float().cpu()
        for device in ("cpu", "cuda")
    )
    assert (cpu - gpu).norm() <= near * cpu.norm()
