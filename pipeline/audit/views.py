"""Open the audit's views, one per table, over exactly the committed files; then lock the database.

    Inventory + AuditOptions  ->  named views in an in-memory DuckDB, everything else switched off

DuckDB itself reads Parquet on a local disk; Arrow files, which it cannot read, and object stores
are streamed through pyarrow.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from codeseg.pipeline import schema
from codeseg.pipeline.audit.inventory import Inventory
from codeseg.pipeline.audit.questions import class_names, questions
from codeseg.pipeline.audit.schemas import light_features
from codeseg.pipeline.engine.storage import Storage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

GLOB_CHARACTERS = re.compile(r"[*?\[\]{}]")


@dataclass(frozen=True)
class AuditOptions:
    """The options of an audit."""

    memory: str = "4GB"  # DuckDB's limit; what does not fit is spilled to a temporary folder
    threads: int | None = None  # None: all cores
    hashes: bool = False  # read every file whole and compare its SHA-256 with the ledger
    pictures: int = 20_000  # about how many are decoded and hashed over all shards; 0 for all
    feature_rows: int = 0  # of each features shard whose tensors are read; 0 for all
    run: Path | None = None  # a training run whose metrics.parquet becomes the view `metrics`
    # (name, data folder) that get verdicts; without any, the coverage of all is shown
    benchmarks: tuple[tuple[str, Path | None], ...] = ()
    limits: dict[str, float] = field(default_factory=dict)  # instead of those in thresholds.sql


def open_views(
    database: "DuckDBPyConnection", root: Storage, inventory: Inventory, options: AuditOptions
) -> None:
    """Create the named views, then lock the database.

    Raises:
        ValueError, FileNotFoundError: an option names something that does not exist.
    """
    readable = _view_metrics(database, options.run)
    for table, columns in {
        "pairs": schema.PAIRS,
        "nouns": schema.NOUNS,
        "features": light_features(),
        "vocabulary": schema.vocabulary(inventory.embed_dim),
    }.items():
        readable += _view_files(database, table, root, inventory.data[table], columns)
    _view_table(database, "ledger", inventory.ledger)
    _view_table(database, "files", inventory.files)
    _view_table(database, "settings", inventory.settings)
    _view_table(database, "class_names", class_names(options.benchmarks))
    database.execute("SET parquet_metadata_cache = true")
    _set_thresholds(database, options.limits)
    database.execute(questions()["macros"].sql)
    database.execute("SET allowed_paths = ?", [readable])
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")


def _view_files(
    database: "DuckDBPyConnection", view: str, root: Storage, paths: list[str], columns: pa.Schema
) -> list[str]:
    """Open files as a view; return the local paths that DuckDB itself will read."""
    if not paths:
        _view_table(database, view, columns.empty_table())
        return []
    filesystem: fs.FileSystem = fs.LocalFileSystem()
    base = str(root.local_path)
    if root.local_path is None:
        filesystem, base = fs.FileSystem.from_uri(root.uri)
    full = [f"{base}/{path}" for path in paths]
    if paths[0].endswith(".arrow"):
        _view_table(database, view, ds.dataset(full, columns, "ipc", filesystem))
    elif root.local_path is None or GLOB_CHARACTERS.search(base):
        _view_table(database, view, ds.dataset(full, None, "parquet", filesystem))
    else:
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in full)
        database.execute(f"CREATE VIEW {view} AS FROM read_parquet([{quoted}])")
        return full
    return []


def _view_table(database: "DuckDBPyConnection", view: str, table: Any) -> None:
    database.register(f"arrow_{view}", table)
    database.execute(f"CREATE VIEW {view} AS FROM arrow_{view}")


def _view_metrics(database: "DuckDBPyConnection", run: Path | None) -> list[str]:
    if run is None:
        _view_table(database, "metrics", pa.schema([("step", pa.int64())]).empty_table())
        return []
    if not (run / "metrics.parquet").is_file():
        raise FileNotFoundError(f"{run} has no metrics.parquet; give the RUN of codeseg train")
    try:
        pq.read_metadata(run / "metrics.parquet")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{run}/metrics.parquet is damaged: {error}") from None
    return _view_files(database, "metrics", Storage.open(run), ["metrics.parquet"], pa.schema([]))


def _set_thresholds(database: "DuckDBPyConnection", limits: dict[str, float]) -> None:
    database.execute(f"CREATE TABLE thresholds AS {questions()['thresholds'].sql}")
    for name, value in limits.items():
        changed = database.execute(
            "UPDATE thresholds SET value = ? WHERE name = ? RETURNING name", [value, name]
        ).fetchall()
        if not changed:
            raise ValueError(
                f"--limit {name}: no such threshold; `codeseg audit ROOT --sql "
                '"FROM thresholds"` lists them'
            )
