"""Show the progress of the offline stages, and write the heartbeat for `codeseg status`. Light.

ledger/<stage>/progress.json     written every few seconds while a stage runs
ledger/<stage>/notes/NNNNN.txt   written by a worker that waits ("paused: …"), then removed
ledger/<stage>/notes/NNNNN.rows  rows of a running shard that are done, and the total if known
"""

import json
import os
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from codeseg.pipeline.engine.ledger import ShardRecord, from_json
from codeseg.pipeline.engine.storage import Storage

HEARTBEAT_SECONDS = 5.0
ALIVE_SECONDS = 6 * HEARTBEAT_SECONDS  # a run with an older heartbeat is dead
LINE_SECONDS = 10.0  # between two plain lines if the output is not a terminal


@dataclass
class Heartbeat:
    """The state of a running stage; times are seconds since the epoch."""

    stage: str
    started: float
    updated: float
    shards: int  # to do in this run
    shards_done: int = 0
    shards_failed: int = 0
    rows: int = 0  # expected in all shards to do
    rows_done: int = 0  # in shards that are done
    rows_running: int = 0  # done in shards that are not
    rows_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # shard -> why it waits
    finished: bool = False
    host: str = ""  # that runs the command
    pid: int = 0

    @property
    def alive(self) -> bool:
        """Whether the run is alive: it has a recent heartbeat and, on this machine, a process."""
        if self.finished or abs(time.time() - self.updated) > ALIVE_SECONDS:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except OSError as error:
            return isinstance(error, PermissionError)  # another user's
        return self.pid != os.getpid()

    @property
    def rows_per_second(self) -> float:
        """The mean rate over this run."""
        return (self.rows_done + self.rows_running) / max(self.updated - self.started, 1e-9)

    @property
    def eta_seconds(self) -> float | None:
        """The remaining time at the mean rate; None before the first row is done."""
        done = self.rows_done + self.rows_running
        return max(self.rows - done, 0) / self.rows_per_second if done else None

    def line(self) -> str:
        """Return the state in one line, for people."""
        done = self.rows_done + self.rows_running
        parts = [f"{done:,} of {max(self.rows, done):,} rows"] if done else []
        parts.append(f"{self.rows_per_second:,.0f} rows/s")
        if self.rows_done:
            parts.append(f"{self.rows_out / self.rows_done:.1%} ok")
        parts += [f"{reason} {n:,}" for reason, n in Counter(self.rejected).most_common(3)]
        if self.shards_failed:
            parts.append(f"{self.shards_failed} shards failed")
        if self.eta_seconds is not None:
            parts.append(f"{duration(self.eta_seconds)} left")
        return ", ".join([*parts, *sorted(set(self.notes.values()))])


def duration(seconds: float) -> str:
    """Return a time as 1h02m or 3m04s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def read_heartbeat(root: Storage, stage: str) -> Heartbeat | None:
    """Return the stage's last heartbeat; None if there is none or it is unreadable."""
    with suppress(FileNotFoundError, ValueError, OverflowError, RecursionError):
        return from_json(Heartbeat, json.loads(root.read_bytes(f"ledger/{stage}/progress.json")))
    return None


class ShardRows:
    """A worker's count of the finished rows of its shard, written every few seconds.

    A process works on one shard at a time; all its threads may count.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: Storage | None = None

    def begin(self, root: Storage, stage: str, shard: int) -> None:
        """Start counting the rows of a shard; without this, nothing is written."""
        self._root, self._path = root, f"ledger/{stage}/notes/{shard:05d}.rows"
        self._rows = self._total = 0
        self._noted = time.monotonic()

    def count(self, rows: int = 1, total: int = 0) -> None:
        """Count finished rows; `total` is the shard's number of rows, if it was unknown before."""
        with self._lock:
            if self._root is None:
                return
            self._rows += rows
            self._total = total or self._total
            if time.monotonic() - self._noted < HEARTBEAT_SECONDS:
                return
            self._noted = time.monotonic()
            with suppress(OSError):
                self._root.write_atomic(self._path, f"{self._rows} {self._total}".encode())

    def end(self) -> None:
        """Remove the count."""
        with self._lock, suppress(OSError):
            if self._root is not None:
                self._root.delete(self._path)
            self._root = None


SHARD_ROWS = ShardRows()


class StageProgress:
    """A stage's progress display and heartbeat; a context manager with its own thread.

    `rows` are the expected rows of every shard to do.
    """

    def __init__(self, root: Storage, stage: str, rows: dict[int, int]) -> None:
        now = time.time()
        self.beat = Heartbeat(
            stage, now, now, len(rows), rows=sum(rows.values()),
            host=socket.gethostname(), pid=os.getpid(),
        )  # fmt: skip
        self._root, self._notes_folder = root, f"ledger/{stage}/notes"
        self._expected = dict(rows)
        self._ended: set[int] = set()
        self._running: dict[int, int] = {}  # shard -> rows of it that are done
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._said = time.monotonic()
        # FORCE_COLOR, which notebooks set, makes rich treat a log as a terminal
        self._terminal = Console().file.isatty()
        self._bar = Progress(
            TextColumn(f"[bold]{stage}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("shards · {task.fields[line]}", markup=False),
            TimeElapsedColumn(),
            disable=not self._terminal,
        )
        self._task = self._bar.add_task(stage, total=len(rows), line="starting")

    def __enter__(self) -> Self:
        for name in self._root.names(self._notes_folder):  # of a killed run
            self._root.delete(f"{self._notes_folder}/{name}")
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.beat.finished = True
        with suppress(OSError):  # a full disk must not hide the stage's own error
            self._write()
        self._show(last=True)
        self._bar.stop()

    def done(self, record: ShardRecord) -> None:
        """Count a committed shard."""
        self._end(record.shard)
        self.beat.shards_done += 1
        self.beat.rows_done += record.rows_in
        self.beat.rows_out += record.rows_out
        self.beat.rows += record.rows_in - self._expected.get(record.shard, 0)
        self.beat.rejected = dict(Counter(self.beat.rejected) + Counter(record.rejected))
        self._show()

    def failed(self, shard: int) -> None:
        """Count a shard that could not be done; its rows are no longer expected."""
        self._end(shard)
        self.beat.shards_failed += 1
        self.beat.rows -= self._expected.get(shard, 0)
        self._show()

    def _end(self, shard: int) -> None:
        with self._counting:
            self._ended.add(shard)
            self._running.pop(shard, None)

    def _count_running(self) -> None:
        """Read the workers' counts of their shards."""
        for name in self._root.names(self._notes_folder, ".rows"):
            with suppress(FileNotFoundError, ValueError), self._counting:
                text = self._root.read_bytes(f"{self._notes_folder}/{name}")
                shard, (rows, total) = int(name.removesuffix(".rows")), map(int, text.split())
                if shard not in self._ended:
                    self._running[shard] = rows
                    expected = total or self._expected.get(shard, 0)
                    self.beat.rows += expected - self._expected.get(shard, 0)
                    self._expected[shard] = expected

    def _run(self) -> None:
        while True:
            with suppress(OSError):
                self._write()
            if self._stop.wait(HEARTBEAT_SECONDS):
                return

    def _show(self, *, last: bool = False) -> None:
        """Update the bar; in a log, print a line now and then."""
        beat = self.beat
        beat.updated = time.time()
        with self._counting:
            beat.rows_running = sum(self._running.values())
        done = beat.shards_done + beat.shards_failed
        self._bar.update(self._task, completed=done, line=beat.line())
        if not self._terminal and (last or time.monotonic() - self._said > LINE_SECONDS):
            self._said = time.monotonic()
            print(
                f"{beat.stage}: {beat.shards_done}/{beat.shards} shards, {beat.line()}", flush=True
            )

    def _write(self) -> None:
        self._count_running()
        names, folder = self._root.names(self._notes_folder, ".txt"), self._notes_folder
        self.beat.notes = {n[:-4]: self._root.read_bytes(f"{folder}/{n}").decode() for n in names}
        self._show()
        text = json.dumps(asdict(self.beat), indent=1)
        self._root.write_atomic(f"ledger/{self.beat.stage}/progress.json", text.encode())
