"""`codeseg status ROOT`: the ledger -> the matrix of stages and shards, rows, rejections, ETA."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from codeseg.pipeline.engine.overview import StageView, read_overview
from codeseg.pipeline.engine.progress import duration
from codeseg.pipeline.engine.storage import Storage, write_json
from codeseg.stages.options import JsonFile

CELLS = 40  # of the matrix; each stands for one shard or several consecutive ones
REASONS_SHOWN = 4


def status(
    root: Annotated[str, typer.Argument(help="Dataset root; a stage may be running on it.")],
    json_file: JsonFile = None,
) -> None:
    """Show each stage's progress, shard by shard, with rejections and the time left."""
    views = read_overview(Storage.open(root))
    if json_file is not None:
        write_json(json_file, [as_json(view) for view in views])
    console = Console()
    # A log file has no width, and Rich's default of 80 columns would cut the numbers.
    show(views, console if console.file.isatty() else Console(width=120))


def as_json(view: StageView) -> dict[str, Any]:
    """Return all figures of a stage, including derived ones."""
    eta = view.beat and view.beat.eta_seconds
    return {**asdict(view), "missing": view.missing, "success": view.success, "eta_seconds": eta}


def show(views: list[StageView], console: Console) -> None:
    """Print the matrix and, below it, rejections and stale shards."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage", no_wrap=True, min_width=10)
    table.add_column("shards (█ done ▓ some ░ stale · missing)", no_wrap=True)
    for name in ("done", "rows in", "kept", "", "GB"):
        table.add_column(name, justify="right")
    table.add_column("now")
    for view in views:
        table.add_row(
            view.stage,
            matrix(view),
            f"{len(view.current)}/{view.shards}",
            f"{view.rows_in:,}",
            f"{view.rows_out:,}",
            "" if view.success is None else f"{view.success:.1%}",
            f"{view.bytes / 1e9:.2f}",
            _now(view),
        )
    console.print(table)
    for view in views:
        if view.left_out:
            lines = sum(view.left_out.values())
            console.print(f"{view.stage}: {lines:,} lines of the list are not rows", markup=False)
        if view.rejected:
            shown = list(view.rejected.items())[:REASONS_SHOWN]
            text = ", ".join(f"{reason} {count:,}" for reason, count in shown)
            more = len(view.rejected) - len(shown)
            text += f" and {more} more" if more else ""
            console.print(f"{view.stage} rejected: {text}", markup=False)
        for reason in sorted(set(view.stale.values())):
            count = sum(why == reason for why in view.stale.values())
            console.print(f"{view.stage}: {count} shards are out of date: {reason}", markup=False)
        for note in sorted(set(view.beat.notes.values()) if view.beat else []):
            console.print(f"{view.stage}: {note}", markup=False)


def matrix(view: StageView) -> str:
    """Return the matrix row: one character for each group of shards."""
    current, stale = set(view.current), set(view.stale)
    numbers = sorted({*range(view.shards), *current, *stale})
    step = max(1, -(-len(numbers) // CELLS))
    cells = []
    for begin in range(0, len(numbers), step):
        run = set(numbers[begin : begin + step])
        if run <= current:
            cells.append("█")
        elif run & stale:
            cells.append("░")
        else:
            cells.append("▓" if run & current else "·")
    return "".join(cells)


def _now(view: StageView) -> str:
    if view.beat is None:
        return "complete" if len(view.current) == view.shards else ""
    if view.beat.eta_seconds is None:
        return "running"
    left = duration(view.beat.eta_seconds)
    return f"running, {view.beat.rows_per_second:,.0f} rows/s, {left} left"
