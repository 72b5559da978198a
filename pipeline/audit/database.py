"""Query and check a dataset with DuckDB, from its tables and ledger alone, out of core.

    dataset root (local or s3://) + sql/*.sql  ->  findings: pass / warn / fail / skip

It cannot write: the database is in memory, its views are exactly the committed files, access to
anything else is switched off and locked, and statements run in read-only transactions. The
thresholds are in sql/thresholds.sql. This is the only file that imports duckdb.
"""

import re
import tempfile
import time
from typing import Any, Self

import duckdb
import pyarrow as pa

from codeseg.pipeline.audit import values
from codeseg.pipeline.audit.inventory import Inventory, take_inventory
from codeseg.pipeline.audit.questions import COUNTED, Finding, Question, questions
from codeseg.pipeline.audit.views import AuditOptions, open_views
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.engine.storage import Storage

VIEWS = ("pairs", "nouns", "features", "vocabulary", "trainable", "ledger", "metrics")
FIRST_KEYS = 5


class Audit:
    """The named views of one dataset; a context manager that reads no row until it is queried.

    Raises:
        ValueError: the root is not a dataset, or an option names something that does not exist.
    """

    def __init__(self, root: Storage, options: AuditOptions) -> None:
        self.inventory: Inventory = take_inventory(root, options.hashes)
        self._root = root
        self._options = options
        self._spill = tempfile.TemporaryDirectory(prefix="codeseg-audit-")
        self._prepared: set[str] = set()
        self._benchmark_images = [
            opened.image_path(image_id)
            for name, data in options.benchmarks
            if data is not None
            for opened in [load_benchmark(name).open(data)]
            for image_id in opened.ids
        ]
        config: dict[str, Any] = {
            "memory_limit": options.memory,
            "temp_directory": self._spill.name,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
            **({"threads": options.threads} if options.threads else {}),
        }
        try:
            self._database = duckdb.connect(":memory:", config=config)
        except duckdb.Error as error:  # only the memory limit comes from the user
            raise ValueError(f"memory {options.memory!r}: {_one_line(error)}") from None
        open_views(self._database, root, self.inventory, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()
        self._spill.cleanup()

    def _prepare(self, sql: str) -> None:
        """Create the tables that a statement names and that are computed on first use."""
        root, data = self._root, self.inventory.data
        vectors = values.feature_values(root, data["features"], self._options.feature_rows)
        nouns = values.vocabulary_values(root, data["vocabulary"])
        per_file = -(-self._options.pictures // max(1, len(data["pairs"])))
        pictures = values.picture_values(root, data["pairs"], per_file)
        others = values.benchmark_picture_values(self._benchmark_images)
        measured = {  # generators, which measure nothing until they are read
            "feature_values": (values.FEATURE_VALUES, vectors),
            "vocabulary_values": (values.VOCABULARY_VALUES, nouns),
            "picture_values": (values.PICTURE_VALUES, pictures),
            "benchmark_pictures": (values.PICTURE_VALUES, others),
        }
        for name in (*measured, *COUNTED):
            if name not in sql or name in self._prepared:
                continue
            self._prepared.add(name)
            if name in measured:
                form, batches = measured[name]
                self._database.register("stream", pa.RecordBatchReader.from_batches(form, batches))
                self._database.execute(f"CREATE TABLE {name} AS FROM stream")
                self._database.unregister("stream")
            else:
                self._prepare(questions()[name].sql)  # a counted table may query another
                self._database.execute(f"CREATE TABLE {name} AS {questions()[name].sql}")

    def query(self, sql: str) -> pa.Table:
        """Run a user's SELECT on the named views.

        Raises:
            ValueError: it is not one SELECT statement, or DuckDB refuses it.
        """
        try:
            statements = self._database.extract_statements(sql)
            kinds = [statement.type.name for statement in statements]
            if kinds not in (["SELECT"], ["MULTI"]):  # the latter is a PIVOT
                raise ValueError(
                    f"the audit only reads: one SELECT statement, not {', '.join(kinds) or 'none'}"
                )
            self._prepare(sql)
            self._database.execute("BEGIN TRANSACTION READ ONLY")
            try:
                return _held(self._database.sql(sql)).to_arrow_table()
            finally:
                self._database.execute("ROLLBACK")
        except duckdb.Error as error:
            raise ValueError(f"{_one_line(error)} (views: {', '.join(VIEWS)})") from None

    def check(self, name: str) -> Finding:
        """Run one check; it fails, with the reason, if a table cannot be read."""
        question = questions()[name]
        started = time.perf_counter()
        missing = [view for view in question.needs if not self._has_rows(view)]
        verdict, figures, keys = "skip", {"no rows in": ", ".join(missing)}, list[str]()
        if not missing:
            try:
                verdict, figures, keys = self._answer(question)
            except (duckdb.Error, OSError, pa.ArrowException) as error:
                verdict, figures, keys = "fail", {"error": _one_line(error)}, []
        seconds = round(time.perf_counter() - started, 3)
        return Finding(name, question.sentence, verdict, figures, keys, seconds)

    def _has_rows(self, view: str) -> bool:
        others = {"metrics": self._options.run, "benchmark_pictures": self._benchmark_images}
        return bool((self.inventory.data | others).get(view, True))

    def _answer(self, question: Question) -> tuple[str, dict[str, Any], list[str]]:
        """Return verdict, figures and keys: the first, the middle and the last columns of a row."""
        self._prepare(question.sql)
        cursor = self._database.execute(question.sql)
        names = [column[0] for column in cursor.description]
        (row,) = cursor.fetchall()
        assert names[0] == "verdict" and names[-1] == "keys", question.name
        keys = [str(key) for key in row[-1] or []][:FIRST_KEYS]
        return row[0], dict(zip(names[1:-1], row[1:-1], strict=True)), keys

    def figures(self, question: Question) -> list[dict[str, Any]]:
        """Return the rows of a figure of the report; none if a view is empty or unreadable."""
        if not all(self._has_rows(view) for view in question.needs):
            return []
        try:
            self._prepare(question.sql)
            return list(self._database.sql(question.sql).to_arrow_table().to_pylist())
        except (duckdb.Error, OSError, pa.ArrowException):
            return []  # the checks report it

    def pictures(self, keys: list[str]) -> dict[str, bytes]:
        """Return the stored JPEGs of the pairs with these keys, by key."""
        rows = self._database.execute(
            "SELECT key, jpg FROM pairs WHERE key IN (SELECT unnest(?)) AND jpg IS NOT NULL", [keys]
        ).fetchall()
        return dict(rows)


def _held(rows: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return the rows with dates, also those inside a value, as text: Python's end in 9999."""
    columns = []
    for place, (name, kind) in enumerate(zip(rows.columns, rows.types, strict=True), 1):
        quoted = name.replace('"', '""')
        dated = re.search("DATE|TIMESTAMP", str(kind))
        columns.append(f'#{place}::VARCHAR AS "{quoted}"' if dated else f"#{place}")
    return rows.project(", ".join(columns))


def _one_line(error: BaseException) -> str:
    """Return DuckDB's message without the excerpt of the statement."""
    return " ".join(str(error).split("\n\nLINE")[0].split())
