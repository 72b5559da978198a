"""Label maps + predicted label maps -> confusion matrix, IoU, mIoU; a table, JSON and Parquet.

    OUT/scores.json      the numbers (percent), the settings they were made with, published rows
    OUT/scores.parquet   a row per class: IoU, pixels, its row of the confusion matrix
    OUT/images.parquet   a row per image: its own mIoU, to find the best and the worst

CPU; no torch. `score_folder` is what `evaluate` calls after predicting.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData, load_benchmark
from codeseg.pipeline.benchmark.metrics import Confusion, Scores, confusion_matrix, misplaced
from codeseg.pipeline.benchmark.predictions import prediction_paths, read_prediction
from codeseg.pipeline.engine.storage import write_json
from codeseg.stages.progress import progress

FAILURES_SHOWN = 5


@dataclass(frozen=True)
class SplitScores:
    """The score of a split, and of each of its images."""

    benchmark: Benchmark
    scores: Scores
    images: dict[str, tuple[float, float, int]]
    """Id -> (mIoU over the classes in the image or its prediction, 0..1; pixel accuracy, 0..1;
    number of labelled classes)."""
    failed: dict[str, str]
    """Id -> why it could not be scored."""

    def summary(self) -> dict[str, Any]:
        """What is printed and written as JSON; IoU and accuracies in percent."""
        names = self.benchmark.classes
        return {
            "benchmark": self.benchmark.name,
            "manifest_sha256": self.benchmark.sha256,
            "images": len(self.images),
            "failed": self.failed,
            "images_in_split": self.benchmark.images,
            "miou": percent(self.scores.miou),
            "pixel_accuracy": percent(self.scores.pixel_accuracy),
            "per_class": {n: percent(v) for n, v in zip(names, self.scores.iou, strict=True)},
        }


def percent(value: float) -> float | None:
    """A share in percent; None for NaN, which JSON does not know."""
    return None if np.isnan(value) else 100 * float(value)


def score(
    name: Annotated[str, typer.Argument(help="Benchmark: a name, or the path of a .toml file.")],
    data: Annotated[Path, typer.Option(help="The benchmark's data folder.")],
    predictions: Annotated[
        Path, typer.Option(help="Folder of predicted label maps ID.png, values 0..K−1.")
    ],
    out: Annotated[Path | None, typer.Option(help="Also write scores.parquet … here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the score here.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N images.", min=1)] = None,
) -> None:
    """Score anybody's predicted label maps against a benchmark.

    The predictions are 8-bit grey or palette PNGs named as the images, with the class numbers of
    the manifest (0 is background where the benchmark has one).
    """
    console = Console()
    opened = load_benchmark(name).open(data)
    ids = opened.ids[:limit]
    result = score_folder(
        opened, predictions, ids, lambda items: progress(items, "scoring", console)
    )
    summary = result.summary()
    if out:
        write_scores(out, result, summary)
    if json_file:
        write_json(json_file, summary)
    console.print(class_table(result))
    console.print(published_table(result.benchmark, {"these predictions": summary["miou"]}))
    print_caveat(console, result)


def score_folder(
    data: BenchmarkData,
    predictions: Path,
    ids: Sequence[str],
    track: Callable[[Sequence[str]], Iterable[str]] = lambda ids: ids,
    *,
    strict: bool = True,
) -> SplitScores:
    """Accumulate the confusion matrix over a split.

    Args:
        data: The benchmark's opened data folder.
        predictions: Folder of ID.png files (or one with them under labels/).
        ids: The images to score.
        track: Wraps the ids, to show progress.
        strict: Raise on the first image that cannot be scored; else count it as failed.

    Raises:
        FileNotFoundError: Predictions are missing; says how many.
        ValueError: A file is damaged, of the wrong size, or holds a label outside the class list.
    """
    folder = prediction_paths(predictions)
    missing = [image_id for image_id in ids if not (folder / f"{image_id}.png").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(ids)} predictions are missing, "
            f"the first is {missing[0]}.png"
        )
    classes = len(data.benchmark.classes)
    total = np.zeros((classes, classes), np.int64)
    rows, failed = {}, {}
    for image_id in track(ids):
        try:
            confusion = score_image(data, folder / f"{image_id}.png", image_id)
        except (ValueError, FileNotFoundError) as error:
            if strict:
                raise
            failed[image_id] = str(error)
            continue
        total += confusion
        scores = Scores(confusion)
        labelled = int((confusion.sum(1) > 0).sum())
        rows[image_id] = (scores.miou, scores.pixel_accuracy, labelled)
    return SplitScores(data.benchmark, Scores(total), rows, failed)


def score_image(data: BenchmarkData, prediction: Path, image_id: str) -> Confusion:
    """The confusion matrix of one image; ValueError names the file that is wrong."""
    label = data.label(image_id)
    try:
        return confusion_matrix(label, read_prediction(prediction), len(data.benchmark.classes))
    except ValueError as error:
        message = str(error)
        named = str(prediction) in message
        raise ValueError(message if named else f"{prediction}: {message}") from None


def write_scores(out: Path, result: SplitScores, summary: dict[str, Any]) -> None:
    """Write scores.json, scores.parquet and images.parquet into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    scores = result.scores
    classes = {
        "class": pa.array(result.benchmark.classes),
        "iou": pa.array(scores.iou, from_pandas=True),  # 0..1; null where the class never occurs
        "intersection": pa.array(scores.intersection),
        "union": pa.array(scores.union),
        "labelled": pa.array(scores.confusion.sum(1)),
        "predicted": pa.array(scores.confusion.sum(0)),
        "confusion": pa.array(scores.confusion.tolist(), pa.list_(pa.int64())),
    }
    pq.write_table(pa.table(classes), out / "scores.parquet")
    rows = result.images.values()
    images = {
        "id": pa.array(list(result.images), pa.string()),
        "miou": pa.array([row[0] for row in rows], pa.float64(), from_pandas=True),
        "pixel_accuracy": pa.array([row[1] for row in rows], pa.float64(), from_pandas=True),
        "classes": pa.array([row[2] for row in rows], pa.int32()),
    }
    pq.write_table(pa.table(images), out / "images.parquet")
    write_json(out / "scores.json", summary)


def class_table(result: SplitScores) -> Table:
    """IoU per class, best first, and the totals."""
    scores = result.scores
    table = Table(title=f"{result.benchmark.title}: {len(result.images)} images")
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    table.add_column("pixels", justify="right")
    order = np.argsort(-np.nan_to_num(scores.iou, nan=-1.0), kind="stable")
    labelled = scores.confusion.sum(1)
    for k in order:
        iou = "–" if np.isnan(scores.iou[k]) else f"{100 * scores.iou[k]:.2f}"
        table.add_row(result.benchmark.classes[k], iou, f"{labelled[k]:,}")
    table.add_section()
    table.add_row("mIoU", f"{100 * scores.miou:.2f}", "")
    table.add_row("pixel accuracy", f"{100 * scores.pixel_accuracy:.2f}", f"{labelled.sum():,}")
    return table


def published_table(benchmark: Benchmark, ours: dict[str, float | None]) -> Table:
    """Our numbers above the published ones; protocols differ, so each row says its own."""
    table = Table(title=f"mIoU on {benchmark.name}")
    table.add_column("method")
    table.add_column("mIoU %", justify="right")
    table.add_column("protocol")
    table.add_column("source")
    for method, miou in ours.items():
        table.add_row(method, "–" if miou is None else f"{miou:.2f}", "this run", "")
    table.add_section()
    for row in sorted(benchmark.published, key=lambda row: (row.protocol, -row.miou)):
        table.add_row(row.method, f"{row.miou:.1f}", row.protocol, row.source)
    return table


def print_caveat(console: Console, result: SplitScores) -> None:
    """Say so when images failed, class numbers look misplaced or the split is not the official."""
    if hint := misplaced(result.scores.confusion, result.benchmark.classes):
        console.print(f"hint: {hint}", markup=False, soft_wrap=True)
    for image_id, reason in list(result.failed.items())[:FAILURES_SHOWN]:
        console.print(f"failed: {image_id}: {reason}", markup=False, soft_wrap=True)
    if result.failed:
        console.print(f"{len(result.failed)} images failed and are not in the number")
    if len(result.images) != result.benchmark.images:
        console.print(
            f"{len(result.images)} images scored, {result.benchmark.images} in the official split: "
            "this number does not compare with published ones"
        )
