"""What is handed out: an sdist that builds the wheel and runs the tests; the wheel of packages."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "model", "stages", "data_manifests")
WORKSHOP = ("tests", "bench", "docs", "deploy", ".github", ".ci")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def files_below(*folders):
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Both, the wheel built from the sdist, in a copy of the tree."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    tree.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in (*PACKAGES, *WORKSHOP):
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(tree)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return tree / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        yield archive


@pytest.mark.slow
def test_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {f"codeseg/{path}" for path in files_below(*PACKAGES)}
    face = {path for path in ours if path.startswith("codeseg/stages/public/")}
    assert names == ours - face | {path.replace("stages/public/", "") for path in face}
    for needed in ("model/weights/storybook.safetensors", "stages/pages/page.html"):
        assert wheel.read(f"codeseg/{needed}") == (ROOT / needed).read_bytes()


@pytest.mark.slow
def test_wheel_says_what_it_is(wheel):
    folder = f"codeseg-{PROJECT['version']}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    base = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(map(name_of, base)) == sorted(map(name_of, PROJECT["dependencies"]))
    assert b"codeseg = codeseg.stages.cli:main" in wheel.read(f"{folder}/entry_points.txt")


@pytest.mark.slow
def test_sdist_can_run_the_tests(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_below(*PACKAGES, *WORKSHOP) <= names
    assert {"Makefile", "constraints.txt", "pyproject.toml", "SECURITY.md", "CITATION.cff"} <= names


def name_of(requirement):
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower()


def test_every_extra_is_documented():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    assert rows == list(PROJECT["optional-dependencies"])


def test_constraints_pin_everything_that_is_asked_for():
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    asked = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = {re.sub(r"[-_.]+", "-", name_of(line)) for lines in asked for line in lines}
    assert names - pinned == {"codeseg"}
