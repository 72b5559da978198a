"""docs/commands.md is what the commands say today."""

import subprocess
import sys

from codeseg.stages.cli import COMMANDS, load_command
from tests.helpers.pages import ROOT


def test_the_reference_is_current():
    code = "from commands import PAGE, page; assert page() == PAGE.read_text(), 'stale'"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "docs/hooks",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `python docs/hooks/commands.py`\n{done.stderr[-500:]}"


def test_every_command_and_option_is_in_it():
    text = (ROOT / "docs/commands.md").read_text()
    for name in COMMANDS:
        section = text.partition(f"\n## codeseg {name}\n")[2].partition("\n## ")[0]
        for parameter in load_command(name).params:
            shown = (
                parameter.opts if parameter.opts[0].startswith("-") else [parameter.name.upper()]
            )
            assert all(word in section for word in shown), f"{name}: {shown}"
