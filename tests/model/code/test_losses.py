"""Each loss against its definition in METHOD §6, written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from codeseg.model import device
from codeseg.model.code import losses


def unit(*shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_knowledge_distance_in_both_forms():
    n, k = unit(2, 5, 7)
    expected = (n - k).square().sum(-1).mean()
    assert torch.isclose(losses.knowledge_distance(n, k, squared=True), expected)
    assert torch.isclose(losses.knowledge_distance(n, k), expected / 2)


def test_info_nce_is_the_mean_of_both_directions():
    s = torch.tensor([[0.5, 0.1], [0.3, 0.2]])
    scale = torch.tensor(math.log(4.0))
    rows = -(F.log_softmax(4 * s, dim=1).diag()).mean()
    columns = -(F.log_softmax(4 * s, dim=0).diag()).mean()
    assert torch.isclose(losses.info_nce(s, scale), (rows + columns) / 2)


def test_info_nce_scale_is_clamped_at_100():
    s = unit(4, 4)
    at_100 = losses.info_nce(s, torch.tensor(math.log(100.0)))
    assert torch.isclose(losses.info_nce(s, torch.tensor(9.0)), at_100)


def test_pooled_similarity_written_out():
    pixels = unit(2, 3, 4, 5).movedim(-1, 1)  # (B, C, H, W)
    nouns = unit(6, 5)
    soft = torch.rand(2, 6, 3, 4)
    got = losses.pooled_similarity(pixels, soft, nouns)
    for b in range(2):
        for n in range(6):
            pooled = (pixels[b] * soft[b, n]).sum((1, 2)) / (soft[b, n].sum() + 1e-6)
            assert torch.isclose(got[b, n], F.normalize(pooled, dim=0) @ nouns[n], atol=1e-6)


def test_pooling_an_empty_mask_is_finite():
    got = losses.pooled_similarity(torch.rand(1, 5, 3, 4), torch.zeros(1, 2, 3, 4), unit(2, 5))
    assert torch.isfinite(got).all()


def test_total_variation_of_a_step_edge():
    x = torch.zeros(1, 1, 4, 4)
    x[..., 2:] = 1
    assert losses.total_variation(x).item() == pytest.approx(1 / 3)  # 1 of 3 column differences


def test_areas_count_an_image_once_for_each_noun():
    soft = torch.rand(3, 6, 2, 2)  # B=3, J=2
    rows = soft.repeat(2, 1, 1, 1)  # N x N, as the reference holds it
    eye = torch.eye(6, dtype=torch.bool)
    own = rows[eye].view(2, 3, 2, 2)
    positive, negative = losses.areas(soft.sum(), own, 6, prior=0.25)
    assert torch.isclose(positive, (rows[eye].mean() - 0.25).abs())
    assert torch.isclose(negative, rows[~eye].mean())


def test_word_segmentation_is_class_weighted_cross_entropy():
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[-1, 0, 1, 2, -1], [0, 0, -1, 1, -1]])
    expected = F.cross_entropy(
        logits, labels, weight=torch.tensor([0.5, 1.0, 1.0]), ignore_index=-1
    )
    assert torch.isclose(losses.word_segmentation(logits, labels, 0.5), expected)


def test_word_segmentation_without_a_label_is_zero():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = losses.word_segmentation(logits, torch.full((2, 5), -1), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_total_variation_of_a_gpu_has_the_value_and_gradient_of_a_cpus(monkeypatch):
    maps = torch.rand(2, 3, 5, 4, dtype=torch.double, requires_grad=True)
    expected = losses.total_variation(maps)
    (gradient,) = torch.autograd.grad(2 * expected, maps)
    monkeypatch.setattr(device, "is_gpu", lambda tensor: True)
    ours = losses.total_variation(maps)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(2 * ours, maps)[0], gradient)
