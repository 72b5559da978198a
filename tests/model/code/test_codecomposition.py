"""CoDe: what is skipped changes nothing but time, ranks change nothing, switches switch."""

import math
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from bench.plain_step import plain_step
from codeseg.model import device
from codeseg.model.clip.blocks import run_block
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import TEMPLATES, Templates, template_embeddings
from codeseg.model.code import codecomposition
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.code.image_segmenter import GatedUpsampling
from codeseg.model.code.text_segmenter import TextSegmenter
from tests.helpers.small_code import TEXTS, TINY, gradients, other_clip, small_batch, small_code


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return FrozenClip.load(TINY, "random:1")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(code, batch, *more):
    """Losses as numbers, and gradients."""
    code.zero_grad()
    losses = code(batch, *more)
    losses.total.backward()
    return {name: loss.item() for name, loss in losses.items()}, gradients(code)


def assert_same(ours, expected, tolerance=1e-5):
    losses, grads = ours
    expected_losses, expected_grads = expected
    assert losses == pytest.approx(expected_losses, abs=tolerance)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, expected_grads[name], atol=tolerance, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


# -- what is skipped ---------------------------------------------------------------------------


def test_step_equals_the_straightforward_rendering(clip):
    code = small_code(clip, attend_padding=True, random_template=True)
    batch = small_batch(clip)
    templates = code.draw_templates(5, 4)
    assert len(set(templates.tolist())) > 1, "every noun has its own"
    ours = run(code, batch, None, templates)
    code.zero_grad()
    losses = plain_step(code, batch, None, templates)
    losses.total.backward()
    plain = {name: loss.item() for name, loss in losses.items()}, gradients(code)
    assert_same(ours, plain)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (4, 2)])
def test_sub_pixel_decoder_stage_equals_convolution_after_upsampling(size, gpu, monkeypatch):
    monkeypatch.setattr(device, "is_gpu", lambda tensor: gpu)
    torch.manual_seed(0)
    stage = GatedUpsampling(6).double()
    torch.nn.init.constant_(stage.gate, 0.7)
    x = torch.randn(2, *size, 6, dtype=torch.double, requires_grad=True)
    weights = torch.randn(2, 2 * size[0], 2 * size[1], 6, dtype=torch.double)
    inputs = (x, *stage.parameters())
    up = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    y = F.gelu(stage.norm(up.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    plain = (up + torch.tanh(stage.gate) * stage.conv(y)).permute(0, 2, 3, 1)
    ours = stage(x)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    for grad, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs), expected, strict=True
    ):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-10)


def test_step_in_the_forms_of_a_gpu_equals_the_step_of_a_cpu(clip, monkeypatch):
    code, batch = small_code(clip), small_batch(clip)
    noise = code.mask_noise(5, 4, (64, 64))
    expected = run(code, batch, noise)
    monkeypatch.setattr(device, "is_gpu", lambda tensor: True)
    assert_same(run(code, batch, noise), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.05)])
def test_towers_held_in_another_type_give_the_same_step(dtype, tolerance):
    clip = FrozenClip.load(TINY, "random:1")
    code, batch = small_code(clip), small_batch(clip)
    expected, gradients_32 = run(code, batch)
    clip.hold_in(dtype)
    ours, held = run(code, batch)
    assert ours == pytest.approx(expected, abs=tolerance)
    assert held.keys() == gradients_32.keys()
    assert all(grad.dtype == torch.float32 for grad in held.values())


def test_text_past_eos_changes_nothing(clip):
    code = small_code(clip)
    assert_same(run(code, small_batch(clip)), run(code, small_batch(clip, pad=True)))


def test_attending_to_padding_does_change_the_words(clip):
    batch = small_batch(clip)
    cut, padded = (run(small_code(clip, attend_padding=on), batch)[0] for on in (False, True))
    assert abs(cut["word"] - padded["word"]) > 1e-4


def test_nouns_encoded_once_equal_nouns_encoded_each_time(clip):
    code = small_code(clip)
    once, each = small_batch(clip), small_batch(clip, distinct=False)
    assert len(once.noun_tokens_UM) == 7 and len(each.noun_tokens_UM) == 8
    assert_same(run(code, once), run(code, each))


def test_cached_caption_states_equal_computed_ones(clip):
    code = small_code(clip)
    batch = small_batch(clip)
    states = clip.text_states(batch.caption_tokens_BL)
    states[torch.arange(states.shape[1]) >= batch.caption_lengths_B[:, None]] = 0
    assert_same(run(code, replace(batch, caption_states_BLT=states)), run(code, batch))


def test_mean_template_embedding_gives_the_expected_knowledge_loss(clip):
    code = small_code(clip)
    batch = small_batch(clip)
    tokens, lengths = batch.noun_tokens_UM, batch.noun_lengths_U
    names = sorted({noun for _, nouns in TEXTS for noun in nouns})
    encode = Templates(clip)
    each = [
        encode(clip, torch.full_like(lengths, template), tokens, lengths)
        for template in range(len(TEMPLATES))
    ]
    embeddings = template_embeddings(clip, names)
    torch.testing.assert_close(embeddings.transpose(0, 1), torch.stack(each))
    nouns = code.noun_embeddings(tokens, lengths)
    expectation = torch.stack([(1 - (nouns * n).sum(-1)).mean() for n in each]).mean()
    knowledge = embeddings.mean(1)
    ours = (1 - (nouns * knowledge).sum(-1)).mean()
    torch.testing.assert_close(ours, expectation)


@pytest.mark.parametrize(("kind", "tolerance"), [("fp16", 1e-3), ("int8", 2e-2)])
def test_cached_image_tokens_equal_recomputed_ones(clip, kind, tolerance):
    code = small_code(clip)
    batch = small_batch(clip)
    expected, _ = run(code, batch)
    tokens = clip.trunk(clip.normalize(batch.pixels_BCHW))
    if kind == "fp16":
        cached = {"image_tokens_BPD": tokens.half()}
    else:
        scale = tokens.abs().amax(-1) / 127
        cached = {
            "image_tokens_int8_BPD": (tokens / scale[..., None]).round().to(torch.int8),
            "image_token_scale_BP": scale,
        }
    losses, _ = run(code, replace(batch, **cached))
    assert losses == pytest.approx(expected, abs=tolerance)


def test_gradients_of_nouns_that_repeat_do_not_depend_on_the_order_of_threads(clip):
    code, batch = small_code(clip), small_batch(clip)
    index = torch.arange(8192) % len(batch.noun_tokens_UM)  # enough to be split among threads
    weights = torch.randn(len(index), clip.embed_dim)
    torch.set_num_threads(2)
    try:
        seen = set()
        for _ in range(10):
            nouns, _ = code._nouns(replace(batch, noun_index_N=index), None)
            code.zero_grad()
            (nouns * weights).sum().backward()
            seen.add(code.noun_prompt.context.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(1)
    assert len(seen) == 1


# -- ranks -------------------------------------------------------------------------------------


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    clip = FrozenClip.load(TINY, "random:1")
    code = small_code(clip)
    batch = small_batch(clip, slice(2 * rank, 2 * rank + 2))
    noise = code.mask_noise(11, 2, (64, 64))
    parallel = DistributedDataParallel(code)  # kept: its hooks average the gradients
    losses = parallel(batch, noise)
    losses.total.backward()
    terms = torch.stack(list(losses.values())).detach()
    dist.all_reduce(terms)
    values = dict(zip(losses, (terms / 2).tolist(), strict=True))
    torch.save((values, gradients(code), noise), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one_process(clip, tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    code = small_code(clip)
    noise = code.mask_noise(11, 4, (64, 64))
    expected = run(code, small_batch(clip), noise)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([part[2] for part in results], dim=1), noise)
    for losses, grads, _ in results:
        assert_same((losses, grads), expected)


def test_mask_noise_is_a_function_of_the_seed(clip):
    code = small_code(clip)
    noise = code.mask_noise(1, 3, (64, 96))
    assert noise.shape == (2, 3, 16, 24)
    assert torch.equal(noise, code.mask_noise(1, 3, (64, 96)))
    assert not torch.equal(noise, code.mask_noise(2, 3, (64, 96)))
    assert noise.mean().abs() < 0.2
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.1)  # logistic


# -- switches ----------------------------------------------------------------------------------


def test_baseline_needs_no_caption(clip):
    code = small_code(clip, co_decomposition=False)
    batch = small_batch(clip)
    # Would crash if they were read.
    batch = replace(batch, caption_tokens_BL=batch.caption_tokens_BL[:, :0])
    losses, grads = run(code, batch)
    assert not {"word", "hcl"} & losses.keys()
    assert "region_prompt" in grads and not any("text_seg" in name for name in grads)
    assert not any("text_segmenter" in name for name in code.trainable_state_dict())


@pytest.mark.parametrize("prompt", ["word_prompt", "region_prompt"])
def test_switched_off_prompt_stays_zero(clip, prompt):
    code = CoDe(clip, CoDeConfig(**{prompt: False}))
    _, grads = run(code, small_batch(clip))
    assert prompt not in grads
    assert not getattr(code, prompt).any()
    assert ({"word_prompt", "region_prompt"} - {prompt}) <= grads.keys()


def test_paper_forms(clip):
    batch = small_batch(clip)
    reference, _ = run(small_code(clip), batch)
    paper, _ = run(small_code(clip, squared_knowledge=True, argmax_labels=True), batch)
    assert paper["kg"] == pytest.approx(2 * reference["kg"], rel=1e-6)
    assert paper["word"] < reference["word"]  # its labels are its own best guess
    for name in reference.keys() - {"kg", "word"}:
        assert paper[name] == pytest.approx(reference[name])


def test_argmax_labels_leave_out_what_is_no_word(clip):
    code = small_code(clip, argmax_labels=True)
    composition = code.decompose(small_batch(clip, pad=True))
    labels, lengths = composition.captions.labels_BL, small_batch(clip).caption_lengths_B
    assert torch.equal((labels >= 0).sum(1), lengths - 2)
    assert (labels[:, 0] == -1).all()


def test_templates_of_the_step_must_come_with_their_switch(clip):
    batch = small_batch(clip)
    with pytest.raises(ValueError, match="come together"):
        small_code(clip)(batch, None, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ValueError, match="come together"):
        small_code(clip, random_template=True)(batch)


@pytest.mark.parametrize(("clip_start", "added"), [(False, 0.207), (True, 0.446)])
def test_text_segmenter_starts_from_the_initialisation_asked_for(clip_start, added):
    torch.manual_seed(0)
    wide = open_clip.CLIP(
        64,
        {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        {"width": 512, "heads": 8, "layers": 1, "context_length": 32},
        quick_gelu=True,
    )
    segmenter = TextSegmenter(FrozenClip(wide, "wide", "random"), clip_start=clip_start)
    states = torch.randn(32, 77, 512)
    moved = run_block(segmenter.blocks[0], states) - states
    assert moved.std().item() == pytest.approx(added, rel=0.02)


def test_phase_1_freezes_the_last_block_only(clip):
    code = small_code(clip)
    _, both = run(code, small_batch(clip))
    code.set_phase(1)
    _, first = run(code, small_batch(clip))
    frozen = {name for name in both if name.startswith("image_segmenter.block.")}
    assert frozen and both.keys() - first.keys() == frozen
    code.set_phase(2)
    assert run(code, small_batch(clip))[1].keys() == both.keys()


def test_nothing_of_the_clip_is_trained(clip):
    code = small_code(clip)
    _, grads = run(code, small_batch(clip))
    assert not any(name.startswith("clip.") for name in grads)
    assert grads.keys() == code.trainable_state_dict().keys()
    assert all(grad.abs().sum() > 0 for grad in grads.values())


# -- other shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [14, 8, 28])
def test_any_widths_and_patch_sizes(patch):
    clip = other_clip(patch_size=patch)
    code = small_code(clip)
    losses, grads = run(code, small_batch(clip))
    assert all(math.isfinite(loss) for loss in losses.values())
    assert grads.keys() == code.trainable_state_dict().keys()
    composition = code.decompose(small_batch(clip))
    side = 4 * (56 // patch)
    assert composition.pixels_BCHW.shape == (4, 40, side, side)
    assert composition.captions.words_BLC.shape[-1] == 40  # projected from 48 to the joint width
    assert "GELU" in str(code.text_segmenter) and "QuickGELU" not in str(code.text_segmenter)


def test_images_of_another_size_and_shape(clip):
    code = small_code(clip)
    batch = small_batch(clip)
    batch = replace(batch, pixels_BCHW=torch.randint(256, (4, 3, 48, 80)).to(torch.uint8))
    losses, grads = run(code, batch)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert grads["region_prompt"].abs().sum() > 0


def test_context_that_does_not_fit_is_refused():
    clip = other_clip()
    with pytest.raises(ValueError, match="lower context_tokens"):
        CoDe(clip, CoDeConfig(context_tokens=38))


def test_trained_weights_travel_without_the_clip(clip):
    code = small_code(clip)
    other = CoDe(clip, CoDeConfig())
    state = code.trainable_state_dict()
    assert not any(name.startswith("clip.") for name in state)
    other.load_trainable_state_dict(state)
    batch = small_batch(clip)
    assert_same(run(other, batch), run(code, batch), tolerance=0)
    with pytest.raises(ValueError, match="lacks weight hcl_temperature"):
        other.load_trainable_state_dict({k: v for k, v in state.items() if "hcl" not in k})
    with pytest.raises(ValueError, match="unknown weight extra"):
        other.load_trainable_state_dict(state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        other.load_trainable_state_dict(state | {"region_prompt": torch.zeros(3, 2, 2)})


def test_masks_made_in_chunks_are_those_made_at_once(clip, monkeypatch):
    code = small_code(clip)
    whole = run(code, small_batch(clip))
    monkeypatch.setattr(codecomposition, "MAP_PIXELS", 3 * 8 * 16 * 16)  # 3 and 1 of 4 images
    assert_same(run(code, small_batch(clip)), whole, tolerance=1e-5)


@pytest.mark.slow
def test_vit_b_32_of_open_clip_runs():
    clip = FrozenClip.load("ViT-B-32", "random")
    code = CoDe(clip, CoDeConfig())
    batch = small_batch(clip)
    losses = code(batch)
    losses.total.backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert code.decompose(batch).pixels_BCHW.shape == (4, 512, 28, 28)
