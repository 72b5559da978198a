"""A benchmark and a data folder -> facts and problems of the data. Light.

`codeseg evaluate --check` prints them before hours are spent on predictions: counts, missing pairs,
damaged files, sizes that do not match, label values, classes that never occur.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData
from codeseg.pipeline.benchmark.metrics import ignored_label

SHOWN = 3  # files with a problem, of each kind


@dataclass
class DataCheck:
    """The findings; without a problem, every pair can be scored."""

    images: int = 0  # correct image–label pairs
    facts: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)  # kind -> "id: problem"

    def add(self, kind: str, offender: str) -> None:
        """Record a problem."""
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
    """Check every pair of image and label map, or the first `limit`; `track` shows progress."""
    check = DataCheck()
    try:
        opened = benchmark.open(data)
        ids = opened.ids[:limit]
    except (FileNotFoundError, ValueError) as error:
        check.add("layout", str(error))
        return check
    pixels = np.zeros(ignored_label(len(opened.benchmark.classes)) + 1, np.int64)
    sizes: set[tuple[int, int]] = set()
    for image_id in track(ids):
        size = _check_pair(opened, image_id, check, pixels)
        if size:
            sizes.add(size)
            check.images += 1
    _summarize(check, opened, ids, pixels, sizes, part=limit is not None)
    return check


def _check_pair(
    data: BenchmarkData, image_id: str, check: DataCheck, pixels: np.ndarray
) -> tuple[int, int] | None:
    read = []
    for what, kind, how in (
        ("image", "damaged image", data.image),
        ("label map", "wrong label map", data.label),
    ):
        try:
            read.append(how(image_id))
        except FileNotFoundError as error:
            what = "label map" if "label map" in str(error) else what
            check.add(f"missing {what}", str(error))
            return None
        except ValueError as error:
            check.add("turned image" if "EXIF tag" in str(error) else kind, str(error))
            return None
    image, label = read
    size, labeled = image.shape[1::-1], label.shape[::-1]
    if labeled != size:
        sizes = "image {}×{}, label map {}×{}".format(*size, *labeled)
        check.add("size mismatch", f"{image_id}: {sizes}")
        return None
    pixels += np.bincount(label.ravel(), minlength=len(pixels))
    return size


def _summarize(
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
    readings = list(data.turned.values())
    for reading, count in ("upright", readings.count(True)), ("stored", readings.count(False)):
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
