"""Evaluations on a benchmark with background -> mIoU over the background threshold.

The threshold is a setting like any other; the curve shows how much a number leans on it. It is
computed anew on the first images of the split, with everything else as it was recorded, and kept
beside the evaluation (threshold.json) for the next report.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.console import Console

from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData
from codeseg.pipeline.benchmark.metrics import Scores, confusion_matrix
from codeseg.stages.pages import figures
from codeseg.stages.pages.report_parts import Evaluation, Section
from codeseg.stages.progress import progress
from codeseg.stages.score import write_json

if TYPE_CHECKING:
    from codeseg.model.inference.segmenter import Segmenter

IMAGES = 40  # of the split, a compromise between a smooth curve and the time it takes
KEPT = "threshold.json"
THRESHOLDS = np.round(np.arange(0.025, 1.0, 0.025), 3)


def threshold_section(manifest: Benchmark, methods: Sequence[Evaluation]) -> Section | None:
    """The curve of every method; None without a background or without the images."""
    place = methods[-1].data
    if not manifest.background or place is None:
        return None
    data = manifest.open(place)
    series = {}
    for evaluation in methods:
        values = kept_curve(evaluation) or new_curve(evaluation, data)
        if values is not None:
            series[evaluation.name] = (list(THRESHOLDS), values)
    if not series:
        return None
    chosen = ", ".join(
        f"{e.name} {e.summary['settings']['background_threshold']}"
        for e in methods
        if e.name in series
    )
    note = f"First {IMAGES} images, everything else as recorded. Thresholds in use: {chosen}."
    html = figures.lines(series, "background threshold", "mIoU %")
    return Section(f"{manifest.name}: threshold", html, note)


def kept_curve(evaluation: Evaluation) -> list[float] | None:
    """The curve an earlier report left beside these very scores; None without one."""
    try:
        kept = json.loads((evaluation.folder / KEPT).read_text())
        values: list[float] = kept["miou"]
        fits = kept["scores"] == scores_hash(evaluation) and len(values) == len(THRESHOLDS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if fits else None


def new_curve(evaluation: Evaluation, data: BenchmarkData) -> list[float] | None:
    """Compute the curve and leave it beside the scores; None if the segmenter is gone."""
    segmenter = load_again(evaluation)
    if segmenter is None:
        return None
    what = f"{data.benchmark.name}, {evaluation.name}: curve over thresholds"
    values = curve(segmenter, data, progress(data.ids[:IMAGES], what, Console()))
    if np.isfinite(values).all():
        with suppress(OSError):  # somebody's scores may be read-only
            kept = {"scores": scores_hash(evaluation), "miou": values}
            write_json(evaluation.folder / KEPT, kept)
    return values


def scores_hash(evaluation: Evaluation) -> str:
    """Of what `codeseg evaluate` wrote: other settings, images or weights change it."""
    return sha256((evaluation.folder / "scores.json").read_bytes()).hexdigest()


def load_again(evaluation: Evaluation) -> "Segmenter | None":
    """The segmenter of an evaluation with its recorded settings; None if it is gone."""
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.inference.settings import PredictionSettings

    recorded = evaluation.summary.get("settings", {})
    alone = {name: recorded.get(name) for name in ("clip", "pretrained")}
    known = {k: v for k, v in recorded.items() if k in PredictionSettings.__dataclass_fields__}
    try:
        return Segmenter.open(evaluation.run, known, **({} if evaluation.run else alone))
    except ValueError:
        return None


def curve(segmenter: "Segmenter", data: BenchmarkData, ids: Iterable[str]) -> list[float]:
    """MIoU in percent at every threshold, on some images of the split."""
    from codeseg.model.pictures.pixels import rgb_pixels

    classes = len(data.benchmark.classes)
    totals = np.zeros((len(THRESHOLDS), classes, classes), np.int64)
    embeddings = segmenter.embed_texts(data.benchmark.texts)
    for image_id in ids:
        best: npt.NDArray[np.float32] | None = None
        index = np.zeros(0, np.int64)
        for chunk, maps in segmenter.maps(rgb_pixels(data.image_path(image_id)), embeddings):
            values, winners = (t.cpu().numpy() for t in maps.max(0))
            winners = winners + chunk.start + 1
            if best is None:
                best, index = values, winners
            else:
                index = np.where(values > best, winners, index)
                best = np.maximum(values, best)
        assert best is not None
        label = data.label(image_id)
        for t, threshold in enumerate(THRESHOLDS):
            totals[t] += confusion_matrix(label, np.where(best > threshold, index, 0), classes)
    return [100 * Scores(total).miou for total in totals]
