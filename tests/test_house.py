"""The house keeps its lines: every file is introduced, imports run one way, light stays light."""

import ast
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "model", "stages", "bench")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
ENGINES = {"ray", "spacy", "img2dataset", "duckdb", "pandas"}


def imports(path: Path, everywhere: bool) -> set[str]:
    """Rooms and packages that a file imports: at its top, or anywhere in it."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.removeprefix("codeseg.").split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_does(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_folder_is_crowded_and_each_is_installed():
    folders = Counter(path.parent for path in FILES if path.relative_to(ROOT).parts[0] != "bench")
    crowded = {f: n for f, n in folders.items() if n > (20 if f == ROOT / "stages" else 13)}
    assert not crowded
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    names = {"codeseg." + ".".join(f.relative_to(ROOT).parts) for f in folders}
    names = names - {"codeseg.stages.public"} | {"codeseg", "codeseg.data_manifests"}
    assert sorted(packages) == sorted(names)


def test_model_imports_neither_pipeline_nor_stages_nor_engines():
    for path in (ROOT / "model").rglob("*.py"):
        rooms = imports(path, everywhere=True)
        assert not rooms & ({"pipeline", "stages"} | ENGINES), path.name


def test_pipeline_never_imports_stages():
    for path in (ROOT / "pipeline").rglob("*.py"):
        rooms = imports(path, everywhere=True)
        assert "stages" not in rooms, path.name


def test_light_files_import_no_engine():
    for path in (ROOT / "pipeline").rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
        if "Light" in first:
            rooms = imports(path, everywhere=True)
            assert not rooms & ENGINES, path.name


def test_nothing_outside_tests_imports_tests():
    for path in FILES:
        assert "tests" not in imports(path, everywhere=True), path


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_a_bench_imports_only_what_is_there(path):  # mypy checks the product alone
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        place = ROOT / node.module.removeprefix("codeseg.").replace(".", "/")
        if place.with_suffix(".py").is_file():
            tree = ast.parse(place.with_suffix(".py").read_text())
            known = {name for node in tree.body for name in names_of(node)}
        elif place.is_dir():
            known = {inner.stem for inner in place.iterdir()}
        else:
            continue  # another package's
        assert known >= {alias.name for alias in node.names}, node.module


def names_of(node: ast.stmt) -> set[str]:
    """Names that a statement at the top of a file gives."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    return {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def test_no_room_is_named_for_nothing():
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "common", "helpers", "misc"}


def test_files_are_written_in_one_place_whole_or_not_at_all():
    """A checkpoint is written into a folder that is renamed; all else goes through storage."""
    written = {
        str(path.relative_to(ROOT))
        for path in FILES
        if path.relative_to(ROOT).parts[0] != "bench"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes", "rename")
    }
    assert written <= {"model/checkpoint.py"}
