"""Fetch, resize and hash the pictures of one shard of URLs with img2dataset, behind our guard.

    urls/NNNNN.parquet -> pairs/NNNNN.parquet (PAIRS): every row, failed ones with their reason

img2dataset's own per-shard code does the work (thread pool, resizer, encoder, hash); only its fetch
function is replaced, and its writer keeps rows in memory instead of a file. A URL that several rows
share is fetched once, and the rows share its picture. Outcomes of an earlier attempt at the shard
with the same settings are kept, which makes `--retry-failed` and a killed commit cheap.
Memory: one shard (about 0.3 GB for 10,000 rows at 256 pixels), the libraries, the waiting bodies
(transfer.py bounds them) and one decoded picture.
"""

import hashlib
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codeseg.model.pictures.pixels import is_plain, rgb_pixels
from codeseg.pipeline.download.addresses import FetchError
from codeseg.pipeline.download.fetch import Fetcher, FetchLimits, address, check_image, is_retryable
from codeseg.pipeline.download.outage import OutageWatch
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import ShardRecord, fingerprint
from codeseg.pipeline.engine.progress import SHARD_ROWS
from codeseg.pipeline.engine.shards import ShardError
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import PAIRS, SHARD_DIGITS

FLOOR_ROWS = 50  # a smaller shard says nothing about the network
GROUP_ROWS = 500  # of a Parquet row group: about 10 MB
GROUP_BYTES = 1 << 30  # of a row group's distinct pictures, if rows share them
ENCODE_QUALITY = 95
RESIZED = ("jpg", "width", "height", "original_width", "original_height")
OUTCOME = ("status", "error", *RESIZED, "sha256")

Outcome = dict[str, Any]
"""The outcome of a picture: the columns OUTCOME of its rows."""
Row = tuple[str | None, str | None, Outcome]  # URL, caption


@dataclass(frozen=True)
class DownloadSettings:
    """The settings of a shard of pairs; those below the comment do not affect its content."""

    image_size: int = 256  # at most this many pixels in the shorter side; the ratio is kept
    encode_quality: int = ENCODE_QUALITY  # JPEG
    max_bytes: int = FetchLimits.max_bytes
    max_pixels: int = FetchLimits.max_pixels
    min_size: int = FetchLimits.min_size
    shard_size: int = 10_000
    # without effect on the content:
    threads: int = 64  # concurrent fetches of a worker
    deadline: float = FetchLimits.deadline  # seconds for one URL
    retries: int = FetchLimits.retries
    success_floor: float = 0.2  # a shard with a smaller share of successes is not committed
    max_pause: float = 1800.0  # seconds to wait while the network is down
    allow_private: bool = False
    retry_failed: bool = False  # retry rows that may succeed now
    workers: int = 1  # of the stage, which share the limits of each host

    def fingerprint(self) -> str:
        """Return the fingerprint of the settings that affect the content."""
        limits = ("max_bytes", "max_pixels", "min_size", "shard_size")
        content = {name: getattr(self, name) for name in ("image_size", "encode_quality", *limits)}
        return fingerprint({**content, "pictures": "upright, over white"})


class DownloadWorker:
    """A ShardWorker that turns a shard of URLs into a shard of pairs."""

    READS: ClassVar[dict[str, tuple[str, ...]]] = {"urls": ("url", "caption")}
    MEMORY: ClassVar[int] = 2_000_000_000

    def __init__(self, root_uri: str, settings: dict[str, Any]) -> None:
        self._root = Storage.open(root_uri)
        self._settings = DownloadSettings(**settings)
        self._shard = 0
        self._outage = OutageWatch(self._announce, self._settings.max_pause)
        shared = {field.name for field in fields(FetchLimits)} & settings.keys()
        limits = FetchLimits(**{name: settings[name] for name in shared})
        self._fetcher = Fetcher(limits, self._outage)
        self._pictures = Pictures(self._settings)

    def process(self, shard: int, input: str) -> ShardRecord:
        """Download the missing pictures, write the shard, commit it.

        Raises:
            ShardError: the share of successes is below the floor, or the network stays down.
        """
        start = perf_counter()
        self._shard = shard
        self._outage.restart()
        table = pq.read_table(self._root.open_input(stage.URLS.path(shard)))
        urls, captions = (table[name].to_pylist() for name in ("url", "caption"))
        addresses = [address(url) for url in urls]
        found = self._earlier(shard)
        todo: dict[object, str | None] = {}
        for place, url in zip(addresses, urls, strict=True):
            if place not in found:
                todo.setdefault(place, url)
        SHARD_ROWS.count(len(urls) - len(todo))
        fresh = self._pictures.download(shard, list(todo.values()), self._fetch)
        found.update(zip(todo, fresh, strict=True))
        if self._outage.gave_up:
            raise ShardError("the network stayed down; nothing of this shard was kept")
        self._check_floor([found[place]["error"] for place in addresses])
        rows = list(zip(urls, captions, [found[place] for place in addresses], strict=True))
        return self._pictures.commit(self._root, shard, input, rows, start)

    def _fetch(self, url: str | None) -> io.BytesIO:
        try:
            if self._outage.gave_up:
                raise FetchError("connection")
            return self._fetcher.open(url)
        finally:
            SHARD_ROWS.count()

    def _announce(self, note: str | None) -> None:
        path = f"ledger/pairs/notes/{self._shard:05d}.txt"
        if note is None:
            self._root.delete(path)
        else:
            self._root.write_atomic(path, note.encode())

    def _earlier(self, shard: int) -> dict[object, Outcome]:
        """Return address -> outcome for the rows of an existing file that need no new attempt."""
        try:
            table = pq.read_table(self._root.open_input(stage.PAIRS.path(shard)))
        except (pa.ArrowException, OSError):
            return {}  # missing or broken: everything is fetched
        if (table.schema.metadata or {}).get(b"settings") != self._settings.fingerprint().encode():
            return {}
        return {
            address(url): outcome
            for url, outcome in zip(
                table["url"].to_pylist(), table.select(OUTCOME).to_pylist(), strict=True
            )
            if not (
                self._settings.retry_failed
                and worth_retrying(outcome["error"], self._settings.allow_private)
            )
        }

    def _check_floor(self, errors: list[str | None]) -> None:
        good = errors.count(None)
        if len(errors) >= FLOOR_ROWS and good < self._settings.success_floor * len(errors):
            worst = Counter(error for error in errors if error).most_common(3)
            counts = ", ".join(f"{reason} {count}" for reason, count in worst)
            raise ShardError(
                f"only {good / len(errors):.1%} of {len(errors)} rows succeeded, under the floor "
                f"of {self._settings.success_floor:.0%} ({counts}); not committed: rerun when the "
                "network works, or lower --success-floor"
            )


class Pictures:
    """img2dataset behind our checks: pictures as served -> OUTCOME of a row of PAIRS."""

    def __init__(self, settings: DownloadSettings) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise its import uses the network
        # the decoder's own limit, in case our header check misreads a format
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(settings.max_pixels)
        import cv2
        import img2dataset.downloader as downloader
        from img2dataset.resizer import Resizer

        self._settings = settings
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

    def download(
        self, shard: int, urls: Sequence[str | None], fetch: Callable[[str | None], io.BytesIO]
    ) -> list[Outcome]:
        """Return the outcome of each distinct URL, by img2dataset's shard downloader.

        `fetch` returns a stream of bytes, which is closed after use, or raises FetchError.
        """
        outcomes = [failed("internal")] * len(urls)  # img2dataset drops a row if it has an error
        if not urls:
            return outcomes

        def open_picture(row: tuple[int, str | None], *_: Any) -> tuple[int, Any, str | None]:
            key, url = row
            try:
                return key, fetch(url), None
            except FetchError as error:
                return key, None, error.reason
            except Exception:  # one that leaves a thread of the pool stops the shard forever
                return key, None, "internal"

        def write(jpg: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
            made = {**meta, "error": meta["error_message"], "jpg": jpg}
            known = {name: made[name] for name in OUTCOME} if jpg else failed(made["error"])
            outcomes[meta["row"]] = known

        # its retry wrapper looks this up as a module global; our fetch retries by itself
        self._downloader.download_image = open_picture
        with tempfile.TemporaryDirectory() as folder:
            feather = Path(folder) / "urls.feather"
            rows = pa.table({"url": pa.array(urls, pa.string()), "row": range(len(urls))})
            with pa.OSFile(str(feather), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as file:
                file.write_table(rows)
            self._downloader.Downloader(
                sample_writer_class=lambda *_: SimpleNamespace(write=write, close=lambda: None),
                resizer=lambda stream, *_: self.resize(stream.getvalue()),
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
                disallowed_header_directives=None,  # our fetch honors X-Robots-Tag
            ).download_shard((shard, str(feather)))
        return outcomes

    def convert(self, content: bytes) -> Outcome:
        """Return the outcome of a picture: checked, resized and encoded."""
        try:
            check_image(content, self._settings.max_pixels, self._settings.min_size)
        except FetchError as error:
            return failed(error.reason)
        *made, reason = self.resize(content)
        if reason:
            return failed(reason)
        values = ("success", None, *made, hashlib.sha256(content).hexdigest())
        return dict(zip(OUTCOME, values, strict=True))

    def resize(self, content: bytes) -> tuple[Any, ...]:
        """Return RESIZED of a picture whose header was checked, and the reason if it failed.

        Pictures that decoders treat differently, or that OpenCV cannot decode, reach the resizer
        upright, in RGB, over white: what `rgb_pixels` reads is what counts.
        """
        made, error = list[Any](), "not plain"
        try:
            if is_plain(content):
                *made, error = self._resizer(io.BytesIO(content))
            if error:
                pixels = rgb_pixels(content, self._settings.max_pixels)
                bmp = self._encode(".bmp", pixels[:, :, ::-1])[1].tobytes()
                *made, error = self._resizer(io.BytesIO(bmp))
        except Exception:  # Pillow raises many kinds
            return (*(None for _ in RESIZED), "undecodable")
        return (*made, error and "undecodable")

    def commit(
        self, root: Storage, shard: int, input: str, rows: Sequence[Row], start: float
    ) -> ShardRecord:
        """Write a shard's rows with their keys, failed ones included; see `stage.commit`."""
        digits, settings = len(str(self._settings.shard_size - 1)), self._settings.fingerprint()
        keyed = [
            {"key": f"{shard:0{SHARD_DIGITS}d}{i:0{digits}d}", "url": url, "caption": text, **made}
            for i, (url, text, made) in enumerate(rows)
        ]
        table = pa.Table.from_pylist(keyed, PAIRS.with_metadata({"settings": settings}))
        return stage.commit(
            root, stage.PAIRS, shard, input, settings, lambda sink: write_pairs(table, sink),
            rows_in=len(rows), rejected=Counter(row["error"] for row in keyed if row["error"]),
            start=start, versions=self.versions,
        )  # fmt: skip


def failed(reason: str) -> Outcome:
    """Return the outcome of a failed picture."""
    return {**dict.fromkeys(OUTCOME), "status": "failed", "error": reason}


def write_pairs(table: pa.Table, sink: pa.NativeFile) -> None:
    """Write a shard of PAIRS; rows of a row group that share a picture store it once."""
    known = table["sha256"].drop_null()
    shared = pc.count_distinct(known).as_py() < len(known)
    pq.write_table(
        table,
        sink,
        row_group_size=GROUP_ROWS,
        compression={name: "NONE" if name == "jpg" else "ZSTD" for name in table.schema.names},
        use_dictionary=["status", "error", *(["jpg"] if shared else [])],
        dictionary_pagesize_limit=GROUP_BYTES,
        write_statistics=["key", "status", "error", "width", "height"],
    )


def worth_retrying(error: str | None, allow_private: bool) -> bool:
    """Return whether `--retry-failed` retries a row: a private address only if allowed now."""
    if error == "private_address":
        return allow_private
    return error is not None and is_retryable(error)
