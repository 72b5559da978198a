"""The frozen CLIP computes what open_clip computes, on any plain ViT, and refuses the rest."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from codeseg.model.clip.blocks import run_block
from codeseg.model.clip.dense import dense_embedding
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.weights import WEIGHTS

TINY = str(Path(__file__).parents[2] / "data" / "tiny_clip.json")


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return FrozenClip.load(TINY, "random:1")


def test_embeddings_equal_open_clips_own(clip):
    images = torch.randn(2, 3, 64, 64)
    tokens = clip.tokenize(["a red car", "two dogs on the green grass near a river"])
    torch.testing.assert_close(
        clip.encode_image(images), clip.clip.encode_image(images, normalize=True)
    )
    torch.testing.assert_close(
        clip.encode_text(tokens), clip.clip.encode_text(tokens, normalize=True)
    )


def test_blocks_equal_open_clips_own_in_vit_b16_shape():
    block = open_clip.CLIP(
        64, {"width": 768, "layers": 2, "image_size": 32}, {"width": 64, "heads": 1, "layers": 1}
    ).visual.transformer.resblocks[0]
    tokens = torch.randn(2, 7, 768)
    torch.testing.assert_close(run_block(block, tokens), block(tokens))


def test_text_after_eos_changes_nothing(clip):
    tokens = clip.tokenize(["a red car", "a dog"])
    noisy = tokens.clone()
    noisy[0, 5:] = 320  # "a red car" ends at 4
    lengths = torch.tensor([5, 4])
    expected = clip.encode_text(tokens)
    torch.testing.assert_close(clip.encode_text(noisy, lengths), expected)
    torch.testing.assert_close(clip.encode_text(tokens[:, :5], lengths), expected)
    full = clip.encode_embeddings(clip.embed_tokens(tokens), lengths - 1)
    torch.testing.assert_close(full, expected)


def test_dense_is_last_block_with_identity_attention(clip):
    images = torch.randn(1, 3, 64, 64)
    block = clip.last_block
    tokens = clip.trunk(images)[:, 1:]
    eye = torch.zeros(16, 16).fill_diagonal_(1).bool()
    tokens = block(tokens, attn_mask=torch.zeros(16, 16).masked_fill(~eye, float("-inf")))
    expected = torch.nn.functional.normalize(clip.project(tokens), dim=-1)
    dense = dense_embedding(clip, [clip.trunk(images)], (4, 4), "maskclip")
    assert dense.shape == (1, 64, 4, 4)
    torch.testing.assert_close(dense.flatten(2).transpose(1, 2), expected)


def test_other_grids_interpolate_positions(clip):
    assert clip.trunk(torch.randn(1, 3, 96, 64)).shape == (1, 1 + 6 * 4, 64)
    with pytest.raises(ValueError, match="multiples of the patch size 16"):
        clip.trunk(torch.randn(1, 3, 90, 64))


def test_gradient_reaches_the_input_but_no_weight(clip):
    clip.train()
    assert not clip.clip.training
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    clip.encode_image(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in clip.parameters())


def test_normalise_uses_imagenet_statistics(clip):
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(clip.normalize(white)[0, :, 0, 0], expected)


def test_hash_tells_weights_apart_and_survives_files(clip, tmp_path):
    same = FrozenClip.load(TINY, "random:1")
    other = FrozenClip.load(TINY, "random:2")
    assert same.weights_sha256 == clip.weights_sha256 != other.weights_sha256
    save_file(clip.clip.state_dict(), tmp_path / "w.safetensors")
    torch.save(clip.clip.state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        loaded = FrozenClip.load(TINY, str(tmp_path / name))
        assert loaded.weights_sha256 == clip.weights_sha256


def test_hub_tags_bring_their_activation(clip, tmp_path, monkeypatch):
    # "openai" was trained with QuickGELU, which ViT-B-16's own config does not say.
    config = json.loads(Path(TINY).read_text()) | {"quick_gelu": False}
    save_file(clip.clip.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: tmp_path / "w.safetensors")
    loaded = FrozenClip.load("ViT-B-16", "openai")
    assert type(loaded.last_block.mlp.gelu).__name__ == "QuickGELU"
    # a weight file does not record the activation: the warning names it, and so does the hash
    with pytest.warns(UserWarning, match="use the model name ViT-B-16-quickgelu"):
        plain = FrozenClip.load("ViT-B-16", str(tmp_path / "w.safetensors"))
    assert type(plain.last_block.mlp.gelu).__name__ == "GELU"
    assert plain.weights_sha256 != loaded.weights_sha256


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-99", None, "unknown CLIP 'ViT-B-99'"),
        ("hf-hub:somebody/model", None, "unknown CLIP"),
        ("missing.json", None, "does not exist"),
        ("ViT-B-16", "nobodys", "neither a file nor a known tag"),
        ("ViT-B-16", "openai", "cannot be fetched"),
        ("ViT-B-16", "random:x", "takes a number"),
        ("RN50", None, "ModifiedResNet"),
        ("ViT-B-16-SigLIP", None, "timm_model_name"),
        ("coca_ViT-B-32", None, "custom_text|multimodal_cfg"),
        ("xlm-roberta-base-ViT-B-32", None, "hf_model_name"),
    ],
)
def test_refuses_in_one_line(model, pretrained, message, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=message) as refusal:
        FrozenClip.load(model, pretrained)
    assert "\n" not in str(refusal.value)


def test_a_config_of_a_thousand_million_layers_is_refused_before_it_is_built(tmp_path):
    config = json.loads((WEIGHTS / "storybook.json").read_text())
    config["text_cfg"]["layers"] = 10**9
    (tmp_path / "deep.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="more than 256 layers"):
        FrozenClip.load(str(tmp_path / "deep.json"), "random")


def test_refuses_weights_of_another_model(clip, tmp_path):
    state = dict(clip.clip.state_dict())
    state["ln_final.weight"] = torch.ones(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        FrozenClip.load(TINY, str(tmp_path / "w.safetensors"))
    (tmp_path / "w.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is not a weight file"):
        FrozenClip.load(TINY, str(tmp_path / "w.pt"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"vision_cfg": {}, "text_cfg": 1}'])
def test_a_json_that_is_no_clip_config_is_named(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json is not an open_clip config"):
        FrozenClip.load(str(tmp_path / "c.json"), "random:1")
