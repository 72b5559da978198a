"""Read the questions of the audit, one per file: sql/*.sql -> Question, in order. Light.

A file begins with comments: the sentence it proves, then `Needs:` (views that must have rows),
`Figures:` (a check's figures in words; {name%} is a share) and `Chart:` (how the report draws it:
`bar x=… y=…`, `line x=… y=… [log]`, `lines x=… y=… series=…`, `table` or `pictures`). Names that
start with "show_" are figures for the report; the rest are checks, whose SELECT returns one row:
verdict, figures …, keys.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa

from codeseg.pipeline.benchmark.manifest import benchmark_names, load_benchmark

STAGE_ORDER = (
    "ledger", "keys", "pairs", "picture", "duplicates", "leakage", "caption", "noun",
    "vocabulary", "feature", "metrics",
)  # fmt: skip
COUNTED = ("noun_counts", "class_coverage", "near_pictures", "near_benchmark")
"""Tables made by a query of the same name and kept, since several questions use them."""
NOT_CHECKS = ("macros", "thresholds", "show_", *COUNTED)
VERDICTS = ("fail", "warn", "skip", "pass")  # the most important first


@dataclass(frozen=True)
class Question:
    """One file of sql/."""

    name: str
    sentence: str  # that it proves
    needs: tuple[str, ...]  # views that must have rows
    chart: str
    figures: str
    sql: str


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    check: str
    sentence: str
    verdict: str  # one of VERDICTS
    figures: dict[str, Any]
    keys: list[str]  # the first offending keys, hosts, files … in order
    seconds: float


@cache
def questions() -> dict[str, Question]:
    """Return every question by name, in the order of the data flow."""
    found = [
        _parse(file.name.removesuffix(".sql"), file.read_text())
        for file in (files("codeseg.pipeline.audit") / "sql").iterdir()
        if file.name.endswith(".sql")
    ]

    ranks = {stage: rank for rank, stage in enumerate(STAGE_ORDER)}

    def order(question: Question) -> tuple[int, str]:
        return ranks.get(question.name.split("_")[0], len(ranks)), question.name

    return {question.name: question for question in sorted(found, key=order)}


def check_names() -> list[str]:
    """Return the names of the checks, in the order of the data flow."""
    return [name for name in questions() if not name.startswith(NOT_CHECKS)]


def _parse(name: str, text: str) -> Question:
    headers = {"Needs": "", "Chart": "", "Figures": ""}
    sentence = []
    for line in takewhile(lambda line: line.startswith("--"), text.splitlines()):
        comment = line.removeprefix("--").strip()
        title, _, value = comment.partition(": ")
        if title in headers:
            headers[title] = value
        else:
            sentence.append(comment)
    needs = tuple(headers["Needs"].split())
    return Question(name, " ".join(sentence), needs, headers["Chart"], headers["Figures"], text)


def class_names(benchmarks: tuple[tuple[str, Path | None], ...]) -> pa.Table:
    """Return a row per class that a text names, of the benchmarks given or of all."""
    shipped = [(name, None) for name in benchmark_names() if not load_benchmark(name).names_file]
    rows = [
        {"benchmark": name, "class": text, "judged": bool(benchmarks)}
        for name, data in benchmarks or shipped
        for text in load_benchmark(name).with_names_of(data).texts
    ]
    form = pa.schema([("benchmark", pa.string()), ("class", pa.string()), ("judged", pa.bool_())])
    return pa.Table.from_pylist(rows, schema=form)
