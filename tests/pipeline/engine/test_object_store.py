"""The same contract on an object store (moto on loopback), with its errors injected."""

import io
import socket
import tempfile
import threading
import time
from dataclasses import asdict
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from codeseg.pipeline.download.pairs import DownloadSettings, DownloadWorker
from codeseg.pipeline.download.urls import cut_shards
from codeseg.pipeline.engine import storage
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.overview import read_overview
from codeseg.pipeline.engine.stage import PAIRS, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import parse_manifest


class ObjectStore:
    """A moto server that fails as it is told.

    `fault(method, path)` may return an HTTP status to answer with instead, "close" (no answer),
    "cut" (half of the body announced) or "stall" (an answer after the client's timeout of 3 s).
    """

    def __init__(self):
        self.fault = lambda method, path: None
        inner = DomainDispatcherApplication(create_backend_app)

        def faulty(environ, start_response):
            status = self.fault(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            if status == "close":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return []
            if status == "stall":
                time.sleep(5)
            if status == "cut":
                body = b"".join(inner(environ, start_response))
                return [body[: len(body) // 2]]
            if status in (None, "stall"):
                return inner(environ, start_response)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} injected", [("Content-Length", "0")])
            return [b""]

        self._server = make_server("127.0.0.1", 0, faulty, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.bucket = f"bucket-{uuid4().hex}"  # moto keeps what earlier servers were given
        self.uri = (
            f"s3://{self.bucket}/root?endpoint_override=127.0.0.1:{self._server.port}"
            "&scheme=http&region=us-east-1&allow_bucket_creation=true"
        )

    def stop(self):
        self._server.shutdown()


@pytest.fixture
def store(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ObjectStore()
    Storage.open(server.uri)._filesystem.create_dir(server.bucket)
    yield server
    server.stop()


def test_a_bucket_is_a_folder_like_any_other(store):
    root = Storage.open(store.uri)
    assert not root.is_local and root.free_bytes() is None and root.names("pairs") == []
    info = root.write_atomic("pairs/00001.parquet", b"content")
    root.write_atomic("pairs/00000.parquet", lambda sink: sink.write(b"x" * 100_000))
    assert info.bytes == 7 and root.read_bytes("pairs/00001.parquet") == b"content"
    assert root.names("pairs", ".parquet") == ["00000.parquet", "00001.parquet"]
    assert root.size("pairs/00000.parquet") == 100_000
    root.delete("pairs/00001.parquet")
    root.delete("pairs/00001.parquet")
    assert not root.exists("pairs/00001.parquet")
    with pytest.raises(FileNotFoundError, match=r"s3://bucket.*no file pairs/00001"):
        root.read_bytes("pairs/00001.parquet")


def test_files_are_checked_by_one_listing(store):
    root = Storage.open(store.uri)
    for shard in range(5):
        root.write_atomic(f"nouns/{shard:05d}.parquet", bytes(10))
    files = [{f"nouns/{shard:05d}.parquet": {"bytes": 10}} for shard in range(6)]
    files[1] = {"nouns/00001.parquet": {"bytes": 11}}
    records = {i: ShardRecord("nouns", i, "", "", "", f, 1, 1, {}, 1, 0.1, {})
               for i, f in enumerate(files)}  # fmt: skip
    asked = []
    store.fault = lambda method, path: asked.append(method)
    assert Ledger(root).damaged(records) == [1, 5]
    assert len(asked) <= 2


def test_a_failing_write_uploads_nothing(store):
    root = Storage.open(store.uri)

    def write(sink):
        sink.write(b"half")
        raise ValueError("broken on the way")

    with pytest.raises(ValueError, match="broken on the way"):
        root.write_atomic("pairs/00000.parquet", write)
    assert root.names("pairs") == []


def prepare(tmp_path, root, urls):
    listed = tmp_path / "l.tsv"
    listed.write_text("".join(f"caption {i}\t{url}\n" for i, url in enumerate(urls)))
    text = b'name="t"\ntitle="T"\nurl_list="l"\nformat="tsv"\nheader=false'
    manifest = parse_manifest(text + b'\ncolumns=["caption","url"]', "t")
    return cut_shards(manifest, str(listed), root, 4, None)


def download(root, inputs):
    settings = asdict(DownloadSettings(shard_size=4, threads=2, allow_private=True, retries=0))
    worker = DownloadWorker(root.uri, settings)
    return [worker.process(shard, record.output) for shard, record in inputs.items()]


def test_download_to_a_bucket_gives_the_bytes_it_gives_on_a_disk(store, tmp_path, image_server):
    urls = [image_server.add_image(f"/{i}.jpg", 300, 280, seed=i) for i in range(6)]
    local, remote = Storage.open(tmp_path / "local"), Storage.open(store.uri)
    on_disk = download(local, prepare(tmp_path, local, urls))
    in_bucket = download(remote, prepare(tmp_path, remote, urls))
    assert [r.output for r in on_disk] == [r.output for r in in_bucket]
    table = pq.read_table(remote.open_input("pairs/00001.parquet"), columns=["key", "status"])
    assert table["key"].to_pylist() == ["000010", "000011"]
    views = {view.stage: view for view in read_overview(remote)}
    assert views["pairs"].current == [0, 1]


@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_store_that_refuses_writes_leaves_nothing_that_looks_done(
    store, tmp_path, image_server, status
):
    urls = [image_server.add_image(f"/{i}.jpg") for i in range(4)]
    root = Storage.open(store.uri)
    inputs = prepare(tmp_path, root, urls)
    store.fault = lambda method, path: status if method in ("PUT", "POST") else None
    with pytest.raises(OSError, match=r".+"):
        download(root, inputs)
    store.fault = lambda method, path: None
    todo = state(root, PAIRS, settings=DownloadSettings().fingerprint())
    assert todo.missing == [0]
    [record] = download(root, inputs)
    assert root.size("pairs/00000.parquet") == record.bytes


def test_a_record_that_could_not_be_written_leaves_the_shard_undone(store, tmp_path, image_server):
    urls = [image_server.add_image(f"/{i}.jpg") for i in range(4)]
    root = Storage.open(store.uri)
    inputs = prepare(tmp_path, root, urls)
    store.fault = lambda m, path: 500 if m in ("PUT", "POST") and "ledger" in path else None
    with pytest.raises(OSError, match=r".+"):
        download(root, inputs)
    store.fault = lambda method, path: None
    assert root.names("pairs") == ["00000.parquet"] and Ledger(root).records("pairs") == {}
    image_server.hits.clear()
    [record] = download(root, inputs)
    assert not image_server.hits, "the shard was there already"
    assert Ledger(root).records("pairs") == {0: record}


def test_errors_that_pass_are_ridden_out(store):
    root = Storage.open(store.uri)
    calls = []

    def every_other(method, path):
        calls.append(method)
        return 503 if len(calls) % 2 else None

    store.fault = every_other
    for i in range(3):
        root.write_atomic(f"pairs/{i}", b"content")
    assert [root.read_bytes(f"pairs/{i}") for i in range(3)] == [b"content"] * 3
    assert len(calls) > 6


def test_an_upload_that_fails_on_our_side_leaves_no_cut_object(store, monkeypatch):
    root = Storage.open(store.uri)
    monkeypatch.setattr(storage, "COPY_BYTES", 10)

    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(tempfile, "TemporaryFile", Broken)
    with pytest.raises(OSError, match="Input/output"):
        root.write_atomic("pairs/00000.parquet", bytes(100))
    assert root.size("pairs/00000.parquet") is None
