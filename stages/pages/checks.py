"""The audit's findings and figures -> sections of a page: failures first, passed checks folded.

findings + (question, rows, pictures) of an open Audit    ->  `codeseg audit --report`
findings in audit.json, as `codeseg audit --json` wrote them  ->  `codeseg report`
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codeseg.model.pictures.pixels import rgb_pixels
from codeseg.pipeline.audit.questions import VERDICTS, Finding, Question, questions
from codeseg.stages.pages import figures
from codeseg.stages.pages.html import Html, fill, join, readable
from codeseg.stages.pages.page import Section, folded, grid

THUMBNAIL = 320  # pixels, shown half as wide
MOST_NOTED = 160  # letters below a thumbnail

Rows = Sequence[Mapping[str, Any]]
Answer = tuple[Question, Rows, Mapping[str, bytes]]
"""A question for the report, its rows, and the stored pictures of their keys."""


def in_words(finding: Finding) -> str:
    """Return a finding's figures in its question's sentence, or else as "name: value"."""

    def value(found: re.Match[str]) -> str:
        name, share, noun = found.groups()
        number = finding.figures[name]
        one = number == 1 and not share  # 1 host, not 1 hosts
        return readable(number, share=bool(share)) + (noun.removesuffix("s") if one else noun)

    try:
        return re.sub(r"\{(\w+)(%?)\}((?: \w+)?)", value, questions()[finding.check].figures)
    except KeyError:  # no rows, an error, or findings from another version
        return ", ".join(f"{k}: {readable(v)}" for k, v in finding.figures.items())


def checks_section(findings: Sequence[Finding], title: str = "Checks") -> Section:
    """Return all findings: failures and warnings first, skips and passes folded."""
    groups = {v: [f for f in findings if f.verdict == v] for v in VERDICTS}
    form = '<span class="mark {}">{}</span>'
    counts = [fill(form, v, f"{len(groups[v])} {v}") for v in VERDICTS]
    parts = [fill('<p class="counts">{}</p>', join(counts))]
    if wrong := groups["fail"] + groups["warn"]:
        parts.append(_findings(wrong))
    for verdict, outcome in (("skip", "had no rows to check"), ("pass", "passed")):
        if found := groups[verdict]:
            parts.append(folded(f"{len(found)} checks {outcome}", _findings(found)))
    return Section(title, join(parts))


def _findings(findings: Sequence[Finding]) -> Html:
    rows = [
        (
            fill('<span class="mark {}">{}</span>', finding.verdict, finding.verdict),
            fill("<b>{}</b><br>{}", finding.check, finding.sentence),
            in_words(finding),
            join(fill("<code>{}</code><br>", key) for key in finding.keys)
            if finding.verdict != "pass"
            else "",
        )
        for finding in findings
    ]
    table = figures.table(("verdict", "check", "what was found", "first keys"), rows)
    return fill('<div class="checks">{}</div>', table)


def audit_json_section(path: Path) -> Section:
    """Return the findings of an audit.json; refuse a file not written by `codeseg audit --json`."""
    try:
        checks = json.loads(path.read_text())["checks"]
        findings = [Finding(check=name, **found) for name, found in checks.items()]
        if unknown := {f.verdict for f in findings} - set(VERDICTS):
            raise ValueError(f"verdict {unknown.pop()}")
        return checks_section(findings, "Data checks")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not written by codeseg audit --json ({error!r})") from None


def audit_sections(findings: Sequence[Finding], answers: Iterable[Answer]) -> list[Section]:
    """Return the sections of the audit's page: checks, charts, pictures, tables."""
    charts, pictures, tables = [], [], []
    for question, rows, stored in answers:
        title = fill("<h3>{}</h3>", question.sentence)
        kind = question.chart.split()[0]
        if kind == "pictures":
            pictures.append(join([title, _thumbnails(rows, stored)]))
        elif kind == "table":
            cells = [list(row.values()) for row in rows]
            names = [name.replace("_", " ") for name in rows[0]]
            tables.append(join([title, figures.table(names, cells)]))
        else:
            charts += [join([title, chart]) for chart in _charts(question, rows)]
    sections = [
        checks_section(findings),
        Section("Figures", grid(charts)),
        Section("Samples", join(pictures) or fill("<p>No pictures.</p>")),
        Section("Tables", join(tables)),
    ]
    return [section for section in sections if section.html]


def _charts(question: Question, rows: Rows) -> list[Html]:
    """Return a question's charts: one for `bar` and `line [log]`, one per series for `lines`."""
    kind, *options = question.chart.split()
    fields = dict(option.split("=") for option in options if "=" in option)
    x, y = fields["x"], fields["y"]
    if kind == "bar" and isinstance(rows[0][y], str):  # named bars are horizontal
        return [figures.bars([row[y] for row in rows], {x: [row[x] for row in rows]}, x)]
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        xs, ys = series.setdefault(row[fields["series"]] if kind == "lines" else y, ([], []))
        xs.append(row[x])
        ys.append(row[y])
    style = {"log": "log" in options, "columns": kind == "bar"}
    return [figures.plot({name: points}, x, name, **style) for name, points in series.items()]


def _thumbnails(rows: Rows, stored: Mapping[str, bytes]) -> Html:
    cells = []
    for row in rows:
        note = f"{row['key']} {row['note'] or ''}"[:MOST_NOTED]
        try:
            pixels = rgb_pixels(stored[row["key"]])
            cells.append(figures.picture(pixels, note, THUMBNAIL // 2, THUMBNAIL))
        except (KeyError, ValueError):
            cells.append(fill("<figure>no picture<figcaption>{}</figcaption></figure>", note))
    return fill('<div class="row">{}</div>', join(cells))
