"""features/NNNNN.arrow + vocabulary/nouns.arrow -> training batches, the trainer's input. Light.

Sample order, noun choice and view choice are pure functions of (seed, epoch, index): batch g of an
epoch is positions g·GB … (g+1)·GB − 1 of `RowOrder`, divided contiguously among the ranks; the rest
at the epoch's end is dropped (other rows every epoch). So the ranks' batches together equal a
single process's batch, whatever the number of ranks, threads or prefetched batches.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from codeseg.pipeline.engine.stage import stage_of
from codeseg.pipeline.stream.collate import Collate, Position, Sample, StreamBatch
from codeseg.pipeline.stream.order import Hash, IntArray, hash_numbers
from codeseg.pipeline.stream.roots import Roots

__all__ = ["START", "FeatureStream", "Position", "StreamBatch"]

START = Position(0, 0)
NOUNS, VIEW = 1, 2  # purposes of a hash, so that choices do not depend on each other


class FeatureStream:
    """An endless stream of one rank's batches, epoch after epoch.

    Args:
        roots: path or URI of a dataset; several are one stream.
        table: the CLIP's "features" or a backbone's table.
        batch_size: images per batch of this rank.
        nouns_per_image: J.
        seed: of sample order, noun choice and view choice.
        rank: of this process,
        world_size: of how many.
        start: the `position` of the batch to continue after.
        regions: add the region maps made by `codeseg regions`.
        weights: each root's share of the stream; None: in proportion to its rows.
        selection: of every root; only its rows are read.
        skip_corrupt: leave out missing and unreadable shards; `skipped` has the reasons.
        prefetch: batches made ahead in threads; 0 makes each on demand.
        threads: number of threads that make batches.
        pin_memory: gather into pinned memory, for a GPU.
        pad: round up the sizes of captions and noun tables, for a compiler.

    `name`, `settings`, `skipped`, `sources` and `fingerprint` are those of `Roots`.

    Raises:
        ValueError, FileNotFoundError: the table or the arguments are unsuitable; also raised while
            iterating, if a file turns out to be corrupt.
    """

    def __init__(
        self,
        roots: str | Path | Sequence[str | Path],
        *,
        table: str = "features",
        batch_size: int,
        nouns_per_image: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: Position = START,
        regions: bool = False,
        weights: Sequence[float] | None = None,
        selection: str | None = None,
        skip_corrupt: bool = False,
        prefetch: int = 2,
        threads: int = 2,
        pin_memory: bool = False,
        pad: bool = False,
    ) -> None:
        self._roots = Roots(
            [roots] if isinstance(roots, str | Path) else roots,
            stage_of(table),
            weights=weights,
            seed=seed,
            regions=regions,
            selection=selection,
            skip_corrupt=skip_corrupt,
        )
        self.name = self._roots.name
        self.settings = self._roots.settings
        self.skipped = self._roots.skipped
        self.sources = self._roots.sources
        self.fingerprint = self._roots.fingerprint
        self.rows = self._roots.order.rows
        self._batch_size, self._nouns = batch_size, nouns_per_image
        self._global = batch_size * world_size
        self._seed, self._rank = seed, rank
        self._start = start
        self._check()
        vocabulary = self._roots.vocabulary
        self._collate = Collate(self.settings, vocabulary, pin_memory=pin_memory, pad=pad)
        self._prefetch, self._threads = prefetch, threads

    def __iter__(self) -> Iterator[StreamBatch]:
        """Yield batches from `start` on, forever."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="make-batches") as pool:
            waiting: deque[Future[StreamBatch]] = deque()
            try:
                for position in self._positions():
                    waiting.append(pool.submit(self._make, position))
                    if len(waiting) > self._prefetch:
                        yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _check(self) -> None:
        uri, command = self.name, self.settings.stage.command
        if self.rows < self._global:
            raise ValueError(
                f"{uri} holds {self.rows} trainable pairs, fewer than one batch of {self._global}; "
                "make the batch smaller or prepare more data"
            )
        if (least := self._roots.min_nouns) < self._nouns:
            raise ValueError(
                f"{uri} holds captions of {least} nouns but {self._nouns} per image are needed; "
                f"run `codeseg {command} {uri} --min-nouns {self._nouns}` or use fewer"
            )

    def _positions(self) -> Iterator[Position]:
        """Yield the position at which each batch starts."""
        epoch, index = self._start.epoch, self._start.index
        while True:
            if index + self._global > self.rows:
                epoch, index = epoch + 1, 0
            yield Position(epoch, index)
            index += self._global

    def _make(self, start: Position) -> StreamBatch:
        """Return this rank's share of the batch that starts at a position."""
        first = start.index + self._rank * self._batch_size
        samples = self._roots.samples(start.epoch, first, self._batch_size)
        index_B = np.array([sample.index for sample in samples])
        return self._collate(
            samples,
            self._choose(samples, hash_numbers(self._seed, start.epoch, NOUNS, index_B)),
            hash_numbers(self._seed, start.epoch, VIEW, index_B),
            Position(start.epoch, start.index + self._global),
        )

    def _choose(self, samples: list[Sample], bits_B: Hash) -> IntArray:
        """Return indices (B, J) into each caption's nouns, drawn without replacement."""
        counts = [len(sample.nouns) for sample in samples]
        bits_BK = hash_numbers(bits_B[:, None], np.arange(max(counts)))
        chosen = [
            np.argsort(bits[:count], kind="stable")[: self._nouns]
            for bits, count in zip(bits_BK, counts, strict=True)
        ]
        return np.stack(chosen)
