"""Questions to a dataset, answered by DuckDB from tables and ledger alone, out of core.

    dataset root (local or s3://) + audit_sql/*.sql  ->  findings: pass / warn / fail / skip

Read-only by construction: an in-memory database whose views are exactly the committed files; access
to anything else is switched off and locked, and only SELECT statements are run. Thresholds stand in
audit_sql/thresholds.sql. This is the only file that imports duckdb.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from pipeline import audit_values, schema
from pipeline.audit_inventory import Inventory, take_inventory
from pipeline.audit_questions import COUNTED, Question, check_names, class_names, questions
from pipeline.audit_schemas import light_features
from pipeline.benchmark import load_benchmark
from pipeline.storage import Storage

VIEWS = ("pairs", "nouns", "features", "vocabulary", "ledger", "metrics")
GLOB_CHARACTERS = re.compile(r"[*?\[\]{}]")
FIRST_KEYS = 5


@dataclass(frozen=True)
class AuditOptions:
    """What to look at, and with how much of the machine."""

    memory: str = "4GB"
    """DuckDB's memory limit; what does not fit is spilled to a temporary folder."""
    threads: int | None = None
    """None: all cores."""
    hashes: bool = False
    """Read every file whole and compare its SHA-256 with the ledger."""
    pictures: int = 20_000
    """About how many pictures are decoded and hashed, spread over the shards; 0 for all."""
    feature_rows: int = 0
    """Rows of each features shard whose tensors are read; 0 for all."""
    run: Path | None = None
    """A training run whose metrics.parquet becomes the view `metrics`."""
    benchmarks: tuple[tuple[str, Path | None], ...] = ()
    """(name, data folder) held to verdicts; without any, coverage is told for all of them."""
    limits: dict[str, float] = field(default_factory=dict)
    """Thresholds to use instead of those in thresholds.sql."""


@dataclass(frozen=True)
class Finding:
    """The answer to a check."""

    check: str
    sentence: str
    verdict: str  # pass, warn, fail or skip
    figures: dict[str, Any]
    keys: list[str]  # the first offending keys, hosts, files … in order
    seconds: float


class Audit:
    """The named views of one dataset, to be asked and closed."""

    def __init__(self, root: Storage, options: AuditOptions) -> None:
        """Take the inventory and open the views; reads no row yet.

        Raises:
            ValueError: when the root is no dataset, or an option names what does not exist.
        """
        self.inventory: Inventory = take_inventory(root, options.hashes)
        self._root = root
        self._options = options
        self._spill = tempfile.TemporaryDirectory(prefix="codeseg-audit-")
        self._prepared: set[str] = set()
        config: dict[str, Any] = {
            "memory_limit": options.memory,
            "temp_directory": self._spill.name,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
        }
        if options.threads:
            config["threads"] = options.threads
        try:
            self._database = duckdb.connect(":memory:", config=config)
        except duckdb.Error as error:  # the memory limit is the one thing a user gives
            raise ValueError(f"memory {options.memory!r}: {_one_line(error)}") from None
        self._open_views()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()
        self._spill.cleanup()

    def _open_views(self) -> None:
        readable: list[str] = []
        for table, empty in (("pairs", schema.PAIRS), ("nouns", schema.NOUNS)):
            readable += self._view_parquet(table, self._root, self.inventory.data[table], empty)
        self._view_arrow("features", light_features())
        self._view_arrow("vocabulary", schema.vocabulary(self.inventory.embed_dim))
        readable += self._view_metrics()
        self._view_table("ledger", self.inventory.ledger)
        self._view_table("files", self.inventory.files)
        self._view_table("settings", self.inventory.settings)
        self._view_table("class_names", class_names(self._options.benchmarks))
        self._database.execute("SET parquet_metadata_cache = true")
        self._set_thresholds()
        self._database.execute(questions()["macros"].sql)
        self._database.execute("SET allowed_paths = ?", [readable])
        self._database.execute("SET enable_external_access = false")
        self._database.execute("SET lock_configuration = true")

    def _view_parquet(
        self, view: str, root: Storage, paths: list[str], empty: pa.Schema
    ) -> list[str]:
        """Open Parquet files as a view; returns the local paths that DuckDB itself will read."""
        if not paths:
            self._view_table(view, empty.empty_table())
        elif root.local_path is None or GLOB_CHARACTERS.search(str(root.local_path)):
            self._view_dataset(view, root, paths, "parquet", None)
        else:
            local = [str(root.local_path / path) for path in paths]
            quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in local)
            self._database.execute(f"CREATE VIEW {view} AS FROM read_parquet([{quoted}])")
            return local
        return []

    def _view_arrow(self, table: str, light: pa.Schema) -> None:
        paths = self.inventory.data[table]
        if paths:
            self._view_dataset(table, self._root, paths, "ipc", light)
        else:
            self._view_table(table, light.empty_table())

    def _view_dataset(
        self, view: str, root: Storage, paths: list[str], form: str, columns: pa.Schema | None
    ) -> None:
        """Stream through pyarrow: object stores, and Arrow files, which DuckDB cannot read."""
        filesystem: fs.FileSystem = fs.LocalFileSystem()
        base = str(root.local_path)
        if root.local_path is None:
            filesystem, base = fs.FileSystem.from_uri(root.uri)
        full = [f"{base}/{path}" for path in paths]
        self._view_table(view, ds.dataset(full, columns, form, filesystem))

    def _view_table(self, view: str, table: Any) -> None:
        self._database.register(f"arrow_{view}", table)
        self._database.execute(f"CREATE VIEW {view} AS FROM arrow_{view}")

    def _view_metrics(self) -> list[str]:
        run = self._options.run
        if run is None:
            self._view_table("metrics", pa.schema([("step", pa.int64())]).empty_table())
            return []
        if not (run / "metrics.parquet").is_file():
            raise FileNotFoundError(f"{run} has no metrics.parquet; give the RUN of codeseg train")
        return self._view_parquet("metrics", Storage.open(run), ["metrics.parquet"], pa.schema([]))

    def _set_thresholds(self) -> None:
        self._database.execute(f"CREATE TABLE thresholds AS {questions()['thresholds'].sql}")
        for name, value in self._options.limits.items():
            changed = self._database.execute(
                "UPDATE thresholds SET value = ? WHERE name = ? RETURNING name", [value, name]
            ).fetchall()
            if not changed:
                raise ValueError(
                    f"--limit {name}: no such threshold; `codeseg audit ROOT --sql "
                    '"FROM thresholds"` lists them'
                )

    # Prepared tables: made the first time that something names them

    def _prepare(self, sql: str) -> None:
        """Make the prepared tables that a statement names."""
        makers: dict[str, Callable[[], Iterator[pa.RecordBatch]]] = {
            "feature_values": self._feature_values,
            "vocabulary_values": self._vocabulary_values,
            "picture_values": self._picture_values,
            "benchmark_pictures": self._benchmark_pictures,
        }
        schemas = {
            "feature_values": audit_values.FEATURE_VALUES,
            "vocabulary_values": audit_values.VOCABULARY_VALUES,
            "picture_values": audit_values.PICTURE_VALUES,
            "benchmark_pictures": audit_values.PICTURE_VALUES,
        }
        for name, maker in makers.items():
            if name in sql and name not in self._prepared:
                reader = pa.RecordBatchReader.from_batches(schemas[name], maker())
                self._database.register("stream", reader)
                self._database.execute(f"CREATE TABLE {name} AS FROM stream")
                self._database.unregister("stream")
                self._prepared.add(name)
        for name in COUNTED:
            if name in sql and name not in self._prepared:
                self._database.execute(f"CREATE TABLE {name} AS {questions()[name].sql}")
                self._prepared.add(name)

    def _feature_values(self) -> Iterator[pa.RecordBatch]:
        paths = self.inventory.data["features"]
        return audit_values.feature_values(self._root, paths, self._options.feature_rows)

    def _vocabulary_values(self) -> Iterator[pa.RecordBatch]:
        return audit_values.vocabulary_values(self._root, self.inventory.data["vocabulary"])

    def _picture_values(self) -> Iterator[pa.RecordBatch]:
        paths = self.inventory.data["pairs"]
        a_file = -(-self._options.pictures // max(1, len(paths)))
        return audit_values.picture_values(self._root, paths, a_file)

    def _benchmark_pictures(self) -> Iterator[pa.RecordBatch]:
        for name, data in self._options.benchmarks:
            if data is not None:
                opened = load_benchmark(name).open(data)
                images = [opened.image_path(image_id) for image_id in opened.ids]
                yield from audit_values.benchmark_picture_values(images)

    # Asking

    def query(self, sql: str) -> pa.Table:
        """Run somebody's SELECT on the named views.

        Raises:
            ValueError: when it is not one SELECT statement, or DuckDB refuses it.
        """
        try:
            statements = self._database.extract_statements(sql)
            kinds = [statement.type.name for statement in statements]
            if kinds != ["SELECT"]:
                raise ValueError(
                    f"the audit only reads: one SELECT statement, not {', '.join(kinds) or 'none'}"
                )
            self._prepare(sql)
            return self._database.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise ValueError(f"{_one_line(error)} (views: {', '.join(VIEWS)})") from None

    def check(self, name: str) -> Finding:
        """Answer one check; a table that cannot be read fails it and says why."""
        question = questions()[name]
        started = time.perf_counter()
        missing = [view for view in question.needs if not self._has_rows(view)]
        verdict, figures, keys = "skip", {"no rows in": ", ".join(missing)}, list[str]()
        if not missing:
            try:
                verdict, figures, keys = self._answer(question)
            except (duckdb.Error, OSError, pa.ArrowException) as error:
                verdict, figures, keys = "fail", {"error": _one_line(error)}, []
        seconds = time.perf_counter() - started
        return Finding(name, question.sentence, verdict, figures, keys, seconds)

    def _has_rows(self, view: str) -> bool:
        if view in self.inventory.data:
            return bool(self.inventory.data[view])
        if view == "metrics":
            return self._options.run is not None
        if view == "benchmark_pictures":
            return any(data is not None for _, data in self._options.benchmarks)
        return True

    def _answer(self, question: Question) -> tuple[str, dict[str, Any], list[str]]:
        """Verdict, figures and keys: the first, the middle and the last column of one row."""
        self._prepare(question.sql)
        cursor = self._database.execute(question.sql)
        names = [column[0] for column in cursor.description]
        (row,) = cursor.fetchall()
        assert names[0] == "verdict" and names[-1] == "keys", question.name
        keys = [str(key) for key in row[-1] or []][:FIRST_KEYS]
        return row[0], dict(zip(names[1:-1], row[1:-1], strict=True)), keys

    def figures(self, question: Question) -> list[dict[str, Any]]:
        """Rows of a figure of the report; none where its views are empty or cannot be read."""
        if not all(self._has_rows(view) for view in question.needs):
            return []
        try:
            self._prepare(question.sql)
            rows: list[dict[str, Any]] = (
                self._database.sql(question.sql).to_arrow_table().to_pylist()
            )
        except (duckdb.Error, OSError, pa.ArrowException):
            return []  # the checks say so
        return rows

    def pictures(self, keys: list[str]) -> dict[str, bytes]:
        """The stored JPEG of some pairs, by key."""
        rows = self._database.execute(
            "SELECT key, jpg FROM pairs WHERE key IN (SELECT unnest(?)) AND jpg IS NOT NULL", [keys]
        ).fetchall()
        return dict(rows)

    def checks(self, names: Iterable[str] | None = None) -> Iterator[Finding]:
        """Answer the checks one by one, in the order of the data flow."""
        for name in names or check_names():
            yield self.check(name)


def _one_line(error: BaseException) -> str:
    """DuckDB's message without its drawing of the statement."""
    return " ".join(str(error).split("\n\nLINE")[0].split())
