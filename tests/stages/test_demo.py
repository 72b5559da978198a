"""The whole way, end to end, by the commands themselves: killed at random, it ends the same."""

import json
import random
import signal
import subprocess
import sys
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
    out, kills, moments = tmp_path / "killed", 0, random.Random(1)
    for _ in range(3):
        running = start(out, log)
        try:
            assert running.wait(timeout=moments.uniform(0.1, 0.5) * quick_demo.seconds) == 0
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
    assert start(out, log).wait() == 0, log.read_text()[-3000:]
    assert kills >= 2
    expected = contents(quick_demo.folder)
    assert len(expected) > 80
    assert contents(out) == expected

    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"storybook_things", "storybook_scenes"}
    for methods in results.values():
        assert set(methods) == {"maskclip", "baseline", "code"}
        assert all(0 < method["miou"] < 100 and method["per_class"] for method in methods.values())
    assert "<svg" in (out / "report.html").read_text() and (out / "audit.json").exists()
