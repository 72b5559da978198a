"""Allow one run of a stage at a time on a root: ledger/<stage>/lock/NNNNNN.json. Light.

The highest number is the owner's; a run that takes over from a dead or finished owner creates the
next one exclusively, so of two simultaneous starts exactly one succeeds. On a file system it then
claims the folders of the table and of its records: a former owner can finish no file there. The pid
and start time show whether an owner on the same boot is alive. The beats of any other owner are
timed by the observer's own clock, so no wall clocks are compared. On an object store, where
creation is not exclusive, the last of two writers wins, and both read the file back after a moment.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from codeseg.pipeline.engine.ledger import from_json
from codeseg.pipeline.engine.storage import Storage

BEAT_SECONDS = 5.0
LEASE_SECONDS = 6 * BEAT_SECONDS  # an owner elsewhere without a beat for this long is dead
LOOK_SECONDS = 1.0  # between two reads of another owner's beats


def _boot() -> str:
    """Return an id of the scope of pids: this boot and, in containers, the pid namespace."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(pid: int) -> str:
    """Return a process's start time in clock ticks since boot; empty if it does not run."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if facts[0] in "ZX" else facts[19]  # a zombie is dead
    except (OSError, IndexError):
        return ""


@dataclass(frozen=True)
class Owner:
    """The run that may write a stage."""

    token: str = field(default_factory=lambda: uuid4().hex)
    host: str = field(default_factory=socket.gethostname)  # for people
    boot: str = field(default_factory=_boot)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: _started(os.getpid()))
    beats: int = 0
    finished: bool = False


class StageLock:
    """The right to write a stage, held while the block runs.

    With `take_over` it ends the ownership of a run that seems alive, whose later commits are
    refused.

    Raises:
        ValueError: another run is active; names it.
    """

    def __init__(self, root: Storage, stage: str, *, take_over: bool = False) -> None:
        self.owner, self._root, self._stage = Owner(), root, stage
        self._folder, self._take_over = f"ledger/{stage}/lock", take_over
        self._written = (stage, f"ledger/{stage}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        number, other = highest(self._root, self._folder)
        if not self._take_over and self._lives(number, other):
            raise ValueError(self._refusal(other))
        self._number = number + 1
        if not self._root.create(self._path, _text(self.owner)) or not self.held:
            raise ValueError(self._refusal(highest(self._root, self._folder)[1]))
        for name in self._root.names(self._folder):
            if name < f"{self._number:06d}.json":
                self._root.delete(f"{self._folder}/{name}")
        for folder in self._written:
            self._root.claim(folder, self.owner.token)
        work_for(self._root, self._stage, self.owner.token)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        _tokens.pop((self._root.uri, self._stage), None)
        for folder in self._written:
            self._root.release(folder, self.owner.token)
        with suppress(OSError):  # a full disk must not hide the stage's own error
            if self.held:
                self._change(finished=True)

    @property
    def held(self) -> bool:
        """Return whether no other run has taken over."""
        return holds(self._root, self._stage, self.owner.token)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with suppress(OSError):
                if not self.held:
                    return
                self._change(beats=self.owner.beats + 1)

    def _change(self, **facts: Any) -> None:
        self.owner = replace(self.owner, **facts)
        self._root.write_atomic(self._path, _text(self.owner))

    def _lives(self, number: int, other: Owner | None) -> bool:
        """Return whether an owner is alive."""
        if number == 0 or (other is not None and other.finished):
            return False
        if other is not None and other.boot == self.owner.boot:
            return _started(other.pid) == other.started
        print(
            f"{self._stage}: waiting {LEASE_SECONDS:g} s to see whether the run on "
            f"{other.host if other else 'another machine'} is alive (--take-over does not wait)",
            flush=True,
        )
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            now = highest(self._root, self._folder)
            if now != (number, other):
                return not (now[1] is not None and now[1].finished)
        return False

    def _refusal(self, other: Owner | None) -> str:
        who = f"process {other.pid} on {other.host}" if other else "a run that has just started"
        return (
            f"{self._root.uri}: {self._stage} is already being made by {who}; wait for its end "
            "(codeseg status), stop it, or give --take-over if it is certainly dead"
        )

    @property
    def _path(self) -> str:
        return f"{self._folder}/{self._number:06d}.json"


def _text(owner: Owner) -> bytes:
    return json.dumps(asdict(owner), indent=1).encode()


def highest(root: Storage, folder: str) -> tuple[int, Owner | None]:
    """Return the highest number in a lock folder and its owner; 0 if it was never held."""
    numbers = [int(n[:-5]) for n in root.names(folder, ".json") if n[:-5].isdecimal()]
    number = max(numbers, default=0)
    with suppress(FileNotFoundError, ValueError, RecursionError):
        if number:
            found = json.loads(root.read_bytes(f"{folder}/{number:06d}.json"))
            return number, from_json(Owner, found)
    return number, None


def holds(root: Storage, stage: str, token: str) -> bool:
    """Return whether the run with this token may still write the stage."""
    owner = highest(root, f"ledger/{stage}/lock")[1]
    return owner is not None and owner.token == token


class TakenOverError(ValueError):
    """This process may no longer write the stage."""


_tokens: dict[tuple[str, str], str] = {}  # (root, stage) -> this process's run


def work_for(root: Storage, stage: str, token: str) -> None:
    """Let this process commit only for the run with this token."""
    _tokens[root.uri, stage] = token


def owned(root: Storage, stage: str) -> Storage:
    """Return the root for writing as the run that this process works for.

    Raises:
        TakenOverError: another run has taken over from it.
    """
    token = _tokens.get((root.uri, stage), "")
    if token and not holds(root, stage, token):
        raise TakenOverError(f"another run of {stage} has taken over; this one ends")
    return root.written_by(token)
