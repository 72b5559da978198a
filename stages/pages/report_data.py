"""Ledger, audit findings and training metrics -> sections of the report."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from codeseg.stages.pages import figures
from codeseg.stages.pages.report_parts import Section, names_apart

STAGES = ("pairs", "nouns", "features")  # in the order of the flow
SMOOTHED = 0.02  # share of a run's rows that a loss curve averages over


def data_sections(folder: Path) -> list[Section]:
    """What became of every caption, and what the audit says."""
    sections = []
    ledgers = sorted(path for path in folder.glob("**/ledger") if path.is_dir())
    for ledger in ledgers:
        rows = [row for stage in STAGES for row in _stage_rows(ledger / stage, stage)]
        if rows:
            header = ["stage", "shards", "rows in", "rows out", "rejected, by reason"]
            note = (
                "Rows in = rows out + rows rejected; a rejected row keeps its key and its reason."
            )
            sections.append(
                Section(f"Data: {ledger.parent.name}", figures.table(header, rows), note)
            )
    for path in sorted(folder.glob("**/audit.json")):
        checks = json.loads(path.read_text()).get("checks", {})
        rows = [[found["verdict"], name, found["sentence"]] for name, found in checks.items()]
        table = figures.table(["verdict", "check", "what a pass proves"], rows)
        counts = Counter(found["verdict"] for found in checks.values())
        note = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        sections.append(Section("Data checks", table, note))
    return sections


def _stage_rows(folder: Path, stage: str) -> list[list[str]]:
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))]
    if not records:
        return []
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record["rejected"])
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    total_in, total_out = (sum(r[key] for r in records) for key in ("rows_in", "rows_out"))
    return [[stage, str(len(records)), f"{total_in:,}", f"{total_out:,}", reasons or "none"]]


def loss_section(folder: Path) -> Section | None:
    """Loss curves of every run, in total and by term."""
    paths = sorted(folder.glob("**/metrics.parquet"))
    if not paths:
        return None
    names = names_apart([path.parent for path in paths])
    runs = {name: pq.read_table(path) for name, path in zip(names, paths, strict=True)}
    terms = list(dict.fromkeys(c for t in runs.values() for c in t.column_names if c[:4] == "loss"))
    charts = ""
    for term in [*terms, "lr", "grad_norm"]:
        series = {
            name: (t["step"].to_pylist(), list(_smooth(t[term].to_numpy(zero_copy_only=False))))
            for name, t in runs.items()
            if term in t.column_names
        }
        if series:
            title = term.removeprefix("loss_").replace("_", " ")
            charts += f"<div><h3>{title}</h3>{figures.lines(series, 'step', '')}</div>"
    note = f"Weighted terms; each point is a mean over {SMOOTHED:.0%} of the run."
    return Section("Training", f'<div class="charts">{charts}</div>', note)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a centred stretch, shorter at the ends; NaN where there is no value at all."""
    width = max(1, round(len(values) * SMOOTHED))
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    mean = np.full(len(values), np.nan)
    np.divide(total, count, out=mean, where=count > 0.5)
    return mean
