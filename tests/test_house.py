"""The house keeps its lines: every file is introduced, imports run one way, light stays light."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "model", "stages", "bench")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]
ENGINES = {"ray", "spacy", "img2dataset", "duckdb", "pandas"}


def imports(path: Path, everywhere: bool) -> set[str]:
    """First two parts of what a file imports: at its top, or anywhere in it."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_file_says_what_it_does_and_is_listed(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    if path.name != "__init__.py":
        assert f"`{path.name}`" in (ROOT / "docs/house.md").read_text()


def test_model_imports_neither_pipeline_nor_stages_nor_engines():
    for path in (ROOT / "model").glob("*.py"):
        rooms = {name.split(".")[0] for name in imports(path, everywhere=True)}
        assert not rooms & ({"pipeline", "stages"} | ENGINES), path.name


def test_pipeline_never_imports_stages():
    for path in (ROOT / "pipeline").glob("*.py"):
        rooms = {name.split(".")[0] for name in imports(path, everywhere=True)}
        assert "stages" not in rooms, path.name


def test_light_files_import_no_engine():
    for path in (ROOT / "pipeline").glob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
        if "Light" in first:
            rooms = {name.split(".")[0] for name in imports(path, everywhere=True)}
            assert not rooms & ENGINES, path.name


def test_no_room_is_named_for_nothing():
    names = {path.stem for path in FILES}
    assert not names & {"utils", "common", "helpers", "misc"}
