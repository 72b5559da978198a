"""One run of a stage at a time on a root: who is at work is told from the heartbeat."""

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest

from codeseg.pipeline.engine import progress
from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.progress import (
    Heartbeat,
    ShardRows,
    StageProgress,
    read_heartbeat,
    refuse_second_run,
)
from codeseg.pipeline.engine.shards import run_stage
from codeseg.pipeline.engine.stage import PAIRS, state
from codeseg.pipeline.engine.storage import Storage


def leave_heartbeat(root, **changes):
    now = time.time()
    beat = Heartbeat("pairs", now - 10, **{"updated": now, "shards": 4, **changes})
    root.write_atomic("ledger/pairs/progress.json", json.dumps(asdict(beat)).encode())


@pytest.fixture
def root(tmp_path):
    return Storage.open(tmp_path)


def test_a_second_run_is_refused_while_the_first_lives_and_goes_on_at_once_when_it_is_killed(root):
    first = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave_heartbeat(root, host=socket.gethostname(), pid=first.pid)
    todo = state(root, PAIRS, settings="s", inputs={0: "i"})
    with pytest.raises(ValueError, match=rf"by process {first.pid} on {socket.gethostname()}"):
        run_stage(PAIRS, object, root, {}, todo, {}, Resources(workers=1), {})
    first.kill()
    first.communicate()
    refuse_second_run(root, "pairs")


def test_a_finished_run_and_an_old_heartbeat_stop_nobody(root):
    with StageProgress(root, "pairs", {0: 10}) as running:
        assert running.beat.host == socket.gethostname()
    assert read_heartbeat(root, "pairs").finished
    refuse_second_run(root, "pairs")
    leave_heartbeat(root, host="elsewhere", updated=time.time() - 3600)
    refuse_second_run(root, "pairs")


def test_a_run_elsewhere_is_told_by_a_heartbeat_that_moves(root, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.05)
    leave_heartbeat(root, host="elsewhere", pid=1)
    beating = threading.Timer(0.2, leave_heartbeat, [root], {"host": "elsewhere", "pid": 1})
    beating.start()
    with pytest.raises(ValueError, match="by process 1 on elsewhere"):
        refuse_second_run(root, "pairs")
    assert "waiting to see whether the run on elsewhere lives" in capsys.readouterr().out
    beating.join()
    monkeypatch.setattr(progress, "ALIVE_SECONDS", 1)
    refuse_second_run(root, "pairs")


def test_the_rows_of_running_shards_count_before_they_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr("codeseg.pipeline.engine.progress.HEARTBEAT_SECONDS", 0)
    root = Storage.open(tmp_path)
    progress = StageProgress(root, "features", {0: 100, 1: 50})
    worker = ShardRows()
    worker.count(7)  # outside a stage
    worker.begin(root, "features", 1)
    worker.count(20)
    worker.count(10, total=60)
    progress._write()
    beat = read_heartbeat(root, "features")
    assert (beat.rows_running, beat.rows, beat.rows_done) == (30, 160, 0)
    assert beat.line().startswith("30 of 160 rows, ") and "left" in beat.line()
    progress.done(ShardRecord("features", 1, "i", "s", "o", {}, 60, 55, {"x": 5}, 0, 0.0, {}))
    progress._write()  # the note is still there
    beat = read_heartbeat(root, "features")
    assert (beat.rows_running, beat.rows, beat.rows_done) == (0, 160, 60)
    worker.end()
    assert root.names("ledger/features/notes") == []
