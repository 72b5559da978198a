"""`codeseg doctor`: a line a check, what mends it, JSON, the exit code; never a traceback."""

import json

from typer.testing import CliRunner

from codeseg.stages.cli import app

EMBEDDED = ("--clip", "storybook", "--pretrained", "storybook")


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_the_same_lines_go_to_the_screen_and_to_json(tmp_path):
    done = doctor(tmp_path, "--rows", 10, *EMBEDDED, "--json", tmp_path / "doctor.json")
    written = json.loads((tmp_path / "doctor.json").read_text())
    checks = written["checks"]
    assert {"Python", "packages", "packages [pipeline]", "tagger", "GPUs", "name resolution"} <= {
        check["what"] for check in checks
    }
    assert any(check["what"].startswith("disk of") for check in checks)
    for check in checks:
        line = f"{check['state']:<8}{check['what']}: {check['found']}"
        assert line in done.output.splitlines()
        assert check["state"] == "ok" or f"-> {check['mend']}" in done.output
    missing = sum(check["state"] == "missing" for check in checks)
    assert written["missing"] == missing
    assert done.exit_code == (1 if missing else 0)


def test_whatever_is_missing_or_cannot_be_checked_is_a_line_and_exit_1(tmp_path):
    done = doctor(
        tmp_path, "--spacy-model", "no_such_tagger", "--clip", "no-such-clip", "--rows", 10,
        "--ray-address", "127.0.0.1:1",
    )  # fmt: skip
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    lines = done.output.splitlines()
    for what in ("tagger", "CLIP no-such-clip", "disk", "Ray at 127.0.0.1:1"):
        assert any(line.startswith(f"missing {what}") for line in lines), done.output
    assert "Traceback" not in done.output
