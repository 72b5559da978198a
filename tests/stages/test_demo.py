"""The whole pipeline, by the commands themselves: killed at random, it ends with the same bytes."""

import json
import os
import random
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

TABLES = ("data/pairs", "data/nouns", "data/vocabulary", "data/features", "evaluation")
pytestmark = pytest.mark.slow


def start(out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "codeseg", "demo", "--quick", "--out", str(out)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def contents(out: Path) -> dict[str, str]:
    """Hash of every table, label map and final weight."""
    paths = [path for table in TABLES for path in sorted((out / table).rglob("*"))]
    wanted = [p for p in paths if p.suffix in (".parquet", ".arrow", ".png")]
    wanted += sorted((out / "runs").glob("*/checkpoints/*/model.safetensors"))
    return {str(p.relative_to(out)): sha256(p.read_bytes()).hexdigest() for p in wanted}


def committed(out: Path) -> int:
    """Return how many files of tables, ledger, runs and label maps are there."""
    folders = (out / name for name in ("data", "runs", "evaluation"))
    return sum(len(files) for folder in folders for _, _, files in os.walk(folder))


def test_demo_of_another_size_or_port_is_refused(tmp_path):
    from codeseg.stages.demo import FULL, QUICK, draw_world

    (tmp_path / "world").mkdir()
    (tmp_path / "world/begun.json").write_text('{"port": 8377, "scenes": 240}')
    (tmp_path / "world/urls.tsv").write_text("a cat\thttp://127.0.0.1:8377/0.png\n")
    draw_world(tmp_path / "world", 8377, QUICK)
    for port, size in ((8378, QUICK), (8377, FULL)):
        with pytest.raises(ValueError, match="was begun with port 8377 and 240 scenes"):
            draw_world(tmp_path / "world", port, size)


@pytest.mark.timeout(1200)
def test_demo_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, quick_demo):
    log = tmp_path / "log"
    out, moments = tmp_path / "killed", random.Random(1)
    for _ in range(3):
        running = start(out, log)
        end = committed(out) + moments.randint(1, 25)
        while committed(out) < end and running.poll() is None:
            time.sleep(0.05)
        assert running.poll() is None, "it ended before it was killed"
        running.kill()
        running.wait()
    assert start(out, log).wait() == 0, log.read_text()[-3000:]
    expected = contents(quick_demo)
    assert len(expected) > 80
    assert contents(out) == expected

    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"storybook_things", "storybook_scenes"}
    for methods in results.values():
        assert set(methods) == {"maskclip", "baseline", "code"}
        assert all(0 < method["miou"] < 100 and method["per_class"] for method in methods.values())
    assert "<svg" in (out / "report.html").read_text() and (out / "audit.json").exists()
