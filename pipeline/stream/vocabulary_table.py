"""Read the vocabulary for the trainer: noun id -> tokens and knowledge embedding. Light.

In: each ROOT's vocabulary/nouns.arrow and ledger. Out: NumPy views, memory-mapped if local.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from codeseg.pipeline.engine.stage import DAMAGED, VOCABULARY, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_settings import FeatureSettings


class Vocabulary:
    """The distinct nouns of all roots; a noun's embedding does not depend on its corpus.

    The rows of the first root's table come first, then those of the second, and so on.

    Raises:
        ValueError, FileNotFoundError: a table is missing, stale, broken or empty; one line.
    """

    def __init__(self, roots: Sequence[Storage], settings: FeatureSettings) -> None:
        self._tables = [_open(root, settings) for root in roots]
        self._starts = np.cumsum([0, *(len(table.ids) for table in self._tables)])

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row numbers of noun ids, in the first table that has each.

        Raises:
            ValueError: an id is in none of the tables.
        """
        rows = np.full(ids.shape, -1, np.int64)
        for table, start in zip(self._tables, self._starts.tolist(), strict=False):
            found = np.searchsorted(table.ids, ids).clip(max=len(table.ids) - 1)
            rows = np.where((rows < 0) & (table.ids[found] == ids), found + start, rows)
        if (rows < 0).any():
            raise ValueError(self._tables[-1].lacks)
        return rows

    def tokens(self, row: int) -> NDArray[np.int32]:
        """Return the BPE ids of a noun, without SOS and EOS."""
        table, row = self._at(row)
        return table.tokens[table.offsets[row] : table.offsets[row + 1]]

    def knowledge_UC(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return the un-normalized mean template embeddings (METHOD §3) of rows."""
        return np.stack([table.knowledge_KC[row] for table, row in map(self._at, rows)])

    def _at(self, row: int) -> tuple["_Table", int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._tables[number], row - int(self._starts[number])


class _Table(NamedTuple):
    """One root's nouns, in the order of ids."""

    ids: NDArray[np.int64]
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int32]  # of each noun's tokens
    knowledge_KC: NDArray[np.float32]
    lacks: str  # the message about a noun that is not in it


def _open(root: Storage, settings: FeatureSettings) -> _Table:
    path = VOCABULARY.path(0)
    place, again = f"{root.uri}/{path}", VOCABULARY.again(root)
    found = state(root, VOCABULARY, settings=settings.vocabulary_fingerprint())
    if not found.records:
        raise FileNotFoundError(f"{place} is missing; {again}")
    if found.stale.get(0, DAMAGED) != DAMAGED:
        raise ValueError(f"{place} is older than the nouns or the CLIP; {again}")
    try:
        table = pa.ipc.open_file(root.open_input(path)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{place} is corrupt ({error}); {again}") from error
    if not table.num_rows:
        raise ValueError(f"{place} is empty: no caption has nouns; run `codeseg status {root.uri}`")
    (batch,) = table.to_batches()  # written as one record batch: all columns stay mapped
    tokens, knowledge = batch.column("noun_tokens"), batch.column("knowledge_embedding")
    return _Table(
        ids=batch.column("id").to_numpy(),
        tokens=tokens.values.to_numpy(),
        offsets=tokens.offsets.to_numpy(),
        knowledge_KC=knowledge.values.to_numpy().reshape(table.num_rows, -1),
        lacks=f"{place} lacks nouns of the features; {again}",
    )
