"""The audit as one HTML page that needs nothing else: checks, charts, thumbnails, sortable tables.

    an open Audit and its findings, audit_sql/show_*.sql  ->  FILE.html, works offline

Charts are Altair's, their JavaScript inlined; a question's `Chart:` line says how it is
drawn: `bar x=… y=…`, `line x=… y=… [log]`, `lines x=… y=… series=…`, `table` or `pictures`.
"""

import base64
import html
import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import altair as alt
import vl_convert
from PIL import Image

from codeseg.pipeline.audit.database import Audit, Finding
from codeseg.pipeline.audit.questions import Question, questions
from codeseg.pipeline.engine.storage import Storage

THUMBNAIL = 160  # pixels
CHART_WIDTH = 400
BLUE = "#2f6db5"
VERDICTS = {"fail": 0, "warn": 1, "skip": 2, "pass": 3}  # in the order of interest

Rows = list[dict[str, Any]]


def write_report(path: Path, root: str, audit: Audit, findings: list[Finding]) -> None:
    """Write the page, whole or not at all."""
    charts: dict[str, dict[str, Any]] = {}
    shown: dict[str, list[str]] = {"chart": [], "pictures": [], "table": []}
    for question in (q for name, q in questions().items() if name.startswith("show_")):
        rows = audit.figures(question)
        if not rows:
            continue
        kind = question.chart.split()[0]
        if kind == "pictures":
            shown["pictures"].append(_pictures(question, rows, audit))
        elif kind == "table":
            title = f"<h3>{html.escape(question.sentence)}</h3>"
            shown["table"].append(f'{title}<div class="card scroll">{_table(rows)}</div>')
        else:
            charts[question.name] = _chart(question, rows)
            shown["chart"].append(
                f'<div class="card"><h3>{html.escape(question.sentence)}</h3>'
                f'<div id="{question.name}"></div></div>'
            )
    page = Template((files("codeseg.pipeline.audit") / "report.html").read_text()).substitute(
        root=html.escape(root),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        counts=_counts(findings),
        checks=_checks(findings),
        charts="\n".join(shown["chart"]),
        pictures="\n".join(shown["pictures"]) or "<p>No pictures.</p>",
        tables="\n".join(shown["table"]),
        vega=vl_convert.javascript_bundle(),  # type: ignore[call-arg]  # the stub lacks its default
        specs=json.dumps(charts, default=str).replace("</", "<\\/"),
    )
    target = path.absolute()
    Storage.open(target.parent).write_atomic(target.name, page.encode())


def _counts(findings: list[Finding]) -> str:
    counts = {v: sum(f.verdict == v for f in findings) for v in ("fail", "warn", "pass", "skip")}
    return "".join(f'<span class="{v}">{n} {v}</span>' for v, n in counts.items())


def _checks(findings: list[Finding]) -> str:
    """The findings, what needs a look first."""
    lines = []
    for finding in sorted(findings, key=lambda f: VERDICTS[f.verdict]):
        figures = ", ".join(f"{name} {_text(value)}" for name, value in finding.figures.items())
        keys = "" if finding.verdict == "pass" else "<br>".join(map(html.escape, finding.keys))
        lines.append(
            f'<tr><td data-value="{VERDICTS[finding.verdict]}" class="verdict">'
            f'<span class="mark {finding.verdict}">{finding.verdict}</span></td>'
            f"<td><b>{finding.check}</b><br>{html.escape(finding.sentence)}</td>"
            f"<td>{html.escape(figures)}</td><td><code>{keys}</code></td>"
            f'<td class="number">{finding.seconds:.2f}</td></tr>'
        )
    head = _head(("verdict", "check", "figures", "first keys", "s"))
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"


def _head(names: Iterable[str]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _table(rows: Rows) -> str:
    lines = ["".join(_cell(value) for value in row.values()) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{_head(rows[0])}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f'<td class="number" data-value="{value}">{_text(value)}</td>'
    return f"<td>{html.escape(_text(value))}</td>"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " · ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def _chart(question: Question, rows: Rows) -> dict[str, Any]:
    """The chart as a Vega-Lite specification with its data inside."""
    kind, *options = question.chart.split()
    fields = dict(option.split("=") for option in options if "=" in option)
    x, y = fields["x"], fields["y"]
    base = alt.Chart(alt.InlineData(values=rows)).properties(width=CHART_WIDTH)
    tooltip = [alt.Tooltip(field=name) for name in rows[0]]
    scale = alt.Scale(type="log") if "log" in options else alt.Scale()
    if kind == "bar" and isinstance(rows[0][y], str):  # named bars lie, numbered ones stand
        chart = base.mark_bar(color=BLUE).encode(
            x=alt.X(field=x, type="quantitative"),
            y=alt.Y(field=y, type="nominal", sort="-x", title=None),
            tooltip=tooltip,
        )
    elif kind == "bar":
        chart = base.mark_bar(color=BLUE).encode(
            x=alt.X(field=x, type="ordinal", axis=alt.Axis(labelOverlap=True)),
            y=alt.Y(field=y, type="quantitative"),
            tooltip=tooltip,
        )
    else:
        chart = base.mark_line(color=BLUE, point=len(rows) < 60).encode(
            x=alt.X(field=x, type="quantitative", scale=scale),
            y=alt.Y(field=y, type="quantitative", scale=scale),
            tooltip=tooltip,
        )
        if kind == "lines":  # one small chart a series: their scales have nothing in common
            chart = chart.properties(width=CHART_WIDTH // 2, height=80)
            chart = chart.facet(alt.Facet(field=fields["series"], type="nominal"), columns=2)
            chart = chart.resolve_scale(y="independent")
    specification: dict[str, Any] = chart.to_dict()
    return specification


def _pictures(question: Question, rows: Rows, audit: Audit) -> str:
    """One bucket of thumbnails with their keys and notes."""
    thumbnails = audit.pictures([row["key"] for row in rows])
    figures = []
    for row in rows:
        note = html.escape(f"{row['key']} {row['note'] or ''}"[:160])
        image = _thumbnail(thumbnails.get(row["key"]))
        figures.append(f"<figure>{image}<figcaption>{note}</figcaption></figure>")
    title = f"<h3>{html.escape(question.sentence)}</h3>"
    return f'<div class="card">{title}<div class="thumbs">{"".join(figures)}</div></div><br>'


def _thumbnail(jpg: bytes | None) -> str:
    try:
        with Image.open(io.BytesIO(jpg or b"")) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return '<div class="soft">no picture</div>'
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{data}">'
