"""Label maps and a trained segmenter -> pictures of the report.

Best, median and worst images with every method beside the truth; captions whose words and regions
wear their noun's colour.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from codeseg.model.pictures.overlay import Colour, colours, overlay
from codeseg.pipeline.benchmark.manifest import Benchmark
from codeseg.pipeline.benchmark.predictions import read_prediction
from codeseg.stages.pages import figures
from codeseg.stages.pages.decomposition import decomposition
from codeseg.stages.pages.report_parts import Evaluation, Section

TELLING = 3  # labelled classes that make a picture worth looking at
EACH = 2  # pictures of each kind: best, median, worst
CAPTIONS = 6  # captions of the decomposition figure
MOST_NOUNS = 4  # of a caption, one colour each
MOST_LISTED = 12  # classes of a picture that its legend names, the largest first
IGNORED: Colour = (128, 128, 128)


def picture_section(manifest: Benchmark, methods: Sequence[Evaluation]) -> Section | None:
    """Best, median and worst images by the best method's own mIoU; None without the images."""
    best = methods[-1]
    if best.data is None:
        return None
    data = manifest.open(best.data)
    table = pq.read_table(best.folder / "images.parquet").to_pylist()
    scored = [row for row in table if row["miou"] is not None]
    telling = [row for row in scored if row["classes"] >= TELLING]
    order = sorted(telling or scored, key=lambda row: -row["miou"])
    if not order:
        return None
    middle = max(0, len(order) // 2 - 1)
    kinds = {
        "best": order[:EACH],
        "median": order[middle : middle + EACH],
        "worst": order[-EACH:],
    }
    html = ""
    for kind, rows in kinds.items():
        for row in rows:
            html += f"<h3>{kind}: {escape(row['id'])}, mIoU {100 * row['miou']:.1f} %</h3>"
            html += _side_by_side(manifest, data, methods, row["id"])
    note = f"Chosen by {best.name}'s mIoU over the classes of the image; grey is not scored."
    return Section(f"{manifest.name}: pictures", html, note)


def _side_by_side(
    manifest: Benchmark, data: Any, methods: Sequence[Evaluation], image_id: str
) -> str:
    from codeseg.model.pictures.pixels import rgb_pixels

    pixels = rgb_pixels(data.image_path(image_id))
    maps = {"ground truth": data.label(image_id)}
    for evaluation in methods:
        path = evaluation.folder / "labels" / f"{image_id}.png"
        if path.is_file():
            maps[evaluation.name] = read_prediction(path)
    shown, palette = _palette(manifest, list(maps.values()))
    cells = figures.picture(pixels, "image")
    for name, label in maps.items():
        cells += figures.picture(overlay(pixels, label, palette), name)
    known = [palette[k] or IGNORED for k in shown]
    key = figures.legend([manifest.classes[k] for k in shown], known)
    return f'{key}<div class="row">{cells}</div>'


def _palette(
    manifest: Benchmark, maps: Sequence[npt.NDArray[np.uint8]]
) -> tuple[list[int], list[Colour | None]]:
    """Colours for the classes of these maps that cover most; background is left unpainted."""
    counts = sum(np.bincount(label.ravel(), minlength=256) for label in maps)
    first = 1 if manifest.background else 0
    classes = [int(k) for k in np.argsort(-np.asarray(counts), kind="stable")]
    present = [k for k in classes if first <= k < len(manifest.classes) and np.asarray(counts)[k]]
    palette: list[Colour | None] = [None] * 255 + [IGNORED]
    chosen = colours(len(present))
    for k, colour in zip(present, chosen, strict=True):
        palette[k] = colour
    return present[:MOST_LISTED], palette


def decomposition_section(folder: Path) -> Section | None:
    """Captions of the dataset, their word segments and regions in the same colours."""
    from codeseg.model.checkpoint import checkpoints
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.pictures.pixels import rgb_pixels

    runs = [p.parent for p in sorted(folder.glob("**/config.json")) if checkpoints(p.parent)]
    runs = [run for run in runs if _decomposes(run)]
    rows = _captions(folder)
    if not runs or not rows:
        return None
    segmenter = Segmenter.open(runs[-1])
    html = "".join(
        decomposition(segmenter, rgb_pixels(jpeg), caption, nouns) for jpeg, caption, nouns in rows
    )
    note = (
        f"{runs[-1].name} on training pictures: nouns are underlined, the words that the text "
        "segmenter gives to a noun and the region that the image segmenter gives to it share its "
        "colour."
    )
    return Section("Captions and pictures taken apart", html, note)


def _decomposes(run: Path) -> bool:
    """Whether the run trained a text segmenter."""
    config = json.loads((run / "config.json").read_text())
    return bool(config.get("model", {}).get("co_decomposition", True))


def _captions(folder: Path) -> list[tuple[bytes, str, list[str]]]:
    """(JPEG, caption, nouns) of the first pairs with at least two nouns."""
    rows: list[tuple[bytes, str, list[str]]] = []
    for path in sorted(folder.glob("**/nouns/[0-9]*.parquet")):
        pairs = pq.read_table(path.parent.parent / "pairs" / path.name, columns=["key", "jpg"])
        pictures = dict(zip(pairs["key"].to_pylist(), pairs["jpg"].to_pylist(), strict=True))
        for row in pq.read_table(path, columns=["key", "caption", "nouns"]).to_pylist():
            nouns = [noun["text"] for noun in row["nouns"]][:MOST_NOUNS]
            if len(nouns) > 1 and pictures.get(row["key"]):
                rows.append((pictures[row["key"]], row["caption"], nouns))
            if len(rows) == CAPTIONS:
                return rows
    return rows
