"""A condition in SQL -> selections/NAME.arrow: the rows of the features to train on.

    Audit + WHERE … (over `trainable` and every other view of the audit)  ->  Chosen  ->  the file

The trainer reads the file with pipeline/stream/selection.py, without DuckDB.
"""

from dataclasses import dataclass, field

import pyarrow as pa

from codeseg.pipeline import schema
from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.selection import selection_path

COUNTED = {
    "pairs": "count(*)",
    "captions": "count(DISTINCT caption)",
    "nouns": "(SELECT count(DISTINCT noun) FROM (SELECT unnest(nouns) AS noun FROM {rows}))",
    "class names": "(SELECT count(DISTINCT class) FROM class_names WHERE class IN "
    "(SELECT unnest(nouns) FROM {rows}))",
}
"""Figures that describe a selection: name -> SQL over the rows before it, and over those kept."""


@dataclass(frozen=True)
class Condition:
    """A choice among the trainable pairs: those that meet `where`, the best by `top`, a sample."""

    where: str = "true"  # SQL over the columns of `trainable`
    top: tuple[str, float] | None = None  # (column, share of the rest with its highest values)
    sample: float = 1.0  # about this share of the rest, chosen by a hash of seed and key
    seed: int = 0

    def sql(self) -> str:
        """Return one SELECT of the chosen pairs, with `shard` and `row` of their features.

        Raises:
            ValueError: a share is not above 0 and at most 1.
        """
        shares = [self.sample, *([self.top[1]] if self.top else [])]
        if any(not 0 < share <= 1 for share in shares):
            raise ValueError("a share to keep is above 0 and at most 1, as in --top clip_score 0.7")
        query = f"SELECT * FROM trainable WHERE (\n{self.where}\n)"
        if self.top:
            column, share = self.top
            query = (
                f"SELECT * FROM ({query}) QUALIFY row_number() OVER "
                f'(ORDER BY "{column.replace(chr(34), "")}" DESC NULLS LAST, key) '
                f"<= ceil({share} * count(*) OVER ())"
            )
        if self.sample < 1:
            drawn = f"md5_number_lower(key || ':{self.seed}')"
            query = f"SELECT * FROM ({query}) WHERE {drawn} < {self.sample} * 18446744073709551616"
        return query


@dataclass(frozen=True)
class Chosen:
    """The rows that a condition keeps, with the figures of COUNTED before and after."""

    rows: dict[int, list[int]]  # shard -> its kept rows, ascending; every shard has an entry
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)


def choose(audit: Audit, condition: Condition, shards: list[int]) -> Chosen:
    """Return the rows of these features shards that a condition keeps.

    Raises:
        ValueError: DuckDB refuses the condition, or it keeps nothing.
    """
    query = condition.sql()
    kept = audit.query(f"SELECT shard, row FROM ({query}) ORDER BY shard, row")
    if not kept.num_rows:
        raise ValueError(
            "no trainable pair fits the condition; try it with "
            f'`codeseg audit ROOT --sql "SELECT count(*) FROM trainable WHERE {condition.where}"`'
        )
    rows: dict[int, list[int]] = {shard: [] for shard in shards}
    for shard, row in zip(kept["shard"].to_pylist(), kept["row"].to_pylist(), strict=True):
        rows[shard].append(row)
    before, after = (_figures(audit, f"({source})") for source in ("FROM trainable", query))
    return Chosen(rows, before, after)


def _figures(audit: Audit, rows: str) -> dict[str, int]:
    columns = ", ".join(f'{sql.format(rows=rows)} AS "{n}"' for n, sql in COUNTED.items())
    (figures,) = audit.query(f"SELECT {columns} FROM {rows}").to_pylist()
    return dict(figures)


def write_selection(
    root: Storage, name: str, chosen: Chosen, sql: str, made_from: dict[int, ShardRecord]
) -> str:
    """Write selections/NAME.arrow, whole or not at all, and return its path under the root.

    The file's metadata has the `sql` that chose the rows. `made_from` are the features' records:
    redoing one of these shards makes the selection stale.
    """
    rows = [
        {"shard": shard, "made_from": made_from[shard].output, "rows": rows}
        for shard, rows in sorted(chosen.rows.items())
    ]
    table = pa.Table.from_pylist(rows, schema.SELECTION.with_metadata({"sql": sql}))

    def write(sink: pa.NativeFile) -> None:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    root.write_atomic(selection_path(name), write)
    return selection_path(name)
