"""Run a stage's worker on all pending shards with Ray Data; show progress, retry, report.

    shard numbers -> ShardWorker.process in Ray actors -> ledger/<stage>/NNNNN.json

Each pending shard is a Ray Data block of one row, so Ray balances the load, retries after a lost
worker or node, and grows the pool; the data itself never enters Ray's object store. A shard that
fails is reported at the end and does not stop the others.
"""

import errno
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from codeseg.pipeline.engine.cluster import Resources, fit_workers, most_workers, ray_session
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.lock import StageLock, owned, work_for
from codeseg.pipeline.engine.progress import SHARD_ROWS, StageProgress, duration
from codeseg.pipeline.engine.stage import Stage, StageState
from codeseg.pipeline.engine.storage import Storage

ATTEMPTS = 3  # of a shard whose storage failed, in its worker
LOST_WORKER_RETRIES = 1  # by Ray, of a shard whose worker died
PASSES = 3  # over the shards that Ray gave up, for instance because their node is gone
QUEUED_FROM = 4  # shards per worker from which each worker has a second one waiting
BACKOFF_SECONDS = 1.0
FAILURES_SHOWN = 20


class ShardError(RuntimeError):
    """A shard that must not be committed; the message is for users. A retry at once is useless."""


class ShardWorker(Protocol):
    """One object in each Ray worker, constructed once, then called for one shard at a time."""

    READS: ClassVar[dict[str, tuple[str, ...]]]  # table -> columns it reads
    MEMORY: ClassVar[int]  # bytes that it needs, including libraries and a typical shard

    def __init__(self, root_uri: str, options: dict[str, Any]) -> None: ...

    def process(self, shard: int, input: str) -> ShardRecord:
        """Write the shard's files, commit its record and return it."""


@dataclass
class StageReport:
    """The outcome of the pending shards."""

    stage: str
    done: list[ShardRecord] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)  # shard -> reason, one line
    seconds: float = 0.0


def run_stage(
    stage: Stage,
    worker: type[ShardWorker],
    root: Storage,
    options: dict[str, Any],
    todo: StageState,
    settings: Mapping[str, Any],
    resources: Resources,
    rows: Mapping[int, int],
) -> StageReport:
    """Do every pending shard, show progress, and return the outcome.

    Args:
        stage: the table being made.
        worker: importable class, instantiated once in each Ray worker.
        root: of the dataset; workers open its URI themselves.
        options: of every worker.
        todo: the stage's state; if nothing is pending, Ray is not imported.
        settings: resolved, recorded in the ledger.
        resources: of each worker.
        rows: shard -> expected rows, for the progress display.

    Raises:
        ValueError: another run of the stage is active on the root.
    """
    table, pending = stage.table, todo.pending
    report = StageReport(table)
    again = {shard: why for shard, why in todo.stale.items() if shard in pending}
    for reason in sorted(set(again.values())):
        stale = [shard for shard, why in again.items() if why == reason]
        print(f"{table}: {len(stale)} shards are redone because {reason}: {_brief(stale)}")
    ledger = Ledger(root)
    if not pending and ledger.read_settings(table) == settings:
        return report  # reading a root needs no lock
    start = time.monotonic()
    with StageLock(root, table, take_over=resources.take_over) as lock:
        ledger.write_settings(table, settings)
        if not pending:
            return report
        expected = {shard: rows.get(shard, 0) for shard in pending}
        with StageProgress(root, table, expected) as progress, ray_session(resources):
            constructor = {
                "stage": table, "worker": worker, "root_uri": root.uri, "options": options,
                "token": lock.owner.token,
            }  # fmt: skip
            tasks = {shard: (todo.inputs or {})[shard] for shard in pending}
            resources = fit_workers(resources, worker.MEMORY)
            for shard, error in _outcomes(tasks, constructor, resources):
                record = None if error else ledger.record(table, shard)
                if record is not None and record.owner == lock.owner.token:
                    report.done.append(record)
                    progress.done(record)
                else:
                    report.failed[shard] = error or "its record was changed by others"
                    progress.failed(shard)
    report.seconds = time.monotonic() - start
    return report


def _outcomes(
    tasks: dict[int, str], constructor: dict[str, Any], resources: Resources
) -> Iterator[tuple[int, str]]:
    """Do shards (-> fingerprints of their inputs), yield (shard, "" or why it failed) as they end.

    `constructor` holds the arguments of `_RayWorker`.
    """
    left = dict(tasks)
    for number in range(PASSES):
        # a first pass may leave a shard that kills its worker, and those queued behind it: from
        # then on each is alone in its worker
        in_flight = _in_flight(len(left), resources) if number == 0 else 1
        rows = [{"shard": shard, "input": left[shard]} for shard in left]
        for shard, error in _answers(rows, constructor, resources, in_flight) if rows else ():
            del left[shard]
            yield shard, error
    for shard in left:
        yield shard, "its worker died (killed, out of memory or its node lost)"


def show_report(report: StageReport) -> None:
    """Print a stage's outcome, with a table of the failed shards grouped by reason."""
    rows_in = sum(record.rows_in for record in report.done)
    rows_out = sum(record.rows_out for record in report.done)
    console = Console()
    console.print(
        f"{report.stage}: {len(report.done)} shards done in {duration(report.seconds)}, "
        f"{rows_out:,} of {rows_in:,} rows kept",
        highlight=False,
    )
    if not report.failed:
        return
    table = Table(title=f"{len(report.failed)} shards of {report.stage} failed", title_style="red")
    table.add_column("shards", justify="right")
    table.add_column("which")
    table.add_column("why", overflow="fold")
    for reason in sorted(set(report.failed.values())):
        shards = sorted(shard for shard, why in report.failed.items() if why == reason)
        table.add_row(str(len(shards)), _brief(shards), Text(reason))  # no markup: [/tmp/x]
    console.print(table)


def _in_flight(tasks: int, resources: Resources) -> int:
    """Return the number of shards given to a worker at a time: one, or two if there are many.

    Ray Data polls for finished tasks every 0.1 s, so a worker without a waiting shard idles about
    0.2 s per shard; if there are few, a waiting one could have run on a free worker.
    """
    return 2 if tasks >= QUEUED_FROM * most_workers(tasks, resources) else 1


def _answers(
    tasks: list[dict[str, Any]], constructor: dict[str, Any], resources: Resources, in_flight: int
) -> Iterator[tuple[int, str]]:
    """Yield (shard, error) as shards end, in any order."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a shard whose worker died does not stop the others
    # grow the pool as soon as every worker has a shard; by default each would need two
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray has no other way yet to limit the retries of a shard that kills its worker
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    most = min(resources.workers or len(tasks), len(tasks))
    fixed = resources.workers is not None
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _RayWorker,
        fn_constructor_kwargs=constructor,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            min_size=most if fixed else 1, max_size=most, max_tasks_in_flight_per_actor=in_flight
        ),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus or None,
        memory=resources.memory,
        max_task_retries=LOST_WORKER_RETRIES,
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        yield from zip(batch["shard"].tolist(), batch["error"].tolist(), strict=True)


class _RayWorker:
    """The Ray actor: makes the ShardWorker for its first shard, turns exceptions into answers."""

    def __init__(
        self, stage: str, worker: type[ShardWorker], root_uri: str, options: dict[str, Any],
        token: str,
    ) -> None:  # fmt: skip
        self._make: Callable[[], ShardWorker] = lambda: worker(root_uri, options)
        self._worker: ShardWorker | None = None
        self._root = Storage.open(root_uri)
        work_for(self._root, stage, token)
        self._stage = stage

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shard, shard_input = int(batch["shard"][0]), str(batch["input"][0])
        return {"shard": [shard], "error": [self._attempt(shard, shard_input)]}

    def _attempt(self, shard: int, shard_input: str) -> str:
        """Return "" if the shard is committed, otherwise the reason."""
        for attempt in range(ATTEMPTS):
            try:
                if self._worker is None:
                    self._worker = self._make()
                Ledger(owned(self._root, self._stage)).retract(self._stage, shard)
                SHARD_ROWS.begin(self._root, self._stage, shard)
                self._worker.process(shard, shard_input)
                return ""
            except OSError as error:  # storage or network: worth a retry
                message = one_line(error)
                if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
                    break
                time.sleep(BACKOFF_SECONDS * 2**attempt)
            except Exception as error:
                return one_line(error)
            finally:
                SHARD_ROWS.end()
        return message


def read_shard(root: Storage, stage: Stage, shard: int, columns: Iterable[str]) -> pa.Table:
    """Return columns of a shard of pairs or nouns, for the next stage.

    Raises:
        ValueError: the file is damaged; says how to make it again.
    """
    path = stage.path(shard)
    try:
        with root.open_input(path) as source:
            return pq.read_table(source, columns=list(columns))
    except FileNotFoundError:
        raise ValueError(f"{root.uri}/{path} is gone; {stage.again(root)}") from None
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{root.uri}/{path} is corrupt, delete it and {stage.again(root)}: {error}"
        ) from error


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, after its type unless the message is for users."""
    text = " ".join(str(error).split())
    for_users = isinstance(error, ValueError | ShardError) and text
    return text if for_users else f"{type(error).__name__}: {text}"


def _brief(shards: list[int]) -> str:
    """Return shard numbers as ranges: 0-3, 7, 9-12."""
    ranges: list[list[int]] = []
    for shard in sorted(shards):
        if ranges and ranges[-1][1] == shard - 1:
            ranges[-1][1] = shard
        else:
            ranges.append([shard, shard])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in ranges]
    return ", ".join(texts[:FAILURES_SHOWN]) + (" …" if len(texts) > FAILURES_SHOWN else "")
