"""A row of training figures -> a live table on a terminal, or one plain line."""

from collections.abc import Mapping
from itertools import zip_longest

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

Row = Mapping[str, float | None]

WATCHED = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "samples_per_second": "samples/s",
    "data_wait_share": "waiting for data",
    "memory_bytes": "memory",
    "mfu": "FLOP utilization",
}


def plain_line(row: Row, total: int) -> str:
    """Return the row for a log file."""
    parts = [f"step {row['step']}/{total}"]
    for name in ("loss", "lr", "grad_norm", "samples_per_second", "data_wait_share"):
        parts.append(f"{name} {_figure(name, row[name])}")
    return "  ".join(parts)


class LiveTable(Live):
    """The last row's figures, with loss terms on the left, above a progress bar."""

    def __init__(self, console: Console, step: int, total: int) -> None:
        self._progress = Progress(
            "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console,
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=total, completed=step)
        super().__init__(self._progress, console=console, refresh_per_second=4)

    def show(self, row: Row) -> None:
        """Show another row."""
        self._progress.update(
            self._task, completed=row["step"], description=f"phase {row['phase']}"
        )
        self.update(Group(_table(row), self._progress))


def _table(row: Row) -> RenderableType:
    terms = [("loss", "loss")]
    terms += [(name, "  " + name[5:].replace("_", " ")) for name in row if name.startswith("loss_")]
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(min_width=10)
    for left, right in zip_longest(terms, WATCHED.items()):
        cells = []
        for name, label in (left or ("", ""), right or ("", "")):
            cells += [label, _figure(name, row[name]) if name else ""]
        table.add_row(*cells)
    return table


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in ("data_wait_share", "mfu"):
        return f"{value:.1%}"
    if name == "memory_bytes":
        return f"{value / 2**30:.2f} GiB"
    return f"{value:.4g}"
