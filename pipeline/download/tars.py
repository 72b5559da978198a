"""Ready-made webdataset tars as a source of pairs: TAR/*.tar -> pairs/NNNNN.parquet (PAIRS).

Tar i in the order of names is shard i. A sample is the files of one folder and base name, wherever
they lie: a picture, its caption (.txt, or "caption" in .json; a list of them gives a row each) and,
in .json, its "url". A base name may have dots: what follows the last one is the ending. Pictures go
through the same header check, resizer and encoder as downloaded ones, one at a time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar

import pyarrow as pa

from codeseg.model.pictures.header import OWN_ENDINGS
from codeseg.pipeline.download.addresses import FetchError
from codeseg.pipeline.download.lists import sound
from codeseg.pipeline.download.members import PACKED, TarError, read_members
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

PICTURES = (*OWN_ENDINGS, ".heic", ".jxl")  # the last ones are rejected, with that reason
TEXTS = (".txt", ".json")
TEXT_BYTES = 1 << 20  # of a file
MOST_CAPTION = 20_000  # characters


@dataclass
class Sample:
    """One base name of a tar."""

    name: str  # with its folder, where it has one
    image: Any = None  # what was made of the picture's bytes
    captions: list[str] = field(default_factory=list)
    url: str | None = None
    fault: str | None = None  # why it cannot be used, where that shows before it is read
    endings: set[str] = field(default_factory=set)

    @property
    def caption(self) -> str | None:
        """The first caption."""
        return self.captions[0] if self.captions else None


def list_tars(place: str) -> dict[int, str]:
    """Number the tars of a folder.

    Returns:
        shard -> name, in the order of names.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when there are more than shards may be.
    """
    names = [n for n in Storage.open(place).names("") if n.lower().endswith(tuple(PACKED))]
    if not names:
        raise FileNotFoundError(
            f"no .tar files in {place}: name the folder they lie in directly with --urls FOLDER"
        )
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
        size = self._settings.shard_size
        rows: list[dict[str, Any]] = []
        with self._tars.open_input(name, mapped=False) as source:
            samples = read_samples(source, name, self._settings.max_bytes, self._convert, size)
        for sample in samples:
            outcome = {"error": sample.fault} if sample.fault else sample.image
            url = sample.url or f"{name}#{sound(sample.name)}"
            for caption in (*sample.captions,) or (None,):
                empty = empty_row(shard, len(rows), size, url, caption)
                rows.append({**empty, **(outcome or {"error": "no_image"})})
        if len(rows) > size:
            raise ValueError(f"{name} holds more samples than --shard-size")
        return commit_pairs(
            self._root, self._settings, shard, input, rows, start, self._machinery.versions
        )

    def _convert(self, picture: bytes) -> dict[str, Any]:
        try:
            return self._machinery.convert(picture)
        except FetchError as error:
            return {"error": error.reason}


def read_samples(
    source: pa.NativeFile,
    name: str,
    max_bytes: int,
    convert: Callable[[bytes], Any] = bytes,
    most: int | None = None,
) -> list[Sample]:
    """Read the samples of a tar, in the order of their first files.

    Args:
        source: the tar.
        name: of the tar, for messages; its ending says how it is packed.
        max_bytes: of a picture; a larger one is not read.
        convert: called with each picture's bytes; what it returns is kept.
        most: samples that it may hold.

    Raises:
        ValueError: naming the tar when it is broken, holds a name twice, or too many samples.
        OSError: the storage failed, which says nothing about the tar.
    """

    def wanted(file: str, size: int) -> bool:
        _, ending = _split(file)
        return size <= (TEXT_BYTES if ending in TEXTS else max_bytes if ending in PICTURES else -1)

    samples: dict[str, Sample] = {}
    try:
        for file, size, content in read_members(source, name, wanted):
            base, ending = _split(file)
            if ending not in PICTURES + TEXTS:
                continue
            sample = samples.setdefault(base, Sample(base))
            if ending in sample.endings:
                raise TarError(f"it holds {sound(file)} twice, so it is two tars in one")
            sample.endings.add(ending)
            if most is not None and len(samples) > most:
                raise ValueError(f"{name} holds more samples than --shard-size")
            if not wanted(file, size):
                sample.fault = "too_large" if ending in PICTURES else "caption_too_large"
            elif ending in TEXTS:
                _add_text(sample, ending, content)
            elif sample.image is not None:
                samples[file] = Sample(file, fault="second_image")
            else:
                sample.image = convert(content)
    except TarError as error:
        raise ValueError(f"{name} is a broken tar: {sound(str(error))}") from None
    for base, sample in samples.items():
        folder, slash, file = base.rpartition("/")
        stem = folder + slash + file.partition(".")[0]  # what webdataset itself calls the sample
        if stem != base and stem in samples and not sample.captions:
            sample.fault = sample.fault or "second_image"  # as 0001.seg.png beside 0001.jpg
    return list(samples.values())


def _split(file: str) -> tuple[str, str]:
    """Return a file's sample and its ending in lower case; none for hidden files."""
    folder, slash, name = file.removeprefix("./").rpartition("/")
    base, dot, ending = name.rpartition(".")
    if not base or name.startswith("."):
        return "", ""
    return folder + slash + base, (dot + ending).lower()


def _add_text(sample: Sample, ending: str, content: bytes) -> None:
    """Take captions and URL; a .txt goes before the captions of a .json."""
    if ending == ".txt":
        captions: Any = [content.decode(errors="replace")]
    else:
        try:
            facts = json.loads(content)
        except (ValueError, RecursionError):
            return  # the caption may still be in .txt
        if not isinstance(facts, dict):
            return
        url, captions = facts.get("url"), facts.get("caption", facts.get("captions"))
        sample.url = sound(url) if isinstance(url, str) else None
        captions = captions if isinstance(captions, list) else [captions]
        if ".txt" in sample.endings:
            return
    kept = [sound(text) for text in captions if isinstance(text, str)]
    sample.captions = [text for text in kept if len(text) <= MOST_CAPTION]
    if len(sample.captions) < len(kept):
        sample.fault = "caption_too_large"
