"""Make pairs from pictures that exist already: Source -> pairs/NNNNN.parquet (PAIRS).

A source is a folder of tars, of pictures, or of Parquet files with pictures; its shard i becomes
shard i of the pairs. Pictures go through the same header check, resizer and encoder as downloaded
ones, one at a time. A sample with several captions becomes one row for each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar, Protocol

from codeseg.pipeline.download.lists import sound
from codeseg.pipeline.download.pairs import DownloadSettings, Pictures, Row, failed
from codeseg.pipeline.download.urls import check_count
from codeseg.pipeline.engine.ledger import ShardRecord, fingerprint
from codeseg.pipeline.engine.storage import Storage


@dataclass
class Sample:
    """A picture and its captions; in a tar, the files with one base name."""

    name: str  # with its folder, if any
    image: Any = None  # the result of `convert`
    captions: list[str] = field(default_factory=list)
    url: str | None = None
    fault: str | None = None  # the reason for rejection, if it is known before the picture is read
    endings: set[str] = field(default_factory=set)


class Source(Protocol):
    """The origin of samples; it is sent to the workers."""

    inputs: dict[int, str]  # shard -> fingerprint of its input

    def name(self, shard: int) -> str:
        """Return the name of a shard's input, for URLs and messages."""

    def samples(
        self, shard: int, max_bytes: int, convert: Callable[[bytes], Any], most: int
    ) -> list[Sample]:
        """Return the samples of a shard, in order.

        Pictures of more than `max_bytes` are not read; of others, the result of `convert` is kept.

        Raises:
            ValueError: names a file that is broken or holds more than `most` samples.
        """


class Files:
    """The files of one kind in a folder; file i in the order of names is shard i.

    Raises:
        FileNotFoundError: there are none.
        ValueError: there are too many files for shards; `remedy` says what to do.
    """

    def __init__(self, place: str, endings: tuple[str, ...], remedy: str) -> None:
        self.place = place
        sizes = Storage.open(place).sizes("")
        self._names = sorted(name for name in sizes if name.lower().endswith(endings))
        if not self._names:
            raise FileNotFoundError(
                f"no {endings[0]} files in {place}: name the folder that directly holds them "
                "with --urls FOLDER"
            )
        check_count(len(self._names), remedy)
        # such a file never changes: its name and size identify it
        self.inputs = {i: fingerprint([n, sizes[n]]) for i, n in enumerate(self._names)}

    def name(self, shard: int) -> str:
        """Return the file of a shard."""
        return self._names[shard]


class ReadyWorker:
    """A ShardWorker that turns a shard of a source into a shard of pairs.

    Its settings are "source": a Source, and "download": DownloadSettings as a dict.
    """

    READS: ClassVar[dict[str, tuple[str, ...]]] = {}
    MEMORY: ClassVar[int] = 2_000_000_000

    def __init__(self, root_uri: str, settings: dict[str, Any]) -> None:
        self._root = Storage.open(root_uri)
        self._source: Source = settings["source"]
        self._settings = DownloadSettings(**settings["download"])
        self._pictures = Pictures(self._settings)

    def process(self, shard: int, input: str) -> ShardRecord:
        """Convert the samples, write the shard, commit it.

        Raises:
            ValueError: the source is broken or gives more rows than a shard can hold.
        """
        start = perf_counter()
        name, size = self._source.name(shard), self._settings.shard_size
        rows: list[Row] = []
        convert = self._pictures.convert
        for sample in self._source.samples(shard, self._settings.max_bytes, convert, size):
            outcome = failed(sample.fault) if sample.fault else sample.image or failed("no_image")
            url = sample.url or f"{name}#{sound(sample.name)}"
            rows += [(url, caption, outcome) for caption in sample.captions or (None,)]
        if len(rows) > size:
            raise ValueError(f"{name} holds more samples than --shard-size")
        return self._pictures.commit(self._root, shard, input, rows, start)
