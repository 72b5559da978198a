import os
import subprocess
import sys

from pipeline.child_path import SOURCE, child_path


def test_source_tree_is_named_once_and_first(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/theirs", str(SOURCE)]))
    assert child_path().split(os.pathsep) == [str(SOURCE), "/theirs"]


def test_packages_beside_an_installed_one_hide_no_standard_library(monkeypatch, tmp_path):
    site = tmp_path / "lib" / "site-packages"
    site.mkdir(parents=True)
    (site / "dataclasses.py").write_text("raise ImportError('a backport for Python 3.6')\n")
    monkeypatch.delenv("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": child_path(site)}
    subprocess.run([sys.executable, "-c", "import dataclasses"], env=environment, check=True)
