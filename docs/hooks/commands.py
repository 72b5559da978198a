"""`python docs/hooks/commands.py`: the command line -> docs/commands.md, one section a command.

The page is committed, so that it reads on a code host too; tests/docs/test_commands.py holds it to
what the commands say today.
"""

import importlib
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/commands.md"
sys.path.insert(0, str(ROOT))  # a source tree need not be installed to be documented

from codeseg.stages.cli import COMMANDS, load_command  # noqa: E402 - found by the line above

PLACEHOLDERS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
HEAD = """# Command reference

Made from the commands' own `--help` by `python docs/hooks/commands.py`; do not edit it by hand.
Every command exits with 0 (ok), 1 (the work failed or fell short; for `audit` only checks named by
`--fail-on`) or 2 (wrong use; one line says what is wrong and what to do, and
[troubleshooting](troubleshooting.md) lists these lines).

"""


def page() -> str:
    """The whole page as Markdown."""
    overview = ["| command | what it does |", "|---|---|"]
    overview += [f"| [`{name}`](#codeseg-{name}) | {COMMANDS[name]} |" for name in COMMANDS]
    return HEAD + "\n".join(overview) + "\n" + "".join(section(name) for name in COMMANDS)


def section(name: str) -> str:
    """One command: its help, its line of use, its arguments and options."""
    command = load_command(name)
    function = getattr(importlib.import_module(f"codeseg.stages.{name}"), name)
    hints = get_type_hints(function)
    arguments = [p for p in command.params if not is_option(p)]
    options = [p for p in command.params if is_option(p)]
    use = " ".join(["codeseg", name, *map(argument_use, arguments)])
    use += " [OPTIONS]" if options else ""
    parts = [f"\n## codeseg {name}\n", f"{command.help}\n", f"```sh\n{use}\n```\n"]
    if arguments:
        rows = [row(f"`{p.name.upper()}`", default(p), p.help) for p in arguments]
        parts.append(table("argument", rows))
    if options:
        rows = [row(option_use(p, hints[p.name]), default(p), p.help) for p in options]
        parts.append(table("option", rows))
    return "\n".join(parts)


def is_option(parameter: Any) -> bool:
    """Whether a parameter is given by name."""
    return bool(parameter.opts[0].startswith("-"))


def argument_use(parameter: Any) -> str:
    """An argument as the line of use shows it: brackets when it may be left out, dots when many."""
    text = parameter.name.upper() + ("…" if parameter.nargs == -1 else "")
    return text if parameter.required else f"[{text}]"


def option_use(parameter: Any, hint: Any) -> str:
    """An option with the place of its value: `--limit N`; `--a / --b` for a switch."""
    names = " / ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.is_flag:
        return names
    kinds = [kind for kind in (hint, *get_args(hint)) if kind in PLACEHOLDERS]
    kinds += [kind for part in get_args(hint) for kind in get_args(part) if kind in PLACEHOLDERS]
    value = parameter.metavar or (PLACEHOLDERS[kinds[0]] if kinds else "TEXT")
    return names.removesuffix("`") + f" {value}`" + (", repeatable" if parameter.multiple else "")


def default(parameter: Any) -> str:
    """What holds when it is not given; empty where nothing does or the help says it."""
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value is False or value == () or callable(value):
        return ""
    return "on" if value is True else f"`{value}`"


def row(*cells: str | None) -> str:
    """A line of a table; a bar inside a cell would end it."""
    return "| " + " | ".join((cell or "").replace("|", "\\|") for cell in cells) + " |"


def table(kind: str, rows: list[str]) -> str:
    """A table of arguments or options."""
    return "\n".join([f"| {kind} | default | what |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(COMMANDS)} commands")
