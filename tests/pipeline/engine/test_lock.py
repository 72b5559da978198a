"""One run of a stage at a time on a root, whoever dies, sleeps or comes back."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

from codeseg.pipeline.engine import lock
from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.lock import Owner, StageLock, TakenOverError, work_for
from codeseg.pipeline.engine.shards import run_stage
from codeseg.pipeline.engine.stage import PAIRS, commit, state
from codeseg.pipeline.engine.storage import Storage

HOLD = """
import sys
from codeseg.pipeline.engine.lock import StageLock
from codeseg.pipeline.engine.storage import Storage
try:
    with StageLock(Storage.open(sys.argv[1]), "pairs"):
        print("held", flush=True)
        input()
except ValueError as error:
    print(error, flush=True)
"""

ORPHAN = """
import sys, time
from codeseg.pipeline.engine.shards import _RayWorker
from codeseg.pipeline.engine.stage import PAIRS, commit
from codeseg.pipeline.engine.storage import Storage
root = Storage.open(sys.argv[1])
class Sleepy:
    def __init__(self, root_uri, options): pass
    def process(self, shard, input):
        def write(sink):
            print("at work", flush=True)
            sys.stdin.readline()
            sink.write(b"late")
        commit(root, PAIRS, shard, input, "s", write, rows_in=1, rejected={}, start=0., versions={})
print(_RayWorker("pairs", Sleepy, root.uri, {}, sys.argv[2])({"shard": [0], "input": ["i"]}))
"""
FACTS = {"rows_in": 1, "rejected": {}, "start": 0.0, "versions": {}}


@pytest.fixture
def root(tmp_path):
    return Storage.open(tmp_path)


def start(script, *words):
    return subprocess.Popen(
        [sys.executable, "-c", script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def hold(root):
    return start(HOLD, root.uri)


def leave(root, number=1, **changes):
    owner = replace(Owner(), **changes)
    root.write_atomic(f"ledger/pairs/lock/{number:06d}.json", json.dumps(asdict(owner)).encode())
    return owner


def test_a_second_run_is_refused_while_the_first_lives_stopped_or_not(root):
    first = hold(root)
    assert first.stdout.readline() == "held\n"
    todo = state(root, PAIRS, settings="s", inputs={0: "i"})
    for number in (signal.SIGCONT, signal.SIGSTOP):
        os.kill(first.pid, number)
        with pytest.raises(ValueError, match=rf"being made by process {first.pid} on"):
            run_stage(PAIRS, object, root, {}, todo, {}, Resources(workers=1), {})
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    with StageLock(root, "pairs"):  # at once, though nobody has fetched its exit code yet
        pass
    first.communicate()


def test_of_many_starts_at_once_exactly_one_succeeds(root):
    leave(root, pid=2**22 + 1, started="gone")  # over the ruins of a killed run
    runs = [hold(root) for _ in range(6)]
    said = [run.stdout.readline() for run in runs]
    assert said.count("held\n") == 1, said
    assert sum("is already being made" in line for line in said) == 5
    for run in runs:
        run.kill()
        run.communicate()


def test_a_finished_run_stops_nobody_and_old_locks_are_removed(root):
    for _ in range(3):
        with StageLock(root, "pairs"):
            pass
    assert len(root.names("ledger/pairs/lock")) == 1


def test_a_reused_pid_is_not_the_owner(root):
    leave(root, started="1")  # our own pid, but of an earlier process
    with StageLock(root, "pairs") as mine:
        assert mine.held


def test_an_owner_elsewhere_with_our_pid_is_told_by_its_beats(root, monkeypatch, capsys):
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.02)
    owner = leave(root, boot="another container", host="elsewhere")
    beating = threading.Timer(0.2, lambda: root.write_atomic(
        "ledger/pairs/lock/000001.json", json.dumps(asdict(replace(owner, beats=1))).encode()
    ))  # fmt: skip
    beating.start()
    with pytest.raises(ValueError, match=rf"by process {os.getpid()} on elsewhere"):
        StageLock(root, "pairs").__enter__()
    beating.join()
    assert "to see whether the run on elsewhere is alive" in capsys.readouterr().out
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.1)
    with StageLock(root, "pairs"):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"token": 3}'])
def test_a_lock_that_cannot_be_read_is_waited_for_like_one_elsewhere(root, monkeypatch, content):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.05)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.01)
    root.write_atomic("ledger/pairs/lock/000001.json", content)
    with StageLock(root, "pairs") as mine:
        assert mine.held


def test_a_revived_owner_commits_nothing_that_does_not_fit(root, monkeypatch):
    monkeypatch.setattr(lock, "_tokens", {})
    with StageLock(root, "pairs") as first:

        def put(sink, between=lambda: None):
            sink.write(b"rows")
            between()

        commit(root, PAIRS, 0, "i", "s", put, **FACTS)
        assert Ledger(root).record("pairs", 0).owner == first.owner.token
        second = StageLock(root, "pairs", take_over=True)

        def late(sink):  # it sleeps after its last look, while another run does the shard
            put(sink, second.__enter__)
            commit(root, PAIRS, 0, "i", "other", lambda sink: sink.write(b"others"), **FACTS)

        with pytest.raises(FileNotFoundError):
            commit(root, PAIRS, 0, "i", "s", late, **FACTS)
        theirs = Ledger(root).record("pairs", 0)
        assert theirs.owner == second.owner.token and root.read_bytes("pairs/00000.parquet") == (
            b"others"
        )
        work_for(root, "pairs", first.owner.token)
        with pytest.raises(TakenOverError):
            commit(root, PAIRS, 1, "i", "s", put, **FACTS)
        assert root.names("pairs") == ["00000.parquet"] and not first.held
        second.__exit__()


def test_an_orphaned_worker_that_commits_late_changes_nothing(root):
    killed = hold(root)
    assert killed.stdout.readline() == "held\n"
    orphan = start(ORPHAN, root.uri, lock.highest(root, "ledger/pairs/lock")[1].token)
    assert orphan.stdout.readline() == "at work\n"
    killed.kill()
    killed.communicate()
    with StageLock(root, "pairs"):
        commit(root, PAIRS, 0, "i", "s", lambda sink: sink.write(b"in time"), **FACTS)
        record = Ledger(root).record("pairs", 0)
        said = orphan.communicate("go on\n")[0]
        assert "another run of pairs has taken over; this one ends" in said
        assert Ledger(root).record("pairs", 0) == record
        assert root.read_bytes("pairs/00000.parquet") == b"in time"
