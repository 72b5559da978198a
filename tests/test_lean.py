"""The lean line: what only trains, scores or segments never loads the offline engines."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("ray", "spacy", "img2dataset", "duckdb", "pandas")
COMMANDS = ("train", "evaluate", "score", "segment")

IMPORT_WITHOUT_ENGINES = """
import importlib.abc, importlib.machinery, sys

class Refuse(importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in {engines!r}:
            return importlib.machinery.ModuleSpec(name, self, origin="refused")

    def exec_module(self, module):
        name = module.__name__
        raise ModuleNotFoundError(f"{{name}} is an offline engine", name=name)

sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    importlib.import_module(module)
{then}
"""


def run_without_engines(modules, then=""):
    code = IMPORT_WITHOUT_ENGINES.format(engines=ENGINES, modules=modules, then=then)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
def test_model_and_light_commands_import_without_any_engine():
    paths = sorted((ROOT / "model").rglob("[!_]*.py"))
    modules = ["codeseg." + ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
    modules += [f"codeseg.stages.{name}" for name in COMMANDS]
    done = run_without_engines(modules)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_runs_without_any_engine(tmp_path):
    then = f"""
from pathlib import Path
from codeseg.stages.training.loop import fit
from tests.helpers.tiny_run import make_root, tiny_recipe
root = make_root(Path({str(tmp_path)!r}))
assert fit(root, Path({str(tmp_path)!r}) / "run", tiny_recipe(root, "train.steps=2"))
"""
    done = run_without_engines(["codeseg.stages.train", "codeseg.stages.training.loop"], then)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_the_refusal_works(engine):
    assert "is an offline engine" in run_without_engines([engine]).stderr
