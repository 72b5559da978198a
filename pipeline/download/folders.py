"""Read folders of pictures, or of Parquet files with pictures, as Hugging Face's datasets do.

    FOLDER/**/NAME.jpg beside NAME.txt or NAME.json; or metadata.jsonl, .csv: file_name, text
    FOLDER/*.parquet with a column of {bytes, path} and one of captions

A folder's pictures, sorted by path, are divided into shards; a Parquet file is a shard.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codeseg.pipeline.download.lists import sound
from codeseg.pipeline.download.ready import Files, Sample
from codeseg.pipeline.download.tars import PICTURES, TEXT_BYTES, TEXTS, add_text, split_ending
from codeseg.pipeline.download.urls import check_count
from codeseg.pipeline.engine.ledger import fingerprint
from codeseg.pipeline.engine.storage import Storage

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTIONS = ("caption", "captions", "text")  # columns; the first that exists is used
ROWS_AT_ONCE = 64  # rows of a Parquet file whose pictures are in memory together


class PictureFolder:
    """A folder of pictures with captions beside them.

    Raises:
        FileNotFoundError: there is no picture.
        ValueError: the metadata cannot be read or has no captions.
    """

    def __init__(self, place: str, shard_size: int) -> None:
        self._place = place
        source = Storage.open(place)
        self._sizes = source.sizes(below=True)
        self._captions = _read_metadata(source, self._sizes, place)
        pictures = sorted(path for path in self._sizes if split_ending(path)[1] in PICTURES)
        if not pictures:
            raise FileNotFoundError(f"no pictures in {place}: {', '.join(PICTURES)}")
        starts = range(0, len(pictures), shard_size)
        check_count(len(starts), "give a larger --shard-size")
        self._shards = [pictures[start : start + shard_size] for start in starts]
        self.inputs = {i: fingerprint(self._identity(p)) for i, p in enumerate(self._shards)}

    def name(self, shard: int) -> str:
        """Return the folder."""
        return self._place

    def samples(
        self, shard: int, max_bytes: int, convert: Callable[[bytes], Any], most: int
    ) -> list[Sample]:
        """Return a sample for each picture, as `Source.samples`."""
        source, samples = Storage.open(self._place), []
        for path in self._shards[shard]:
            sample = Sample(path, captions=list(self._captions.get(path, ())))
            samples.append(sample)
            for beside in () if sample.captions else self._beside(path):
                if self._sizes[beside] > TEXT_BYTES:
                    sample.fault = "caption_too_large"
                else:
                    add_text(sample, split_ending(beside)[1], source.read_bytes(beside))
                    sample.endings.add(split_ending(beside)[1])
            if self._sizes[path] > max_bytes:
                sample.fault = "too_large"
            else:
                sample.image = convert(source.read_bytes(path))
        return samples

    def _beside(self, path: str) -> list[str]:
        """Return a picture's caption files, .txt first."""
        stem, _ = split_ending(path)
        return [stem + ending for ending in TEXTS if stem + ending in self._sizes]

    def _identity(self, paths: Iterable[str]) -> list[Any]:
        return [
            [path, self._sizes[path], self._captions.get(path)]
            + [self._sizes[beside] for beside in self._beside(path)]
            for path in paths
        ]


class PictureParquet(Files):
    """A folder of Parquet files with pictures."""

    def __init__(self, place: str) -> None:
        super().__init__(place, (".parquet",), "merge them into fewer files")

    def samples(
        self, shard: int, max_bytes: int, convert: Callable[[bytes], Any], most: int
    ) -> list[Sample]:
        """Return a sample for each row, as `Source.samples`."""
        name, samples = self.name(shard), list[Sample]()
        with Storage.open(self.place).open_input(name, mapped=False) as source:
            try:
                file = pq.ParquetFile(source)
                image, caption = _columns_of(file.schema_arrow, name)
                if file.metadata.num_rows > most:
                    raise ValueError(f"{name} holds more samples than --shard-size")
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[image, caption]):
                    for row in batch.to_pylist():
                        picture = row[image] or {}
                        sample = Sample(str(picture.get("path") or len(samples)))
                        sample.captions = _texts(row[caption])
                        samples.append(sample)
                        if (content := picture.get("bytes")) is None:
                            continue  # "no_image"
                        if len(content) > max_bytes:
                            sample.fault = "too_large"
                        else:
                            sample.image = convert(content)
            except pa.ArrowException as error:
                raise ValueError(f"{name} is a damaged Parquet file: {error}") from None
        return samples


def _read_metadata(source: Storage, sizes: dict[str, int], place: str) -> dict[str, list[str]]:
    """Return picture -> captions from the folder's metadata file; {} without one."""
    found: dict[str, list[str]] = {}
    for name in METADATA:
        if name not in sizes:
            continue
        text, number = source.read_bytes(name).decode("utf-8-sig", "replace"), 0
        parse = _json_lines if name.endswith(".jsonl") else _csv_rows
        try:
            for row in parse(text):
                number += 1
                captions = next(row[column] for column in CAPTIONS if column in row)
                file = str(row["file_name"]).removeprefix("./")
                found.setdefault(file, []).extend(_texts(captions))
        except (csv.Error, ValueError, RecursionError) as error:
            raise ValueError(f"{place}/{name}, after row {number:,}: {error}") from None
        except (StopIteration, KeyError):
            names = f"file_name and {' or '.join(CAPTIONS)}"
            raise ValueError(f"{place}/{name} has no columns {names} in row {number:,}") from None
        if not number:
            raise ValueError(f"{place}/{name} is empty")
    return found


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in filter(str.strip, text.split("\n")):
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        yield row


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    """Yield each row as text; refuse an unclosed quote, which would swallow the rows after it."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"not {len(rows.fieldnames or ())} columns")
        yield row


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [sound(text) for text in texts if isinstance(text, str)]


def _columns_of(columns: pa.Schema, name: str) -> tuple[str, str]:
    """Return the columns of pictures and of captions."""
    structs = [column for column in columns if pa.types.is_struct(column.type)]
    images = [column.name for column in structs if column.type.get_field_index("bytes") >= 0]
    captions = [column for column in CAPTIONS if column in columns.names]
    if not images or not captions:
        raise ValueError(
            f"{name} has no column of {{bytes, path}} beside one of {', '.join(CAPTIONS)}: "
            f"it has {', '.join(columns.names)}"
        )
    return images[0], captions[0]
