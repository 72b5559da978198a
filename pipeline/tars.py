"""Ready-made webdataset tars as a source of pairs: TAR/*.tar -> pairs/NNNNN.parquet (PAIRS).

Tar i in the order of names is shard i. A sample is the files of one base name: an image (.jpg,
.png, .webp), its caption (.txt, or "caption" in .json) and, in .json, its "url". Images go through
the same header check, resizer and encoder as downloaded ones.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.download import (
    DownloadSettings,
    Img2dataset,
    commit_pairs,
    empty_row,
)
from pipeline.fetch import FetchError
from pipeline.ledger import Ledger, ShardRecord, fingerprint
from pipeline.schema import PAIRS
from pipeline.storage import Storage

IMAGES = ("jpg", "jpeg", "png", "webp")


@dataclass
class Sample:
    """One base name of a tar."""

    name: str
    image: bytes | None = None
    caption: str | None = None
    url: str | None = None


def list_tars(place: str) -> dict[int, str]:
    """Number the tars of a folder.

    Returns:
        shard -> name, in the order of names.

    Raises:
        FileNotFoundError: when there is none.
    """
    names = Storage.open(place).names("", ".tar")
    if not names:
        raise FileNotFoundError(f"no .tar files in {place}: name the folder with --urls FOLDER")
    return dict(enumerate(names))


def tar_inputs(place: str, names: dict[int, str]) -> dict[int, str]:
    """Fingerprint of every tar: its name and size, for tars are written once."""
    folder = Storage.open(place)
    return {shard: fingerprint([name, folder.size(name)]) for shard, name in names.items()}


class TarWorker:
    """A ShardWorker that turns a tar into a shard of pairs."""

    READS: ClassVar[dict[str, tuple[str, ...]]] = {}
    ADDS: ClassVar[dict[str, tuple[str, ...]]] = {"pairs": tuple(PAIRS.names)}
    MEMORY: ClassVar[int] = 2_000_000_000

    def __init__(self, root_uri: str, settings: dict[str, Any]) -> None:
        """Open the folder of tars and the resizer.

        Args:
            root_uri: of the dataset.
            settings: {"place": folder, "names": {shard: name}, "download": DownloadSettings}.
        """
        self._root = Storage.open(root_uri)
        self._tars = Storage.open(settings["place"])
        self._names: dict[int, str] = settings["names"]
        self._settings = DownloadSettings(**settings["download"])
        self._machinery = Img2dataset(self._settings, fetch=None)

    def process(self, shard: int, input: str) -> ShardRecord:
        """Convert the tar, write the shard, commit it.

        Raises:
            ValueError: when the tar is broken or holds more samples than a shard may.
        """
        start = perf_counter()
        name = self._names[shard]
        rows = []
        with self._tars.open_input(name, mapped=False) as source:
            for row, sample in enumerate(read_samples(source, name)):
                if row >= self._settings.shard_size:
                    raise ValueError(f"{name} holds more samples than --shard-size")
                url = sample.url or f"{name}#{sample.name}"
                empty = empty_row(shard, row, self._settings.shard_size, url, sample.caption)
                rows.append({**empty, **self._outcome(sample)})
        return commit_pairs(
            self._root, Ledger(self._root), self._settings, shard, input, rows, start,
            self._machinery.versions,
        )  # fmt: skip

    def _outcome(self, sample: Sample) -> dict[str, Any]:
        if sample.image is None:
            return {"error": "no_image"}
        try:
            return self._machinery.convert(sample.image)
        except FetchError as error:
            return {"error": error.reason}


def read_samples(source: pa.NativeFile, name: str) -> Iterator[Sample]:
    """Samples of a tar, streamed; files of one sample lie next to each other.

    Raises:
        ValueError: naming the tar when it is broken.
    """
    current: Sample | None = None
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                base, _, ending = member.name.rpartition("/")[2].partition(".")
                if current is None or current.name != base:
                    if current is not None:
                        yield current
                    current = Sample(base)
                content = tar.extractfile(member)
                assert content is not None, "a regular file"
                _add(current, ending.lower(), content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{name} is a broken tar: {error}") from None
    if current is not None:
        yield current


def _add(sample: Sample, ending: str, content: bytes) -> None:
    if ending in IMAGES:
        sample.image = content
    elif ending == "txt":
        sample.caption = content.decode(errors="replace")
    elif ending == "json":
        try:
            facts = json.load(io.BytesIO(content))
        except ValueError:
            return  # the caption may still be in .txt
        if isinstance(facts, dict):
            sample.caption = sample.caption or _text(facts.get("caption"))
            sample.url = _text(facts.get("url"))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
