"""Shards on Ray Data: a failed shard is reported and stops no other; nothing is done twice."""

import os
import subprocess
import sys
import textwrap
import time
from typing import ClassVar

import pytest

from codeseg.pipeline.engine.cluster import Resources, fit_workers, most_workers
from codeseg.pipeline.engine.cluster import ray_session as cluster_session
from codeseg.pipeline.engine.ledger import Ledger, fingerprint
from codeseg.pipeline.engine.progress import read_heartbeat
from codeseg.pipeline.engine.shards import (
    QUEUED_FROM,
    ShardError,
    StageReport,
    _in_flight,
    run_stage,
    show_report,
)
from codeseg.pipeline.engine.stage import PAIRS, StageState, commit, state
from codeseg.pipeline.engine.storage import Storage


class CountingWorker:
    """Writes its shard's number; misbehaves as its settings say."""

    READS: ClassVar = {}
    MEMORY = 100_000_000

    def __init__(self, root_uri, settings):
        self.root = Storage.open(root_uri)
        self.settings = settings

    def process(self, shard, input):
        tries = Storage.open(f"{self.root.uri}/tries/{shard}")
        tries.write_atomic(f"{len(tries.names('')):02d}", b"")
        tried = len(tries.names(""))
        wish = self.settings.get(str(shard))
        if wish == "mistake":
            raise ValueError("this shard is broken")
        if wish == "refuse":
            raise ShardError("too little came of it")
        if wish == "storage once" and tried == 1:
            raise OSError("the store did not answer")
        if wish == "die once" and tried == 1:
            os.kill(os.getpid(), 9)
        if wish == "die":
            os.kill(os.getpid(), 9)
        if wish == "meet":  # ends when another worker has met it, too
            meeting = Storage.open(f"{self.root.uri}/meeting")
            meeting.write_atomic(f"{os.getpid()}", b"")
            deadline = time.monotonic() + 120
            while len(meeting.names("")) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        return commit(
            self.root, PAIRS, shard, input, "s", lambda sink: sink.write(str(shard).encode()),
            rows_in=10, rejected={"dns": 1}, start=0.0, versions={},
        )  # fmt: skip


def run(root, shards, settings=None, **resources):
    inputs = {shard: fingerprint(shard) for shard in range(shards)}
    todo = state(root, PAIRS, settings="s", inputs=inputs)
    return run_stage(
        PAIRS,
        CountingWorker,
        root,
        settings or {},
        todo,
        {},
        Resources(**{"workers": 2, **resources}),
        dict.fromkeys(inputs, 10),
    )


def test_failed_shards_are_named_and_stop_no_other(ray_session, tmp_path, capsys):
    root = Storage.open(tmp_path)
    wishes = {"1": "mistake", "2": "refuse", "3": "storage once", "4": "die once", "5": "die"}
    shards = 2 * QUEUED_FROM
    assert _in_flight(shards, Resources(workers=2)) == 2, "none waits behind one that dies"
    report = run(root, shards, wishes)
    assert sorted(record.shard for record in report.done) == [0, 3, 4, 6, 7]
    assert report.failed[1] == "this shard is broken"
    assert report.failed[2] == "too little came of it"
    assert "worker died" in report.failed[5]
    show_report(report)
    assert "3 shards of pairs failed" in capsys.readouterr().out
    assert sorted(Ledger(root).records("pairs")) == [0, 3, 4, 6, 7]
    beat = read_heartbeat(root, "pairs")
    assert (beat.shards_done, beat.shards_failed, beat.rows_done, beat.finished) == (5, 3, 50, True)
    assert beat.rejected == {"dns": 5}

    again = run(root, shards)
    assert sorted(record.shard for record in again.done) == [1, 2, 5], "only what was not done"


def test_a_reason_with_square_brackets_is_shown_as_it_is(capsys):
    reason = "cannot read [/tmp/x]: [red]gone"
    show_report(StageReport("pairs", failed={0: reason}))
    assert reason in capsys.readouterr().out


def test_a_pool_of_no_given_size_grows_while_shards_wait(ray_session, tmp_path):
    root = Storage.open(tmp_path)
    report = run(root, 3, dict.fromkeys("012", "meet"), workers=None)
    assert len(report.done) == 3 and len(root.names("meeting")) > 1


def test_with_nothing_pending_ray_is_not_even_imported(tmp_path):
    script = """
        import sys
        from codeseg.pipeline.engine.cluster import Resources
        from codeseg.pipeline.engine.shards import run_stage
        from codeseg.pipeline.engine.stage import PAIRS, StageState
        from codeseg.pipeline.engine.storage import Storage
        report = run_stage(PAIRS, object, Storage.open(sys.argv[1]), {},
                           StageState(current=[0, 1]), {}, Resources(), {})
        assert report.done == [] and "ray" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=True)


@pytest.mark.parametrize("asked", [{"cpus": 64}, {"memory": 10**15}, {"gpus": 1000}])
def test_what_no_machine_has_is_refused_at_once(ray_session, tmp_path, asked):
    root = Storage.open(tmp_path)
    todo = state(root, PAIRS, settings="s", inputs={0: "0"})
    with pytest.raises(ValueError, match=r"each worker needs 1 CPU, 1000 GPU|this machine"):
        run_stage(PAIRS, CountingWorker, root, {}, todo, {}, Resources(**asked), {})


def test_memory_bounds_the_workers_and_an_estimate_stops_nobody(ray_session, capsys):
    assert most_workers(10, fit_workers(Resources(), 1)) == 2, "one a core"
    every = fit_workers(Resources(), 10**15).memory
    assert most_workers(10, fit_workers(Resources(), 10**15)) == 1
    assert most_workers(10, fit_workers(Resources(memory=int(0.6 * every)), 1)) == 1
    assert most_workers(10, fit_workers(Resources(memory=int(0.4 * every)), 10**15)) == 2
    fit_workers(Resources(gpus=1000, ray_address="auto"), 1)
    assert "waiting for one" in capsys.readouterr().out, "a cluster may grow"


def test_stale_shards_are_named_before_they_are_redone(ray_session, tmp_path, capsys):
    root = Storage.open(tmp_path)
    run(root, 2)
    inputs = {0: fingerprint(0), 1: "changed"}
    todo = state(root, PAIRS, settings="s", inputs=inputs)
    run_stage(PAIRS, CountingWorker, root, {}, todo, {}, Resources(workers=1), {})
    assert "1 shards are redone because its input changed: 1" in capsys.readouterr().out
    assert len(root.names("tries/0")) == 1 and len(root.names("tries/1")) == 2


def test_a_worker_that_cannot_be_set_up_fails_its_shards_not_the_run(ray_session, tmp_path):
    todo = StageState(missing=[0, 1], inputs={0: "a", 1: "b"})
    root = Storage.open(tmp_path)
    report = run_stage(PAIRS, BrokenWorker, root, {}, todo, {}, Resources(workers=1), {})
    assert report.failed == dict.fromkeys([0, 1], "no tagger is installed")


class BrokenWorker:
    READS: ClassVar = {}
    MEMORY = 100_000_000

    def __init__(self, root_uri, settings):
        raise ValueError("no tagger is installed")


@pytest.mark.slow
def test_workers_find_codeseg_beside_a_users_own_files_of_the_same_names(tmp_path):
    for name in ("model.py", "pipeline.py", "stages/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('the user's own file')\n")
    script = """
        from codeseg.pipeline.engine.cluster import Resources, ray_session
        with ray_session(Resources(workers=1)):
            import ray
            @ray.remote
            def where():
                import codeseg.pipeline.engine.shards
                return codeseg.pipeline.engine.shards.__file__
            print(ray.get(where.remote()))
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip().endswith("pipeline/engine/shards.py")


def test_a_ray_that_does_not_start_four_times_is_one_line(monkeypatch):
    import ray

    starts = []

    def slow(**options):  # how Ray says it
        starts.append(options)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", slow)
    with (
        pytest.raises(ConnectionError, match="Ray did not start: The current node timed out"),
        cluster_session(Resources(workers=1)),
    ):
        pass
    assert len(starts) == 4
