"""The files that only GitHub, pre-commit and citation tools read, held to what they refer to."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from codeseg.stages.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.fixture
def workflow():
    return load(".github/workflows/ci.yml")


def test_workflow_runs_make_targets_that_exist(workflow):
    lines = [line for step in steps(workflow) for line in step.get("run", "").splitlines()]
    made = [line.split()[1] for line in lines if line.startswith("make ")]
    assert "test" in made and set(made) <= TARGETS


def test_workflow_tests_every_python_that_make_takes(workflow):
    offered = re.findall(r"python(3\.\d+)", (ROOT / "Makefile").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert sorted(matrix) == sorted(set(offered))


def test_workflow_may_read_only_and_publishes_without_a_token(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    wider = {
        name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
    }
    assert wider == {"release": {"id-token": "write"}}
    assert workflow["jobs"]["release"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert "secrets." not in (ROOT / ".github/workflows/ci.yml").read_text()


def test_workflow_pins_actions_and_bounds_jobs(workflow):
    uses = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert all(re.fullmatch(r"[\w./-]+@(v\d+|release/v1|[0-9a-f]{40})", use) for use in uses)
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_release_waits_for_the_tests_and_publishes_what_was_built(workflow):
    jobs = workflow["jobs"]
    assert set(jobs["release"]["needs"]) == {"test", "build"}
    stored = [s["with"]["name"] for s in jobs["build"]["steps"] if "upload" in s.get("uses", "")]
    fetched = [
        s["with"]["name"] for s in jobs["release"]["steps"] if "download" in s.get("uses", "")
    ]
    assert stored == fetched


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_fit_their_published_schemas(schema, pattern):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    files = sorted(map(str, ROOT.glob(pattern)))
    assert files
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_issue_forms_ask_for_commands_that_exist():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir():
        assert set(re.findall(r"`codeseg (\w+)", path.read_text())) <= COMMANDS.keys()


def test_commits_are_held_to_the_linters_of_make():
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    local = [hook["entry"] for hook in hooks if hook.get("language") == "system"]
    makefile = (ROOT / "Makefile").read_text()
    for entry in local:
        tool = entry.removeprefix(".venv/bin/").split(" --")[0]
        assert f"$(BIN)/{tool}" in makefile, entry
    assert {"end-of-file-fixer", "check-added-large-files", "mypy"} <= {
        hook["id"] for hook in hooks
    }


def test_citation_is_of_this_version_and_names_both_papers():
    citation = load("CITATION.cff")
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert [paper["authors"][0]["family-names"] for paper in citation["references"]] == [
        "Wu",
        "Zhang",
    ]


def test_every_file_that_the_security_page_names_exists():
    named = re.findall(r"`([\w/]+\.\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 8
    assert all((ROOT / name).is_file() for name in named)
