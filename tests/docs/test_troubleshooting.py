"""The page of messages cannot rot: each one it quotes is what the sources say today."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "model", "stages")
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
QUOTED = [a or b for a, b in re.findall(r"^#### (?:`` (.+) ``|`(.+)`)$", PAGE, re.MULTILINE)]


def wording(node: ast.AST) -> str | None:
    """A string as written, "…" for each value that is put in; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(wording(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (wording(node.left) or "…") + (wording(node.right) or "…")
    return None


@cache
def messages() -> frozenset[str]:
    """Every string of the three rooms that no documentation is made of."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            tree = ast.parse(path.read_text())
            bare = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            texts = (wording(n) for n in ast.walk(tree) if id(n) not in bare)
            found |= {" ".join(text.split()) for text in texts if text}
    return frozenset(found)


def occurs(quoted: str) -> bool:
    """Whether a message of the sources reads so, a "…" of the page standing for anything."""
    pattern = ".*".join(re.escape(part) for part in re.split("…+", quoted))
    return any(re.fullmatch(pattern, message) for message in messages())


def test_the_page_quotes_many_messages_each_once():
    assert len(QUOTED) == PAGE.count("\n#### ") > 60
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_sources(quoted):
    assert occurs(quoted)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_says_something_besides_its_holes(quoted):
    assert len(re.findall("[a-z]{2,}", quoted)) >= 1


def test_a_message_that_nobody_says_is_noticed():
    assert not occurs("there is no URL list …: get it from … and name it with --urls FILE")
