"""The marked blocks of the pages and the notebook run as printed, on the embedded data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.pages import PAGES, ROOT, Block, blocks

MADE = {
    "quickstart.md": ("audit.html", "runs/mine/config.json", "segments/000000/overlay.png",
                      "eval/mine/scores.json", "score.json", "demo-run/report.html"),
    "own-data.md": ("shop/data/pairs/00000.parquet", "have/data/pairs/00001.parquet",
                    "eval/two/scores.json"),
    "api.md": (),
    "segment.md": ("found/coco.json", "found/data.yaml", "result/overlay.png"),
}  # fmt: skip
"""What the commands of a page leave behind."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """An environment in which `codeseg` and `python` are those under test."""
    programs = tmp_path / "programs"
    programs.mkdir()
    command = programs / "codeseg"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m codeseg "$@"\n')
    command.chmod(0o755)
    places = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(places))


def run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block as it is printed; a shell stops at the first command that fails."""
    program = ["bash", "-e", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    return subprocess.run(
        [*program, block.text],
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


@pytest.mark.parametrize("page", MADE)
def test_the_blocks_of_a_page_run_as_printed(page, tmp_path, shell, quick_demo):
    folder = tmp_path / "user"
    shutil.copytree(quick_demo, folder / "demo-run")
    marked = [block for block in blocks(ROOT / "docs" / page) if block.run]
    assert marked
    for block in marked:
        done = run(block, folder)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-3000:]}"
    assert all((folder / name).exists() for name in MADE[page])


def test_no_page_with_marked_blocks_is_forgotten():
    assert {page.name for page in PAGES if any(block.run for block in blocks(page))} == set(MADE)


def test_a_block_that_fails_is_noticed(tmp_path, shell):
    block = Block(Path("page.md"), "sh", "codeseg status nowhere\necho went on", run=True)
    done = run(block, tmp_path)
    assert done.returncode == 2 and "went on" not in done.stdout


def test_the_notebook_runs_from_top_to_bottom(tmp_path, shell):
    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)
    written = [len(cell.get("outputs", [])) for cell in notebook.cells]
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert (tmp_path / "runs/code/checkpoints").is_dir()
    assert [bool(cell.get("outputs")) for cell in notebook.cells] == [n > 0 for n in written]
