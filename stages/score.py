"""`codeseg score`: label maps + predicted label maps -> confusion matrix, IoU and mIoU.

    OUT/scores.json      the scores (percent) with a 95 % interval, settings and worst classes
    OUT/scores.parquet   a row per class: IoU, pixels, its row of the confusion matrix
    OUT/images.parquet   a row per image: its own mIoU, and its counts per class

It runs on the CPU without torch. `evaluate` calls `score_folder` after predicting.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Column, Table

from codeseg.pipeline.benchmark.details import Details
from codeseg.pipeline.benchmark.intervals import (
    DRAWS,
    ImageScore,
    Interval,
    difference_interval,
    miou_interval,
)
from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData, load_benchmark
from codeseg.pipeline.benchmark.metrics import Confusion, Scores, confusion_matrix, misplaced
from codeseg.pipeline.benchmark.predictions import prediction_paths, read_prediction
from codeseg.pipeline.engine.storage import write_file, write_json
from codeseg.stages.options import JsonFile
from codeseg.stages.terminal import progress

FAILURES_SHOWN = 5
WORST_SHOWN = 5


@dataclass(frozen=True)
class SplitScores:
    """The scores of a split and of each of its images."""

    benchmark: Benchmark
    scores: Scores
    images: dict[str, ImageScore]
    failed: dict[str, str]  # id -> the reason why the image could not be scored
    details: Details | None = None  # boundaries and objects, if requested

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of mIoU over images."""
        return miou_interval(list(self.images.values()), len(self.benchmark.classes))

    @property
    def worst(self) -> dict[str, float]:
        """The lowest IoUs of the classes that occur, lowest first, in percent."""
        iou, known = self.scores.iou, int(np.isfinite(self.scores.iou).sum())
        worst = np.argsort(iou, kind="stable")[: min(known, WORST_SHOWN)]  # NaN sorts last
        return {self.benchmark.classes[k]: 100 * float(iou[k]) for k in worst}

    def summary(self) -> dict[str, Any]:
        """Return the printed and JSON form; IoU and accuracies in percent."""
        names, interval = self.benchmark.classes, self.interval
        return {
            "benchmark": self.benchmark.name,
            "manifest_sha256": self.benchmark.sha256,
            "images": len(self.images),
            "failed": self.failed,
            "images_in_split": self.benchmark.images,
            "miou": percent(self.scores.miou),
            "miou_interval": interval and interval.percent(),
            "pixel_accuracy": percent(self.scores.pixel_accuracy),
            "per_class": {n: percent(v) for n, v in zip(names, self.scores.iou, strict=True)},
            "worst": self.worst,
            **(self.details.summary(names) if self.details else {}),
        }


def percent(value: float) -> float | None:
    """Return a share in percent; None for NaN, which JSON does not have."""
    return None if np.isnan(value) else 100 * float(value)


def score(
    name: Annotated[str, typer.Argument(help="Benchmark: a name or a .toml file.")],
    data: Annotated[Path, typer.Option(help="The benchmark's data folder.")],
    predictions: Annotated[
        Path, typer.Option(help="Folder of predicted label maps, ID.png with values 0..K−1.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with other predictions for the same images (paired)."),
    ] = None,
    details: Annotated[
        bool,
        typer.Option(
            "--details", help="Also compute boundary IoU and IoU by object size (slower)."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write scores.json, scores.parquet and images.parquet here."),
    ] = None,
    json_file: JsonFile = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N images.", min=1)] = None,
) -> None:
    """Score label maps from any program against a benchmark.

    The predictions are gray or palette PNGs with the images' names and the class numbers of
    the manifest (0 is the background, if the benchmark has one).
    """
    console = Console()
    opened = load_benchmark(name).open(data)
    ids = opened.ids[:limit]

    def shown(items: Sequence[str]) -> Iterable[str]:
        return progress(items, "scoring", console)

    result = score_folder(opened, predictions, ids, shown, details=details)
    protocol = recorded_protocol(predictions)
    summary = result.summary() | {"protocol": protocol}
    if against:
        other = score_folder(opened, against, ids, shown)
        summary["against"] = compare(result, other, str(against), recorded_protocol(against))
    write_and_show(console, result, summary, "these predictions", out, json_file)
    if against:
        print_comparison(console, summary)
    print_caveat(console, result)


def write_and_show(
    console: Console,
    result: SplitScores,
    summary: dict[str, Any],
    name: str,
    out: Path | None,
    json_file: Path | None,
) -> None:
    """Write a result where the user asked, and print its tables; `name` labels its row."""
    if out:
        write_scores(out, result, summary)
    if json_file:
        write_json(json_file, summary)
    console.print(class_table(result))
    console.print(published_table(result.benchmark, name, summary))


def recorded_protocol(predictions: Path) -> str | None:
    """Return the protocol that `codeseg evaluate` recorded with the label maps, if any."""
    try:
        protocol = json.loads((predictions / "settings.json").read_text()).get("protocol")
    except (OSError, ValueError, AttributeError):
        return None
    return str(protocol) if protocol else None


def compare(
    ours: SplitScores, theirs: SplitScores, name: str, protocol: str | None
) -> dict[str, Any]:
    """Return the difference of two results on the same images, in percent, for JSON."""
    interval, p = difference_interval(
        list(ours.images.values()), list(theirs.images.values()), len(ours.benchmark.classes)
    )
    return {
        "predictions": name,
        "protocol": protocol,
        "miou": percent(theirs.scores.miou),
        "difference": interval.percent(),
        "p": p,
    }


def print_comparison(console: Console, summary: dict[str, Any]) -> None:
    """Print the paired difference, and whether two protocols were compared."""
    other = summary["against"]
    gain = other["difference"]
    line = (
        f"mIoU {gain['value']:+.2f} against {other['predictions']} "
        f"({gain['low']:+.2f} to {gain['high']:+.2f}, 95 % of {DRAWS} draws of the images; "
        f"p {other['p']:.3f})"
    )
    console.print(line, markup=False, soft_wrap=True)
    one, two = (each["protocol"] or "not recorded" for each in (summary, other))
    if one != two:
        line = f"protocols differ: {one} and {two}; the difference is not due to the methods alone"
        console.print(line)


def score_folder(
    data: BenchmarkData,
    predictions: Path,
    ids: Sequence[str],
    track: Callable[[Sequence[str]], Iterable[str]] = lambda ids: ids,
    *,
    strict: bool = True,
    details: bool = False,
) -> SplitScores:
    """Accumulate the confusion matrix over a split.

    Args:
        data: the benchmark's opened data folder.
        predictions: folder of ID.png files, in it or in its labels/.
        ids: the images to score.
        track: wraps the ids, to show progress.
        strict: raise on the first image that cannot be scored, instead of counting it as failed.
        details: also count boundaries and objects.

    Raises:
        FileNotFoundError: predictions are missing; says how many.
        ValueError: a file is damaged, of the wrong size, or holds a label outside the class list.
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
    more = Details(classes) if details else None
    for image_id in track(ids):
        try:
            confusion = score_image(data, folder / f"{image_id}.png", image_id, more)
        except (ValueError, FileNotFoundError) as error:
            if strict:
                raise
            failed[image_id] = str(error)
            continue
        total += confusion
        rows[image_id] = image_score(confusion)
    return SplitScores(data.benchmark, Scores(total), rows, failed, more)


def image_score(confusion: Confusion) -> ImageScore:
    """Return one image's part of the split's score."""
    scores = Scores(confusion)
    classes = np.flatnonzero(scores.union)
    return ImageScore(
        scores.miou,
        scores.pixel_accuracy,
        int((confusion.sum(1) > 0).sum()),
        classes,
        scores.intersection[classes],
        scores.union[classes],
    )


def score_image(
    data: BenchmarkData, prediction: Path, image_id: str, details: Details | None = None
) -> Confusion:
    """Return the confusion matrix of one image; the ValueError names a file that is wrong."""
    label = data.label(image_id)
    predicted = read_prediction(prediction)
    try:
        confusion = confusion_matrix(label, predicted, len(data.benchmark.classes))
        if details:
            details.add(label, predicted)
        return confusion
    except ValueError as error:
        raise ValueError(f"{prediction}: {error}") from None


def write_scores(out: Path, result: SplitScores, summary: dict[str, Any]) -> None:
    """Write scores.json, scores.parquet and images.parquet into `out`."""
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
    rows, counts = result.images.values(), pa.list_(pa.int64())
    images = {
        "id": pa.array(list(result.images), pa.string()),
        "miou": pa.array([row.miou for row in rows], pa.float64(), from_pandas=True),
        "pixel_accuracy": pa.array(
            [row.pixel_accuracy for row in rows], pa.float64(), from_pandas=True
        ),
        "classes": pa.array([row.labeled for row in rows], pa.int32()),
        # Of the classes in the label or the prediction: intervals need no label map.
        "class": pa.array([row.classes for row in rows], counts),
        "intersection": pa.array([row.intersection for row in rows], counts),
        "union": pa.array([row.union for row in rows], counts),
    }
    for name, columns in (("scores.parquet", classes), ("images.parquet", images)):
        write_file(out / name, partial(pq.write_table, pa.table(columns)))
    write_json(out / "scores.json", summary)


def class_table(result: SplitScores) -> Table:
    """Return IoU per class, best first, and the totals."""
    scores = result.scores
    iou, pixels = (Column(name, justify="right") for name in ("IoU %", "pixels"))
    table = Table(
        "class", iou, pixels, title=f"{result.benchmark.title}: {len(result.images)} images"
    )
    order = np.argsort(-np.nan_to_num(scores.iou, nan=-1.0), kind="stable")
    labelled = scores.confusion.sum(1)
    for k in order:
        shown = _two_digits(percent(scores.iou[k]))
        table.add_row(result.benchmark.classes[k], shown, f"{labelled[k]:,}")
    table.add_section()
    table.add_row("mIoU", f"{100 * scores.miou:.2f}", "")
    if interval := result.interval:
        table.add_row("95 % interval", f"{100 * interval.low:.2f}–{100 * interval.high:.2f}", "")
    table.add_row("pixel accuracy", f"{100 * scores.pixel_accuracy:.2f}", f"{labelled.sum():,}")
    if result.details:
        found = result.details.summary(result.benchmark.classes)
        table.add_row("boundary mIoU", _two_digits(found["boundary_miou"]), "")
        for name, objects in found["objects"].items():
            title = f"pixels found of {name} objects"
            table.add_row(title, _two_digits(objects["found"]), f"{objects['count']:,} objects")
    return table


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def published_table(benchmark: Benchmark, method: str, summary: dict[str, Any]) -> Table:
    """Return our score (`summary`) above the published ones: the same protocol first, others gray.

    `method` is the name of our row.
    """
    protocol, interval = summary.get("protocol"), summary.get("miou_interval")
    number = Column("mIoU %", justify="right")
    table = Table("method", number, "protocol", "made with", title=f"mIoU on {benchmark.name}")
    ours = _two_digits(summary["miou"])
    if interval:
        ours += f" ({interval['low']:.1f}–{interval['high']:.1f})"
    table.add_row(method, ours, protocol or "not recorded", _made_with(summary))
    same = [row for row in benchmark.published if row.protocol == protocol]
    others = [row for row in benchmark.published if row.protocol != protocol]
    for rows, style in ((same, None), (others, "dim")):
        table.add_section()
        for row in sorted(rows, key=lambda row: -row.miou):
            parts = ", ".join(part for part in (row.clip, row.extra, row.refinement) if part)
            table.add_row(row.method, f"{row.miou:.1f}", row.protocol, parts or "–", style=style)
    if benchmark.published:
        note = "rows below the line use other protocols and do not compare; sources: the manifest"
        table.caption = note if same else f"no published row has this protocol: {note}"
    return table


def _made_with(summary: dict[str, Any]) -> str:
    """Return the CLIP, training and refinement of our own row, if recorded."""
    settings = summary.get("settings", {})
    parts = [str(settings[key]) for key in ("clip", "pretrained") if key in settings]
    parts += ["trained on captions"] * ("checkpoint" in settings)
    parts += [settings.get("refinement", "none")]
    return ", ".join(part for part in dict.fromkeys(parts) if part != "none") or "–"


def print_caveat(console: Console, result: SplitScores) -> None:
    """Warn about failed images, class numbers that look shifted, and an incomplete split."""
    if hint := misplaced(result.scores.confusion, result.benchmark.classes):
        console.print(f"hint: {hint}", markup=False, soft_wrap=True)
    for image_id, reason in list(result.failed.items())[:FAILURES_SHOWN]:
        console.print(f"failed: {image_id}: {reason}", markup=False, soft_wrap=True)
    if result.failed:
        console.print(f"{len(result.failed)} images failed and are not in the score")
    if len(result.images) != result.benchmark.images:
        console.print(
            f"{len(result.images)} images scored, {result.benchmark.images} in the official split: "
            "this score does not compare with published ones"
        )
