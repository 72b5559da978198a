"""Cut a URL list into shards by streaming: any TSV/CSV/Parquet/JSONL -> urls/NNNNN.parquet. Light.

    urls/NNNNN.parquet   url, caption: `shard_size` rows of the list, in its order (the last: fewer)

A shard of the list is the input of the same shard of pairs; its hash is that input's fingerprint.
Memory: one block of the list and one shard. A larger --limit later only adds rows.
"""

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, fingerprint
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import Manifest

URLS = pa.schema([pa.field("url", pa.string()), pa.field("caption", pa.string())])
BLOCK_BYTES = 2 << 20
ENDS_BYTES = 1 << 20
BATCH_ROWS = 65_536
MOST_RAGGED = 1000  # rows of a file; with more it is another form of list
CHECKED_ROWS = 100  # of the list's start, for swapped columns
MOST_SHARDS = 100_000
SUFFIXES = {"tsv": ".tsv", "csv": ".csv", "parquet": ".parquet", "jsonl": ".jsonl"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def cut_shards(
    manifest: Manifest, place: str, root: Storage, shard_size: int, limit: int | None
) -> dict[int, ShardRecord]:
    """Make the shards of the URL list that are not there yet.

    Args:
        manifest: form and columns of the list.
        place: of the list: a file, or a folder of files of one format.
        root: the dataset root.
        shard_size: rows a shard.
        limit: rows to take from the list's start; None = all. Fewer than are there already
            take nothing away.

    Returns:
        The records of all shards that are cut, by number.

    Raises:
        FileNotFoundError: when there is no list.
        ValueError: swapped or missing columns, or a root cut from another list or in other shards.
    """
    source, files = _list_files(manifest, place)
    settings = {
        "list": [[name, *_identity(source, name)] for name in files],
        "format": manifest.format,
        "columns": [manifest.header, list(manifest.columns), manifest.url, manifest.caption],
        "shard_size": shard_size,
    }
    ledger = Ledger(root)
    records = ledger.records("urls")
    # A list that was refused has left its settings and no shard: it may be corrected in place.
    previous = ledger.read_settings("urls") if records else None
    if previous is not None and {**previous, "complete": None} != {**settings, "complete": None}:
        changed = "another --shard-size" if previous["list"] == settings["list"] else "another list"
        raise ValueError(f"{root.uri} was begun with {changed} or columns; use a root of its own")
    have = sum(record.rows_out for record in records.values())
    lost = ledger.damaged(records)
    enough = (previous or {}).get("complete") or (limit is not None and limit <= have)
    if enough and not lost:
        return records
    limit = None if limit is None else max(limit, have)
    records = {shard: record for shard, record in records.items() if shard not in lost}
    check_count(-(-(limit or 0) // shard_size), "give a larger --shard-size")
    root.remove_abandoned("urls")
    root.remove_abandoned("ledger/urls")
    ledger.write_settings("urls", {**settings, "complete": False})
    taken = fingerprint(settings)
    count = 0
    for shard, table in enumerate(_shards(_rows(manifest, source, files), shard_size, limit)):
        count += 1
        check_count(count, "cut the list anew, in a root of its own, with a larger --shard-size")
        if shard not in records or records[shard].rows_out != len(table):
            records[shard] = _write(root, ledger, shard, table, taken)
    if count == 0:
        raise ValueError(f"{place} has no rows")
    if limit is None:
        ledger.write_settings("urls", {**settings, "complete": True})
    return records


def check_count(shards: int, remedy: str) -> None:
    """Refuse more shards than keys have digits for: a key's first five are its shard's number.

    Raises:
        ValueError: saying what to do.
    """
    if shards > MOST_SHARDS:
        raise ValueError(f"more than {MOST_SHARDS:,} shards; {remedy}")


def _write(root: Storage, ledger: Ledger, shard: int, table: pa.Table, taken: str) -> ShardRecord:
    start = perf_counter()
    path = f"urls/{shard:05d}.parquet"
    ledger.retract("urls", shard)
    info = root.write_atomic(path, lambda sink: pq.write_table(table, sink, compression="zstd"))
    record = ShardRecord(
        stage="urls",
        shard=shard,
        input=fingerprint([taken, shard]),
        settings=taken,
        output=info.sha256,
        files={path: {"bytes": info.bytes, "sha256": info.sha256}},
        rows_in=len(table),
        rows_out=len(table),
        rejected={},
        bytes=info.bytes,
        seconds=round(perf_counter() - start, 3),
        versions={"pyarrow": pa.__version__},
    )
    ledger.commit(record)
    return record


def _list_files(manifest: Manifest, place: str) -> tuple[Storage, list[str]]:
    """The folder the list is in and its file names, sorted."""
    folder, _, name = place.partition("?")[0].rpartition("/")
    query = place[len(place.partition("?")[0]) :]
    parent = Storage.open((folder or ("/" if place.startswith("/") else ".")) + query)
    if parent.size(name) is not None:
        return parent, [name]
    source = Storage.open(place)
    endings = [SUFFIXES[manifest.format] + end for end in ("", *COMPRESSIONS)]
    files = [f for f in source.names("") if f.endswith(tuple(endings))]
    if not files:
        raise FileNotFoundError(
            f"no URL list {place}: get it from {manifest.homepage or 'its owner'} "
            "and name it with --urls FILE"
        )
    return source, files


def _identity(source: Storage, name: str) -> tuple[int, str]:
    """Size and a hash of both ends: told in a moment, also for the 2.5 GB of CC12M."""
    with source.open_input(name, mapped=False) as file:
        size = file.size()
        head = file.read(ENDS_BYTES)
        file.seek(max(0, size - ENDS_BYTES))
        digest = hashlib.sha256(head)
        digest.update(file.read())
    return size, digest.hexdigest()


def _shards(
    batches: Iterator[pa.RecordBatch], shard_size: int, limit: int | None
) -> Iterator[pa.Table]:
    """Regroup record batches into tables of exactly `shard_size` rows, the last one fewer."""
    waiting: list[pa.RecordBatch] = []
    rows = taken = 0
    for batch in batches:
        room = len(batch) if limit is None else min(len(batch), limit - taken)
        waiting.append(batch.slice(0, room))
        rows += room
        taken += room
        while rows >= shard_size:
            table = pa.Table.from_batches(waiting, URLS)
            yield table.slice(0, shard_size).combine_chunks()
            waiting = table.slice(shard_size).to_batches()
            rows -= shard_size
        if taken == limit:
            break
    if rows:
        yield pa.Table.from_batches(waiting, URLS).combine_chunks()


def _rows(manifest: Manifest, source: Storage, files: list[str]) -> Iterator[pa.RecordBatch]:
    """Stream (url, caption) batches of all files, after checking the first rows of each."""
    for name in files:
        first = True
        ragged = _Ragged(name)
        try:
            for batch in _read(manifest, source, name, ragged):
                arrays = [_text(batch.column(c)) for c in (manifest.url, manifest.caption)]
                rows = pa.RecordBatch.from_arrays(arrays, schema=URLS)
                if first and len(rows):
                    _check_columns(manifest, name, rows.slice(0, CHECKED_ROWS))
                    first = False
                yield rows
        except (pa.ArrowException, KeyError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{name} is no {manifest.format} URL list: {text}") from None
        finally:
            ragged.show()
        if first and ragged.count:
            raise ValueError(f"{name} is no {manifest.format} URL list: {ragged.first}")


class _Ragged:
    """Rows of a TSV or CSV that have not its columns: left out, for there are always some."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.count = 0
        self.first = ""

    def __call__(self, row: pyarrow.csv.InvalidRow) -> str:
        self.count += 1
        if self.count == 1:
            text = f"{row.text[:80]}…" if len(row.text) > 80 else row.text
            self.first = f"{row.actual_columns} columns for {row.expected_columns} in {text!r}"
        return "skip" if self.count <= MOST_RAGGED else "error"

    def show(self) -> None:
        """Say how many were met up to where the list was read."""
        if self.count:
            print(f"{self._name}: left out {self.count:,} rows, the first: {self.first}")


def _read(
    manifest: Manifest, source: Storage, name: str, ragged: _Ragged
) -> Iterator[pa.RecordBatch]:
    raw = source.open_input(name, mapped=False)
    ending = PurePosixPath(name).suffix
    stream = pa.CompressedInputStream(raw, COMPRESSIONS[ending]) if ending in COMPRESSIONS else raw
    columns = [manifest.url, manifest.caption]
    if manifest.format == "parquet":
        yield from pq.ParquetFile(raw).iter_batches(BATCH_ROWS, columns=columns)
    elif manifest.format == "jsonl":
        schema = pa.schema([(column, pa.string()) for column in columns])
        yield from pyarrow.json.open_json(
            stream,
            pyarrow.json.ReadOptions(block_size=BLOCK_BYTES),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    else:
        yield from pyarrow.csv.open_csv(stream, **_csv_options(manifest, columns, ragged))


def _csv_options(manifest: Manifest, columns: list[str], ragged: _Ragged) -> dict[str, Any]:
    quoted = manifest.format == "csv"  # the published TSVs have bare quotes in captions
    return {
        "read_options": pyarrow.csv.ReadOptions(
            block_size=BLOCK_BYTES, column_names=list(manifest.columns) or None
        ),
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter="," if quoted else "\t",
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
            invalid_row_handler=ragged,
        ),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types={column: pa.binary() for column in columns},
            include_columns=columns,
            strings_can_be_null=False,
        ),
    }


def _text(column: pa.Array) -> pa.Array:
    """A column as UTF-8 strings; bytes that are none become U+FFFD rather than the end of a run."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.binary())  # Parquet does not check its strings; this way back does
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        values = column.to_pylist()
        return pa.array([v if v is None else v.decode(errors="replace") for v in values])


def _check_columns(manifest: Manifest, name: str, rows: pa.RecordBatch) -> None:
    """Refuse swapped columns: CC3M is caption, URL; CC12M is URL, caption; many READMEs err.

    Raises:
        ValueError: saying which columns hold what.
    """
    shares = [
        sum(str(value).lower().startswith(("http://", "https://")) for value in column.to_pylist())
        / len(rows)
        for column in rows.columns
    ]
    if str(rows.column(0)[0]).lower() in ("url", manifest.url.lower()) and not manifest.header:
        raise ValueError(f"{name} begins with a header; the manifest must say header = true")
    if shares[0] >= 0.5:
        return
    if shares[1] >= 0.5:
        raise ValueError(
            f"{name}: column {manifest.caption!r} holds the URLs and {manifest.url!r} does not: "
            "the columns are swapped in the manifest, or this is another dataset's list"
        )
    raise ValueError(f"{name}: column {manifest.url!r} holds no http(s) URLs in its first rows")
