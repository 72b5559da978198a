"""Which row comes when: a pure function of (seed, epoch, index). Light: numpy only.

In: the sizes of the table's blocks (its Arrow record batches). Out: row numbers and random numbers.

An epoch visits the blocks in a random order, `WINDOW_BLOCKS` at a time, and the rows of such a
window in a random order. So a window is all that must be at hand (what an object store or a slow
disk needs), and the order of 12.4 M rows costs 2 MB: a number a block and a number a window row.

Random numbers are hashes (SplitMix64) of what they are for, not draws from a generator's stream:
no state to save, the same on any machine and with any version of numpy.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WINDOW_BLOCKS = 64

IntArray = NDArray[np.int64]
Hash = NDArray[np.uint64]


def mix(*parts: int | IntArray | Hash) -> Hash:
    """Hash whole numbers to 64 random bits; arrays broadcast.

    Returns:
        uint64, of the parts' common shape, at least 1-d.
    """
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
    """The values in a random order that only they and the seeds decide."""
    return values[np.argsort(mix(*seeds, values), kind="stable")]


class RowOrder:
    """The order of a table's rows, for every epoch.

    Args:
        block_sizes: rows of each block, in the table's order.
        seed: of the order.
    """

    def __init__(self, block_sizes: IntArray, seed: int) -> None:
        self.rows = int(block_sizes.sum())
        self.block_starts: IntArray = np.concatenate([[0], np.cumsum(block_sizes)])
        self._sizes = block_sizes
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._window = lru_cache(maxsize=3)(self._make_window)

    def rows_at(self, epoch: int, first: int, count: int) -> IntArray:
        """Row numbers (count,) at positions first … first + count − 1 of the epoch's order."""
        _, starts = self._epoch(epoch)
        windows = range(self.window_at(epoch, first), self.window_at(epoch, first + count - 1) + 1)
        rows = np.concatenate([self._window(epoch, window) for window in windows])
        begin = first - int(starts[windows[0]])
        return rows[begin : begin + count]

    def window_at(self, epoch: int, index: int) -> int:
        """Number of the window that position `index` of the epoch falls into."""
        _, starts = self._epoch(epoch)
        return int(np.searchsorted(starts, index, side="right")) - 1

    def window_blocks(self, epoch: int, window: int) -> IntArray:
        """Numbers of the blocks of a window; none past the epoch's end."""
        blocks, _ = self._epoch(epoch)
        return blocks[window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS]

    def _make_epoch(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Blocks in the epoch's order, and the position at which each window starts."""
        blocks = shuffled(self._seed, epoch, values=np.arange(len(self._sizes)))
        starts = np.concatenate([[0], np.cumsum(self._sizes[blocks])[:-1]])
        return blocks, starts[::WINDOW_BLOCKS]

    def _make_window(self, epoch: int, window: int) -> IntArray:
        blocks = self.window_blocks(epoch, window)
        rows = [np.arange(self.block_starts[b], self.block_starts[b + 1]) for b in blocks]
        return shuffled(self._seed, epoch, values=np.concatenate(rows))
