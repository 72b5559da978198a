"""Fetch, resize and hash the images of one shard of URLs with img2dataset, behind our guard.

    urls/NNNNN.parquet -> pairs/NNNNN.parquet (PAIRS): every row, failed ones with their reason

img2dataset's own per-shard machinery does the work (thread pool, resizer, encoder, hash); only its
fetch function is replaced, and its writer keeps rows in memory instead of a file. Rows of an
earlier attempt at the same URL with the same settings are kept: that makes `--retry-failed` and a
killed commit cheap. Memory: one shard (about 0.3 GB for 10,000 rows at 256 pixels), the libraries,
the bodies that wait (transfer.py bounds them) and one picture that is decoded.
"""

import hashlib
import io
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from codeseg.model.pictures.pixels import is_plain, rgb_pixels
from codeseg.pipeline.download.addresses import FetchError
from codeseg.pipeline.download.fetch import Fetcher, FetchLimits, check_image, is_retryable
from codeseg.pipeline.download.outage import OutageWatch
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import ShardRecord, fingerprint
from codeseg.pipeline.engine.progress import SHARD_ROWS
from codeseg.pipeline.engine.shards import ShardError
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import PAIRS, SHARD_DIGITS

FLOOR_ROWS = 50  # a shard with fewer rows says nothing about the network
GROUP_ROWS = 500  # of a Parquet row group: about 10 MB
ENCODE_QUALITY = 95


@dataclass(frozen=True)
class DownloadSettings:
    """What decides the content of a shard of pairs; the fields below the line do not."""

    image_size: int = 256  # pixels: a larger shorter side is reduced to it, keeping the ratio
    encode_quality: int = ENCODE_QUALITY  # JPEG
    max_bytes: int = FetchLimits.max_bytes
    max_pixels: int = FetchLimits.max_pixels
    min_size: int = FetchLimits.min_size
    shard_size: int = 10_000
    # how the work is done:
    threads: int = 64  # concurrent fetches of a worker
    deadline: float = FetchLimits.deadline  # seconds for one URL
    retries: int = FetchLimits.retries
    success_floor: float = 0.2  # a shard with a smaller share of successes is not committed
    max_pause: float = 1800.0  # seconds to wait for a network that is down
    allow_private: bool = False
    retry_failed: bool = False  # rows whose earlier failure is worth another try are tried again
    workers: int = 1  # of the stage, which share the limits of each host

    def fingerprint(self) -> str:
        """Of what decides the content."""
        limits = ("max_bytes", "max_pixels", "min_size")
        names = ("image_size", "encode_quality", *limits, "shard_size")
        content = {name: getattr(self, name) for name in names}
        return fingerprint({**content, "pictures": "upright, over white"})


class DownloadWorker:
    """A ShardWorker that turns a shard of URLs into a shard of pairs."""

    READS: ClassVar[dict[str, tuple[str, ...]]] = {"urls": ("url", "caption")}
    ADDS: ClassVar[dict[str, tuple[str, ...]]] = {"pairs": tuple(PAIRS.names)}
    MEMORY: ClassVar[int] = 2_000_000_000

    def __init__(self, root_uri: str, settings: dict[str, Any]) -> None:
        """Import img2dataset and put the guarded fetch in its place."""
        self._root = Storage.open(root_uri)
        self._settings = DownloadSettings(**settings)
        self._shard = 0
        self._outage = OutageWatch(self._announce, self._settings.max_pause)
        limits = FetchLimits(
            deadline=self._settings.deadline,
            max_bytes=self._settings.max_bytes,
            max_pixels=self._settings.max_pixels,
            min_size=self._settings.min_size,
            retries=self._settings.retries,
            allow_private=self._settings.allow_private,
            workers=self._settings.workers,
        )
        self._fetcher = Fetcher(limits, self._outage)
        self._machinery = Img2dataset(self._settings, self._fetch)

    def process(self, shard: int, input: str) -> ShardRecord:
        """Download what is not there yet, write the shard, commit it.

        Raises:
            ShardError: when the success is under the floor or the network stays down.
        """
        start = perf_counter()
        self._shard = shard
        self._outage.restart()
        urls = pq.read_table(self._root.open_input(stage.URLS.path(shard)))
        kept = self._earlier_rows(shard, urls)
        todo = [row for row in range(len(urls)) if row not in kept]
        fresh = self._machinery.run(shard, urls, todo)
        if self._outage.gave_up:
            raise ShardError("the network stayed down; nothing of this shard was kept")
        rows = [kept.get(row) or fresh[row] for row in range(len(urls))]
        self._check_floor(rows)
        return commit_pairs(
            self._root, self._settings, shard, input, rows, start, self._machinery.versions
        )

    def _fetch(self, url: str | None) -> io.BytesIO:
        if self._outage.gave_up:
            raise FetchError("connection")
        try:
            return self._fetcher.open(url)
        finally:
            SHARD_ROWS.count()

    def _announce(self, note: str | None) -> None:
        path = f"ledger/pairs/notes/{self._shard:05d}.txt"
        if note is None:
            self._root.delete(path)
        else:
            self._root.write_atomic(path, note.encode())

    def _earlier_rows(self, shard: int, urls: pa.Table) -> dict[int, dict[str, Any]]:
        """Rows of the shard's file, if there is one, that need no new attempt; by row number."""
        path = stage.PAIRS.path(shard)
        if not self._root.exists(path):
            return {}
        try:
            table = pq.read_table(self._root.open_input(path))
        except (pa.ArrowException, OSError):
            return {}  # broken: everything is fetched again
        if (table.schema.metadata or {}).get(b"settings") != self._settings.fingerprint().encode():
            return {}
        wanted = dict(
            enumerate(zip(*(urls[c].to_pylist() for c in ("url", "caption")), strict=True))
        )
        return {
            row: values
            for row, values in enumerate(table.to_pylist())
            if wanted.get(row) == (values["url"], values["caption"])
            and not (self._settings.retry_failed and self._worth_retrying(values["error"]))
        }

    def _worth_retrying(self, error: str | None) -> bool:
        return error is not None and worth_retrying(error, self._settings.allow_private)

    def _check_floor(self, rows: list[dict[str, Any]]) -> None:
        good = sum(row["error"] is None for row in rows)
        if len(rows) >= FLOOR_ROWS and good < self._settings.success_floor * len(rows):
            worst = Counter(row["error"] for row in rows if row["error"]).most_common(3)
            raise ShardError(
                f"only {good / len(rows):.1%} of {len(rows)} rows succeeded, under the floor of "
                f"{self._settings.success_floor:.0%} ({_counts(worst)}); not committed: rerun "
                "when the network works, or lower --success-floor"
            )


class Img2dataset:
    """img2dataset's per-shard machinery with another fetch function, kept in memory."""

    def __init__(self, settings: DownloadSettings, fetch: Any) -> None:
        """Import it; slow (4 s), so once a worker.

        Args:
            settings: size, quality, threads.
            fetch: url -> stream of bytes, closed when they are used, or raises FetchError.
        """
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import asks the network otherwise
        # the decoder's own limit, behind ours: it must hold for formats our header check misreads
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(settings.max_pixels)
        import cv2
        import img2dataset.downloader as downloader
        from img2dataset.resizer import Resizer

        self._settings = settings
        self._fetch = fetch
        self._downloader = downloader
        self._encode = cv2.imencode
        self._resizer = Resizer(
            image_size=settings.image_size,
            resize_mode="keep_ratio",
            resize_only_if_bigger=True,
            encode_quality=settings.encode_quality,
            encode_format="jpg",
            max_image_area=settings.max_pixels,
        )
        self.versions = {
            "img2dataset": version("img2dataset"),
            "opencv": cv2.__version__,
            "pyarrow": pa.__version__,
        }

    def run(self, shard: int, urls: pa.Table, todo: list[int]) -> dict[int, dict[str, Any]]:
        """Download some rows of a shard.

        Args:
            shard: its number, the first digits of every key.
            urls: url, caption of the whole shard.
            todo: row numbers to download.

        Returns:
            Row number -> a row of PAIRS, for each of `todo`.
        """
        size = self._settings.shard_size
        rows = {r: empty_row(shard, r, size, url, text) for r, url, text in _take(urls, todo)}
        if not todo:
            return rows
        written: list[dict[str, Any]] = []
        # looked up as a module global by its retry wrapper; our fetch retries by itself
        self._downloader.download_image = self._download_image
        with tempfile.TemporaryDirectory() as folder:
            feather = Path(folder) / "urls.feather"
            table = pa.table({"url": urls["url"].take(pa.array(todo)), "row": pa.array(todo)})
            with pa.OSFile(str(feather), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
                file.write_table(table)
            self._make_downloader(folder, written).download_shard((shard, str(feather)))
        for sample in written:
            rows[sample["row"]].update(_outcome(sample))
        return rows

    def _make_downloader(self, folder: str, written: list[dict[str, Any]]) -> Any:
        return self._downloader.Downloader(
            sample_writer_class=lambda *_: _ListWriter(written),
            resizer=self._resize,
            thread_count=self._settings.threads,
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=["url", "row"],
            timeout=self._settings.deadline,
            number_sample_per_shard=self._settings.shard_size,
            oom_shard_count=SHARD_DIGITS,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,  # our fetch honours X-Robots-Tag
        )

    def _download_image(self, row: tuple[int, str | None], *_: Any) -> tuple[int, Any, str | None]:
        """img2dataset's fetch function: (key, url) -> (key, stream or None, error or None)."""
        key, url = row
        try:
            return key, self._fetch(url), None
        except FetchError as error:
            return key, None, error.reason
        except Exception:  # one that leaves a thread of img2dataset's pool stops the shard for ever
            return key, None, "internal"

    def _resize(self, stream: io.BytesIO, *_: Any) -> tuple[Any, ...]:
        """img2dataset's resizer; what decoders take differently reaches it upright, over white."""
        content = stream.getvalue()
        try:
            if not is_plain(content):
                pixels = rgb_pixels(content, self._settings.max_pixels)
                content = self._encode(".bmp", pixels[:, :, ::-1])[1].tobytes()
        except Exception as error:  # Pillow raises many kinds
            return (None,) * 5 + (str(error),)
        result: tuple[Any, ...] = self._resizer(io.BytesIO(content))
        return result

    def convert(self, content: bytes) -> dict[str, Any]:
        """Check, resize and encode one image that is at hand; the outcome's columns of PAIRS.

        Raises:
            FetchError: when its header says it is no image, or none that may be decoded.
        """
        check_image(content, self._settings.max_pixels, self._settings.min_size)
        names = ("jpg", "width", "height", "original_width", "original_height", "error_message")
        sample = dict(zip(names, self._resize(io.BytesIO(content)), strict=True))
        sample["status"] = "failed_to_resize" if sample["error_message"] else "success"
        return _outcome({**sample, "sha256": hashlib.sha256(content).hexdigest()})


class _ListWriter:
    """An img2dataset sample writer that keeps the samples."""

    def __init__(self, written: list[dict[str, Any]]) -> None:
        self._written = written

    def write(self, img: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        self._written.append({**meta, "jpg": img})

    def close(self) -> None:
        return


def commit_pairs(
    root: Storage,
    settings: DownloadSettings,
    shard: int,
    input: str,
    rows: list[dict[str, Any]],
    start: float,
    versions: dict[str, str],
) -> ShardRecord:
    """Write a shard's rows of PAIRS and commit it.

    Args:
        root: of the dataset.
        settings: whose fingerprint the shard carries.
        shard: its number.
        input: fingerprint of what it was made from.
        rows: in order, failed ones included.
        start: when the work began, on time.perf_counter()'s clock.
        versions: of the libraries that made it.
    """
    table = pa.Table.from_pylist(rows, PAIRS.with_metadata({"settings": settings.fingerprint()}))
    return stage.commit(
        root, stage.PAIRS, shard, input, settings.fingerprint(),
        lambda sink: write_pairs(table, sink),
        rows_in=len(rows), rejected=Counter(row["error"] for row in rows if row["error"]),
        start=start, versions=versions,
    )  # fmt: skip


def empty_row(
    shard: int, row: int, shard_size: int, url: str | None, caption: str | None
) -> dict[str, Any]:
    """A failed row until its outcome is known: img2dataset drops a row that it trips over."""
    key = f"{shard:0{SHARD_DIGITS}d}{row:0{len(str(shard_size - 1))}d}"
    known = {"key": key, "url": url, "caption": caption}
    return {**dict.fromkeys(PAIRS.names), **known, "status": "failed", "error": "internal"}


def write_pairs(table: pa.Table, sink: pa.NativeFile) -> None:
    """Write a shard of PAIRS; the same table gives the same bytes."""
    pq.write_table(
        table,
        sink,
        row_group_size=GROUP_ROWS,
        compression={name: "NONE" if name == "jpg" else "ZSTD" for name in table.schema.names},
        use_dictionary=["status", "error"],
        write_statistics=["key", "status", "error", "width", "height"],
    )


def worth_retrying(error: str, allow_private: bool) -> bool:
    """Return whether `--retry-failed` retries a row; a private address only if allowed now."""
    return is_retryable(error) or (allow_private and error == "private_address")


def _outcome(sample: dict[str, Any]) -> dict[str, Any]:
    """Return img2dataset's columns as ours."""
    if sample["status"] == "success":
        sizes = ("width", "height", "original_width", "original_height", "sha256", "jpg")
        return {"status": "success", "error": None, **{name: sample[name] for name in sizes}}
    message = sample["error_message"]
    if sample["status"] == "failed_to_resize":
        message = "bomb" if message == "image area too large" else "undecodable"
    return {"status": "failed", "error": message}


def _take(urls: pa.Table, rows: list[int]) -> Any:
    taken = urls.take(pa.array(rows, pa.int64()))
    return zip(rows, taken["url"].to_pylist(), taken["caption"].to_pylist(), strict=True)


def _counts(pairs: list[tuple[str, int]]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in pairs)
