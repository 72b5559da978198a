"""The log of a training run: metrics.parquet, TensorBoard, W&B, a live table or plain lines.

In: one row of figures per logged step. Out, in RUN:

    metrics.parquet   one row per logged step, written atomically with every checkpoint
    tensorboard/      the same, if TensorBoard is installed

Columns: step, phase (1 or 2), loss (weighted sum), loss_<term> (weighted terms), lr and grad_norm
(before clipping) depend only on the run; seconds (since the process started),
samples_per_second, data_wait_share (0..1), memory_bytes (peak) and mfu (achieved share of the
device's peak FLOP/s) depend on the machine. All refer to the step itself except the rates, which
are means since the previous row.
"""

import dataclasses
import hashlib
import resource
import sys
import time
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from codeseg.pipeline.engine.storage import Storage
from codeseg.stages.training.live import LiveTable, plain_line
from codeseg.stages.training.recipes import Recipe

METRICS = "metrics.parquet"
INTEGERS = ("step", "phase", "memory_bytes")


def read_metrics(run: Path) -> pa.Table:
    """Return a run's metrics.parquet; raise ValueError if it is missing or damaged."""
    try:
        return pq.read_table(pa.BufferReader((run / METRICS).read_bytes()))
    except FileNotFoundError:
        raise ValueError(f"{run / METRICS} is missing: run `codeseg train` first") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{run / METRICS} is damaged ({error}): delete it") from None


class Meter:
    """The rates since the last row: samples per second, share of time waiting for data, MFU."""

    def __init__(self, device: torch.device, peak_flops: float | None) -> None:
        self._device = device
        self._peak_flops = peak_flops
        self._began = self._last = time.perf_counter()
        self._waited = self._samples = self._flops = 0.0

    def step(self, samples: int, waited: float, flops: float) -> None:
        """Count a step: images of all processes, seconds of waiting, this process's FLOPs."""
        self._samples += samples
        self._waited += waited
        self._flops += flops

    def read(self) -> dict[str, float | None]:
        """Return the rates and reset the counts."""
        now = time.perf_counter()
        elapsed = max(now - self._last, 1e-9)
        rates = {
            "seconds": now - self._began,
            "samples_per_second": self._samples / elapsed,
            "data_wait_share": self._waited / elapsed,
            "memory_bytes": peak_memory(self._device),
            "mfu": self._flops / elapsed / self._peak_flops if self._peak_flops else None,
        }
        self._last = now
        self._waited = self._samples = self._flops = 0.0
        return rates


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: the GPU's, or without one, this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RunLog:
    """Writes all logs, as a context manager; processes other than the main one log nothing."""

    def __init__(self, run: Path, recipe: Recipe, step: int, is_main: bool) -> None:
        """Read the rows up to `step`; later rows belong to steps that will be redone."""
        self._is_main = is_main
        self._total = recipe.train.steps
        self._storage = Storage.open(run)
        self._rows: list[dict[str, Any]] = []
        if is_main and self._storage.exists(METRICS):
            self._rows = read_metrics(run).filter(pa.compute.field("step") <= step).to_pylist()
        self._tensorboard = _tensorboard(run, step) if is_main else None
        self._wandb = _wandb(run, recipe) if is_main and recipe.train.wandb else None
        self._console = Console()
        shown = is_main and self._console.file.isatty()
        self._live = LiveTable(self._console, step, self._total) if shown else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def say(self, line: str) -> None:
        """Print a line above the live table, once for all processes."""
        if self._is_main:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def row(self, row: dict[str, Any]) -> None:
        """Log a step."""
        if not self._is_main:
            return
        self._rows.append(row)
        figures = {name: v for name, v in row.items() if name != "step" and v is not None}
        if self._tensorboard:
            for name, value in figures.items():
                self._tensorboard.add_scalar(_tag(name), value, row["step"])
        if self._wandb:
            self._wandb.log({_tag(name): v for name, v in figures.items()}, step=row["step"])
        if self._live:
            self._live.show(row)
        else:
            self.say(plain_line(row, self._total))

    def save(self) -> None:
        """Write metrics.parquet; called before every checkpoint, so that it is never behind one."""
        if self._rows:
            names = dict.fromkeys(name for row in self._rows for name in row)
            kinds = [(n, pa.int64() if n in INTEGERS else pa.float64()) for n in names]
            table = pa.Table.from_pylist(self._rows, pa.schema(kinds))
            self._storage.write_atomic(METRICS, lambda file: pq.write_table(table, file))


def _tag(name: str) -> str:
    """Turn loss_tv into loss/tv: TensorBoard and W&B group by the first part."""
    return name.replace("loss_", "loss/", 1) if name.startswith("loss_") else name


def _tensorboard(run: Path, step: int) -> Any:
    """Return a writer that hides rows logged after `step`; None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)


def _wandb(run: Path, recipe: Recipe) -> Any:
    """Return the W&B run of this folder; a resumed run continues its charts."""
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "train.wandb is set but W&B is not installed: pip install 'codeseg[wandb]', "
            "or --set train.wandb=none"
        ) from None
    try:
        return wandb.init(
            project=recipe.train.wandb,
            id=hashlib.blake2b(str(run.resolve()).encode(), digest_size=8).hexdigest(),
            name=run.resolve().name,
            resume="allow",
            dir=run,
            config=dataclasses.asdict(recipe),
        )
    except wandb.Error as error:
        raise ValueError(f"train.wandb is set but W&B does not start: {error}") from None
