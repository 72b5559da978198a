"""An object store and a Ray cluster, asked in a process of its own, as their clients may hang.

python -m codeseg.pipeline.engine.doctor_reach storage s3://bucket/root
python -m codeseg.pipeline.engine.doctor_reach ray host:6379
    one line of JSON on stdout: {"found": …} or {"error": …}
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from codeseg.pipeline.engine.doctor import Finding
from codeseg.pipeline.engine.storage import Storage

SECONDS = 60.0  # S3 and Ray retry for long before they give up by themselves
CONNECT_SECONDS = 5.0


def check_access(root: str, seconds: float = SECONDS) -> Finding:
    """Can the object store be listed and written?"""
    what = f"access to {root}"
    error, found = _ask(["storage", root], seconds)
    if error:
        mend = "aws configure (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and check the URI"
        return Finding(what, "missing", error, mend)
    return Finding(what, "ok", found)


def check_ray(address: str, seconds: float = SECONDS) -> Finding:
    """Does the cluster answer, and does it run the same Ray and Python?"""
    what = f"Ray at {address}"
    error, found = _refusal(address), ""
    if not error:
        error, found = _ask(["ray", address], seconds)
    if error:
        mend = "ray start --head there; the same Python and `pip install ray==…` on every node"
        return Finding(what, "missing", error, mend)
    return Finding(what, "ok", found)


def _refusal(address: str) -> str:
    """Why nobody listens at host:port, at once; Ray itself would go on trying for long."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return ""


def _ask(arguments: list[str], seconds: float) -> tuple[str, str]:
    """Run this file and read its line: (error, found), one of them empty."""
    command = [sys.executable, "-m", "codeseg.pipeline.engine.doctor_reach", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:g} s", ""
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
        return answer.get("error", ""), answer.get("found", "")
    except (IndexError, ValueError):  # a client of C++ may end the whole process
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        return last, ""


def probe_storage(root: str) -> str:
    """List a folder, write a small file in it and delete it again.

    Raises:
        OSError: whatever of it the store refuses.
    """
    storage = Storage.open(root)
    storage.names("")
    name = f".doctor-{uuid4().hex}"  # names that begin with a dot are never listed
    try:
        storage.write_atomic(name, b"written by codeseg doctor\n")
    finally:
        storage.delete(name)
    return "listed, written, deleted"


def probe_ray(address: str) -> str:
    """Join a cluster, which compares versions, and leave it.

    Raises:
        ConnectionError: no cluster answers.
        RuntimeError: it runs another version of Ray or Python.
    """
    import ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    cluster: Any = ray  # these two of its functions have no types
    resources = cluster.cluster_resources()
    nodes = sum(node["Alive"] for node in cluster.nodes())
    python = ".".join(map(str, sys.version_info[:3]))
    ray.shutdown()
    return (
        f"nodes: {nodes}, cores: {resources.get('CPU', 0):g}, GPUs: {resources.get('GPU', 0):g}; "
        f"Ray {ray.__version__} and Python {python}, as here"
    )


def main(kind: str, place: str) -> None:
    """Probe one thing and print what came of it."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what clients print is not our answer
            answer = {"found": (probe_storage if kind == "storage" else probe_ray)(place)}
    except Exception as error:
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
