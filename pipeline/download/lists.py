"""A file of a URL list -> batches of (url, caption); bad lines are left out and counted. Light.

TSV, CSV and JSONL are read line by line, plain or compressed, so that a bad line affects only
itself and has a number: lines in = lines of rows + lines left out. Memory: one batch.
"""

import csv
import io
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import Manifest

URLS = pa.schema([pa.field("url", pa.string()), pa.field("caption", pa.string())])
SUFFIXES = {"tsv": ".tsv", "csv": ".csv", "parquet": ".parquet", "jsonl": ".jsonl"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
BUFFER_BYTES = 1 << 20
BATCH_ROWS = 16_384
MOST_LINE = 64 << 10  # bytes: a shard of such lines must fit in memory
MOST_QUOTED = 100  # lines of one row; a longer quotation is not treated as one
MOST_ODD = 1000  # lines of a file, or a hundredth of it; with more the list has another format
SHOWN = 3  # odd lines
CHECKED_ROWS = 100  # rows with a URL that are checked for swapped columns,
SEARCHED_ROWS = 100_000  # among this many first rows

Row = tuple[str | None, str | None]
Line = tuple[int, str]  # its number, from 1, and its text without the end


class LeftOut:
    """The lines of a file that are not rows."""

    def __init__(self, manifest: Manifest, name: str, counts: Counter[str]) -> None:
        self._name = name
        self._format = manifest.format
        self._shown: list[str] = []
        self._counts = counts

    @property
    def count(self) -> int:
        """The number of such lines so far."""
        return self._counts[self._name]

    def add(self, line: Line, why: str) -> None:
        """Count a line, and keep the first few for messages.

        Raises:
            ValueError: so many are odd that the list must have another format.
        """
        self._counts[self._name] += 1
        number, text = line
        if len(self._shown) < SHOWN:
            text = f"{text[:80]}…" if len(text) > 80 else text
            self._shown.append(f"line {number:,}: {why} in {text!a}")
        if self.count > max(MOST_ODD, number / 100):
            raise self.refusal(f"{self.count:,} of its first {number:,} lines are odd, {self}")

    def refusal(self, why: str) -> ValueError:
        """Return the error that refuses the file."""
        return ValueError(f"{self._name} is not a {self._format} URL list: {why}")

    def __str__(self) -> str:
        return "; ".join(self._shown)

    def show(self) -> None:
        """Print their number in the part of the list that was read."""
        if self.count:
            print(f"{self._name}: left out {self.count:,} lines: {self}")


class _Lines:
    """An iterator over the lines of a text; lines that a row did not use can be put back."""

    def __init__(self, source: io.BufferedReader, left_out: LeftOut) -> None:
        self._source = source
        self._left_out = left_out
        self._again: deque[Line] = deque()
        self._number = 0
        self.taken: list[Line] = []  # since the row began

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> Line:
        if len(self.taken) == MOST_QUOTED:
            raise StopIteration  # to the CSV parser, which would continue
        line = self._again.popleft() if self._again else self._read()
        self.taken.append(line)
        return line

    def _read(self) -> Line:
        while content := self._source.readline(MOST_LINE):
            self._number += 1
            if self._number == 1:
                content = content.removeprefix(b"\xef\xbb\xbf")
            text = content.decode(errors="replace").removesuffix("\n").removesuffix("\r")
            line = (self._number, text)
            if len(content) == MOST_LINE and content[-1:] != b"\n":
                while (rest := self._source.readline(MOST_LINE)) and rest[-1:] != b"\n":
                    pass
                self._left_out.add(line, f"over {MOST_LINE >> 10} KB")
            else:
                return line
        raise StopIteration

    def keep_first(self) -> Line:
        """Put back all lines but the row's first, and return that."""
        self._again.extendleft(reversed(self.taken[1:]))
        return self.taken[0]


def read_rows(
    manifest: Manifest, source: Storage, name: str, odd: Counter[str]
) -> Iterator[pa.RecordBatch]:
    """Stream the rows of the file `name` in a folder as batches of URLS, after a first check.

    `odd` counts, by file, the lines that are not rows.

    Raises:
        ValueError: the file is not a list of the manifest's format, or its columns are swapped.
    """
    left_out = LeftOut(manifest, name, odd)
    read = _parquet if manifest.format == "parquet" else _text_batches
    count = 0
    try:
        for batch in _checked(manifest, name, read(manifest, source, name, left_out)):
            count += len(batch)
            yield batch
    except (pa.ArrowException, csv.Error, KeyError) as error:
        raise left_out.refusal(" ".join(str(error).split())) from None
    except OSError as error:  # truncated compression, or a store that fails
        raise OSError(f"{name}: {error}") from None
    finally:
        left_out.show()
    if not count and (left_out.count or manifest.format != "parquet"):
        raise left_out.refusal(str(left_out) or "it is empty")


def _parquet(
    manifest: Manifest, source: Storage, name: str, _: LeftOut
) -> Iterator[pa.RecordBatch]:
    columns = [manifest.url, manifest.caption]
    file = pq.ParquetFile(source.open_input(name, mapped=False))
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        arrays = [_strings(batch.column(column)) for column in columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=URLS)


def _text_batches(
    manifest: Manifest, source: Storage, name: str, left_out: LeftOut
) -> Iterator[pa.RecordBatch]:
    raw = source.open_input(name, mapped=False)
    packed = COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)
    stream = pa.CompressedInputStream(raw, packed) if packed else raw
    lines = _Lines(io.BufferedReader(stream, BUFFER_BYTES), left_out)
    parse = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl}[manifest.format]
    rows = parse(manifest, lines, left_out)
    while batch := list(islice(rows, BATCH_ROWS)):
        columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=URLS)


def sound(text: str) -> str:
    """Return text that UTF-8 can encode: U+FFFD replaces half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _places(
    manifest: Manifest, lines: _Lines, left_out: LeftOut, split: Callable[[str], list[str]]
) -> tuple[int, int, int]:
    """Return the number of columns, the URL's index and the caption's."""
    names = list(manifest.columns)
    if not names:
        names = split(next(lines, (0, ""))[1])
        lines.taken.clear()
    try:
        return len(names), names.index(manifest.url), names.index(manifest.caption)
    except ValueError as error:
        raise left_out.refusal(f"{error}: its columns are {names}") from None


def _tsv(manifest: Manifest, lines: _Lines, left_out: LeftOut) -> Iterator[Row]:
    """Split only at tabs, since the published lists have bare quotes in their captions."""
    width, url, caption = _places(manifest, lines, left_out, lambda text: text.split("\t"))
    for line in lines:
        lines.taken.clear()
        cells = line[1].split("\t")
        if len(cells) == width:
            yield cells[url], cells[caption]
        else:
            left_out.add(line, f"{len(cells)} columns for {width}")


def _csv(manifest: Manifest, lines: _Lines, left_out: LeftOut) -> Iterator[Row]:
    """Parse RFC 4180; a line with an unclosed quote is split only at its commas.

    A quote counts as unclosed if the row does not end within MOST_QUOTED lines, is malformed, or
    holds two lines that are rows by themselves: a real row of several lines has at most one.
    """
    width, url, caption = _places(manifest, lines, left_out, lambda text: next(csv.reader([text])))

    def is_row(text: str) -> bool:
        forms = [text.split(",")]
        with suppress(csv.Error):
            forms.append(next(csv.reader([text]), []))
        return any(len(cells) == width and _is_url(cells[url].strip('" ')) for cells in forms)

    def text(line: Line) -> str:
        return f"{line[1]}\n"

    reader = csv.reader(map(text, lines), strict=True)  # a generator would end at MOST_QUOTED
    while True:
        lines.taken.clear()
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            pass
        many = len(lines.taken) > 1
        if not cells or (
            many and (len(cells) != width or sum(is_row(t) for _, t in lines.taken) > 1)
        ):
            cells = lines.keep_first()[1].split(",")
        if len(cells) == width:
            yield cells[url], cells[caption]
        else:
            left_out.add(lines.taken[0], f"{len(cells)} columns for {width}")


def _jsonl(manifest: Manifest, lines: _Lines, left_out: LeftOut) -> Iterator[Row]:
    """Accept objects whose URL and caption are strings, null or missing."""
    for line in lines:
        lines.taken.clear()
        try:
            value = json.loads(line[1])
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            left_out.add(line, "not a JSON object")
            continue
        url, caption = value.get(manifest.url), value.get(manifest.caption)
        odd = [v for v in (url, caption) if not (v is None or isinstance(v, str))]
        if odd:
            left_out.add(line, f"{type(odd[0]).__name__} instead of a text")
        else:
            yield url and sound(url), caption and sound(caption)


def _strings(column: pa.Array) -> pa.Array:
    """Return a column as UTF-8 strings, with U+FFFD for invalid bytes."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.binary())  # Parquet does not check its strings; this cast does
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        values = column.to_pylist()
        return pa.array([v if v is None else v.decode(errors="replace") for v in values])


def _is_url(text: str | None) -> bool:
    return (text or "").lstrip()[:8].lower().startswith(("http://", "https://"))


def _checked(
    manifest: Manifest, name: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Yield the batches after CHECKED_ROWS rows have shown which column holds the URLs.

    CC3M is caption, URL; CC12M is URL, caption; many READMEs are wrong.

    Raises:
        ValueError: the columns are swapped, have a header, or hold no URLs.
    """
    held: list[pa.RecordBatch] = []
    seen = in_url = in_caption = 0
    for batch in batches:
        if not seen and not manifest.header and len(batch):
            first = str(batch.column(0)[0]).lower()
            if first in ("url", manifest.url.lower()):
                raise ValueError(
                    f"{name} begins with a header; the manifest must say header = true"
                )
        held.append(batch)
        seen += len(batch)
        in_url, in_caption = (
            found + sum(map(_is_url, batch.column(place).to_pylist()))
            for place, found in enumerate((in_url, in_caption))
        )
        if in_url + in_caption >= CHECKED_ROWS or seen >= SEARCHED_ROWS:
            break
    if in_caption > in_url:
        raise ValueError(
            f"{name}: column {manifest.caption!r} holds the URLs and {manifest.url!r} does not: "
            "the columns are swapped in the manifest, or this is another dataset's list"
        )
    if seen and not in_url:
        raise ValueError(f"{name}: column {manifest.url!r} holds no http(s) URLs in its first rows")
    yield from held
    yield from batches
