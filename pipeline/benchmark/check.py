"""A benchmark and a data folder -> what is there and what is wrong with it. Light.

`codeseg evaluate --check` prints it before hours are spent on predictions: counts, missing pairs,
damaged files, sizes that do not match, label values, classes that never occur.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData

SHOWN = 3
"""How many offenders of a kind are named."""


@dataclass
class DataCheck:
    """The findings."""

    images: int = 0
    """Image–label pairs that are right."""
    facts: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Kind -> offenders (an id and what is wrong with it)."""

    def add(self, kind: str, offender: str) -> None:
        """Note one problem."""
        self.problems.setdefault(kind, []).append(offender)

    def lines(self) -> list[str]:
        """The findings as text, problems last."""
        lines = list(self.facts)
        for kind, offenders in self.problems.items():
            named = "; ".join(offenders[:SHOWN])
            more = f"; and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
            lines.append(f"{len(offenders)} × {kind}: {named}{more}")
        return lines


def check_data(
    benchmark: Benchmark,
    data: Path,
    track: Callable[[Sequence[str]], Iterable[str]] = lambda ids: ids,
) -> DataCheck:
    """Read every image and label map of the split once.

    Args:
        benchmark: The manifest.
        data: Its data folder.
        track: Wraps the ids, to show progress.

    Returns:
        Facts and problems; no problem means that every pair can be scored.
    """
    check = DataCheck()
    try:
        opened = benchmark.open(data)
        ids = opened.ids
    except (FileNotFoundError, ValueError) as error:
        check.add("layout", str(error))
        return check
    pixels = np.zeros(256, np.int64)
    sizes: set[tuple[int, int]] = set()
    for image_id in track(ids):
        size = _check_pair(opened, image_id, check, pixels)
        if size:
            sizes.add(size)
            check.images += 1
    _summarise(check, opened, pixels, sizes)
    return check


def _check_pair(
    data: BenchmarkData, image_id: str, check: DataCheck, pixels: np.ndarray
) -> tuple[int, int] | None:
    try:
        size = image_size(data.image_path(image_id))
    except FileNotFoundError:
        check.add("missing image", str(data.image_path(image_id)))
        return None
    except ValueError as error:
        check.add("damaged image", str(error))
        return None
    try:
        label = data.label(image_id)
    except FileNotFoundError as error:
        check.add("missing label map", str(error))
        return None
    except ValueError as error:
        check.add("wrong label map", str(error))
        return None
    if label.shape != size[::-1]:
        labelled = f"{label.shape[1]}×{label.shape[0]}"
        check.add("size mismatch", f"{image_id}: image {size[0]}×{size[1]}, label map {labelled}")
        return None
    pixels += np.bincount(label.ravel(), minlength=256)
    return size


def image_size(path: Path) -> tuple[int, int]:
    """Decode an image fully; return (width, height) after its EXIF rotation.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            size: tuple[int, int] = ImageOps.exif_transpose(image).size
            return size
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {error}") from None


def _summarise(
    check: DataCheck, data: BenchmarkData, pixels: np.ndarray, sizes: set[tuple[int, int]]
) -> None:
    benchmark = data.benchmark
    check.facts.append(f"{benchmark.title}: {check.images} of {len(data.ids)} pairs are right")
    check.facts.append(f"labels: {data.form.pattern}, rule {data.form.rule}")
    if sizes:
        areas = sorted(sizes, key=lambda size: size[0] * size[1])
        smallest, largest = ("×".join(map(str, size)) for size in (areas[0], areas[-1]))
        check.facts.append(f"image sizes: {smallest} to {largest}")
    scored = int(pixels[: len(benchmark.classes)].sum())
    if scored:
        ignored = pixels[255] / (scored + pixels[255])
        check.facts.append(f"{scored:,} scored pixels, {ignored:.1%} ignored")
        absent = [n for n, count in zip(benchmark.classes, pixels, strict=False) if count == 0]
        if absent:
            check.facts.append(f"{len(absent)} classes never labelled: {', '.join(absent[:10])}")
    if len(data.ids) != benchmark.images:
        check.add(
            "image count",
            f"{len(data.ids)} images here, {benchmark.images} in the official split, "
            "so a number from here does not compare with published ones",
        )
