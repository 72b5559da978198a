"""What the pages tell a user to type: README, CONTRIBUTING and docs/*.md -> blocks and commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?P<mark><!-- run -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
MARK = "<!-- run -->"
HEREDOC = re.compile(r"<<'EOF'\n.*?^EOF$", re.MULTILINE | re.DOTALL)
NO_COMMAND = {"do", "then", "else", "!", "exec"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    run: bool
    """Marked: run as printed by the tests, on the embedded data."""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(page, found["language"], found["text"], found["mark"] is not None)
        for found in FENCE.finditer(page.read_text(encoding="utf-8"))
    ]


def commands(script: str) -> list[list[str]]:
    """The simple commands of a shell script, each as its words, without variables set before it."""
    script = HEREDOC.sub("", script).replace("\\\n", " ")
    found = []
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";|&"):
                found.append(words)
                words = []
            elif words or (word not in NO_COMMAND and not re.match(r"\w+=", word)):
                words.append(word)
    return [words for words in found if words]


def inline_code(page: Path) -> list[str]:
    """Code inside a page's sentences and tables, line breaks made blanks."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
