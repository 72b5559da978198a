"""Ray itself: started here or joined, and how much of it the workers of a stage may take.

Resources, a cluster -> Resources that some node can give, the number of workers that fit
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

OBJECT_STORE_BYTES = 100 << 20  # only shard numbers and records travel through it


@dataclass(frozen=True)
class Resources:
    """What a stage may use; the result never depends on it."""

    workers: int | None = None  # None = as many as fit
    cpus: float = 1  # of each worker
    gpus: float = 0  # of each worker
    memory: int | None = None  # bytes each worker may need: Ray starts no more than fit
    ray_address: str | None = None  # None = start Ray on this machine
    take_over: bool = False  # from another run of the stage, whether it lives or not


@contextmanager
def ray_session(resources: Resources) -> Iterator[None]:
    """Ray, started here or joined by address; a session that is already open is used as it is.

    Raises:
        ConnectionError: when no cluster answers at the address, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "num_cpus": max(os.cpu_count() or 1, resources.workers or 1),
    }
    # by default its workers are at nice 15: beside any other busy process they stand still
    os.environ.setdefault("RAY_worker_niceness", "0")
    # its C++ side writes lines to stderr that say nothing to a user; what fails is in our table
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _quiet_stderr():
            ray.init(
                address=resources.ray_address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **({} if resources.ray_address else local),
            )
    except ConnectionError:
        raise
    except Exception as error:  # a timeout of its start-up is a bare Exception
        ray.shutdown()
        raise ConnectionError(
            f"Ray did not start: {error}; is its temporary folder full, or the machine too busy?"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send the process's stderr, C++ included, to nowhere for a moment."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def fit_workers(resources: Resources, memory: int) -> Resources:
    """Declare the memory of a worker, and see that the open Ray session can give it all.

    Args:
        resources: as asked for.
        memory: bytes that a worker of this stage is known to need; declared where the user
            declared none, but never more than a node has: an estimate must not stop anyone.

    Raises:
        ValueError: no node of this machine's Ray has that much; it would wait forever. On a
            cluster that was joined it waits, as a node may be added, and says so.
    """
    nodes = _nodes()
    most = max((int(node.get("memory", 0)) for node in nodes), default=0)
    resources = replace(resources, memory=resources.memory or min(memory, most))
    if not any(_workers_on(node, resources) for node in nodes):
        asked = ", ".join(
            f"{need / 1e9:.1f} GB of memory" if kind == "memory" else f"{need:g} {kind}"
            for kind, need in _needs(resources).items()
        )
        if resources.ray_address is None:
            raise ValueError(f"each worker needs {asked}; this machine has not that much")
        print(f"each worker needs {asked}; no node has that much, waiting for one that has")
    return resources


def most_workers(tasks: int, resources: Resources) -> int:
    """How many workers a stage has at most on what the open Ray session knows of the cluster.

    Args:
        tasks: pending shards.
        resources: of each worker.
    """
    there = sum(_workers_on(node, resources) for node in _nodes())
    return max(1, min(resources.workers or there, tasks))


def _nodes() -> list[dict[str, float]]:
    """Return what each living node has, by Ray's names."""
    import ray

    known = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    return [node["Resources"] for node in known if node["Alive"]]


def _needs(resources: Resources) -> dict[str, float]:
    """Return what one worker takes, by Ray's names."""
    asked = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory or 0}
    return {kind: need for kind, need in asked.items() if need}


def _workers_on(node: dict[str, float], resources: Resources) -> int:
    """Return how many workers fit on a node."""
    shares = [node.get(kind, 0) / need for kind, need in _needs(resources).items()]
    return int(min(shares) + 1e-6)  # a tenth of a GPU fits ten times, not nine
