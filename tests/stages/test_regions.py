"""`codeseg regions`: the command end to end on Ray, its picture, its resume, its mistakes."""

import subprocess
import sys

import pytest
from PIL import Image

from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.stage import REGIONS
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.region_table import RegionTable
from tests.helpers.tiny_run import make_root


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "codeseg", "regions", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_regions_are_made_shown_and_not_made_twice(tmp_path):
    root = make_root(tmp_path, shards=2, rows=6)
    sheet = tmp_path / "new" / "sheet.png"
    first = run(root, "--regions", 4, "--workers", 1, "--show", sheet, "--pictures", 5)
    assert first.returncode == 0, first.stderr
    assert "2 shards done" in first.stdout
    assert Image.open(sheet).size == (4 * 336 + 8, 2 * 168 + 8)
    assert RegionTable(Storage.open(root)).regions("000010006", 1).max() < 4
    records = Ledger(Storage.open(root)).records("regions")
    written = [(root / REGIONS.path(i)).stat().st_mtime_ns for i in (0, 1)]
    again = run(root, "--regions", 4)
    assert again.returncode == 0, again.stderr
    assert Ledger(Storage.open(root)).records("regions") == records
    assert [(root / REGIONS.path(i)).stat().st_mtime_ns for i in (0, 1)] == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "holds no features; run `codeseg features"),
        (("--method", "dbscan"), "unknown grouping method 'dbscan': use one of kmeans, spectral"),
        (("--weights", "nowhere.pt"), "no weights file nowhere.pt"),
    ],
)
@pytest.mark.slow
def test_mistakes_are_one_line_and_exit_2(tmp_path, options, message):
    result = run(tmp_path, *options)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
