"""Encode and read the maps of regions/NNNNN.parquet. Light.

In: ROOT's regions/NNNNN.parquet and ledger. Out: region maps, uint8 (h, w) of the CLIP's patch
grid. Rows are in the features' order, the views of a row in succession.
"""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from codeseg.pipeline.engine.ledger import Ledger, fingerprint
from codeseg.pipeline.engine.stage import REGIONS, faults, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import SHARD_DIGITS

RegionMap = NDArray[np.uint8]

SHARDS_KEPT = 256  # shards in memory, more than a window of the row order needs; 3 MB each


def encode_map(regions: RegionMap) -> bytes:
    """Return a region map as PNG, about 100 bytes for 14×14 patches."""
    sink = io.BytesIO()
    Image.fromarray(regions).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def decode_map(png: bytes) -> RegionMap:
    """Return the region map (h, w) of a PNG."""
    return np.asarray(Image.open(io.BytesIO(png)))


class RegionTable:
    """The region maps of a root, by key and view; `fingerprint` covers every shard's content.

    Raises:
        ValueError, FileNotFoundError: the table is missing or older than the features; one line.
    """

    def __init__(self, root: Storage) -> None:
        self._root = root
        settings, found = Ledger(root).read_settings("regions"), state(root, REGIONS)
        if not found.records or settings is None:
            raise FileNotFoundError(f"{root.uri} holds no regions; {REGIONS.again(root)}")
        self.settings, self._records = settings, found.records
        for _, line in faults(root, REGIONS, found).values():
            raise ValueError(line)
        self.shards = list(self._records)
        self.fingerprint = fingerprint([record.output for record in self._records.values()])
        self._shard = lru_cache(maxsize=SHARDS_KEPT)(self._read)

    def regions(self, key: str, view: int) -> RegionMap:
        """Return the region map (h, w) of one view of a pair.

        Raises:
            ValueError: the table is corrupt or lacks the pair.
        """
        shard = int(key[:SHARD_DIGITS])
        rows = self._shard(shard)
        row = int(np.searchsorted(rows.keys, int(key))) + view
        if row >= len(rows.keys) or rows.keys[row] != int(key) or rows.views[row] != view:
            raise self._refusal(shard, f"lacks view {view} of {key}")
        return decode_map(rows.maps[row].as_py())

    def _read(self, shard: int) -> "_Rows":
        try:
            with self._root.open_input(REGIONS.path(shard)) as source:
                table = pq.read_table(source).combine_chunks()
        except (pa.ArrowInvalid, OSError) as error:
            raise self._refusal(shard, f"is corrupt ({error})") from error
        return _Rows(
            keys=np.array(table["key"].cast(pa.int64())),
            views=np.array(table["view"]),
            maps=table["regions"],
        )

    def _refusal(self, shard: int, why: str) -> ValueError:
        place = f"{self._root.uri}/{REGIONS.path(shard)}"
        return ValueError(f"{place} {why}; {REGIONS.redo(self._root, shard)}")


class _Rows(NamedTuple):
    """A shard in memory; the maps are PNGs."""

    keys: NDArray[np.int64]  # ascending: the key is a number
    views: NDArray[np.int32]
    maps: pa.ChunkedArray
