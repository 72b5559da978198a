"""What lies under a dataset root, as Arrow tables for the audit. Light: pyarrow and the ledger.

    ledger/<stage>/NNNNN.json, <table>/NNNNN.*  ->  Inventory(ledger, files, data, settings)

Reads records, footers and, on request, every byte (hashes); never writes. Only committed files
that can be opened and have their table's schema count as data: a stage may be running meanwhile.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.feature_table import features_inputs
from pipeline.ledger import Ledger, ShardRecord
from pipeline.storage import Storage
from pipeline.vocabulary_table import vocabulary_input

READERS = 16  # parallel reads: on an object store each is a round trip
HASH_BYTES = 8 << 20

LEDGER = pa.schema(
    [
        ("stage", pa.string()),
        ("shard", pa.int32()),
        ("input", pa.string()),
        ("expected_input", pa.string()),  # of today's upstream shard; null where none is known
        ("settings", pa.string()),
        ("output", pa.string()),
        ("rows_in", pa.int64()),
        ("rows_out", pa.int64()),
        ("rejected", pa.map_(pa.string(), pa.int64())),  # reason -> rows
        ("bytes", pa.int64()),
        ("seconds", pa.float64()),
        ("versions", pa.map_(pa.string(), pa.string())),
    ]
)

FILES = pa.schema(
    [
        ("stage", pa.string()),
        ("shard", pa.int32()),
        ("path", pa.string()),
        ("recorded_bytes", pa.int64()),  # null: the ledger does not know the file
        ("bytes", pa.int64()),  # null: the file is missing
        ("recorded_sha256", pa.string()),
        ("sha256", pa.string()),  # null unless hashes were asked for
        ("rows", pa.int64()),  # from the footer; null when unreadable
        ("problem", pa.string()),  # null, or why the file cannot be read
        ("schema_problem", pa.string()),  # null, or how it differs from the table's schema
    ]
)


@dataclass(frozen=True)
class Inventory:
    """Everything the audit knows before it reads a row."""

    ledger: pa.Table  # LEDGER
    files: pa.Table  # FILES
    data: dict[str, list[str]]  # table -> sound, committed data files, relative to the root
    settings: dict[str, dict[str, Any]]  # stage -> resolved settings


def take_inventory(root: Storage, hashes: bool = False) -> Inventory:
    """List the records and the files of every table and hold them together.

    Args:
        root: the dataset root.
        hashes: read every file whole and compare its SHA-256 with the record.

    Raises:
        ValueError: when the folder is no dataset root, or a record cannot be read.
    """
    ledger = Ledger(root)
    records = {table: ledger.records(table) for table in schema.TABLES}
    found = {table: set(root.names(table)) for table in schema.TABLES}
    if not any(records.values()) and not any(found.values()):
        raise ValueError(
            f"{root.uri} is no dataset root: it has neither a ledger nor any table; "
            "give the folder that `codeseg download` filled"
        )
    settings = {table: ledger.read_settings(table) or {} for table in schema.TABLES}
    declared = _Declared(settings["features"])
    jobs = [
        (table, path, recorded)
        for table in schema.TABLES
        for path, recorded in _paths(table, records[table], found[table])
    ]
    with ThreadPoolExecutor(READERS) as pool:
        files = list(pool.map(lambda job: _examine(root, job, declared, hashes), jobs))
    data: dict[str, list[str]] = {table: [] for table in schema.TABLES}
    for file in files:
        committed = file["recorded_bytes"] is not None
        if committed and not file["problem"] and not file["schema_problem"]:
            data[file["stage"]].append(file["path"])
    return Inventory(
        ledger=pa.Table.from_pylist(_ledger_rows(records), schema=LEDGER),
        files=pa.Table.from_pylist(files, schema=FILES),
        data=data,
        settings=settings,
    )


def _paths(
    table: str, records: Mapping[int, ShardRecord], names: set[str]
) -> list[tuple[str, dict[str, Any] | None]]:
    """(path, what the ledger says of it or None) of every file recorded or found."""
    recorded = {
        path: dict(info) | {"shard": record.shard}
        for record in records.values()
        for path, info in record.files.items()
        if path.startswith(f"{table}/")
    }
    found = {f"{table}/{name}" for name in names}
    return [(path, recorded.get(path)) for path in sorted(found | set(recorded))]


class _Declared:
    """The schemas that the settings declare."""

    def __init__(self, features: Mapping[str, Any]) -> None:
        self._features = features

    def of(self, table: str) -> pa.Schema | None:
        """The table's schema; None where the settings that fix its shapes are missing."""
        if table in ("pairs", "nouns", "regions"):
            return {"pairs": schema.PAIRS, "nouns": schema.NOUNS, "regions": schema.REGIONS}[table]
        clip = self._features.get("clip")
        if not clip:
            return None
        if table == "vocabulary":
            return schema.vocabulary(clip["embed_dim"])
        return schema.features(
            views=self._features["views"],
            image_size=clip["image_size"],
            tokens=1 + (clip["image_size"] // clip["patch_size"]) ** 2,
            width=clip["width"],
            text_width=clip["text_width"],
            image_tokens=self._features["image_tokens"],
        )


def _examine(
    root: Storage,
    job: tuple[str, str, dict[str, Any] | None],  # table, path, what the ledger says of it
    declared: _Declared,
    hashes: bool,
) -> dict[str, Any]:
    """One row of FILES."""
    table, path, recorded = job
    stem = PurePosixPath(path).stem
    file: dict[str, Any] = dict.fromkeys(FILES.names) | {
        "stage": table,
        "shard": recorded["shard"] if recorded else int(stem) if stem.isdigit() else None,
        "path": path,
        "recorded_bytes": recorded["bytes"] if recorded else None,
        "recorded_sha256": recorded["sha256"] if recorded else None,
    }
    try:
        with root.open_input(path) as source:
            file["bytes"] = source.size()
            if hashes:
                file["sha256"] = _sha256(source)
                source.seek(0)
            if PurePosixPath(path).suffix in (".parquet", ".arrow"):
                file["rows"], actual = _footer(source, path)
                file["schema_problem"] = _difference(actual, declared.of(table))
    except FileNotFoundError:
        file["problem"] = "missing"
    except (OSError, pa.ArrowInvalid) as error:  # includes an empty file, which cannot be mapped
        file["problem"] = "unreadable: " + " ".join(str(error).split())[:120]
    return file


def _footer(source: pa.NativeFile, path: str) -> tuple[int, pa.Schema]:
    """Rows and schema of a Parquet or Arrow IPC file, without reading its data."""
    if path.endswith(".parquet"):
        parquet = pq.ParquetFile(source)
        return parquet.metadata.num_rows, parquet.schema_arrow
    reader = pa.ipc.open_file(source)
    return reader.count_rows(), reader.schema


def _difference(actual: pa.Schema, declared: pa.Schema | None) -> str | None:
    if declared is None:
        return None
    problems = []
    for field in declared:
        index = actual.get_field_index(field.name)
        if index < 0:
            problems.append(f"no column {field.name}")
        elif not _same_type(actual.field(index).type, field.type):
            problems.append(f"{field.name} is {actual.field(index).type}, not {field.type}")
    problems += [
        f"column {name} is not in the schema"
        for name in actual.names
        if declared.get_field_index(name) < 0
    ]
    return "; ".join(problems) or None


def _same_type(actual: pa.DataType, declared: pa.DataType) -> bool:
    """Whether the types agree, whatever their writer called the list's items."""
    if pa.types.is_list(actual) and pa.types.is_list(declared):
        return _same_type(actual.value_type, declared.value_type)
    if pa.types.is_struct(actual) and pa.types.is_struct(declared):
        return [f.name for f in actual] == [f.name for f in declared] and all(
            _same_type(a.type, b.type) for a, b in zip(actual, declared, strict=True)
        )
    return bool(actual.equals(declared))


def _sha256(source: pa.NativeFile) -> str:
    digest = hashlib.sha256()
    while block := source.read(HASH_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _ledger_rows(records: Mapping[str, Mapping[int, ShardRecord]]) -> list[dict[str, Any]]:
    """Rows of LEDGER, with the input each shard would be made from today."""
    pairs, nouns = records["pairs"], records["nouns"]
    expected: dict[str, dict[int, str]] = {
        "nouns": {shard: record.output for shard, record in pairs.items()},
        "features": features_inputs(pairs, nouns),
        "vocabulary": {0: vocabulary_input(nouns)},
    }
    rows = []
    for stage, shards in records.items():
        for shard, record in shards.items():
            row = {name: getattr(record, name, None) for name in LEDGER.names}
            row["expected_input"] = expected.get(stage, {}).get(shard)
            row["rejected"] = list(record.rejected.items())
            row["versions"] = list(record.versions.items())
            rows.append(row)
    return rows
