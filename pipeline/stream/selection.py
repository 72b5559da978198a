"""selections/NAME.arrow, written by `codeseg select` -> rows of each features shard. Light.

A selection is refused after one of the features shards from which it was made is redone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import ShardRecord, fingerprint
from codeseg.pipeline.engine.storage import Storage


def selection_path(name: str) -> str:
    """Return a selection's path under the root.

    Raises:
        ValueError: the name has characters other than letters, digits, . _ and -.
    """
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(f"a selection's name is letters, digits, . _ and -, not {name!r}")
    return f"selections/{name}.arrow"


@dataclass(frozen=True)
class Selection:
    """The rows to train on."""

    rows: dict[int, NDArray[np.int64]]  # shard -> numbers of its rows, ascending
    sql: str  # the statement that chose them
    fingerprint: str  # of the selected rows

    def block(self, shard: int, first: int, size: int) -> NDArray[np.int64]:
        """Return the selected ones of the rows first … first + size − 1, counted from `first`."""
        rows = self.rows[shard]
        return rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + size)] - first


def read_selection(root: Storage, name: str, features: Mapping[int, ShardRecord]) -> Selection:
    """Read a selection and compare it with the current features.

    Raises:
        ValueError, FileNotFoundError: it is missing, damaged or older than the features; one line.
    """
    path = selection_path(name)
    place, again = f"{root.uri}/{path}", f"`codeseg select {root.uri} {name} --where …`"
    if root.size(path) is None:
        some = ", ".join(n.removesuffix(".arrow") for n in root.names("selections", ".arrow"))
        raise FileNotFoundError(f"{place} is missing; make it with {again} (there are: {some})")
    try:
        table = pa.ipc.open_file(root.open_input(path)).read_all()
        if not table.schema.equals(schema.SELECTION):
            raise pa.ArrowInvalid("it has other columns")
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{place} is damaged ({error}); make it again with {again}") from error
    made_from = dict(zip(table["shard"].to_pylist(), table["made_from"].to_pylist(), strict=True))
    if made_from != {shard: record.output for shard, record in features.items()}:
        raise ValueError(f"{place} is older than the features; make it again with {again}")
    rows = {
        shard: np.asarray(numbers, np.int64)
        for shard, numbers in zip(made_from, table["rows"].to_pylist(), strict=True)
    }
    plain = [[shard, numbers.tolist()] for shard, numbers in rows.items()]
    sql = (table.schema.metadata or {}).get(b"sql", b"").decode()
    return Selection(rows, sql, fingerprint(plain))
