"""A soak test: pictures through download, nouns and features on a cluster that is being damaged.

    python -m bench.soak [--rows 50000] [--sample 5000] [--kills 10] [--seed 0] [--folder D]

The test draws 2,000 pictures and serves them on loopback, each under as many URLs as the rows need
(one link in 40 is dead). The first `--sample` rows pass every stage undisturbed on a Ray cluster of
two nodes. Then all rows do, on a cluster in which, at random moments of random stages, the command,
a Ray worker or the second node's raylet is killed with -9, and once the second node is removed; a
new node replaces it, and a killed command is run again. With the `--folder` of an interrupted test,
the test resumes.

It prints the rows/s of each stage, and the resident memory of every worker after its first shard
and at its end (medians of the first and the last third of the samples in between). It exits with 1
if a shard of the sample differs by a byte (a record: in more than seconds and owner), if a stage is
incomplete, or if a worker's memory grew by more than a tenth.
"""

import argparse
import functools
import hashlib
import http.server
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from codeseg.pipeline.engine.overview import read_overview
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.storybook import scenes as storybook
from codeseg.stages.demo import QuietHandler

FORK = multiprocessing.get_context("fork")
SHARD_ROWS = 500
HOSTS = 16  # loopback addresses: a host gets at most 50 requests per second
STAGES = {"download": "pairs", "nouns": "nouns", "features": "features"}
GROWTH = 1.10
LOOK_SECONDS = 0.5
WARM_COMMITS = 4  # after which a worker, one of two, has certainly finished its first shard
LEAST_LOOKS = 10  # memory samples of a worker, early and late, that are needed to judge it
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
DRAWN = 2_000  # pictures; further rows repeat them
TRIES = 5  # of a stage whose command fails without being killed
NODE_SECONDS = 300

Process = tuple[int, str]  # pid and start time, which distinguishes a reused pid


def stat(pid: int) -> list[str]:
    """Return the fields of a process after its name, or [] if there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def family(pid: int) -> list[Process]:
    """Return all descendants of a process."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    parents = {n: (int(fields[1]), fields[19]) for n in numbers if (fields := stat(n))}
    found: list[Process] = []
    border = {pid}
    while border:
        below = [child for child, (parent, _) in parents.items() if parent in border]
        found += [(child, parents[child][1]) for child in below]
        border = set(below)
    return found


def kill_all(processes: Iterable[Process]) -> None:
    """Kill with -9 those of the processes that are still alive."""
    for pid, started in processes:
        if (fields := stat(pid)) and fields[19] == started:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def outcome(root: Path, tables: Iterable[str], shards: int | None = None) -> dict[str, Any]:
    """Return the tables' files by hash, and their records without seconds and owner.

    `shards` limits the result to the first shards of each table.
    """
    found: dict[str, Any] = {}
    for table in tables:
        for path in sorted((root / table).glob("[!.]*"))[:shards]:
            found[f"{table}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "ledger" / table).glob("[0-9]*.json"))[:shards]:
            record = json.loads(path.read_text())
            del record["seconds"], record["owner"]
            found[f"ledger/{table}/{path.name}"] = record
    return found


def wait_longer() -> None:
    """Let Ray wait `NODE_SECONDS` for a node; its own 30 s are too short on a busy machine."""
    from ray._private import services

    ask = services.get_node

    def get_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + NODE_SECONDS
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_SECONDS)

    services.get_node = get_node


class Cluster:
    """Two Ray nodes on this machine, the second of which may die and be replaced."""

    def __init__(self) -> None:
        # At Ray's default niceness of 15, workers starve beside any other busy process.
        os.environ |= {"RAY_worker_niceness": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
        from ray.cluster_utils import Cluster as TwoNodes

        wait_longer()
        self._nodes = TwoNodes(initialize_head=True, head_node_args=self._size())
        self.address: str = self._nodes.address
        self.add_second()

    def _size(self) -> dict[str, Any]:
        return {"num_cpus": 1, "object_store_memory": 100 << 20, "memory": 8 << 30}

    def add_second(self) -> None:
        """Add the second node."""
        self._second = self._nodes.add_node(**self._size())

    def workers(self) -> list[Process]:
        """Return the workers that process shards."""
        alive = []
        for pid, started in family(os.getpid()):
            with suppress(OSError):
                name = Path(f"/proc/{pid}/cmdline").read_text()
                if name.startswith("ray::") and "_RayWorker" in name:
                    alive.append((pid, started))
        return alive

    def kill_raylet(self) -> None:
        """Kill the second node's raylet, after which Ray ends the node's workers."""
        self._second.kill_raylet(check_alive=False)
        self.remove()

    def remove(self) -> None:
        """Remove the second node and replace it."""
        self._nodes.remove_node(self._second, allow_graceful=False)
        self.add_second()

    def stop(self) -> None:
        """End both nodes."""
        self._nodes.shutdown()


class Memory:
    """Samples the resident memory of workers in a thread."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.stage = ""
        self.looks: dict[tuple[str, Process], list[tuple[float, int]]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            for worker in self._cluster.workers():
                if fields := stat(worker[0]):
                    seen = self.looks[self.stage, worker]
                    seen.append((time.time(), int(fields[21]) * PAGE_BYTES))

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def show(self, commits: dict[str, list[float]]) -> bool:
        """Print each worker's memory early and late; return whether none grew by over a tenth.

        `commits` maps a stage to the ascending times at which its shards were committed.
        """
        flat = True
        print("memory of each worker, MB: after its first shard, at its end, ratio")
        for (stage, (pid, _)), looks in self.looks.items():
            since = [at for at in commits[stage] if at > looks[0][0]][WARM_COMMITS - 1 :]
            later = [resident for at, resident in looks if since and since[0] < at < since[-1]]
            third = len(later) // 3
            if third < LEAST_LOOKS:
                continue
            early, late = (statistics.median(part) for part in (later[:third], later[-third:]))
            flat = flat and late <= GROWTH * early
            print(f"  {stage:9} {pid:8} {early / 1e6:8.0f} {late / 1e6:8.0f} {late / early:6.3f}")
        return flat


class Soak:
    """Runs the stages on one list and one cluster."""

    def __init__(self, folder: Path, cluster: Cluster, memory: Memory) -> None:
        self._folder, self._cluster, self._memory = folder, cluster, memory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, stage: str, root: Path, rows: int) -> "subprocess.Popen[bytes]":
        """Start a stage as a user would."""
        words: dict[str, list[Any]] = {
            "download": [self._folder / "list.toml", root, "--limit", rows, "--allow-private-hosts",
                         "--shard-size", SHARD_ROWS],
            "nouns": [root],
            "features": [root, "--clip", "storybook", "--pretrained", "storybook", "--views", 1,
                         "--cpus", 1],
        }  # fmt: skip
        options = ["--workers", "2", "--ray-address", self._cluster.address]
        command = [sys.executable, "-m", "codeseg", stage, *map(str, words[stage]), *options]
        with (self._folder / f"{root.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self.process

    def run(self, root: Path, rows: int, hurts: dict[str, list[tuple[int, str]]]) -> Counter[str]:
        """Run every stage on the list's first rows; return how often each damage was done.

        `hurts` maps a stage to its damages, (number of commits before it, kind), in order.
        """
        done: Counter[str] = Counter()
        for stage, table in STAGES.items():
            self._memory.stage, begun, starts = stage, time.monotonic(), 1
            process = self.start(stage, root, rows)
            for commits, what in hurts.get(stage, []):
                while process.poll() is None and self.commits(root, table) < commits:
                    time.sleep(LOOK_SECONDS / 5)
                done[what] += self.hurt(process, what)
                print(f"{root.name} {stage}: {what} at {self.commits(root, table)}", flush=True)
                if what == "command":
                    process, starts = self.start(stage, root, rows), starts + 1
            while process.wait():
                if starts > TRIES + len(hurts.get(stage, [])):
                    raise RuntimeError(f"{stage} failed: see {self._folder / root.name}.log")
                process, starts = self.start(stage, root, rows), starts + 1
            seconds = time.monotonic() - begun
            print(
                f"{root.name} {stage}: {rows} rows in {seconds:.0f} s, "
                f"{rows / seconds:.0f} rows/s, {starts} starts",
                flush=True,
            )
        return done

    def hurt(self, process: "subprocess.Popen[bytes]", what: str) -> int:
        """Do one kind of damage; return 1, or 0 if there was nothing to damage."""
        if what == "command":
            if process.poll() is not None:
                return 0
            process.kill()
            process.wait()
        elif what == "worker":
            workers = self._cluster.workers()
            kill_all(workers[-1:])
            return len(workers[-1:])
        elif what == "raylet":
            self._cluster.kill_raylet()
        else:
            self._cluster.remove()
        return 1

    def commits(self, root: Path, table: str) -> int:
        """Return the number of committed shards of a table."""
        return len(list((root / "ledger" / table).glob("[0-9]*.json")))


def draw_hurts(kills: int, shards: int, draw: random.Random) -> dict[str, list[tuple[int, str]]]:
    """Draw each stage's damages: after how many commits, and what is killed or removed."""
    hurts: dict[str, list[tuple[int, str]]] = {stage: [] for stage in STAGES}
    kinds = [("command", "worker", "worker", "raylet")[i % 4] for i in range(kills)]
    for what in [*kinds, "removal"]:
        stage = draw.choice(list(STAGES))
        hurts[stage].append((draw.randrange(max(1, shards - 4)), what))
    return {stage: sorted(moments) for stage, moments in hurts.items()}


class QuietServer(http.server.ThreadingHTTPServer):
    """A server that does not report killed clients."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report nothing."""


def serve(folder: Path, host: str = "127.0.0.1", port: int = 0) -> str:
    """Serve a folder from a new process; return its URL."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = QuietServer((host, port), handler)
    FORK.Process(target=server.serve_forever, daemon=True).start()
    return f"http://{host}:{server.server_address[1]}"


def make_list(folder: Path, rows: int) -> None:
    """Draw and serve the pictures; write the list and its manifest, or keep an existing list."""
    place = folder / "list.tsv"
    if place.exists():
        with place.open() as lines:
            known = {str(urlsplit(next(lines).split("\t")[1]).netloc) for _ in range(HOSTS)}
        for host, port in (name.split(":") for name in known):
            serve(folder / "images", host, int(port))
        return
    (folder / "images").mkdir(exist_ok=True)
    captions = []
    for i, scene in enumerate(storybook.scenes(storybook.TRAIN_SEED, min(rows, DRAWN))):
        scene.image.save(folder / "images" / f"{i:06d}.png")
        captions.append(scene.caption)
    bases = [serve(folder / "images", f"127.0.0.{host + 1}") for host in range(HOSTS)]
    rows_of_list = []
    for i in range(rows):
        path = f"{'gone-' if i % 40 == 17 else ''}{i % len(captions):06d}.png?{i}"
        rows_of_list.append(f"{captions[i % len(captions)]} {i}\t{bases[i % HOSTS]}/{path}\n")
    (folder / "list.toml").write_text(
        f'name = "soak"\ntitle = "Soak"\nurl_list = "{place}"\nformat = "tsv"\n'
        'header = false\ncolumns = ["caption", "url"]\n'
    )
    place.write_text("".join(rows_of_list))


def soak(folder: Path, rows: int, sample: int, kills: int, seed: int) -> bool:
    """Run the sample and the whole list; return whether all requirements are met."""
    begun = time.monotonic()
    make_list(folder, rows)
    print(f"the pictures were drawn in {time.monotonic() - begun:.0f} s", flush=True)
    cluster = Cluster()
    memory = Memory(cluster)
    run = Soak(folder, cluster, memory)
    clean, hurt = folder / "sample", folder / "all"
    try:
        run.run(clean, sample, {})
        memory.looks.clear()
        hurts = draw_hurts(kills, rows // SHARD_ROWS, random.Random(seed))
        print("damage done:", dict(run.run(hurt, rows, hurts)), flush=True)
    finally:
        if run.process is not None:
            run.process.kill()
        memory.stop()
        cluster.stop()
    views = {view.stage: view for view in read_overview(Storage.open(hurt))}
    commits = {}
    for stage, table in STAGES.items():
        view = views[table]
        print(f"{stage}: {view.rows_out} of {view.rows_in} rows kept, rejected {view.rejected}")
        records = (hurt / "ledger" / table).glob("[0-9]*.json")
        commits[stage] = sorted(path.stat().st_mtime for path in records)
    whole = all(len(views[t].current) == -(-rows // SHARD_ROWS) for t in STAGES.values())
    tables = ("urls", *STAGES.values())
    expected, found = (outcome(root, tables, sample // SHARD_ROWS) for root in (clean, hurt))
    names = sorted(expected.keys() | found.keys())
    differing = [name for name in names if expected.get(name) != found.get(name)]
    print(f"every shard done: {whole}; {len(expected)} files compared, differing:", differing)
    return memory.show(commits) and whole and not differing


def main() -> None:
    """Run the soak test; exit with 1 if a requirement is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--sample", type=int, default=5_000, help=f"multiple of {SHARD_ROWS}")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the files here (default: temporary)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(exist_ok=True)
        if not soak(folder, arguments.rows, arguments.sample, arguments.kills, arguments.seed):
            sys.exit(1)


if __name__ == "__main__":
    main()
