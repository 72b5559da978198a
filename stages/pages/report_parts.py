"""What a report is made of: a section of the page, and one evaluation as it lies on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from codeseg.pipeline.benchmark.manifest import Benchmark, load_benchmark


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    html: str
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One method on one benchmark, as `codeseg evaluate` left it."""

    folder: Path
    summary: dict[str, Any]
    name: str  # what the page calls it

    @property
    def manifest(self) -> Benchmark:
        """The benchmark's manifest."""
        source = str(self.summary.get("manifest", self.summary["benchmark"]))
        return load_benchmark(self.folder / source if source.endswith(".toml") else source)

    @property
    def data(self) -> Path | None:
        """The benchmark's data folder, if it is known and still there."""
        place = self.summary.get("data")
        return self.folder / place if place and (self.folder / place).is_dir() else None

    @property
    def run(self) -> Path | str | None:
        """What was evaluated: a RUN's folder or a hub id; None for a CLIP alone."""
        source: str | None = self.summary.get("run")
        if source and (self.folder / source).exists():
            return self.folder / source
        return source

    @property
    def miou(self) -> float:
        """Percent; −1 where no pixel was scored."""
        value = self.summary["miou"]
        return -1.0 if value is None else float(value)

    def confusion(self) -> npt.NDArray[np.int64]:
        """The confusion matrix, K×K."""
        return np.array(pq.read_table(self.folder / "scores.parquet")["confusion"].to_pylist())


def names_apart(folders: Sequence[Path]) -> list[str]:
    """A folder's own name, and where it repeats, what above it tells the folders apart.

    Args:
        folders: all different; runs/a/evaluations/voc/code and runs/b/evaluations/voc/code become
            a/code and b/code.
    """
    names = []
    for folder in folders:
        same = [other.parts[::-1] for other in folders if other.name == folder.name]
        told = {
            place
            for parts in same
            for place, pair in enumerate(zip_longest(parts, folder.parts[::-1]))
            if len(set(pair)) > 1
        }
        parts = [p for place, p in enumerate(folder.parts[::-1]) if place == 0 or place in told]
        names.append("/".join(parts[::-1]))
    return names
