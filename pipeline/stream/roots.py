"""Read one or several dataset roots as one table in one order, for a training stream. Light.

    ROOT [ROOT …] + selection, weights, seed  ->  the samples at any position of any epoch

Roots are trained together only if their features are of the same kind: CLIP, views, token form.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codeseg.pipeline.engine.ledger import Ledger, fingerprint
from codeseg.pipeline.engine.stage import FEATURES, Stage
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.collate import Sample
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.pipeline.stream.feature_table import FeatureTable
from codeseg.pipeline.stream.order import WINDOW_BLOCKS, MixedOrder, RowOrder
from codeseg.pipeline.stream.region_table import RegionTable
from codeseg.pipeline.stream.vocabulary_table import Vocabulary

MAY_DIFFER = ("min_nouns", "block_rows", "seed", "pretrained", "clip_score", "by_picture")
"""Settings of features that may differ between roots."""


class Roots:
    """The features of all roots, with their vocabulary and regions.

    The arguments are those of `FeatureStream`.

    Attributes:
        name: of all roots, for messages; settings: of the first root's features.
        min_nouns: that every caption of every root has; order: of the rows.
        vocabulary: of all roots; fingerprint: of all data; sources: each root's origin.
        skipped: shard -> why it is left out.

    Raises:
        ValueError, FileNotFoundError: a table is unsuitable, or the roots' features differ.
    """

    def __init__(
        self,
        places: Sequence[str | Path],
        stage: Stage,
        *,
        weights: Sequence[float] | None,
        seed: int,
        regions: bool,
        selection: str | None,
        skip_corrupt: bool,
    ) -> None:
        storages = [Storage.open(place) for place in places]
        self.name = ", ".join(storage.uri for storage in storages)
        self._tables = [
            FeatureTable(storage, stage, skip_corrupt=skip_corrupt, selection=selection)
            for storage in storages
        ]
        self.settings = self._tables[0].settings
        for storage, table in zip(storages, self._tables, strict=True):
            _refuse_other_kind(storages[0].uri, self.settings, storage.uri, table.settings)
        self.sources = [_source(s, t) for s, t in zip(storages, self._tables, strict=True)]
        self.min_nouns = min(table.settings.min_nouns for table in self._tables)
        several = len(storages) > 1
        self._marks = [f"{number}:" if several else "" for number in range(len(storages))]
        self.skipped = {
            f"{mark}{shard:05d}": reason
            for mark, table in zip(self._marks, self._tables, strict=True)
            for shard, reason in table.skipped.items()
        }
        sizes = [table.block_sizes for table in self._tables]
        self.order = (
            RowOrder(np.concatenate(sizes), seed)
            if weights is None
            else MixedOrder(sizes, weights, seed)
        )
        self._first_blocks = np.cumsum([0, *map(len, sizes)])
        self.vocabulary = Vocabulary(storages, self.settings)
        self._maps = [RegionTable(storage) if regions else None for storage in storages]
        prints = [table.fingerprint for table in self._tables]
        prints += [maps.fingerprint for maps in self._maps if maps is not None]
        prints += [fingerprint(list(weights))] if weights is not None else []
        self.fingerprint = prints[0] if len(prints) == 1 else fingerprint(prints)

    def samples(self, epoch: int, first: int, count: int) -> list[Sample]:
        """Return the samples at `count` positions, and start reading the next blocks."""
        for number in self.order.blocks_at(epoch, first):
            table, block = self._table_of(number)
            self._tables[table].start(block)
        for opened in self._tables:
            opened.forget(2 * WINDOW_BLOCKS)
        rows = self.order.rows_at(epoch, first, count)
        numbers = np.searchsorted(self.order.block_starts, rows, side="right") - 1
        within = rows - self.order.block_starts[numbers]
        samples = []
        for i, (number, index) in enumerate(zip(numbers.tolist(), within.tolist(), strict=True)):
            table, block = self._table_of(number)
            opened = self._tables[table]
            samples.append(
                Sample(
                    block=opened.start(block).result(),
                    row=opened.row(block, index),
                    place=opened.describe_block(block),
                    index=first + i,
                    mark=self._marks[table],
                    regions=self._maps[table],
                )
            )
        return samples

    def _table_of(self, number: int) -> tuple[int, int]:
        """Return the table of a block of the order, and the block's number in that table."""
        table = int(np.searchsorted(self._first_blocks, number, side="right")) - 1
        return table, number - int(self._first_blocks[table])


def _source(storage: Storage, table: FeatureTable) -> dict[str, Any]:
    """Return a root's name, its URL list or files with hashes, and its selection."""
    ledger = Ledger(storage)
    pairs, urls = (ledger.read_settings(stage) or {} for stage in ("pairs", "urls"))
    return {
        "root": storage.local_path.name if storage.local_path else storage.uri,
        "manifest": pairs.get("manifest"),
        "made_from": urls.get("list") or [["files", fingerprint(pairs.get("inputs"))]],
        "selection": table.selection,
    }


def _refuse_other_kind(
    first: str, wanted: FeatureSettings, other: str, settings: FeatureSettings
) -> None:
    """Refuse features that cannot be in one batch with the first root's; name the differences."""
    before, after = (
        {**FEATURES.matters(s.to_json()), **asdict(s.clip)} for s in (wanted, settings)
    )
    differing = [
        f"{key} {before[key]} and {after[key]}"
        for key in sorted(before)
        if key not in ("clip", *MAY_DIFFER) and before[key] != after[key]
    ]
    if differing:
        raise ValueError(
            f"{first} and {other} cannot be trained together: their features differ in "
            f"{'; '.join(differing)}: run `codeseg {settings.stage.command}` on one with the "
            "other's settings"
        )
