"""List the records and files of a dataset root as Arrow tables for the audit. Light.

    ledger/<stage>/NNNNN.json, <table>/NNNNN.*  ->  Inventory(ledger, files, data, settings)

It reads records, footers and, on request, every byte (for hashes). Only committed files that can
be opened and have their table's schema count as data, since a stage may be running.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codeseg.pipeline.audit.schemas import declared_schemas, difference
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.stage import Records, Settings, root_stages, stage_of
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_settings import FeatureSettings

READERS = 16  # parallel reads: on an object store each is a round trip

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
        ("pictures", pa.int64()),  # rows of pairs whose jpg is not null, from the footer
        ("problem", pa.string()),  # null, or why the file cannot be read
        ("schema_problem", pa.string()),  # null, or how it differs from the table's schema
    ]
)


@dataclass(frozen=True)
class Inventory:
    """The facts that the audit has before it reads a row."""

    ledger: pa.Table  # LEDGER
    files: pa.Table  # FILES
    data: dict[str, list[str]]  # table -> sound, committed data files, relative to the root
    settings: pa.Table  # (stage, name, value): nested names joined by dots, values as JSON
    embed_dim: int  # C of the vocabulary's knowledge embeddings; 1 if it is unknown


def take_inventory(root: Storage, hashes: bool = False) -> Inventory:
    """Return the records and the files of every table, with each file's SHA-256 if `hashes`.

    Raises:
        ValueError: the folder is not a dataset root, or a record cannot be read.
    """
    ledger = Ledger(root)
    stages = root_stages(root)
    records = {table: ledger.records(table) for table in stages}
    tables = [table for table in stages if table != "urls"]
    found = {table: set(root.names(table)) for table in tables}
    if not any(records.values()) and not any(found.values()):
        raise ValueError(
            f"{root.uri} is not a dataset root: it has neither a ledger nor any table; "
            "give the folder that `codeseg download` filled"
        )
    settings = {table: ledger.read_settings(table) or {} for table in stages}
    made = [table for table in tables if table.startswith("features") and settings[table]]
    features = {table: FeatureSettings.read(root, stages[table]) for table in made}
    declared = declared_schemas(features)
    jobs = [
        (table, path, recorded)
        for table in tables
        for path, recorded in _paths(table, records[table], found[table])
    ]
    with ThreadPoolExecutor(READERS) as pool:
        files = list(pool.map(lambda job: _examine(root, job, declared, hashes), jobs))
    data: dict[str, list[str]] = {table: [] for table in tables}
    for file in files:
        committed = file["recorded_bytes"] is not None
        if committed and not file["problem"] and not file["schema_problem"]:
            data[file["stage"]].append(file["path"])
    return Inventory(
        ledger=pa.Table.from_pylist(_ledger_rows(records, settings), schema=LEDGER),
        files=pa.Table.from_pylist(files, schema=FILES),
        data=data,
        settings=_settings_table(settings),
        embed_dim=next((made.clip.embed_dim for made in features.values()), 1),
    )


def _paths(
    table: str, records: Mapping[int, ShardRecord], names: set[str]
) -> list[tuple[str, dict[str, Any] | None]]:
    """Return (path, the ledger's facts about it or None) of every file recorded or found."""
    recorded = {
        path: dict(info) | {"shard": record.shard}
        for record in records.values()
        for path, info in record.files.items()
        if path.startswith(f"{table}/")
    }
    found = {f"{table}/{name}" for name in names}
    return [(path, recorded.get(path)) for path in sorted(found | set(recorded))]


def _examine(
    root: Storage,
    job: tuple[str, str, dict[str, Any] | None],  # table, path, the ledger's facts about it
    declared: Mapping[str, pa.Schema],
    hashes: bool,
) -> dict[str, Any]:
    """Return one row of FILES."""
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
                file["sha256"] = hashlib.file_digest(source, "sha256").hexdigest()
                source.seek(0)
            if PurePosixPath(path).suffix in (".parquet", ".arrow"):
                file["rows"], file["pictures"], actual = _footer(source, path)
                if wanted := declared.get(table):
                    file["schema_problem"] = difference(actual, wanted)
    except FileNotFoundError:
        file["problem"] = "missing"
    except (OSError, pa.ArrowInvalid) as error:  # includes an empty file, which cannot be mapped
        file["problem"] = "unreadable: " + " ".join(str(error).split())[:120]
    return file


def _footer(source: pa.NativeFile, path: str) -> tuple[int, int | None, pa.Schema]:
    """Return rows, pictures and schema of a Parquet or Arrow IPC file, without reading its data."""
    if path.endswith(".arrow"):
        reader = pa.ipc.open_file(source)
        return reader.count_rows(), None, reader.schema
    parquet = pq.ParquetFile(source)
    return parquet.metadata.num_rows, _pictures(parquet.metadata), parquet.schema_arrow


def _pictures(footer: pq.FileMetaData) -> int | None:
    """Return the number of rows with a jpg; None if there is no such column or no statistics."""
    names = [footer.schema.column(i).path for i in range(footer.num_columns)]
    if "jpg" not in names:
        return None
    groups = [footer.row_group(i).column(names.index("jpg")) for i in range(footer.num_row_groups)]
    if any(group.statistics is None for group in groups):
        return None
    return sum(int(group.num_values - group.statistics.null_count) for group in groups)


def _ledger_rows(records: Records, settings: Mapping[str, Settings]) -> list[dict[str, Any]]:
    """Return rows of LEDGER, with the input that each shard would be made from today."""
    rows = []
    for stage in (table for table in records if table != "urls"):
        inputs = stage_of(stage).inputs_today(records, settings[stage]) or {}
        for shard, record in records[stage].items():
            maps = {name: [*getattr(record, name).items()] for name in ("rejected", "versions")}
            rows.append({**vars(record), **maps, "expected_input": inputs.get(shard)})
    return rows


def _settings_table(settings: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    rows: list[dict[str, str]] = []

    def flatten(stage: str, prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                flatten(stage, f"{prefix}.{name}" if prefix else name, inner)
        else:
            rows.append({"stage": stage, "name": prefix, "value": json.dumps(value)})

    for stage, value in settings.items():
        flatten(stage, "", value)
    form = pa.schema([(name, pa.string()) for name in ("stage", "name", "value")])
    return pa.Table.from_pylist(rows, schema=form)
