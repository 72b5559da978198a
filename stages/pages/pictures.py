"""Stored label maps and segmented pictures -> picture sections of the report.

They show the best, median and worst images with every method beside the ground truth, in the
benchmark's own colors, and the results of `codeseg segment` (FOLDER/**/segments.json).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from codeseg.model.pictures.overlay import Color, overlay
from codeseg.model.pictures.pixels import rgb_pixels
from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData
from codeseg.pipeline.benchmark.predictions import read_prediction
from codeseg.stages.pages import figures
from codeseg.stages.pages.evaluations import Evaluation
from codeseg.stages.pages.html import Html, fill, join
from codeseg.stages.pages.page import Section
from codeseg.stages.pages.results import conditions, heading

FEWEST_CLASSES = 3  # labeled classes that make a picture worth showing
EACH = 2  # pictures of each kind: best, median, worst
MOST_LISTED = 12  # classes that a picture's legend names, the largest first
MOST_PICTURES = 12  # pictures of one segments.json
IGNORED: Color = (224, 224, 192)  # as in VOC's own label maps


def picture_section(group: Sequence[Evaluation]) -> Section | None:
    """Return best, median and worst images by the best method's mIoU; None without images."""
    best = group[-1]
    if best.data is None:
        return None
    data = best.manifest.open(best.data)
    table = pq.read_table(best.folder / "images.parquet").to_pylist()
    scored = [row for row in table if row["miou"] is not None]
    varied = [row for row in scored if row["classes"] >= FEWEST_CLASSES]
    order = sorted(varied or scored, key=lambda row: -row["miou"])
    if not order:
        return None
    starts = {"best": 0, "median": max(0, len(order) // 2 - 1), "worst": max(0, len(order) - EACH)}
    parts, seen = [], set()
    for kind, start in starts.items():
        for row in order[start : start + EACH]:
            if row["id"] not in seen:
                seen.add(row["id"])
                title = f"{kind}: {row['id']}, mIoU {100 * row['miou']:.1f} %"
                parts += [fill("<h3>{}</h3>", title), _side_by_side(data, group, row["id"])]
    note = (
        f"Chosen by {best.name}'s mIoU over the classes of the image ({conditions(best)}). Colors "
        "are the benchmark's own; the background is unpainted; beige pixels are not scored."
    )
    return Section(f"{heading(best)}: pictures", join(parts), note)


def _side_by_side(data: BenchmarkData, group: Sequence[Evaluation], image_id: str) -> Html:
    manifest, maps = data.benchmark, {"ground truth": data.label(image_id)}
    for evaluation in group:
        path = evaluation.folder / "labels" / f"{image_id}.png"
        if path.is_file():
            maps[evaluation.name] = read_prediction(path)
    pixels = data.image(image_id)
    cells = [figures.picture(pixels, "image")]
    palette: list[Color | None] = [*manifest.palette, IGNORED]
    if manifest.background:
        palette[0] = None
    for name, label in maps.items():
        known = np.minimum(label, len(manifest.classes)).astype(np.int64)
        cells.append(figures.picture(overlay(pixels, known, palette), name))
    shown = _largest(manifest, list(maps.values()))
    key = figures.legend([manifest.classes[k] for k in shown], [manifest.palette[k] for k in shown])
    return join([key, fill('<div class="row">{}</div>', join(cells))])


def _largest(manifest: Benchmark, maps: Sequence[npt.NDArray[np.integer]]) -> list[int]:
    """Return the classes with the largest area in some label maps, without the background."""
    classes = len(manifest.classes)
    counts = sum(np.bincount(label.ravel(), minlength=classes)[:classes] for label in maps)
    order = [int(k) for k in np.argsort(-np.asarray(counts), kind="stable")]
    first = 1 if manifest.background else 0
    return [k for k in order if k >= first and np.asarray(counts)[k]][:MOST_LISTED]


def words_section(folder: Path) -> Section | None:
    """Return every picture that `codeseg segment` wrote; None if there are none."""
    parts = [_words(path) for path in sorted(folder.glob("**/segments.json"))]
    note = "Pictures segmented by `codeseg segment`, with the words that were given."
    return Section("Any words on any picture", join(parts), note) if parts else None


def _words(path: Path) -> Html:
    """Return the pictures of a segments.json; refuse a file not written by `codeseg segment`."""
    try:
        found = json.loads(path.read_text())
        rows = [row for row in found["images"] if "error" not in row][:MOST_PICTURES]
        texts = list(dict.fromkeys(s["text"] for row in rows for s in row["segments"]))
        cells = [(path.parent / row["folder"] / "overlay.png", Path(row["image"])) for row in rows]
        method = found.get("method", "from Python")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not written by codeseg segment ({error!r})") from None
    pictures = join(
        figures.picture(rgb_pixels(painted), picture.name, width=300)
        for painted, picture in cells
        if painted.is_file()
    )
    asked = ", ".join(f"“{text}”" for text in texts)
    return fill('<p>{} ({})</p><div class="row">{}</div>', asked, method, pictures)
