"""Data never reach a terminal raw, no pipe or encoding loses work, ~ is the home folder."""

import json
import os
import subprocess
import sys

import pytest

from codeseg.stages.terminal import expand_home, visible
from tests.helpers.audit_data import make_root

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\x7f"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("data") / "root")


def codeseg(*arguments, **options):
    command = [sys.executable, "-m", "codeseg", *map(str, arguments)]
    return subprocess.run(
        command, capture_output="stdout" not in options, check=False, timeout=300, **options
    )


def is_harmless(output):
    text = output.decode()
    return not any(character in text for character in "\x1b\x07\x9b\x7f\u202e")


def test_control_characters_are_shown_and_lines_stay():
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible(EVIL) == r"\x1b]0;title\x07\x1b[2J\x9b31m\u202e\x7f"


@pytest.mark.slow
def test_no_answer_and_no_error_of_sql_reaches_the_terminal_raw(root):
    answer = codeseg("audit", root, "--sql", f"SELECT '{EVIL}' AS \"{EVIL}\"")
    assert answer.returncode == 0 and is_harmless(answer.stdout)
    assert answer.stdout.count(rb"\x1b") == 4
    error = codeseg("audit", root, "--sql", f"SELECT error('{EVIL}')")
    assert error.returncode == 2 and is_harmless(error.stderr) and rb"\x1b" in error.stderr
    shell = codeseg("audit", root, "--shell", input=f"SELECT error('{EVIL}');\n".encode())
    assert is_harmless(shell.stdout + shell.stderr)


def test_a_path_of_control_characters_is_shown_in_its_error(tmp_path):
    error = codeseg("status", tmp_path / EVIL)
    assert error.returncode == 2 and is_harmless(error.stderr)


def test_a_reader_that_has_gone_loses_no_file(root, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = codeseg("audit", root, "--json", tmp_path / "a.json", stdout=write)
    os.close(write)
    assert done.returncode == 0
    assert json.loads((tmp_path / "a.json").read_text())["checks"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_of_stdout_loses_neither_the_table_nor_the_file(root, tmp_path, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    sql = "SELECT '–█' AS x"
    done = codeseg("audit", root, "--sql", sql, "--json", tmp_path / "a.json", env=environment)
    assert done.returncode == 0 and b"x" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text()) == [{"x": "–█"}]


def test_a_tilde_is_the_home_folder_in_every_option(root, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = codeseg("audit", root, "--sql", "SELECT 1 AS x", "--json=~/a.json", env=environment)
    assert done.returncode == 0 and (tmp_path / "a.json").is_file()


def test_only_a_tilde_that_begins_a_path_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["~", "~/a", "--out=~/a", "data.root=~/a", "a~/b", "~other/a", "--text=a ~/b", "~5"]
    assert expand_home(given) == [
        "/home/me", "/home/me/a", "--out=/home/me/a", "data.root=/home/me/a", *given[4:]
    ]  # fmt: skip
