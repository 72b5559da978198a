"""Sections -> one HTML page that opens offline, years later, also on a phone.

The page contains its styles, charts and pictures, so it can be moved and mailed. Its script sorts
tables and enlarges pictures; its security policy allows no other script and loads nothing.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import Template

from codeseg.pipeline.engine.storage import write_file
from codeseg.stages.pages.html import Html, fill, join


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    html: Html
    note: str = ""


def write_page(path: Path, sections: Sequence[Section], *, title: str, subtitle: str = "") -> None:
    """Write the page atomically."""
    template = (files("codeseg.stages.pages") / "page.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0].encode()
    page = Template(template).substitute(
        title=fill("{}", title),
        subtitle=fill("{}", subtitle),
        script_hash=base64.b64encode(sha256(script).digest()).decode(),
        links=join(fill('<a href="#s{}">{}</a> ', i, s.title) for i, s in enumerate(sections)),
        sections=join(_section(i, section) for i, section in enumerate(sections)),
    )
    write_file(path, page)


def _section(number: int, section: Section) -> Html:
    note = fill('<p class="note">{}</p>', section.note) if section.note else ""
    form = '<section id="s{}"><h2>{}</h2>{}{}</section>\n'
    return fill(form, number, section.title, note, section.html)


def grid(cells: Sequence[Html]) -> Html:
    """Return charts that stand side by side if there is room."""
    return fill('<div class="charts">{}</div>', join(fill("<div>{}</div>", c) for c in cells))


def folded(summary: str, content: Html) -> Html:
    """Return content that is folded behind a summary line."""
    return fill("<details><summary>{}</summary>{}</details>", summary, content)
