"""Ledger and training metrics -> sections of the report."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from codeseg.stages.pages import figures
from codeseg.stages.pages.evaluations import names_apart
from codeseg.stages.pages.page import Section, grid

STAGES = ("pairs", "nouns", "features*")  # in the order of the flow; those of backbones too
SMOOTHED = 0.02  # share of a run's rows that a loss curve averages over


def stage_sections(folder: Path) -> list[Section]:
    """Return a table per dataset root of the rows that each stage kept and rejected."""
    header = ["stage", "shards", "rows in", "rows out", "rejected, by reason"]
    note = "Rows in = rows out + rows rejected; a rejected row keeps its key and its reason."
    sections = []
    for ledger in sorted(path for path in folder.glob("**/ledger") if path.is_dir()):
        stages = [path for pattern in STAGES for path in sorted(ledger.glob(pattern))]
        rows = [row for path in stages for row in _stage_rows(path)]
        if rows:
            table = figures.table(header, rows)
            sections.append(Section(f"Data: {ledger.parent.name}", table, note))
    return sections


def _stage_rows(folder: Path) -> list[list[Any]]:
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))]
    if not records:
        return []
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record["rejected"])
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    totals = [sum(record[key] for record in records) for key in ("rows_in", "rows_out")]
    return [[folder.name, len(records), *totals, reasons or "none"]]


def loss_section(folder: Path) -> Section | None:
    """Return all runs' curves of the total loss, its terms, learning rate and gradient norm."""
    paths = sorted(folder.glob("**/metrics.parquet"))
    if not paths:
        return None
    names = names_apart([path.parent for path in paths])
    runs = {name: pq.read_table(path) for name, path in zip(names, paths, strict=True)}
    terms = list(dict.fromkeys(c for t in runs.values() for c in t.column_names if c[:4] == "loss"))
    charts = []
    for term in [*terms, "lr", "grad_norm"]:
        series = {
            name: (t["step"].to_pylist(), list(_smooth(t[term].to_numpy(zero_copy_only=False))))
            for name, t in runs.items()
            if term in t.column_names
        }
        if series:
            title = term.removeprefix("loss_").replace("_", " ")
            charts.append(figures.plot(series, "step", title))
    note = f"Weighted terms; each point is a mean over {SMOOTHED:.0%} of the run."
    return Section("Training", grid(charts), note)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return means over a centered window, shorter at the ends; NaN where it holds no value."""
    width = max(1, round(len(values) * SMOOTHED))
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    mean = np.full(len(values), np.nan)
    np.divide(total, count, out=mean, where=count > 0.5)
    return mean
