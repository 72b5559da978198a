"""Killed, out of disk, without rights, a node lost: nothing half-written is ever taken for done."""

import errno
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import textwrap

import pytest

from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage

SIXTY = 60


def parquet_hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.parquet"))
    }


def write_inputs(tmp_path, image_server, rows):
    lines = []
    for i in range(rows):
        url = image_server.add_image(f"/{i}.jpg", 260 + i % 40, 280, seed=i)
        lines.append(f"a red house number {i} by the lake\t{url if i % 9 else url + 'x'}\n")
    (tmp_path / "l.tsv").write_text("".join(lines))
    (tmp_path / "m.toml").write_text(
        'name="t"\ntitle="T"\nurl_list="l.tsv"\nformat="tsv"\nheader=false\n'
        'columns=["caption","url"]\n'
    )


def command(tmp_path, stage, root):
    codeseg = [sys.executable, "-m", "codeseg", stage]
    if stage == "nouns":
        return [*codeseg, str(root)]
    options = ["--shard-size", "10", "--allow-private-hosts", "--threads", "4"]
    return [*codeseg, str(tmp_path / "m.toml"), str(root), *options]


def run(tmp_path, stage, root, kill_after=None):
    """Exit code, or None when the process was killed with -9 after some seconds."""
    process = subprocess.Popen(
        command(tmp_path, stage, root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


@pytest.mark.slow
def test_a_rerun_after_kills_writes_identical_bytes(tmp_path, image_server):
    """Two kills here, for time; sixteen were tried by hand, see docs/scale.md."""
    write_inputs(tmp_path, image_server, SIXTY)
    for stage in ("download", "nouns"):
        assert run(tmp_path, stage, tmp_path / "clean") == 0
    moments = random.Random(7)
    for stage in ("download", "nouns"):
        run(tmp_path, stage, tmp_path / "killed", kill_after=moments.uniform(5, 12))
        assert run(tmp_path, stage, tmp_path / "killed") == 0
    expected = parquet_hashes(tmp_path / "clean")
    assert len(expected) == 6 * 3
    assert parquet_hashes(tmp_path / "killed") == expected


@pytest.mark.slow
def test_killed_at_every_write_a_commit_is_whole_or_absent(tmp_path):
    """The process is killed before, between and after the steps of two commits."""
    script = """
        import os, sys
        from codeseg.pipeline.engine import storage
        from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
        steps = [0]
        replace = storage.Path.replace
        def counted(self, target):
            for moment in (0, 1):
                steps[0] += 1
                if moment:
                    replace(self, target)
                if steps[0] == int(sys.argv[2]):
                    os.kill(os.getpid(), 9)
        storage.Path.replace = counted
        root = storage.Storage.open(sys.argv[1])
        for shard in range(2):
            Ledger(root).retract("pairs", shard)
            content = str(shard).encode() * 1000
            info = root.write_atomic(f"pairs/{shard:05d}.parquet", content)
            Ledger(root).commit(ShardRecord("pairs", shard, "i", "s", info.sha256, {}, 1, 1, {},
                                            info.bytes, 0.0, {}))
    """
    done = []
    for step in range(1, 9):
        folder = tmp_path / str(step)
        child = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(folder), str(step)]
        )
        assert child.returncode == -9
        root = Storage.open(folder)
        records = Ledger(root).records("pairs")
        for shard, record in records.items():
            content = root.read_bytes(f"pairs/{shard:05d}.parquet")
            assert hashlib.sha256(content).hexdigest() == record.output
        done.append(len(records))
    assert done == [0, 0, 0, 1, 1, 1, 1, 2]


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path):
    """A file size limit stands in for the disk: the write fails in its middle, as on a full one."""
    script = """
        import resource, signal, sys
        from codeseg.pipeline.engine.storage import Storage
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            Storage.open(sys.argv[1]).write_atomic("pairs/00000.parquet", bytes(300_000))
        except OSError as error:
            print(error.errno)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(out.stdout) == errno.EFBIG
    assert os.listdir(tmp_path / "pairs") == []


class FullDiskWorker:
    """Fails as a full disk does."""

    def __init__(self, root_uri, settings):
        self.tries = 0

    def process(self, shard, input):
        self.tries += 1
        assert self.tries <= 2, "a full disk does not empty itself: no point in trying again"
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_fails_the_stage_with_its_reason(tmp_path):
    from codeseg.pipeline.engine.shards import _RayWorker

    worker = _RayWorker("pairs", FullDiskWorker, str(tmp_path), {}, "")
    for shard in range(2):
        answer = worker({"shard": [shard], "input": ["i"]})
        assert "No space left on device" in answer["error"][0]


def test_a_read_only_folder_is_an_error_that_names_it():
    """Root may write anywhere, so a child that was root becomes nobody."""
    script = """
        import os, sys
        from codeseg.pipeline.engine.storage import Storage
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            Storage.open(sys.argv[1] + "/root").write_atomic("a", b"")
        except PermissionError as error:
            print(error)
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        command = [sys.executable, "-c", textwrap.dedent(script), folder]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        assert folder in out.stdout
        os.chmod(folder, 0o755)


@pytest.mark.slow
def test_a_node_removed_in_mid_stage_changes_nothing(tmp_path):
    """Two nodes, one taken away while both work: its shards are done by the other."""
    script = """
        import sys, threading, time
        from ray.cluster_utils import Cluster
        from codeseg.pipeline.engine.ledger import fingerprint
        from codeseg.pipeline.engine.cluster import Resources
        from codeseg.pipeline.engine.shards import run_stage
        from codeseg.pipeline.engine.stage import PAIRS, state
        from codeseg.pipeline.engine.storage import Storage
        from tests.helpers.waiting_worker import WaitingWorker
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        lost = cluster.add_node(num_cpus=1)
        root = Storage.open(sys.argv[1])
        inputs = {i: str(i) for i in range(8)}
        def remove():
            while len({root.read_bytes(f"started/{n}") for n in root.names("started")}) < 2:
                time.sleep(0.05)
            cluster.remove_node(lost, allow_graceful=False)
            root.write_atomic(f"released/{cluster.head_node.node_id}", b"")
        threading.Thread(target=remove, daemon=True).start()
        todo = state(root, PAIRS, settings="s", inputs=inputs)
        resources = Resources(workers=2, ray_address=cluster.address)
        report = run_stage(PAIRS, WaitingWorker, root, {}, todo, {}, resources, {})
        print("REPORT", len(report.done), report.failed)
        cluster.shutdown()
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    report = next((line for line in out.stdout.splitlines() if line.startswith("REPORT")), out)
    assert report == "REPORT 8 {}"
    root = Storage.open(tmp_path)
    assert [root.read_bytes(f"pairs/{i:05d}.parquet") for i in range(8)] == [
        b"%d" % i for i in range(8)
    ]
    tries = len(root.names("started"))
    assert tries > 8, "the node was not at work when it was removed"
