"""The vocabulary as the trainer opens it: noun id -> tokens and knowledge embedding. Light.

In: ROOT's vocabulary/nouns.arrow and ledger. Out: NumPy views, memory-mapped where ROOT is local.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from codeseg.pipeline.engine.stage import DAMAGED, VOCABULARY, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_settings import FeatureSettings


class Vocabulary:
    """The distinct nouns of the corpus: tokens and knowledge embeddings by noun id.

    Raises:
        ValueError, FileNotFoundError: it is missing, stale, broken or empty; one line.
    """

    def __init__(self, root: Storage, settings: FeatureSettings) -> None:
        path = VOCABULARY.path(0)
        self._place, self._again = f"{root.uri}/{path}", VOCABULARY.again(root)
        found = state(root, VOCABULARY, settings=settings.vocabulary_fingerprint())
        if not found.records:
            raise FileNotFoundError(f"{self._place} is missing; {self._again}")
        if found.stale.get(0, DAMAGED) != DAMAGED:
            raise ValueError(f"{self._place} is older than the nouns or the CLIP; {self._again}")
        try:
            table = pa.ipc.open_file(root.open_input(path)).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{self._place} is corrupt ({error}); {self._again}") from error
        if not table.num_rows:
            raise ValueError(f"{self._place} is empty: no caption has nouns; look at {root.uri}")
        (batch,) = table.to_batches()  # written as one record batch: all columns stay mapped
        tokens = batch.column("noun_tokens")
        self._ids: NDArray[np.int64] = batch.column("id").to_numpy()
        self._tokens, self._offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
        knowledge = batch.column("knowledge_embedding").values.to_numpy()
        self._knowledge_KC: NDArray[np.float32] = knowledge.reshape(table.num_rows, -1)

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return row numbers of noun ids.

        Raises:
            ValueError: an id is not in the table.
        """
        rows = self.find(ids)
        if (rows < 0).any():
            raise ValueError(f"{self._place} lacks nouns of the features; {self._again}")
        return rows

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row numbers of noun ids, -1 for those that are not in the table."""
        rows = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return np.where(self._ids[rows] == ids, rows, -1)

    def tokens(self, row: int) -> NDArray[np.int32]:
        """Return BPE ids of a noun, without SOS and EOS."""
        tokens: NDArray[np.int32] = self._tokens[self._offsets[row] : self._offsets[row + 1]]
        return tokens

    def knowledge_UC(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return un-normalized mean template embeddings (METHOD §3) of rows."""
        return self._knowledge_KC[rows]


class MergedVocabulary:
    """The vocabularies of several roots as one; a noun's embedding does not depend on its corpus.

    Row numbers are those of the first vocabulary, then those of the second, and so on; nothing is
    copied.
    """

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        self._all = list(vocabularies)
        self._starts = np.cumsum([0, *map(len, vocabularies)])

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return row numbers of noun ids, in the first vocabulary that has each.

        Raises:
            ValueError: an id is in none of the tables.
        """
        rows = np.full(ids.shape, -1, np.int64)
        for vocabulary, start in zip(self._all, self._starts.tolist(), strict=False):
            found = vocabulary.find(ids)
            rows = np.where((rows < 0) & (found >= 0), found + start, rows)
        if (missing := rows < 0).any():
            self._all[-1].rows(ids[missing])  # says what is missing and what to run
        return rows

    def tokens(self, row: int) -> NDArray[np.int32]:
        """Return BPE ids of a noun, without SOS and EOS."""
        table = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._all[table].tokens(row - int(self._starts[table]))

    def knowledge_UC(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return un-normalized mean template embeddings (METHOD §3) of rows."""
        tables = np.searchsorted(self._starts, rows, side="right") - 1
        parts = zip(tables.tolist(), (rows - self._starts[tables]).tolist(), strict=True)
        return np.stack([self._all[table].knowledge_UC(np.array(row)) for table, row in parts])
