"""Read a features table for the trainer: check it first, then read a block at a time. Light.

In: ROOT's features/NNNNN.arrow, or features-BACKBONE/, and ledger. Out: blocks (record batches) as
NumPy views, memory-mapped if the root is local. The error for every defect says what to run.
"""

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from codeseg.pipeline.engine.ledger import ShardRecord, fingerprint
from codeseg.pipeline.engine.stage import DAMAGED, MISSING, Stage, StageState, faults, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.pipeline.stream.order import IntArray
from codeseg.pipeline.stream.selection import read_selection

READERS = 8
SHARDS_OPEN = 8192  # on an object store; one of 157 blocks takes 11 kB of memory


class Block:
    """One record batch of a features shard: R rows as NumPy views, nothing copied.

    Letters: R rows, K pictures, V views, H W pixels, P image tokens, D vision width, T text width,
    N vectors of a view, C joint width.
    """

    def __init__(self, batch: pa.RecordBatch, settings: FeatureSettings) -> None:
        self._batch = batch
        self.settings = settings
        self._lists: dict[str, tuple[NDArray[Any], NDArray[np.int32]]] = {}  # values, offsets
        self.rows = batch.num_rows

    def key(self, row: int) -> str:
        """Return the pair's key."""
        return str(self._batch.column("key")[row].as_py())

    def jpg(self, row: int) -> bytes:
        """Return the pair's JPEG, if the table has no image tokens."""
        return bytes(self._batch.column("jpg")[row].as_py())

    @cached_property
    def picture_R(self) -> IntArray:
        """The index of each row's picture among the block's K pictures."""
        if not self.settings.by_picture:
            return np.arange(self.rows)
        column = self._batch.column("vectors" if self.settings.backbone else "pixels")
        places: IntArray = column.offsets.to_numpy() // column.sizes.to_numpy()
        return places

    @cached_property
    def pixels_KVHWC(self) -> NDArray[np.uint8]:
        """The RGB pixels, 0..255, of the stored views."""
        S = self.settings.clip.image_size
        return self._views("pixels", S, S, 3)

    @cached_property
    def image_tokens_KVPD(self) -> NDArray[np.float16] | NDArray[np.int8]:
        """The trunk output (METHOD §2.1), fp16 or int8."""
        return self._views("image_tokens", self.settings.clip.tokens, self.settings.clip.width)

    @cached_property
    def image_scales_KVP(self) -> NDArray[np.float32]:
        """The scales of int8 tokens."""
        return self._views("image_scales", self.settings.clip.tokens)

    @cached_property
    def vectors_KVND(self) -> NDArray[np.float16]:
        """The vectors of a backbone, of its width D; zeros pad pictures with fewer regions."""
        backbone = self.settings.backbone
        assert backbone is not None
        return self._views("vectors", backbone.vectors, backbone.width)

    @cached_property
    def captions_RC(self) -> NDArray[np.float16]:
        """The CLIP's embeddings of the captions, not normalized, in a backbone's table."""
        values: NDArray[np.float16] = self._batch.column("caption_embedding").values.to_numpy()
        return values.reshape(self.rows, -1)

    def values(self, name: str, row: int) -> NDArray[Any]:
        """Return a row's values of a list column, as `schema.features` defines it.

        Spans are (S, 3): noun, start, end.
        """
        if name not in self._lists:
            column = self._batch.column(name)
            values, offsets = column.values, column.offsets.to_numpy()
            if name == "spans":
                fields = [values.field(i).to_numpy() for i in range(3)]
                self._lists[name] = np.stack(fields, axis=1), offsets
            else:
                self._lists[name] = values.to_numpy(zero_copy_only=True), offsets
        values, offsets = self._lists[name]
        return values[offsets[row] : offsets[row + 1]]

    def _views(self, name: str, *shape: int) -> NDArray[Any]:
        values: NDArray[Any] = self._batch.column(name).values.to_numpy(zero_copy_only=True)
        return values.reshape(-1, self.settings.views, *shape)


class FeatureTable:
    """All features shards of a root, as one sequence of blocks.

    Args:
        root: of the dataset.
        stage: that of the CLIP's features or of a backbone's.
        skip_corrupt: leave out missing and unreadable shards instead of refusing the table.
        selection: name of a selection; only its rows are read.

    Attributes:
        settings: of the shards.
        block_sizes: (blocks,) rows of each block.
        skipped: shard -> why it is left out.
        fingerprint: of the settings and of every shard's content.

    Raises:
        ValueError, FileNotFoundError: shards are missing, stale, mixed or truncated; one line.
    """

    def __init__(
        self, root: Storage, stage: Stage, *, skip_corrupt: bool, selection: str | None
    ) -> None:
        self._root, self._stage = root, stage
        self._skip_corrupt = skip_corrupt
        self._again = stage.again(root)
        self.skipped: dict[int, str] = {}
        self.settings = FeatureSettings.read(root, stage)
        found = state(root, stage, settings=self.settings.fingerprint())
        if not found.records:
            raise FileNotFoundError(f"{root.uri} holds no {stage.table}; {self._again}")
        self._check(found)
        if selection and self.settings.backbone:
            raise ValueError(
                f"a selection chooses rows of features, not of {stage.table}: leave it out"
            )
        selected = read_selection(root, selection, found.records) if selection else None
        self.selection = f"{selection}: {selected.sql}" if selected else None
        records = {i: record for i, record in found.records.items() if i not in self.skipped}
        # Opening takes three requests of an object store, and the block itself one.
        self._reader = lru_cache(0 if root.is_local else SHARDS_OPEN)(self._open)
        with ThreadPoolExecutor(READERS) as pool:
            usable = list(pool.map(self._is_usable, records.values()))
        records = {i: r for (i, r), ok in zip(records.items(), usable, strict=True) if ok}
        content = [r.output for r in records.values()]
        identity = [self.settings.fingerprint(), content]
        self.fingerprint = fingerprint([*identity, *([selected.fingerprint] if selected else [])])
        self._blocks: list[tuple[int, int]] = []  # (shard, number within it) of blocks with rows
        self._rows: list[IntArray | None] = []  # the rows of each block that are read; None: all
        counts = []
        for shard, record in records.items():
            for number, size in enumerate(self._sizes(record)):
                first = number * self.settings.block_rows
                rows = selected.block(shard, first, size) if selected else None
                if count := size if rows is None else len(rows):
                    self._blocks.append((shard, number))
                    self._rows.append(rows)
                    counts.append(count)
        self.block_sizes = np.array(counts, dtype=np.int64)
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read-features")
        self._loaded: OrderedDict[int, Future[Block]] = OrderedDict()
        self._lock = Lock()

    def row(self, number: int, index: int) -> int:
        """Return the number, within the block, of its `index`-th row that is read."""
        rows = self._rows[number]
        return index if rows is None else int(rows[index])

    def start(self, number: int) -> Future[Block]:
        """Start reading a block, or return it from the cache."""
        with self._lock:
            if number not in self._loaded:
                self._loaded[number] = self._pool.submit(self._read, number)
            self._loaded.move_to_end(number)
            return self._loaded[number]

    def forget(self, most: int) -> None:
        """Keep at most the `most` most recently used blocks in the cache."""
        with self._lock:
            while len(self._loaded) > most:
                self._loaded.popitem(last=False)

    def describe_block(self, number: int) -> str:
        """Return the file of a block, for messages."""
        return f"{self._root.uri}/{self._stage.path(self._blocks[number][0])}"

    def _read(self, number: int) -> Block:
        shard, position = self._blocks[number]
        try:
            return Block(self._reader(shard).get_batch(position), self.settings)
        except (pa.ArrowInvalid, OSError) as error:
            self._refuse_network_error(error, shard)
            place, redo = self.describe_block(number), self._stage.redo(self._root, shard)
            raise ValueError(f"{place} is corrupt ({error}); {redo}") from error

    def _refuse_network_error(self, error: Exception, shard: int) -> None:
        """Raise if an object store does not answer, which says nothing about the file."""
        if isinstance(error, OSError) and not self._root.is_local:
            place = f"{self._root.uri}/{self._stage.path(shard)}"
            raise OSError(f"{place} cannot be read now: {error}") from error

    def _open(self, shard: int) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(self._root.open_input(self._stage.path(shard)))

    def _sizes(self, record: ShardRecord) -> list[int]:
        """Return the number of rows of each block of a shard: all equal except the last."""
        size = self.settings.block_rows
        return [min(size, record.rows_out - i) for i in range(0, record.rows_out, size)]

    def _check(self, found: StageState) -> None:
        """Refuse shards that a run would redo; missing and damaged ones may be left out."""
        for why, (shards, line) in faults(self._root, self._stage, found).items():
            if why not in (MISSING, DAMAGED):
                raise ValueError(line)
            if not self._skip_corrupt:
                raise ValueError(f"{line}, or skip corrupt shards")
            self.skipped |= dict.fromkeys(shards, why)

    def _is_usable(self, record: ShardRecord) -> bool:
        """Return whether the shard's file is whole; refuse or record one that is not."""
        path = self._stage.path(record.shard)
        try:
            if self._reader(record.shard).num_record_batches != len(self._sizes(record)):
                raise ValueError("has another number of record batches than it was committed with")
        except (ValueError, OSError) as error:  # pa.ArrowInvalid is a ValueError
            self._refuse_network_error(error, record.shard)
            if not self._skip_corrupt:
                raise ValueError(
                    f"{self._root.uri}/{path} {error}; {self._again}, or skip corrupt shards"
                ) from error
            self.skipped[record.shard] = str(error)
            return False
        return True
