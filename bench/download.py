"""Our download of one shard against bare img2dataset on the same URLs, in one run.

    python -m bench.download [--images 2000] [--rounds 3] [--threads 32]

A server process on loopback serves mixed pictures (JPEG, PNG, many sizes; a tenth are missing or
broken). Bare is img2dataset's Downloader, resizer and Parquet writer as its own worker runs them.
Ours is DownloadWorker.process, which adds the guard (address check, header check, caps, deadline),
row order, hashing of the file, fsync and the ledger record. Rounds alternate; the best of each
counts, in wall and in CPU seconds. The exit code is 1 if the wall ratio is under 0.95.
"""

import argparse
import http.server
import io
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from codeseg.pipeline.download.pairs import DownloadSettings, DownloadWorker
from codeseg.pipeline.download.urls import cut_shards
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import parse_manifest

TARGET = 0.95
KINDS = 40  # distinct pages; further URLs repeat them
MANIFEST = (
    b'name="b"\ntitle="B"\nurl_list="l"\nformat="tsv"\nheader=false\ncolumns=["caption","url"]'
)


def make_pages() -> list[bytes | None]:
    """Return pages like those on the web: smooth pictures of 200 to 1600 pixels; None is a 404."""
    pages: list[bytes | None] = []
    generator = np.random.default_rng(0)
    for kind in range(KINDS):
        if kind % 20 == 7:
            pages.append(None)
        elif kind % 20 == 13:
            pages.append(b"<html>gone</html>")
        else:
            width, height = (int(x) for x in generator.integers(200, 1600, 2))
            coarse = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            content = io.BytesIO()
            image.save(content, "PNG" if kind % 8 == 3 else "JPEG", quality=88)
            pages.append(content.getvalue())
    return pages


def serve(port: Any) -> None:
    """Serve the pages, in a separate process."""
    pages = make_pages()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages[int(self.path[1:]) % KINDS]
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, format: str, *args: Any) -> None:
            return

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 512

    server = Server(("127.0.0.1", 0), Handler)
    port.value = server.server_address[1]
    server.serve_forever()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall seconds and CPU seconds of this process, which excludes the server."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def bare(folder: Path, urls: list[str], settings: DownloadSettings) -> tuple[float, float]:
    """Return the seconds of img2dataset's own shard: fetch, resize, encode, Parquet."""
    import img2dataset.downloader as downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import ParquetSampleWriter

    downloader.download_image = ORIGINAL["download_image"]
    feather = folder / "urls.feather"
    captions = [f"caption {i}" for i in range(len(urls))]
    table = pa.table({"url": urls, "caption": captions})
    with pa.OSFile(str(feather), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    resizer = Resizer(
        settings.image_size, "keep_ratio", True, encode_quality=settings.encode_quality
    )
    run = downloader.Downloader(
        ParquetSampleWriter, resizer, settings.threads, True, False, str(folder),
        ["url", "caption"], settings.deadline, settings.shard_size, 5, "sha256", None, "jpg", 0,
        None, ["noai", "noimageai", "noindex", "noimageindex"],
    )  # fmt: skip
    return timed(lambda: run.download_shard((0, str(feather))))


def ours(folder: Path, urls: list[str], settings: DownloadSettings) -> tuple[float, float]:
    """Return the seconds of our shard, including the commit."""
    (folder / "l.tsv").write_text("".join(f"caption {i}\t{u}\n" for i, u in enumerate(urls)))
    root = Storage.open(folder / "root")
    manifest = parse_manifest(MANIFEST, "bench")
    cut = cut_shards(manifest, str(folder / "l.tsv"), root, settings.shard_size, None)
    worker = DownloadWorker(root.uri, asdict(settings))
    seconds = timed(lambda: worker.process(0, cut[0].output))
    assert 0 in Ledger(root).records("pairs")
    return seconds


ORIGINAL: dict[str, Any] = {}


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=32)
    arguments = parser.parse_args()
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import img2dataset.downloader as downloader

    ORIGINAL["download_image"] = downloader.download_image
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    while port.value == 0:
        time.sleep(0.1)
    urls = [f"http://127.0.0.1:{port.value}/{i}" for i in range(arguments.images)]
    random.Random(0).shuffle(urls)
    settings = DownloadSettings(
        shard_size=arguments.images, threads=arguments.threads, allow_private=True, retries=0
    )
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for _ in range(arguments.rounds):
        for name, run in (("bare", bare), ("ours", ours)):
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(run(Path(folder), urls, settings))
    server.terminate()
    print(f"all rounds, seconds (wall, CPU): {seconds}")
    ratios = []
    for place, clock in enumerate(("wall", "CPU")):
        best = {name: min(times[place] for times in rounds) for name, rounds in seconds.items()}
        ratios.append(best["bare"] / best["ours"])
        rates = ", ".join(f"{name} {arguments.images / taken:.0f}" for name, taken in best.items())
        print(f"rows per {clock} second: {rates}; ratio {ratios[-1]:.2f} (at least {TARGET})")
    sys.exit(ratios[0] < TARGET)


if __name__ == "__main__":
    main()
