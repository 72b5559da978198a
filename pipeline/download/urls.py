"""Divide a URL list into shards by streaming: TSV/CSV/Parquet/JSONL -> urls/NNNNN.parquet. Light.

    urls/NNNNN.parquet   url, caption: `shard_size` rows of the list, in order (the last: fewer)

A shard of the list is the input of the same shard of pairs; its hash is that input's fingerprint.
Memory: one block of the list and one shard. A larger --limit, or rows appended to the list, only
add rows: of the existing shards, only the last is redone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codeseg.pipeline.download.lists import COMPRESSIONS, SUFFIXES, URLS, read_rows
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, fingerprint
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import Manifest

ENDS_BYTES = 1 << 20
MOST_SHARDS = 100_000


def cut_shards(
    manifest: Manifest, place: str, root: Storage, shard_size: int, limit: int | None
) -> dict[int, ShardRecord]:
    """Make the missing shards of the URL list, and return the records of all, by number.

    Args:
        manifest: form and columns of the list.
        place: the list's file, or a folder of files of one format.
        root: of the dataset.
        shard_size: rows per shard.
        limit: number of the list's first rows to use; None = all. It never removes rows.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: columns are swapped or missing, or the root has another list or shard size.
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
    # a refused list has left settings but no shard, and may be corrected in place
    previous = ledger.read_settings("urls") if records else None
    grown = previous is not None and _is_longer(source, settings, previous)
    if grown:  # the last line may have grown, too, so its shard is redone
        ledger.retract("urls", max(records))
        del records[max(records)]
    elif previous is not None and any(previous.get(n) != value for n, value in settings.items()):
        changed = "another --shard-size" if previous["list"] == settings["list"] else "another list"
        raise ValueError(f"{root.uri} was begun with {changed} or columns; use a separate root")
    have = sum(record.rows_out for record in records.values())
    lost = ledger.damaged(records)
    enough = (previous or {}).get("complete") or (limit is not None and limit <= have)
    if enough and not lost and not grown:
        return records
    limit = None if limit is None else max(limit, have)
    records = {shard: record for shard, record in records.items() if shard not in lost}
    check_count(-(-(limit or 0) // shard_size), "give a larger --shard-size")
    ledger.write_settings("urls", {**settings, "complete": False})
    taken = stage.URLS.fingerprint(settings)
    count, odd = 0, Counter[str]()
    batches = (batch for name in files for batch in read_rows(manifest, source, name, odd))
    for shard, table in enumerate(_shards(batches, shard_size, limit)):
        count += 1
        check_count(count, "use a new root with a larger --shard-size")
        if shard not in records or records[shard].rows_out != len(table):
            ledger.retract("urls", shard)
            records[shard] = stage.commit(
                root, stage.URLS, shard, fingerprint([taken, shard]), taken,
                partial(pq.write_table, table, compression="zstd"),
                rows_in=len(table), rejected={}, start=perf_counter(),
                versions={"pyarrow": pa.__version__},
            )  # fmt: skip
    if count == 0:
        raise ValueError(f"{place} has no rows")
    ledger.write_settings("urls", {**settings, "complete": limit is None, "left_out": dict(odd)})
    return records


def check_count(shards: int, remedy: str) -> None:
    """Refuse more shards than a key's five digits can number.

    Raises:
        ValueError: says what to do.
    """
    if shards > MOST_SHARDS:
        raise ValueError(f"more than {MOST_SHARDS:,} shards; {remedy}")


def _list_files(manifest: Manifest, place: str) -> tuple[Storage, list[str]]:
    """Return the list's folder and its file names, sorted."""
    path, mark, query = place.partition("?") if "://" in place else (place, "", "")
    folder, _, name = path.rpartition("/")
    query = mark + query
    parent = Storage.open((folder or ("/" if place.startswith("/") else ".")) + query)
    if parent.size(name) is not None:
        return parent, [name]
    source = Storage.open(place)
    endings = [SUFFIXES[manifest.format] + end for end in ("", *COMPRESSIONS)]
    files = [f for f in source.names("") if f.lower().endswith(tuple(endings))]
    if not files:
        raise FileNotFoundError(
            f"no URL list {place}: get it from {manifest.homepage or 'its owner'} "
            "and name it with --urls FILE"
            f" (of a folder, the {SUFFIXES[manifest.format]} files directly in it are read)"
        )
    return source, files


def _identity(source: Storage, name: str, size: int | None = None) -> tuple[int, str]:
    """Return the size of a file, or of its first `size` bytes, and a hash of both ends.

    This is fast even for the 2.5 GB of CC12M.
    """
    with source.open_input(name, mapped=False) as file:
        size = file.size() if size is None else min(size, file.size())
        digest = hashlib.sha256(file.read(min(size, ENDS_BYTES)))
        start = max(0, size - ENDS_BYTES)
        file.seek(start)
        digest.update(file.read(size - start))
    return size, digest.hexdigest()


def _is_longer(source: Storage, settings: dict[str, Any], previous: dict[str, Any]) -> bool:
    """Return whether the list begins with the whole previous one and has the same settings."""
    before, after = previous["list"], settings["list"]
    alike = all(previous.get(n) == value for n, value in settings.items() if n != "list")
    if not alike or before == after:
        return False
    known = [list(entry) for entry in after[: len(before)]]
    if len(known) < len(before) or known[:-1] != before[:-1]:
        return False
    name, size, _ = before[-1]
    return bool([name, *_identity(source, name, size)] == before[-1] and known[-1][0] == name)


def _shards(
    batches: Iterator[pa.RecordBatch], shard_size: int, limit: int | None
) -> Iterator[pa.Table]:
    """Regroup record batches into tables of `shard_size` rows; the last may have fewer."""
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
