r"""A page's formulas, TeX between $…$ or $$…$$ -> MathML, which browsers draw by themselves.

pymdownx.arithmatex leaves `\(…\)` and `\[…\]` in elements of class "arithmatex"; they are replaced
when the page is built, so that the site needs no script and no network.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def on_page_content(page_html: str, **_: Any) -> str:
    """MkDocs calls this with each page's HTML."""
    page_html = INLINE.sub(lambda found: mathml(found[1], "inline"), page_html)
    return DISPLAY.sub(lambda found: mathml(found[1], "block"), page_html)


def mathml(tex: str, display: str) -> str:
    """One formula; a name that the converter does not know is refused rather than shown as text.

    Raises:
        ValueError: naming the formula.
    """
    formula = convert(html.unescape(tex).strip(), display=display)
    if "\\" in re.sub(r"<[^>]*>", "", formula):
        raise ValueError(f"formula {tex.strip()!r} has a command that becomes no MathML")
    return formula if display == "inline" else f'<div class="formula">{formula}</div>'
