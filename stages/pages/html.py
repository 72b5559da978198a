"""Templates and values -> HTML: the only place that escapes, and the number format of all pages.

Captions, host names, class names, file names and settings are untrusted text. They become
HTML only through `fill`, which escapes them; a string is never markup by itself.
"""

from collections.abc import Iterable
from html import escape
from typing import Any

MOST = 400  # letters of a value


class Html(str):
    """Text that is HTML already; only `fill` and `join` make it."""


def fill(template: str, *values: object, **named: object) -> Html:
    """Return a template with its {fields} filled in, escaping all but Html and numbers."""
    return Html(template.format(*map(_safe, values), **{k: _safe(v) for k, v in named.items()}))


def join(parts: Iterable[Html], between: str = "") -> Html:
    """Return the parts in order, with the escaped text `between` them."""
    return Html(escape(between).join(parts))


def _safe(value: object) -> Html | int | float:
    return value if isinstance(value, Html | int | float) else Html(escape(str(value)))


def said(value: Any, share: bool = False) -> str:
    """Return a value in readable form: 1,200 · 0.25 · 59.7 % (a share) · a · b (a list)."""
    if isinstance(value, list | tuple):
        return " · ".join(said(item) for item in value)
    if share and isinstance(value, int | float):
        return f"{100 * value:.3g} %"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = "–" if value is None else str(value)
    return text if len(text) <= MOST else f"{text[:MOST]}… ({len(text):,} letters)"
