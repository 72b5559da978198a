"""Start or join Ray, and fit a stage's workers to it.

Resources, a cluster -> Resources that some node has, the number of workers that fit
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
    """The resources of a stage; its result never depends on them."""

    workers: int | None = None  # None = as many as fit
    cpus: float = 1  # of each worker
    gpus: float = 0  # of each worker
    memory: int | None = None  # bytes per worker: Ray starts no more workers than fit
    ray_address: str | None = None  # None = start Ray on this machine
    take_over: bool = False  # from another run of the stage, even one that is alive


@contextmanager
def ray_session(resources: Resources) -> Iterator[None]:
    """Start Ray here or join it by address; use a session that is already open.

    Raises:
        ConnectionError: no cluster answers at the address, or Ray does not start.
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
    # by default, workers run at nice 15 and make no progress beside a busy process
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray's C++ code writes lines to stderr that do not help a user; our table shows failures
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for final in (False, False, False, True):  # Ray waits only 30 s for its node
        try:
            with _quiet_stderr():
                ray.init(
                    address=resources.ray_address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **({} if resources.ray_address else local),
                )
            break
        except ConnectionError:
            raise
        except Exception as error:  # Ray raises a bare Exception if its startup times out
            ray.shutdown()
            if final:
                raise ConnectionError(
                    f"Ray did not start: {error}; is its temporary folder full, or the machine "
                    "too busy?"
                ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard the process's stderr, C++ included, while the block runs."""
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
    """Declare the memory of a worker, and check that the open Ray session has all resources.

    `memory` is the number of bytes that a worker of this stage usually needs. It is declared if
    the user declared none, up to what a node has, because an estimate must not stop a run.

    Raises:
        ValueError: no node of this machine's Ray has that much, so the stage would wait forever.
            On a joined cluster it prints a line and waits, since a node may be added.
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
            raise ValueError(f"each worker needs {asked}; this machine does not have that much")
        print(f"each worker needs {asked}; no node has that much, waiting for one that does")
    return resources


def most_workers(tasks: int, resources: Resources) -> int:
    """Return the maximum number of workers for `tasks` shards on the open Ray session."""
    there = sum(_workers_on(node, resources) for node in _nodes())
    return max(1, min(resources.workers or there, tasks))


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each live node, by Ray's names."""
    import ray

    known = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    return [node["Resources"] for node in known if node["Alive"]]


def _needs(resources: Resources) -> dict[str, float]:
    """Return the resources of one worker, by Ray's names."""
    asked = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory or 0}
    return {kind: need for kind, need in asked.items() if need}


def _workers_on(node: dict[str, float], resources: Resources) -> int:
    """Return the number of workers that fit on a node."""
    shares = [node.get(kind, 0) / need for kind, need in _needs(resources).items()]
    return int(min(shares) + 1e-6)  # a tenth of a GPU fits ten times, not nine
