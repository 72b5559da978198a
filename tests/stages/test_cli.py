"""The command line: quick help, one-line errors, exit codes."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from codeseg.stages.cli import COMMANDS, app, load_command
from codeseg.stages.training.processes import Processes

HEAVY = ("torch", "ray", "spacy", "duckdb", "img2dataset", "pandas", "pyarrow", "numpy")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "codeseg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_help_lists_every_command():
    shown = run("--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in COMMANDS)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['codeseg', '--help']\n"
        "from codeseg.stages.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stderr.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_explains_itself(name):
    command = load_command(name)
    assert command.name == name
    assert command.help and len(command.help) > 40


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_no_square_brackets_that_rich_would_swallow_as_markup(name):
    texts = [getattr(parameter, "help", None) or "" for parameter in load_command(name).params]
    assert not [text for text in texts if "[" in text]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_cuts_no_option_name_on_a_narrow_terminal(name):
    shown = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, [name, "--help"])
    options = [o for parameter in load_command(name).params for o in parameter.opts if "--" in o]
    assert shown.exit_code == 0 and all(option in shown.output for option in options)


def test_unknown_command_is_wrong_use():
    failed = run("paint")
    assert failed.returncode == 2
    assert "paint" in failed.stderr


def test_missing_root_is_one_line_and_exit_2(tmp_path):
    pytest.importorskip("spacy")  # or the missing tagger is the first thing that is said
    failed = run("nouns", str(tmp_path / "absent"))
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert str(tmp_path / "absent") in failed.stderr.replace("\n", "")


def test_a_file_where_a_folder_belongs_is_one_line_and_exit_2(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "list.tsv").write_text("a dog\thttp://h/a.jpg\n")
    failed = run("download", "cc3m", str(tmp_path / "file"), "--urls", str(tmp_path / "list.tsv"))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert str(tmp_path / "file") in failed.stderr


def test_features_without_nouns_says_so_before_it_fetches_a_clip(tmp_path):
    failed = run("features", str(tmp_path / "absent"))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "run `codeseg nouns" in failed.stderr


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="none of auto, cpu, cuda"):
        Processes.start("tpu")


def test_threads_wait_without_spinning_wherever_torch_loads(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = (
        "import os, sys, codeseg\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["PASSIVE", "0"]


def test_a_misspelled_command_recipe_or_setting_is_answered_with_the_nearest():
    for words, hint in (
        (["downlod"], "did you mean download?"),
        (["train", "root", "run", "--recipe", "storybok"], "did you mean storybook or"),
        (["train", "root", "run", "--set", "train.stepz=1"], "did you mean train.steps"),
    ):
        done = run(*words)
        assert done.returncode == 2 and hint in " ".join(done.stderr.split()), done.stderr


def test_a_misspelled_recipe_is_refused_before_torch_is_loaded():
    script = """
import sys
from codeseg.stages.cli import main
sys.argv = ["codeseg", "train", "root", "run", "--recipe", "storybok"]
try:
    main()
except SystemExit as end:
    assert end.code == 2
assert "torch" not in sys.modules and "pyarrow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
