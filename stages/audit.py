"""`codeseg audit`: a dataset root -> a table of checks, JSON, an HTML report, answers to SQL."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codeseg.pipeline.audit.questions import Finding, check_names, questions
from codeseg.pipeline.engine.storage import Storage, write_json
from codeseg.stages.pages.checks import Answer, audit_sections, in_words
from codeseg.stages.pages.page import write_page
from codeseg.stages.terminal import visible

if TYPE_CHECKING:
    from codeseg.pipeline.audit.database import Audit

COLORS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
SHOWN_ROWS = 100
ANY = "any"


def audit(
    root: Annotated[str, typer.Argument(help="Dataset root: a folder or s3://…")],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the findings (or the --sql rows) here as JSON."),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(
            help="Run one SELECT instead, on the views pairs, nouns, features, vocabulary, ledger, "
            "metrics and those in docs/audit.md."
        ),
    ] = None,
    shell: Annotated[
        bool,
        typer.Option("--shell", help="Read SELECTs from the terminal and print their answers."),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML page to this file.")
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECK[,CHECK…]",
            help="Exit with 1 if one of these checks fails or cannot run (any: if any fails).",
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Benchmark whose class names the data must cover.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="That benchmark's data folder, to find its images in the data."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Training run to query as the view `metrics`.")
    ] = None,
    hashes: Annotated[
        bool, typer.Option("--hashes", help="Read every file and compare its SHA-256.")
    ] = False,
    pictures: Annotated[
        int, typer.Option(min=0, help="Decode and compare about this many pictures (0: all).")
    ] = 20_000,
    feature_rows: Annotated[
        int, typer.Option(min=0, help="Check this many rows per features shard (0: all).")
    ] = 0,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a threshold, as in success_warn=0.8."),
    ] = None,
    memory: Annotated[
        str, typer.Option(help="Memory limit of DuckDB, which spills the rest to disk.")
    ] = "4GB",
    threads: Annotated[
        int | None, typer.Option(min=1, help="DuckDB's threads (default: all cores).")
    ] = None,
) -> None:
    """Query and check the data before spending GPU days; changes nothing.

    The checks cover the ledger, tables, pictures, captions, nouns and features. Each prints pass,
    warn or fail with figures and the first offending keys. The audit may run while a stage runs:
    it reads only committed shards.
    """
    from codeseg.pipeline.audit.database import Audit
    from codeseg.pipeline.audit.views import AuditOptions

    gates = [name for names in fail_on or () for name in names.split(",") if name]
    if unknown := [name for name in gates if name not in (*check_names(), ANY)]:
        raise ValueError(
            f"--fail-on {unknown[0]}: no such check; there are {', '.join(check_names())}"
        )
    options = AuditOptions(
        memory=memory,
        threads=threads,
        hashes=hashes,
        pictures=pictures,
        feature_rows=feature_rows,
        run=run,
        benchmarks=benchmark_folders(benchmark or [], data or []),
        limits=dict(_limit(text) for text in limit or ()),
    )
    with Audit(Storage.open(root), options) as opened:
        if sql is not None:
            rows = opened.query(sql)
            if json_file:
                write_json(json_file, rows.to_pylist())
            _show(rows)
        elif shell:
            _converse(opened)
        else:
            findings = _check(opened)
            if json_file:
                _write_json(json_file, root, findings)
            if report:
                _write_page(report, root, opened, findings)
            _show_findings(findings)
            _gate(findings, gates)


def benchmark_folders(names: list[str], data: list[Path]) -> tuple[tuple[str, Path | None], ...]:
    """Pair each --benchmark with its --data folder, if any are given."""
    if data and len(data) != len(names):
        raise ValueError(
            f"{len(names)} --benchmark and {len(data)} --data: give one data folder per benchmark"
        )
    folders: list[Path | None] = [*data] or [None] * len(names)
    return tuple(zip(names, folders, strict=True))


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--limit {text}: write NAME=NUMBER") from None


def _check(opened: "Audit") -> list[Finding]:
    findings = []
    with Console().status("opening") as status:
        for name in check_names():
            status.update(f"checking {name}")
            findings.append(opened.check(name))
    return findings


def _show_findings(findings: list[Finding]) -> None:
    console = Console()
    table = Table("check", "verdict", "what was found", "first keys", box=None, pad_edge=False)
    for finding in findings:
        color = COLORS[finding.verdict]
        verdict = f"[{color}]{finding.verdict}[/{color}]"
        keys = "" if finding.verdict == "pass" else "\n".join(finding.keys)
        table.add_row(finding.check, verdict, escape(in_words(finding)), escape(keys))
    console.print(table)
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in COLORS}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def _write_page(path: Path, root: str, opened: "Audit", findings: list[Finding]) -> None:
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    sections = audit_sections(findings, _answers(opened))
    write_page(path, sections, title="Audit", subtitle=f"{root} · {date}")
    typer.echo(f"report: {path}")


def _answers(opened: "Audit") -> Iterator[Answer]:
    """Yield the page's charts, tables and pictures; skip questions without rows."""
    for name, question in questions().items():
        if name.startswith("show_") and (rows := opened.figures(question)):
            pictured = question.chart == "pictures"
            yield question, rows, opened.pictures([row["key"] for row in rows] if pictured else [])


def _write_json(path: Path, root: str, findings: list[Finding]) -> None:
    checks = {found.pop("check"): found for found in map(asdict, findings)}
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in COLORS}
    write_json(path, {"root": root, "verdicts": counts, "checks": checks})


def _gate(findings: list[Finding], gates: list[str]) -> None:
    """Exit with 1 if a check named by --fail-on failed or could not run."""
    short = [
        finding.check
        for finding in findings
        if (finding.check in gates and finding.verdict in ("fail", "skip"))
        or (ANY in gates and finding.verdict == "fail")
    ]
    if short:
        typer.echo(f"failed: {', '.join(short)}", err=True)
        raise typer.Exit(1)


def _show(rows: pa.Table) -> None:
    table = Table(*rows.column_names, box=None, pad_edge=False)
    for row in rows.slice(0, SHOWN_ROWS).to_pylist():
        table.add_row(*(escape(str(value)) for value in row.values()))
    console = Console()
    console.print(table)
    if rows.num_rows > SHOWN_ROWS:
        console.print(f"… {rows.num_rows - SHOWN_ROWS:,} more rows; use --json FILE to get all")


def _converse(opened: "Audit") -> None:
    """Read SELECTs, each up to a semicolon, and print their answers; end at Ctrl-D."""
    from codeseg.pipeline.audit.database import VIEWS

    if sys.stdin.isatty():
        typer.echo(f"views: {', '.join(VIEWS)}; end a statement with ; and leave with Ctrl-D")
    statement = ""
    while True:
        try:
            statement += input("> " if sys.stdin.isatty() else "") + "\n"
        except EOFError:
            break
        except KeyboardInterrupt:
            statement = ""
            typer.echo()
        if ";" in statement:
            _try(opened, statement)
            statement = ""
    if statement.strip():
        _try(opened, statement)


def _try(opened: "Audit", statement: str) -> None:
    try:
        _show(opened.query(statement))
    except ValueError as error:
        typer.echo(f"error: {visible(str(error))}", err=True)
