"""Our Ray Data path against a plain Ray actor pool on the same shards, in one run.

    python -m bench.ray_data [--shards 40] [--seconds 1.5] [--workers 2] [--rounds 1]

Every shard is the same work: some seconds of sleep (so that other work on the machine does not
matter; real shards take minutes), a file and a commit. The pool is ray.util.ActorPool with the same
worker; both start new actors. There are two ratios: of the whole run with its start-up, which is
negligible in a stage of hours, and of the steady state from the first commit to the last. The exit
code is 1 if the first is under 0.95.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from codeseg.pipeline.engine.cluster import Resources, ray_session
from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.shards import _RayWorker, run_stage
from codeseg.pipeline.engine.stage import PAIRS, commit, state
from codeseg.pipeline.engine.storage import Storage

TARGET = 0.95


class SleepingWorker:
    """A worker that sleeps, writes a file and commits."""

    READS: ClassVar[dict[str, tuple[str, ...]]] = {}
    MEMORY: ClassVar[int] = 100_000_000

    def __init__(self, root_uri: str, settings: dict[str, Any]) -> None:
        self._root = Storage.open(root_uri)
        self._seconds = settings["seconds"]

    def process(self, shard: int, input: str) -> ShardRecord:
        """Process one shard."""
        time.sleep(self._seconds)
        return commit(
            self._root, PAIRS, shard, input, "s", lambda sink: sink.write(b"x" * 1000),
            rows_in=1, rejected={}, start=0.0, versions={},
        )  # fmt: skip


class PoolWorker(_RayWorker):
    """The wrapper that Ray Data runs, with a method that a plain actor can call."""

    def do(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Process one shard."""
        return self(batch)


def steady_seconds(folder: str) -> float:
    """Return the seconds from the first commit below a root to the last."""
    moments = [path.stat().st_mtime for path in Path(folder).glob("pairs/*.parquet")]
    return max(moments) - min(moments)


def ray_data(shards: int, seconds: float, workers: int) -> tuple[float, float]:
    """Return run_stage's seconds: of the whole run and of the steady state."""
    with tempfile.TemporaryDirectory() as folder:
        root = Storage.open(folder)
        inputs = {i: str(i) for i in range(shards)}
        todo = state(root, PAIRS, settings="s", inputs=inputs)
        start = time.perf_counter()
        report = run_stage(
            PAIRS, SleepingWorker, root, {"seconds": seconds}, todo, {"fingerprint": "s"},
            Resources(workers=workers), {},
        )  # fmt: skip
        assert len(report.done) == shards
        return time.perf_counter() - start, steady_seconds(folder)


def actor_pool(shards: int, seconds: float, workers: int) -> tuple[float, float]:
    """Return the same for a plain pool of the same workers, including their start."""
    import ray
    from ray.util import ActorPool

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        actor = ray.remote(num_cpus=1)(PoolWorker)
        settings = {"seconds": seconds}
        actors = [actor.remote("pairs", SleepingWorker, folder, settings) for _ in range(workers)]
        pool = ActorPool(actors)
        batches = [{"shard": [i], "input": [str(i)]} for i in range(shards)]
        answers = list(pool.map_unordered(lambda a, batch: a.do.remote(batch), batches))
        assert len(answers) == shards
        taken = time.perf_counter() - start
        for one in actors:
            ray.kill(one)
        return taken, steady_seconds(folder)


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    work = (arguments.shards, arguments.seconds, arguments.workers)
    taken: dict[str, list[tuple[float, float]]] = {"pool": [], "ours": []}
    with ray_session(Resources(workers=arguments.workers)):
        for _ in range(arguments.rounds):
            taken["pool"].append(actor_pool(*work))
            taken["ours"].append(ray_data(*work))
    print(f"all rounds, seconds (whole, steady): {taken}")
    ratios = []
    for place, part in enumerate(("start-up included", "steady")):
        best = {name: min(times[place] for times in rounds) for name, rounds in taken.items()}
        ratios.append(best["pool"] / best["ours"])
        print(f"{part}: ratio {ratios[-1]:.2f}")
    sys.exit(ratios[0] < TARGET)


if __name__ == "__main__":
    main()
