"""A trained segmenter by its hub id: the hub's own client over real HTTP, from a hub of our own."""

import base64
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from codeseg.model.checkpoint import load_model, locate, save_checkpoint
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.hub import hub_or_cache
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from tests.helpers.toy_benchmark import TINY_CLIP

REPOSITORY, COMMIT = "somebody/segmenter", "0123456789abcdef0123456789abcdef01234567"

LOAD = """
import hashlib, sys
from codeseg.model.inference.segmenter import Segmenter
segmenter = Segmenter.from_pretrained(sys.argv[1])
assert segmenter.settings.stride == 24  # settings.toml
state = segmenter.code.trainable_state_dict()
digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()
print(digest)
"""


class Served:
    """A hub's answers on loopback, at `url`, until it is stopped."""

    def start(self, handler):
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


class FakeHub(Served):
    """The three answers of a hub that downloading a model asks for: revision, tree, files."""

    def __init__(self, folder, repository=REPOSITORY):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.fetched = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = urlsplit(self.path).path
                if path.startswith(f"/api/models/{repository}/tree/"):
                    tree = [
                        {"type": "file", "path": name, "size": len(body), "oid": etag(body)}
                        for name, body in files.items()
                    ]
                    self.answer(200, json.dumps(tree).encode())
                elif path.startswith(f"/api/models/{repository}"):
                    model = {"id": repository, "sha": COMMIT, "siblings": []}
                    model["siblings"] = [{"rfilename": name} for name in files]
                    self.answer(200, json.dumps(model).encode())
                elif (
                    name := re.sub(f"^/{repository}/resolve/(main|{COMMIT})/", "", path)
                ) in files:
                    if self.command == "GET":
                        hub.fetched.append(name)
                    self.answer(200, files[name], {"X-Repo-Commit": COMMIT})
                else:
                    self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET

            def answer(self, status, body, more=()):
                self.send_response(status)
                for name, value in {
                    "Content-Length": str(len(body)), "ETag": f'"{etag(body)}"', **dict(more),
                }.items():  # fmt: skip
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.start(Handler)


def etag(body):
    return hashlib.sha1(body).hexdigest()


def load(hub, cache, *arguments, program=LOAD):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache)}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", program, *map(str, arguments or [REPOSITORY])]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.slow
def test_segmenter_comes_from_the_hub_and_then_from_the_cache(tmp_path):
    torch.manual_seed(0)
    code = CoDe(FrozenClip.load("storybook", "storybook"), CoDeConfig(context_tokens=4))
    folder, cache = tmp_path / "checkpoint", tmp_path / "cache"
    save_checkpoint(folder, code, {}, version="1", optimizer={"m": torch.zeros(2)}, state={})
    (folder / "settings.toml").write_text("stride = 24\n")
    state = load_model(folder).trainable_state_dict()
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()
    hub = FakeHub(folder)
    try:
        first = load(hub, cache)
        assert digest in first.stdout, first.stderr
        # What only resumes a run stays where it is.
        wanted = ["README.md", "config.json", "model.safetensors", "settings.toml"]
        assert sorted(hub.fetched) == wanted
        unknown = load(hub, cache, "somebody/else")
        assert "somebody/else is neither a checkpoint folder nor a model" in unknown.stderr
    finally:
        hub.stop()
    again = load(hub, cache)
    assert digest in again.stdout, again.stderr


PUSH = """
import sys
from codeseg import push_to_hub
print(push_to_hub(sys.argv[1], sys.argv[2]))
"""


class TakingHub(Served):
    """What a hub answers to a push: a new repository, how to upload, the commit it keeps."""

    def __init__(self):
        self.files = {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != "Bearer hf_ours":
                    self.answer(401, {"error": "who are you?"})
                elif self.path == "/api/repos/create":
                    self.answer(200, {"url": f"{hub.url}/{REPOSITORY}", "name": REPOSITORY})
                elif self.path == "/api/validate-yaml":
                    self.answer(200, {"errors": [], "warnings": []})
                elif "/preupload/" in self.path:
                    asked = [file["path"] for file in json.loads(body)["files"]]
                    modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False}
                             for p in asked]  # fmt: skip
                    self.answer(200, {"files": modes})
                elif "/commit/" in self.path:
                    for line in body.decode().splitlines():
                        value = json.loads(line)["value"]
                        if "content" in value:
                            hub.files[value["path"]] = base64.b64decode(value["content"])
                    address = f"{hub.url}/{REPOSITORY}/commit/{COMMIT}"
                    self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "success": True})
                else:
                    self.answer(404, {})

            def do_GET(self):
                self.answer(404, {})

            def answer(self, status, value):
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.start(Handler)


@pytest.mark.slow
def test_a_checkpoint_is_pushed_with_a_card_that_names_its_repository(tmp_path, monkeypatch):
    code = CoDe(FrozenClip.load("storybook", "storybook"), CoDeConfig(context_tokens=4))
    folder = tmp_path / "run" / "checkpoints" / "step-000001"
    save_checkpoint(folder, code, {}, version="1", optimizer={"m": torch.zeros(2)}, state={})
    (tmp_path / "run" / "settings.toml").write_text("stride = 24\n")
    hub = TakingHub()
    try:
        monkeypatch.setenv("HF_TOKEN", "hf_ours")
        pushed = load(hub, tmp_path / "cache", folder, REPOSITORY, program=PUSH)
        assert pushed.stdout.strip() == f"{hub.url}/{REPOSITORY}", pushed.stderr
        pushed_files = ["README.md", "config.json", "model.safetensors", "settings.toml"]
        assert sorted(hub.files) == pushed_files and hub.files["settings.toml"] == b"stride = 24\n"
        assert "stride = 24" in hub.files["README.md"].decode()
        assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert f'from_pretrained("{REPOSITORY}")' in hub.files["README.md"].decode()
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        refused = load(hub, tmp_path / "cache", folder, REPOSITORY, program=PUSH)
        assert f"{REPOSITORY} could not be pushed" in refused.stderr
    finally:
        hub.stop()


SEGMENT = """
import sys
import open_clip
open_clip.add_model_config(sys.argv.pop(1))  # a small one by the default's name
from codeseg.stages.cli import main
main()
"""


def small_default(tmp_path):
    """A hub that gives a small CLIP by the default's name; its config is tmp_path/ViT-B-16.json."""
    deep = {**TINY_CLIP["vision_cfg"], "layers": 6}  # as many blocks as scclip reads
    (tmp_path / "ViT-B-16.json").write_text(json.dumps({**TINY_CLIP, "vision_cfg": deep}))
    clip = FrozenClip.load(str(tmp_path / "ViT-B-16.json"), "random:1").clip
    (tmp_path / "hub").mkdir()
    halves = {name: tensor.half() for name, tensor in clip.state_dict().items()}
    save_file(halves, tmp_path / "hub" / "open_clip_model.safetensors")
    return FakeHub(tmp_path / "hub", "timm/vit_base_patch16_clip_224.openai")


@pytest.mark.slow
def test_segment_fetches_its_default_model_once_and_is_offline_afterwards(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    hub = small_default(tmp_path)

    def segment(out, cache):
        words = ["segment", tmp_path / "photo.png", "--text", "dog, red car", "--device", "cpu"]
        done = load(
            hub, tmp_path / cache, tmp_path, *words, "--out", tmp_path / out, program=SEGMENT
        )
        label = tmp_path / out / "photo" / "label.png"
        return done, label.read_bytes() if label.exists() else None

    try:
        first, label = segment("first", "cache")
        assert first.returncode == 0, first.stderr
        assert "fetching ViT-B-16/openai once, " in first.stderr and " MB, into " in first.stderr
        assert hub.fetched == ["open_clip_model.safetensors"]
    finally:
        hub.stop()
    again, same = segment("again", "cache")
    assert again.returncode == 0 and "fetching" not in again.stderr, again.stderr
    assert same == label
    told = json.loads((tmp_path / "again" / "segments.json").read_text())
    assert told["method"] == "scclip" and told["settings"]["background"] == "vabs"
    refused, nothing = segment("refused", "empty")
    assert refused.returncode == 2 and nothing is None
    assert refused.stderr.count("\n") == 1
    assert "--pretrained FILE, or take --clip storybook" in refused.stderr


def test_without_a_way_to_the_hub_its_client_is_offline_for_a_moment(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr("urllib.request.getproxies", dict)
        with hub_or_cache():
            assert not constants.HF_HUB_OFFLINE
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(ValueError, match=r"nor a model on the hub \("):
        locate("nobody/nothing")
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})
    with hub_or_cache():
        assert not constants.HF_HUB_OFFLINE
