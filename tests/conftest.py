"""Shared by all tests: child processes find the packages, nothing reaches for the network."""

import http.server
import importlib.util
import io
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

os.environ["PYTHONPATH"] = os.pathsep.join(
    part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part
)
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # else clusters of tests stand still

settings.register_profile("any machine", deadline=None)  # a loaded one is no failure
settings.load_profile("any machine")

NEEDED = {
    "ray": ("deploy/*", "pipeline/download/test_hub_tars.py",
            "stages/test_doctor.py", "pipeline/engine/test_faults.py",
            "pipeline/engine/test_shards.py", "pipeline/download/test_download.py",
            "pipeline/nouns/test_tagger.py", "pipeline/features/*", "pipeline/regions/*",
            "stages/test_demo.py", "stages/test_regions.py", "stages/training/test_regions.py",
            "docs/test_run_pages.py"),
    "spacy": ("stages/test_doctor.py",),
    "duckdb": ("pipeline/audit/*", "pipeline/stream/test_batches.py",
               "pipeline/engine/test_stage.py", "stages/pages/*", "stages/test_terminal.py"),
    "pycurl": ("pipeline/download/test_fetch.py", "pipeline/download/test_tars.py",
               "pipeline/download/test_upright.py"),
    "moto": ("pipeline/engine/test_object_store.py", "pipeline/engine/test_store_faults.py",
             "pipeline/engine/test_full_disk.py", "pipeline/stream/test_remote_stream.py",
             "stages/test_doctor.py"),
    "gradio": ("stages/browser/*", "deploy/test_space.py"),
    "webdataset": ("pipeline/download/test_tars.py",),
    "cv2": ("model/pictures/test_header.py",),
    "onnxruntime": ("stages/test_export.py",),
    "torchmetrics": ("pipeline/benchmark/test_metrics.py", "stages/test_score.py"),
    "check_jsonschema": ("test_repository.py",),
    "build": ("test_package.py",),
    "mkdocs": ("docs/test_site.py",),
    "nbclient": ("docs/test_run_pages.py",),
}  # fmt: skip
"""What a trainer's machine lacks -> the tests that cannot do without it; CI has all of it."""

ABSENT = [module for module in NEEDED if importlib.util.find_spec(module) is None]
collect_ignore_glob = [pattern for module in ABSENT for pattern in NEEDED[module]]


SLOW = {"ray_session", "quick_demo", "store"}
"""Fixtures that start a cluster, the demo or an object store: their tests are marked slow."""


DEMO = ("tests/docs/test_run_pages.py", "tests/stages/test_demo.py")
"""Files whose tests share one run of the quick demo, on one port: they go to one worker."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is slow, and put the files with most of it first, the demo's before all."""
    slow = Counter({ROOT / path: len(items) for path in DEMO})
    for item in items:
        if SLOW.intersection(item.fixturenames):
            item.add_marker("slow")
            shared = "quick_demo" in item.fixturenames
            assert not shared or str(item.path.relative_to(ROOT)) in DEMO, item.path
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each file to one worker, and the demo's files to the same one."""
    from xdist.scheduler import LoadFileScheduling

    class DemoTogether(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "demo" if file in DEMO else file

    return DemoTogether(config, log)


def pytest_report_header():
    """Say which tests are left out, and why."""
    return [f"without {module}, left out: {', '.join(NEEDED[module])}" for module in ABSENT]


class ImageServer:
    """A loopback HTTP server that answers from `pages`: path -> (status, headers, body).

    A page may also be a function of the request handler. `hits` counts requests by path.
    """

    def __init__(self, port=0):
        self.pages = {}
        self.hits = Counter()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                server.hits[path] += 1
                page = server.pages.get(path, (404, {}, b""))
                if callable(page):
                    page(self)
                    return
                status, headers, body = page
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 256

            def handle_error(self, request, client_address):
                pass  # clients that are killed or give up are part of the tests

        self._http = Server(("127.0.0.1", port), Handler)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def add_image(self, path, width=48, height=32, seed=0, image_format="JPEG"):
        """Serve a picture of noise, a pure function of its arguments."""
        pixels = random.Random(seed).randbytes(width * height * 3)
        content = io.BytesIO()
        Image.frombytes("RGB", (width, height), pixels).save(content, image_format)
        self.pages[path] = (200, {}, content.getvalue())
        return self.url + path

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def image_server():
    """A fresh ImageServer, stopped after the test."""
    server = ImageServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for all tests that schedule: starting it costs five seconds."""
    from codeseg.pipeline.engine.cluster import Resources, ray_session

    with ray_session(Resources(workers=2)):
        yield


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory):
    """Return the folder of the quick demo, run once and undisturbed; it must not be changed."""
    folder = tmp_path_factory.mktemp("demo") / "demo-run"
    command = [sys.executable, "-m", "codeseg", "demo", "--quick", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder
