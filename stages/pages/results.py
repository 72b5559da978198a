"""Groups of comparable evaluations -> the report's tables of scores, classes and confusions."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from codeseg.stages.pages import figures
from codeseg.stages.pages.evaluations import Evaluation
from codeseg.stages.pages.html import Html, fill, join, readable
from codeseg.stages.pages.page import Section, folded

MOST_BARS = 24  # classes in the chart; if there are more, those that differ most
SCORES = (
    "method", "mIoU, % (95 % interval)", "pixel accuracy, %", "CLIP", "checkpoint", "refinement",
    "failed",
)  # fmt: skip


def results_section(groups: Sequence[Sequence[Evaluation]]) -> Section:
    """Return the scores of every benchmark: a table for each protocol and set of images."""
    parts = []
    for title, same in groupby(groups, key=lambda group: group[0].manifest.title):
        tables = list(same)
        parts.append(fill("<h3>{}</h3>", title))
        if len(tables) > 1:
            note = "Scores of different tables do not compare: protocol, images or classes differ."
            parts.append(fill('<p class="note">{}</p>', note))
        for group in tables:
            best = len(group) - 1 if len(group) > 1 else None
            table = figures.table(SCORES, [_scores(e) for e in group], best)
            parts += [fill("<p>{}</p>", conditions(group[0])), table]
            parts += [fill("<p>{}: {}</p>", e.name, e.compared) for e in group if e.compared]
            parts.append(_settings(group))
        if published := tables[0][0].manifest.published:
            ours = {group[0].settings.get("protocol") for group in tables}
            rows = sorted(map(asdict, published), key=lambda row: row["protocol"] not in ours)
            table = figures.table(list(rows[0]), [list(row.values()) for row in rows])
            parts.append(folded(f"{len(rows)} published scores, our protocols first", table))
    note = "A RUN is scored at its last checkpoint; none was chosen on a benchmark."
    return Section("Results", join(parts), note)


def conditions(evaluation: Evaluation) -> str:
    """Return a description of a score's protocol and images."""
    official, scored = evaluation.manifest.images, len(evaluation.images)
    if scored == official:
        return f"{evaluation.protocol}, all {readable(scored)} images"
    images = f"{readable(scored)} of {readable(official)} images"
    return f"{evaluation.protocol}, {images}: does not compare with published scores"


def heading(evaluation: Evaluation) -> str:
    """Return the benchmark and the protocol, for a section's heading."""
    protocol = evaluation.settings.get("protocol")
    return f"{evaluation.manifest.name}, {protocol}" if protocol else evaluation.manifest.name


def _scores(evaluation: Evaluation) -> list[object]:
    accuracy = evaluation.summary.get("pixel_accuracy")
    shown = [evaluation.shown, None if accuracy is None else f"{accuracy:.2f}"]
    settings, failed = evaluation.settings, len(evaluation.summary.get("failed") or ())
    made = [settings.get(key) for key in ("clip", "checkpoint", "refinement")]
    return [evaluation.name, *shown, *made, failed]


def _settings(group: Sequence[Evaluation]) -> Html:
    """Return every recorded setting of every method, side by side."""
    keys = list(dict.fromkeys(key for e in group for key in e.settings))
    rows = [[key, *(_short(e.settings.get(key)) for e in group)] for key in keys]
    table = figures.table(["setting", *(e.name for e in group)], rows)
    return folded("settings of these scores", table) if rows else Html()


def _short(value: object) -> object:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value


def class_section(group: Sequence[Evaluation]) -> Section:
    """Return the IoU of the classes that occur, for all methods, and the best one's confusions."""
    best, scores = group[-1], [e.per_class() for e in group]
    rows = {n: [s[n] for s in scores] for n in best.manifest.classes}
    rows = {n: row for n, row in rows.items() if any(value is not None for value in row)}
    spread = {n: _spread(row) for n, row in rows.items()}
    shown = [n for n in rows if n in sorted(rows, key=lambda n: -spread[n])[:MOST_BARS]]
    series = {e.name: [s[n] for n in shown] for e, s in zip(group, scores, strict=True)}
    header, cells = ["class", *series], [[n, *row] for n, row in rows.items()]
    if len(group) > 1:
        header.append(f"{best.name} − {group[-2].name}")
        cells = [[*row, _difference(row[-1], row[-2])] for row in cells]
    chosen = f": the {len(shown)} that differ most" if len(shown) < len(rows) else ""
    parts = [
        fill("<h3>IoU of the classes that occur{}</h3>", chosen),
        figures.bars(shown, series, "IoU, %"),
        folded(f"all {len(rows)} classes that occur, as numbers", figures.table(header, cells)),
        fill("<h3>What {} confuses</h3>", best.name),
        figures.heat_map(best.confusion(), best.manifest.classes),
    ]
    return Section(f"{heading(best)}: classes", join(parts), conditions(best))


def _difference(one: object, other: object) -> str | None:
    if isinstance(one, float) and isinstance(other, float):
        return f"{one - other:+.1f}"
    return None


def _spread(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) - (min(known) if len(values) > 1 else 0)
