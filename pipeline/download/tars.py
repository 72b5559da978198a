"""Ready-made webdataset tars as a source of pairs: TAR/*.tar -> pairs/NNNNN.parquet (PAIRS).

Tar i in the order of names is shard i. A sample is the files of one folder and base name: an image
(.jpg, .png, .webp), its caption (.txt, or "caption" in .json) and, in .json, its "url". Images go
through the same header check, resizer and encoder as downloaded ones.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import pyarrow as pa

from codeseg.pipeline.download.addresses import FetchError
from codeseg.pipeline.download.pairs import (
    DownloadSettings,
    Img2dataset,
    commit_pairs,
    empty_row,
)
from codeseg.pipeline.download.urls import check_count
from codeseg.pipeline.engine.ledger import ShardRecord, fingerprint
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import PAIRS

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
TEXT_BYTES = 1 << 20  # a longer caption is none
BUFFER_BYTES = 1 << 20


@dataclass
class Sample:
    """One base name of a tar."""

    name: str  # with its folder, where it has one
    image: bytes | None = None
    caption: str | None = None
    url: str | None = None
    fault: str | None = None  # why it cannot be used, where that shows before it is read


def list_tars(place: str) -> dict[int, str]:
    """Number the tars of a folder.

    Returns:
        shard -> name, in the order of names.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when there are more than shards may be.
    """
    names = Storage.open(place).names("", ".tar")
    if not names:
        raise FileNotFoundError(f"no .tar files in {place}: name the folder with --urls FOLDER")
    check_count(len(names), "pack the pairs into fewer tars")
    return dict(enumerate(names))


def tar_inputs(place: str, names: dict[int, str]) -> dict[int, str]:
    """Fingerprint of every tar: its name and size, for tars are written once."""
    sizes = Storage.open(place).sizes("")
    return {shard: fingerprint([name, sizes[name]]) for shard, name in names.items()}


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
            samples = read_samples(source, name, self._settings.max_bytes)
            for row, sample in enumerate(samples):
                if row >= self._settings.shard_size:
                    raise ValueError(f"{name} holds more samples than --shard-size")
                url = sample.url or f"{name}#{_sound(sample.name)}"
                empty = empty_row(shard, row, self._settings.shard_size, url, sample.caption)
                rows.append({**empty, **self._outcome(sample)})
        return commit_pairs(
            self._root, self._settings, shard, input, rows, start, self._machinery.versions
        )

    def _outcome(self, sample: Sample) -> dict[str, Any]:
        if sample.image is None or sample.fault:
            return {"error": sample.fault or "no_image"}
        try:
            return self._machinery.convert(sample.image)
        except FetchError as error:
            return {"error": error.reason}


def read_samples(source: pa.NativeFile, name: str, max_bytes: int) -> Iterator[Sample]:
    """Samples of a tar in its order; files of one sample lie next to each other.

    Args:
        source: the tar, not compressed.
        name: of the tar, for messages.
        max_bytes: of an image; a larger one is not read.

    Raises:
        ValueError: naming the tar when it is broken or cut.
        OSError: the storage failed, which says nothing about the tar.
    """
    current: Sample | None = None
    size = source.size()
    # buffered, so that an object store is not asked for every header; names are compared as they
    # are, so that two that are no UTF-8 stay two
    buffered = io.BufferedReader(source, BUFFER_BYTES)
    try:
        with tarfile.open(fileobj=buffered, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                _check_member(member, size)
                folder, _, file = member.name.removeprefix("./").rpartition("/")
                base, _, ending = file.partition(".")
                if not member.isfile() or not base:
                    continue
                base = f"{folder}/{base}" if folder else base
                if current is None or current.name != base:
                    if current is not None:
                        yield current
                    current = Sample(base)
                _add(current, ending.lower(), tar, member, max_bytes)
            _check_end(buffered, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name} is a broken tar: {error}") from None
    if current is not None:
        yield current


def _check_member(member: tarfile.TarInfo, size: int) -> None:
    if member.issparse():  # a few bytes here could be gigabytes when read
        raise tarfile.ReadError(f"{_sound(member.name)} is stored as a sparse file")
    if member.isfile() and not 0 <= member.size <= size - member.offset_data:
        raise tarfile.ReadError(f"it ends in {_sound(member.name)}")


def _check_end(source: io.BufferedReader, offset: int) -> None:
    """A whole tar ends in zeros; tarfile takes a damaged or missing header for the end, too."""
    source.seek(offset)
    rest = source.read(BUFFER_BYTES)
    if len(rest) < tarfile.BLOCKSIZE or rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise tarfile.ReadError("no end marker, so it is cut or damaged")
    if rest.strip(b"\0"):
        raise tarfile.ReadError("something follows its end marker")


def _add(
    sample: Sample, ending: str, tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int
) -> None:
    """Take what a file says of its sample; other endings and larger files are not read."""
    if ending not in (*IMAGES, *TEXTS):
        return
    if member.size > (max_bytes if ending in IMAGES else TEXT_BYTES):
        sample.fault = "too_large" if ending in IMAGES else "caption_too_large"
        return
    file = tar.extractfile(member)
    assert file is not None, "a regular file"
    content = file.read()
    if ending in IMAGES:
        sample.image = content
    elif ending == "txt":
        sample.caption = content.decode(errors="replace")
    else:
        try:
            facts = json.loads(content)
        except (ValueError, RecursionError):
            return  # the caption may still be in .txt
        if isinstance(facts, dict):
            sample.caption = sample.caption or _text(facts.get("caption"))
            sample.url = _text(facts.get("url"))


def _text(value: Any) -> str | None:
    return _sound(value) if isinstance(value, str) else None


def _sound(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair, as JSON may escape it, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
