"""A benchmark and a data folder -> its facts and faults. Light.

`codeseg evaluate --check` prints it before hours are spent on predictions: counts, missing pairs,
damaged files, sizes that do not match, label values, classes that never occur.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData
from codeseg.pipeline.benchmark.metrics import ignored_label

SHOWN = 3
"""Maximum number of named offenders of a kind."""


@dataclass
class DataCheck:
    """The findings."""

    images: int = 0
    """Number of correct image–label pairs."""
    turned: dict[str, int] = field(default_factory=lambda: {"upright": 0, "stored": 0})
    """Images with an EXIF rotation, by how they are read."""
    facts: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Kind -> offenders (an id and its fault)."""

    def add(self, kind: str, offender: str) -> None:
        """Note one problem."""
        self.problems.setdefault(kind, []).append(offender)

    def lines(self) -> list[str]:
        """Return the findings as text, problems last."""
        lines = list(self.facts)
        for kind, offenders in self.problems.items():
            named = "; ".join(offenders[:SHOWN])
            more = f"; and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
            lines.append(f"{len(offenders)} × {kind}: {named}{more}")
        return lines


def check_data(
    benchmark: Benchmark,
    data: Path,
    limit: int | None = None,
    track: Callable[[Sequence[str]], Iterable[str]] = lambda ids: ids,
) -> DataCheck:
    """Read every image and label map of the split once.

    Args:
        benchmark: The manifest.
        data: Its data folder.
        limit: Check only this many images.
        track: Wraps the ids, to show progress.

    Returns:
        Facts and problems; no problem means that every pair can be scored.
    """
    check = DataCheck()
    try:
        opened = benchmark.open(data)
        ids = opened.ids[:limit]
    except (FileNotFoundError, ValueError) as error:
        check.add("layout", str(error))
        return check
    pixels = np.zeros(ignored_label(len(benchmark.classes)) + 1, np.int64)
    sizes: set[tuple[int, int]] = set()
    for image_id in track(ids):
        size = _check_pair(opened, image_id, check, pixels)
        if size:
            sizes.add(size)
            check.images += 1
    _summarise(check, opened, ids, pixels, sizes, part=limit is not None)
    return check


def _check_pair(
    data: BenchmarkData, image_id: str, check: DataCheck, pixels: np.ndarray
) -> tuple[int, int] | None:
    try:
        size, orientation = image_size(data.image_path(image_id))
        if orientation != 1:
            turned = data.is_turned(image_id, size, orientation)
            check.turned["upright" if turned else "stored"] += 1
            size = size[::-1] if turned and orientation >= 5 else size
    except FileNotFoundError as error:
        missing = "label map" if "label map" in str(error) else "image"
        check.add(f"missing {missing}", str(error))
        return None
    except ValueError as error:
        check.add("turned image" if "EXIF" in str(error) else "damaged image", str(error))
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
    pixels += np.bincount(label.ravel(), minlength=len(pixels))
    return size


def image_size(path: Path) -> tuple[tuple[int, int], int]:
    """Decode an image fully; return its stored (width, height) and its EXIF orientation, 1..8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return image.size, orientation if orientation in range(2, 9) else 1
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {error}") from None


def _summarise(
    check: DataCheck,
    data: BenchmarkData,
    ids: Sequence[str],
    pixels: np.ndarray,
    sizes: set[tuple[int, int]],
    *,
    part: bool,
) -> None:
    benchmark = data.benchmark
    check.facts.append(f"{benchmark.title}: {check.images} of {len(ids)} pairs are right")
    check.facts.append(f"labels: {data.form.pattern}, rule {data.form.rule}")
    if sizes:
        areas = sorted(sizes, key=lambda size: size[0] * size[1])
        smallest, largest = ("×".join(map(str, size)) for size in (areas[0], areas[-1]))
        check.facts.append(f"image sizes: {smallest} to {largest}")
    for reading, count in check.turned.items():
        if count:
            check.facts.append(f"{count} images with an EXIF rotation, read {reading}")
    scored = int(pixels[: len(benchmark.classes)].sum())
    if scored:
        ignored = pixels[-1] / (scored + pixels[-1])
        check.facts.append(f"{scored:,} scored pixels, {ignored:.1%} ignored")
        absent = [n for n, count in zip(benchmark.classes, pixels, strict=False) if count == 0]
        if absent:
            check.facts.append(f"{len(absent)} classes never labeled: {', '.join(absent[:10])}")
    if len(ids) != benchmark.images:
        difference = (
            f"{len(ids)} images here, {benchmark.images} in the official split, "
            "so a score from here does not compare with published ones"
        )
        if part:
            check.facts.append(f"a subset: {difference}")
        else:
            check.add("image count", difference)
