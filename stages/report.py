"""Everything below a folder that was measured -> one offline page, report.html.

    FOLDER/**/scores.json …      evaluations (stages/evaluate.py), grouped by benchmark
    FOLDER/**/segments.json …    pictures segmented by any words (stages/segment.py)
    FOLDER/**/metrics.parquet    training runs: loss curves
    FOLDER/**/ledger/            what became of every caption
    FOLDER/**/audit.json         what the data checks said

Whatever is missing is left out; the page says so. Works on a demo folder and on a RUN alike.
"""

import json
import string
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from codeseg.pipeline.benchmark.manifest import Benchmark
from codeseg.stages.pages import figures
from codeseg.stages.pages.report_curve import threshold_section
from codeseg.stages.pages.report_data import data_sections, loss_section
from codeseg.stages.pages.report_parts import Evaluation, Section, names_apart
from codeseg.stages.pages.report_pictures import decomposition_section, picture_section
from codeseg.stages.pages.report_words import words_section

MOST_BARS = 40  # classes of the per-class chart; of more, those that differ most are shown


def report(
    folder: Annotated[Path, typer.Argument(help="A demo folder, a RUN, or a folder of them.")],
    out: Annotated[
        Path | None, typer.Option(help="The page (default: FOLDER/report.html).")
    ] = None,
    title: Annotated[str, typer.Option(help="Its heading.")] = "codeseg report",
) -> None:
    """Show scores, pictures, losses and data on one page that works offline."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    sections = gather(folder)
    if not sections:
        raise ValueError(f"{folder} holds nothing to report: no scores.json, no metrics.parquet")
    path = out or folder / "report.html"
    write_report(path, sections, title=title, subtitle=f"from {folder.resolve().name}")
    typer.echo(f"report: {path}")


def gather(folder: Path) -> list[Section]:
    """All sections that the folder's content allows, in reading order."""
    evaluations = find_evaluations(folder)
    sections = [results_section(evaluations)] if evaluations else []
    for methods in evaluations.values():
        manifest = methods[-1].manifest
        sections.append(class_section(manifest, methods))
        found = [picture_section(manifest, methods), threshold_section(manifest, methods)]
        sections += [section for section in found if section]
    found = [decomposition_section(folder), words_section(folder), loss_section(folder)]
    return sections + [section for section in found if section] + data_sections(folder)


def write_report(
    path: Path, sections: Sequence[Section], *, title: str, subtitle: str = ""
) -> None:
    """Write the page; pictures and styles are inside, so it can be moved and mailed."""
    template = string.Template(
        (files("codeseg.stages.pages") / "report.html").read_text(encoding="utf-8")
    )
    body, links = "", ""
    for number, section in enumerate(sections):
        note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
        heading = f"<h2>{escape(section.title)}</h2>"
        body += f'<section id="s{number}">{heading}{note}{section.html}</section>\n'
        links += f'<a href="#s{number}">{escape(section.title)}</a> '
    page = template.substitute(
        title=escape(title), subtitle=escape(subtitle), links=links, sections=body
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def find_evaluations(folder: Path) -> dict[str, list[Evaluation]]:
    """Evaluations by benchmark; methods from the lowest mIoU on the benchmark to the highest."""
    found: dict[str, dict[Path, dict[str, Any]]] = {}
    for path in sorted(folder.glob("**/scores.json")):
        try:
            summary = json.loads(path.read_text())
            found.setdefault(summary["benchmark"], {})[path.parent] = summary
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a score of codeseg evaluate ({error!r})") from None
    evaluations = {}
    for benchmark, places in found.items():
        names = names_apart(list(places))
        methods = [
            Evaluation(*place, name) for place, name in zip(places.items(), names, strict=True)
        ]
        evaluations[benchmark] = sorted(methods, key=lambda e: e.miou)
    return evaluations


def results_section(evaluations: dict[str, list[Evaluation]]) -> Section:
    """MIoU of every method on every benchmark, then the published rows."""
    html = ""
    for methods in evaluations.values():
        manifest = methods[-1].manifest
        rows = [
            [
                e.name,
                f"{e.miou:.2f}",
                f"{e.summary['pixel_accuracy'] or 0:.2f}",
                f"{e.summary['images']} of {manifest.images}",
                str(len(e.summary["failed"])),
                e.summary.get("settings", {}).get("checkpoint", "no training"),
            ]
            for e in methods
        ]
        header = ["method", "mIoU %", "pixel accuracy %", "images", "failed", "checkpoint"]
        html += f"<h3>{escape(manifest.title)}</h3>"
        html += figures.table(header, rows, best=len(rows) - 1)
        if manifest.published:
            header = ["published", "mIoU %", "protocol", "source"]
            published = [[p.method, f"{p.miou}", p.protocol, p.source] for p in manifest.published]
            html += "<details><summary>published numbers</summary>"
            html += figures.table(header, published) + "</details>"
        html += settings_table(methods)
    note = "A RUN is scored at its last checkpoint; none was picked on a benchmark."
    return Section("Results", html, note)


def settings_table(methods: Sequence[Evaluation]) -> str:
    """Every recorded setting of every method, side by side."""
    settings = [e.summary.get("settings", {}) for e in methods]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    rows = [[key, *(_short(values.get(key, "–")) for values in settings)] for key in keys]
    table = figures.table(["setting", *(e.name for e in methods)], rows)
    return f"<details><summary>settings of these numbers</summary>{table}</details>"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def class_section(manifest: Benchmark, methods: Sequence[Evaluation]) -> Section:
    """IoU per class of all methods, and the best method's confusions."""
    names = list(manifest.classes)
    if len(names) > MOST_BARS:
        spread = {n: _spread([e.summary["per_class"][n] for e in methods]) for n in names}
        names = sorted(names, key=lambda n: -spread[n])[:MOST_BARS]
    series = {e.name: [e.summary["per_class"][n] for n in names] for e in methods}
    best = methods[-1]
    html = "<h3>IoU per class, percent</h3>" + figures.bars(names, series, "%")
    html += f"<h3>What {escape(best.name)} confuses</h3>"
    html += figures.heat_map(best.confusion(), manifest.classes)
    return Section(f"{manifest.name}: classes", html)


def _spread(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return max(known) - min(known) if len(known) > 1 else (known[0] / 100 if known else -1.0)
