"""Compute the order of rows, a pure function of (seed, epoch, index). Light: numpy only.

In: the sizes of the table's blocks (its Arrow record batches). Out: row numbers and random numbers.

An epoch visits the blocks in a random order, `WINDOW_BLOCKS` at a time, and the rows of such a
window in a random order. So only a window must be in memory (for an object store or a slow disk),
and the order of 12.4 M rows takes 2 MB: a number per block and a number per row of a window.

Random numbers are hashes (SplitMix64) of their purpose, not draws from a generator: there is no
state to save, and they are the same on any machine and with any version of numpy.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WINDOW_BLOCKS = 64
PERIOD = 1000  # positions in which each of several tables has exactly its share

IntArray = NDArray[np.int64]
Hash = NDArray[np.uint64]


def hash_numbers(*parts: int | IntArray | Hash) -> Hash:
    """Hash integers to 64 random bits: uint64 of the parts' broadcast shape, at least 1-d."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        value = np.asarray(part).astype(np.uint64)
        state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(bits: Hash) -> NDArray[np.float64]:
    """Turn random bits into numbers in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(*seeds: int, values: IntArray) -> IntArray:
    """Return the values in a random order that depends only on them and the seeds."""
    return values[np.argsort(hash_numbers(*seeds, values), kind="stable")]


class RowOrder:
    """The order of the rows of a table with blocks of these sizes, for every epoch."""

    def __init__(self, block_sizes: IntArray, seed: int) -> None:
        self.rows = int(block_sizes.sum())
        self.block_starts: IntArray = np.concatenate([[0], np.cumsum(block_sizes)])
        self._sizes = block_sizes
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._window = lru_cache(maxsize=3)(self._make_window)

    def rows_at(self, epoch: int, first: int, count: int) -> IntArray:
        """Return the row numbers (count,) at positions first … first + count − 1 of an epoch."""
        _, starts = self._epoch(epoch)
        windows = range(self.window_at(epoch, first), self.window_at(epoch, first + count - 1) + 1)
        rows = np.concatenate([self._window(epoch, window) for window in windows])
        begin = first - int(starts[windows[0]])
        return rows[begin : begin + count]

    def window_at(self, epoch: int, index: int) -> int:
        """Return the number of the window that contains position `index` of the epoch."""
        _, starts = self._epoch(epoch)
        return int(np.searchsorted(starts, index, side="right")) - 1

    def window_blocks(self, epoch: int, window: int) -> IntArray:
        """Return the numbers of a window's blocks; none past the epoch's end."""
        blocks, _ = self._epoch(epoch)
        return blocks[window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS]

    def _make_epoch(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Return the blocks in the epoch's order, and the position at which each window starts."""
        blocks = shuffled(self._seed, epoch, values=np.arange(len(self._sizes)))
        starts = np.concatenate([[0], np.cumsum(self._sizes[blocks])[:-1]])
        return blocks, starts[::WINDOW_BLOCKS]

    def _make_window(self, epoch: int, window: int) -> IntArray:
        blocks = self.window_blocks(epoch, window)
        rows = [np.arange(self.block_starts[b], self.block_starts[b + 1]) for b in blocks]
        return shuffled(self._seed, epoch, values=np.concatenate(rows))

    def blocks_at(self, epoch: int, first: int) -> list[int]:
        """Return the blocks of the window that contains position `first`, and of the next."""
        window = self.window_at(epoch, first)
        blocks = [self.window_blocks(epoch, number) for number in (window, window + 1)]
        return [int(block) for block in np.concatenate(blocks)]


class MixedOrder:
    """The order of several tables' rows, each with its own share of the stream.

    In every `PERIOD` positions each table has its share, rounded to whole positions, at positions
    that a hash determines; after its last row a table begins its next epoch. So this order is also
    a pure function of (seed, epoch, index): the number of a table's rows before a position follows
    from the position alone. `block_sizes` are, for each table, the rows of each block.

    Raises:
        ValueError: the weights are not one positive number for each table, or one is too small.
    """

    def __init__(self, block_sizes: list[IntArray], weights: Sequence[float], seed: int) -> None:
        if len(weights) != len(block_sizes) or not all(weight > 0 for weight in weights):
            raise ValueError(
                f"{len(block_sizes)} roots need as many weights above 0, not {list(weights)}"
            )
        edges = np.round(np.cumsum([0.0, *weights]) / sum(weights) * PERIOD).astype(np.int64)
        self._counts = np.diff(edges)
        if not self._counts.all():
            raise ValueError(f"a weight below 1/{PERIOD} of all is too small: {list(weights)}")
        self._slots = np.repeat(np.arange(len(weights)), self._counts)
        self._orders = [
            RowOrder(sizes, int(hash_numbers(seed, number)[0] >> np.uint64(1)))
            for number, sizes in enumerate(block_sizes)
        ]
        self._seed = seed
        self.rows = sum(order.rows for order in self._orders)
        sizes = np.concatenate(block_sizes)
        self.block_starts: IntArray = np.concatenate([[0], np.cumsum(sizes)])
        self._first_blocks = np.cumsum([0, *(len(sizes) for sizes in block_sizes)])
        self._first_rows = np.cumsum([0, *(order.rows for order in self._orders)])
        self._period = lru_cache(maxsize=4)(self._make_period)

    def rows_at(self, epoch: int, first: int, count: int) -> IntArray:
        """Return the row numbers (count,) at positions first … first + count − 1 of an epoch."""
        tables, places = self._split(epoch, first, count)
        rows = np.empty(count, np.int64)
        for table, order in enumerate(self._orders):
            mine = places[tables == table]
            found: list[IntArray] = []
            for own_epoch in np.unique(mine // order.rows).tolist():
                index = mine[mine // order.rows == own_epoch] % order.rows
                found.append(order.rows_at(own_epoch, int(index[0]), len(index)))
            if found:
                rows[tables == table] = np.concatenate(found) + self._first_rows[table]
        return rows

    def blocks_at(self, epoch: int, first: int) -> list[int]:
        """Return the blocks of every table that the positions from `first` on need soon."""
        counts = self._before(epoch * self.rows + first)
        return [
            int(self._first_blocks[table]) + block
            for table, (order, place) in enumerate(zip(self._orders, counts.tolist(), strict=True))
            for block in order.blocks_at(place // order.rows, place % order.rows)
        ]

    def _split(self, epoch: int, first: int, count: int) -> tuple[IntArray, IntArray]:
        """Return the table of each position, and the number of that table's rows before it."""
        begin = epoch * self.rows + first
        periods = range(begin // PERIOD, (begin + count - 1) // PERIOD + 1)
        tables = np.concatenate([self._period(period) for period in periods])
        tables = tables[begin - periods[0] * PERIOD :][:count]
        places = np.empty(count, np.int64)
        for table, before in enumerate(self._before(begin).tolist()):
            mine = tables == table
            places[mine] = before + np.arange(mine.sum())
        return tables, places

    def _before(self, position: int) -> IntArray:
        """Return the number of each table's rows before a position of the stream."""
        period, rest = divmod(position, PERIOD)
        within = np.bincount(self._period(period)[:rest], minlength=len(self._counts))
        return period * self._counts + within

    def _make_period(self, period: int) -> IntArray:
        slots: IntArray = self._slots[shuffled(self._seed, period, values=np.arange(PERIOD))]
        return slots
