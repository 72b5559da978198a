import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from codeseg.model.checkpoint import (
    checkpoints,
    keep_last,
    load_checkpoint,
    load_model,
    locate,
    save_checkpoint,
)
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from tests.helpers.tiny_run import CLIP


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.json"
    path.write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    return CoDe(FrozenClip.load(str(path), "random:1"), CoDeConfig(context_tokens=4))


@pytest.fixture
def saved(code, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-000005"
    save_checkpoint(folder, code, {"steps": 5}, version="1.2", state={"step": 5})
    return folder


def test_saved_model_comes_back_bit_for_bit(code, saved):
    loaded = load_model(saved)
    expected, actual = code.trainable_state_dict(), loaded.trainable_state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert loaded.config == code.config


def test_folder_holds_plain_readable_files_and_nothing_temporary(code, saved):
    names = {path.name for path in saved.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "state.json"}
    assert os.listdir(saved.parent) == ["step-000005"]
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert set(file.keys()) == code.trainable_state_dict().keys()
    assert stat.S_IMODE((saved / "model.safetensors").stat().st_mode) & 0o400
    config = json.loads((saved / "config.json").read_text())
    assert config["codeseg"] == "1.2"
    assert config["clip"] == {
        "model": code.clip.name,
        "pretrained": "random:1",
        "weights_sha256": code.clip.weights_sha256,
    }
    assert config["train"] == {"steps": 5}
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: codeseg\n")
    assert code.clip.name in card and "| steps | 5 |" in card


def test_run_stands_for_its_last_complete_checkpoint(code, saved, tmp_path):
    run = tmp_path / "run"
    newer = saved.parent / "step-000010"
    save_checkpoint(newer, code, {}, version="1")
    (saved.parent / ".incomplete-step-000015").mkdir()
    assert locate(saved) == saved
    assert locate(run) == newer
    keep_last(run, 1)
    assert checkpoints(run) == [newer]


def test_checkpoint_of_another_clip_is_refused_with_both_names(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    other = json.loads(json.dumps(config))
    other["clip"]["weights_sha256"] = "0" * 64
    other["clip"]["pretrained"] = "random:1"
    path.write_text(json.dumps(other))
    with pytest.raises(ValueError) as caught:
        load_model(saved)
    message = str(caught.value)
    assert message.count("random:1") == 2
    assert "000000000000…" in message and config["clip"]["weights_sha256"][:12] in message


def test_weights_of_the_clip_may_lie_elsewhere_by_now(saved, code, tmp_path):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["clip"]["pretrained"] = "/gone/clip.safetensors"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="gone/clip"):
        load_model(saved)
    save_file(code.clip.clip.state_dict(), tmp_path / "here.safetensors")
    found = load_model(saved, pretrained=str(tmp_path / "here.safetensors"))
    assert found.clip.weights_sha256 == code.clip.weights_sha256
    other = {k: v + 1 for k, v in code.clip.clip.state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was made with"):
        load_model(saved, pretrained=str(tmp_path / "other.safetensors"))


def test_interrupted_save_leaves_nothing_and_the_next_one_works(code, tmp_path, monkeypatch):
    folder = tmp_path / "step-000001"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("codeseg.model.checkpoint.os.fsync", full)
        with pytest.raises(OSError, match=r"No space left.*earlier checkpoints are untouched"):
            save_checkpoint(folder, code, {}, version="1")
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(folder, code, {}, version="1")
    assert locate(folder) == folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\x08", "model.safetensors is damaged"),
        ("config.json", b"{", "config.json does not parse"),
        ("config.json", b"[]", "config.json holds no JSON object"),
        ("config.json", b"{}", "config.json has no section 'clip'"),
    ],
)
def test_damaged_file_is_named(saved, name, content, message):
    (saved / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved)


def test_tensors_of_another_model_are_refused(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["model"]["co_decomposition"] = False
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*unknown weight"):
        load_model(saved)


def test_config_of_a_newer_version_is_refused(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["model"]["quantum"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: .*quantum"):
        load_model(saved)


def test_folder_without_checkpoint_and_unreachable_hub_id_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        locate(tmp_path)
    for place in ("nobody/nothing", "not a hub id/at all/ever"):
        with pytest.raises(ValueError, match="neither a checkpoint folder nor") as caught:
            locate(place)
        assert "\n" not in str(caught.value)
