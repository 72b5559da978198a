"""The model computes the reference implementation's numbers, and the comparison can tell."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reference import compare, main

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def report():
    return {line.name: line for line in compare(DATA / "code-small.json", DATA / "code-small.npz")}


def test_every_array_loss_and_gradient_matches(report):
    assert [line for line in report.values() if not line.ok] == []


def test_everything_in_the_files_is_compared(report):
    spec = json.loads((DATA / "code-small.json").read_text())
    arrays = np.load(DATA / "code-small.npz").files
    assert {f"grad {name}" for name in spec["grad_norms"]} <= report.keys()
    assert set(spec["losses"]) <= report.keys()
    assert {a for a in arrays if not a.startswith(("input/", "loss/"))} <= report.keys()


def test_a_changed_number_is_found(tmp_path, capsys):
    spec = json.loads((DATA / "code-small.json").read_text())
    spec["grad_norms"]["bg_text"] *= 1.001
    (tmp_path / "changed.json").write_text(json.dumps(spec))
    arrays = dict(np.load(DATA / "code-small.npz"))
    arrays["feature_map"][0, 0, 0, 0] += 1e-3
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main([str(tmp_path / "changed.json"), str(tmp_path / "changed.npz")]) == 1
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("OUT")]
    assert [line.split()[-1] for line in out] == ["feature_map", "bg_text"]


@pytest.mark.slow
def test_command_line(tmp_path):
    shutil.copy(DATA / "code-small.json", tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "tests.reference", tmp_path / "code-small.json", tmp_path / "no"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
