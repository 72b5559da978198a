"""Ready tars on the Hugging Face hub as a source of pairs: the hub's client, a hub of our own."""

import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading

import pyarrow.parquet as pq
import pytest
from PIL import Image

REPOSITORY, COMMIT = "pixparse/cc3m-wds", "0123456789abcdef0123456789abcdef01234567"


def tar_of(captions):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, caption in captions.items():
            picture = io.BytesIO()
            Image.new("RGB", (64, 48), (len(caption), 60, 90)).save(picture, "JPEG")
            for ending, data in (("jpg", picture.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def hub():
    """A hub with two tars that answers only who brings the token; `fetched` names the tars read."""
    files = {
        "cc3m-train-0000.tar": tar_of({"00": "a red car", "01": "a dog on grass"}),
        "cc3m-train-0001.tar": tar_of({"02": "two boats at sea"}),
        "_info.json": b"{}",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, dataset = self.path.partition("?")[0], f"/api/datasets/{REPOSITORY}"
            name = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/main/")
            if self.headers.get("Authorization") != "Bearer hf_ours":
                self.answer(401, b"{}")
            elif path.startswith(f"{dataset}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
                    for name, body in files.items()
                ]
                self.answer(200, json.dumps(tree).encode())
            elif path.startswith(dataset):
                facts = {"id": REPOSITORY, "sha": COMMIT, "siblings": [], "tags": []}
                self.answer(200, json.dumps(facts).encode())
            elif name in files:
                server.fetched.append(name)
                self.answer(200, files[name])
            else:
                self.answer(404, b"{}")

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.fetched = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def download(hub, root, cache, token):
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "codeseg", "download", "cc3m", str(root),
         "--urls", f"hf://datasets/{REPOSITORY}", "--shard-size", "10", "--workers", "1"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_hubs_tars_become_pairs_by_shard_and_are_read_once(hub, tmp_path):
    root, cache = tmp_path / "root", tmp_path / "cache"
    done = download(hub, root, cache, "hf_ours")
    assert done.returncode == 0, done.stdout + done.stderr
    captions = [
        pq.read_table(root / f"pairs/0000{shard}.parquet")["caption"].to_pylist()
        for shard in (0, 1)
    ]
    assert captions == [["a red car", "a dog on grass"], ["two boats at sea"]]
    assert {name for name in hub.fetched if name.endswith(".tar")} == {
        "cc3m-train-0000.tar", "cc3m-train-0001.tar",
    }  # fmt: skip
    assert not [path for path in cache.rglob("*") if path.suffix == ".tar"]
    hub.fetched.clear()
    (root / "ledger/pairs/00001.json").unlink()
    assert download(hub, root, cache, "hf_ours").returncode == 0
    assert set(hub.fetched) == {"cc3m-train-0001.tar"}


@pytest.mark.slow
def test_a_hub_that_refuses_us_is_one_line(hub, tmp_path):
    done = download(hub, tmp_path / "root", tmp_path / "cache", "hf_other")
    assert done.returncode in (1, 2)
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
