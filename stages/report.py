"""`codeseg report FOLDER`: all results found in a folder -> one offline page, report.html.

    FOLDER/**/scores.json …      evaluations (stages/evaluate.py), in comparable groups
    FOLDER/**/segments.json …    pictures segmented by any words (stages/segment.py)
    FOLDER/**/metrics.parquet    training runs: loss curves
    FOLDER/**/ledger/            rows kept and rejected by each stage
    FOLDER/**/audit.json         findings of the audit

Missing parts are left out. The folder may be a demo folder or a RUN. The page shows stored results:
nothing is predicted again, and torch is not loaded.
"""

from pathlib import Path
from typing import Annotated

import typer

from codeseg.stages.pages.checks import audit_json_section
from codeseg.stages.pages.data import loss_section, stage_sections
from codeseg.stages.pages.evaluations import find_evaluations
from codeseg.stages.pages.page import Section, write_page
from codeseg.stages.pages.pictures import picture_section, words_section
from codeseg.stages.pages.results import class_section, results_section


def report(
    folder: Annotated[
        Path, typer.Argument(help="Demo folder, RUN, or a folder of RUNs and evaluations.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write (default: FOLDER/report.html).")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "codeseg report",
) -> None:
    """Collect scores, pictures, losses and data on one page that works offline."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    sections = gather(folder)
    if not sections:
        raise ValueError(f"{folder} holds nothing to report: no scores.json, no metrics.parquet")
    path = out or folder / "report.html"
    write_page(path, sections, title=title, subtitle=f"from {folder.resolve().name}")
    typer.echo(f"report: {path}")


def gather(folder: Path) -> list[Section]:
    """Return all sections that the folder's content allows, in reading order."""
    groups = find_evaluations(folder)
    sections: list[Section | None] = [results_section(groups)] if groups else []
    for group in groups:
        sections += [class_section(group), picture_section(group)]
    sections += [words_section(folder), loss_section(folder), *stage_sections(folder)]
    sections += [audit_json_section(path) for path in sorted(folder.glob("**/audit.json"))]
    return [section for section in sections if section]
