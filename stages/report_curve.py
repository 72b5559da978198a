"""Evaluations on a benchmark with background -> mIoU over the background threshold.

The threshold is a setting like any other; the curve shows how much a number leans on it. It is
computed anew on the first images of the split, with everything else as it was recorded.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from model.metrics import Scores, confusion_matrix
from pipeline.benchmark import Benchmark, BenchmarkData
from stages import figures
from stages.report_parts import Evaluation, Section

if TYPE_CHECKING:
    from model.segmenter import Segmenter

IMAGES = 40  # of the split, a compromise between a smooth curve and the time it takes
THRESHOLDS = np.round(np.arange(0.025, 1.0, 0.025), 3)


def threshold_section(manifest: Benchmark, methods: Sequence[Evaluation]) -> Section | None:
    """The curve of every method; None without a background or without the images."""
    place = methods[-1].data
    if not manifest.background or place is None:
        return None
    data = manifest.open(place)
    series = {}
    for evaluation in methods:
        segmenter = load_again(evaluation)
        if segmenter is not None:
            series[evaluation.name] = (list(THRESHOLDS), curve(segmenter, data))
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


def load_again(evaluation: Evaluation) -> "Segmenter | None":
    """The segmenter of an evaluation with its recorded settings; None if it is gone."""
    from model.prediction import PredictionSettings
    from model.segmenter import Segmenter

    recorded = evaluation.summary.get("settings", {})
    run = evaluation.run
    try:
        if run is None:
            found = Segmenter.training_free(
                recorded["method"], recorded["clip"], recorded["pretrained"]
            )
        else:
            found = Segmenter.from_pretrained(run, method=recorded["method"])
    except (ValueError, KeyError):
        return None
    known = {k: v for k, v in recorded.items() if k in PredictionSettings.__dataclass_fields__}
    return Segmenter(found.clip, found.code, PredictionSettings.for_clip(found.clip, **known))


def curve(segmenter: "Segmenter", data: BenchmarkData, images: int = IMAGES) -> list[float]:
    """MIoU in percent at every threshold, on the first images of the split."""
    from model.pixels import rgb_pixels

    classes = len(data.benchmark.classes)
    totals = np.zeros((len(THRESHOLDS), classes, classes), np.int64)
    embeddings = segmenter.embed_texts(data.benchmark.texts)
    for image_id in data.ids[:images]:
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
