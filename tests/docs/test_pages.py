"""Every command on every page is one that exists: its options and arguments parse.

Blocks that are marked are run, too: tests/docs/test_run_pages.py.
"""

import re
import tomllib
from pathlib import Path

import pytest

from codeseg import PUBLIC
from codeseg.model.inference.settings import read_settings
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.manifests import load_manifest, parse_manifest
from codeseg.stages.cli import COMMANDS, load_command
from codeseg.stages.training.recipes import resolve
from tests.helpers.pages import MARK, PAGES, ROOT, blocks, commands, inline_code

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [
    (block.page.name, words)
    for block in BLOCKS
    if block.language == "sh" and block.page.name != "commands.md"
    for words in commands(block.text)
]
PLACEHOLDER = re.compile(r"[A-Z_]{2,}|.*[$…].*")
"""ROOT, DIR … and shell variables stand for what a user puts there."""


def codeseg_words(words: list[str]) -> list[str] | None:
    """What follows `codeseg`, however it is called; None for another program."""
    if words[0].rpartition("/")[2] == "codeseg":
        return words[1:]
    module = words[0].startswith(("python", "torchrun")) and "codeseg" in words
    return words[words.index("codeseg") + 1 :] if module else None


CODESEG = [(page, given) for page, words in SHELL if (given := codeseg_words(words)) is not None]
ROOMS = ("pipeline", "model", "stages")
MODULES = [
    (page, words[2:])
    for page, words in SHELL
    if words[0].startswith("python") and words[1:2] == ["-m"]
]
INLINE = [(page.name, code.split()) for page in PAGES for code in inline_code(page)]


def known(value: object) -> bool:
    """Whether a value is one of ours by name, neither a placeholder nor a user's own file."""
    named = isinstance(value, str) and not value.endswith(".toml")
    return named and not PLACEHOLDER.fullmatch(value)


@pytest.mark.parametrize(("page", "words"), CODESEG)
def test_codeseg_accepts_the_line(page, words):
    if words[0].startswith("--"):
        assert words[0] in ("--help", "--version")
        return
    context = load_command(words[0]).make_context(words[0], list(words[1:]))
    given = {name: value for name, value in context.params.items() if known(value)}
    if words[0] == "train" and "recipe" in given:
        resolve(given["recipe"], None, [s for s in context.params["set_"] or () if known(s)])
    if words[0] == "download" and "manifest" in given:
        load_manifest(given["manifest"])
    if words[0] == "evaluate" and "benchmark" in given:
        load_benchmark(given["benchmark"])


@pytest.mark.parametrize("words", [["train", "data"], ["evaluate", "--bench", "voc"], ["status"]])
def test_a_line_that_codeseg_does_not_accept_is_noticed(words):
    with pytest.raises(Exception, match=r"Missing|No such option"):
        load_command(words[0]).make_context(words[0], words[1:])


@pytest.mark.parametrize(
    ("page", "words"), [(page, words[1:]) for page, words in INLINE if words[0] == "codeseg"]
)
def test_codeseg_in_a_sentence_names_a_command_and_its_options(page, words):
    if not words or PLACEHOLDER.fullmatch(words[0]) or words[0].startswith("--"):
        return
    assert words[0] in COMMANDS
    options = {name for p in load_command(words[0]).params for name in (*p.opts, *p.secondary_opts)}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= options | {"--help"}


@pytest.mark.parametrize(
    ("page", "words"),
    MODULES + [(page, words[2:]) for page, words in INLINE if words[:2] == ["python", "-m"]],
)
def test_python_m_names_a_module_of_ours_and_its_options(page, words):
    if words[0] in ("http.server", "spacy", "pytest", "venv", "pip"):
        return
    source = (ROOT / (words[0].replace(".", "/") + ".py")).read_text()
    for option in (word for word in words if word.startswith("--")):
        argument = option.removeprefix("--").replace("-", "_")
        assert f'"{option}"' in source or f"    {argument}: " in source, option


@pytest.mark.parametrize(
    ("page", "target"), [(p, w[1]) for p, w in [*SHELL, *INLINE] if w[0] == "make" and len(w) == 2]
)
def test_make_has_the_target(page, target):
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_extra_that_a_page_installs_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for page in PAGES:
        for named in re.findall(r"(?:codeseg|\.)\[([\w,]+)\]", page.read_text()):
            assert set(named.split(",")) <= extras, page.name


def test_every_file_of_ours_that_a_page_names_is_there():
    ours = re.compile(
        r"\b(?:deploy|tests|bench|data_manifests|docs|model|pipeline|stages)/[\w./-]+\w"
    )
    for page in PAGES:
        for named in ours.findall(page.read_text()):
            if not re.search(r"\b[A-Z]{2,}\b", named):  # NAME.toml stands for any
                assert list(ROOT.glob(named + "*")), f"{page.name}: {named}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_its_language(page):
    text = page.read_text()
    assert all(block.language for block in blocks(page))
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks(page))
    marks = [line for line in text.splitlines() if line.strip() == MARK]
    assert len(marks) == sum(block.run for block in blocks(page))


@pytest.mark.parametrize(
    "text", [block.text for block in BLOCKS if block.language == "toml"], ids=lambda text: text[:20]
)
def test_every_manifest_of_a_page_is_right(text, tmp_path):
    path: Path = tmp_path / "page.toml"
    path.write_text(text)
    if "classes" in tomllib.loads(text):
        assert load_benchmark(path).texts
    elif "name" not in tomllib.loads(text):
        assert read_settings(path)  # of a run
    else:
        assert parse_manifest(text.encode(), "page").columns is not None


def test_there_is_something_to_check():
    assert len(CODESEG) > 60 and len(MODULES) > 2


def test_the_python_page_documents_the_public_names_and_no_others():
    shown = re.findall(r"^::: codeseg\.([\w.]+)\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    modules = {"pipeline.schema", "pipeline.benchmark.metrics"}
    assert {name: m for m, name in shown if f"{m}.{name}" not in modules} == PUBLIC


def test_the_readmes_tree_has_a_line_for_every_package():
    tree = (ROOT / "README.md").read_text().split("```text\ndata_manifests/")[1].split("```")[0]
    shown = {line.split("/")[0].strip() for line in tree.splitlines() if "/  " in line}
    packages = {path.parent.name for room in ROOMS for path in (ROOT / room).rglob("__init__.py")}
    assert packages <= shown
