"""Templates and values -> HTML: the only place that escapes text and formats numbers.

Captions, host names, class names, file names and settings are untrusted text. They become
HTML only through `fill`, which escapes them; a plain string is never markup.
"""

from collections.abc import Iterable
from html import escape
from typing import Any

MOST = 400  # letters of a value


class Html(str):
    """Text that is HTML already; only `fill` and `join` make it."""


def fill(template: str, *values: object, **named: object) -> Html:
    """Fill in a template's {fields}, escaping all values but Html and numbers."""
    return Html(template.format(*map(_safe, values), **{k: _safe(v) for k, v in named.items()}))


def join(parts: Iterable[Html], between: str = "") -> Html:
    """Join parts, with the escaped text `between` them."""
    return Html(escape(between).join(parts))


def _safe(value: object) -> Html | int | float:
    return value if isinstance(value, Html | int | float) else Html(escape(str(value)))


def readable(value: Any, share: bool = False) -> str:
    """Return a value as text: 1,200, 0.25, 59.7 % (a share), "a · b" (a list)."""
    if isinstance(value, list | tuple):
        return " · ".join(readable(item) for item in value)
    if share and isinstance(value, int | float):
        return f"{100 * value:.3g} %"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = "–" if value is None else str(value)
    return text if len(text) <= MOST else f"{text[:MOST]}… ({len(text):,} letters)"
