"""Words as people type them -> the things to look for, each by its names. Light: text alone.

A comma separates things, a slash joins the names of one thing: "dog, red car, sofa/couch".
"""

from collections.abc import Iterable, Iterator, Sequence

BACKGROUND = "background"
"""What no word claims; a name that no thing can have beside it."""

Thing = tuple[str, ...]
"""The names of one thing; the first is what results call it."""
Words = str | Iterable[str | Sequence[str]]
"""A text in the grammar above, or a list of such texts and of lists of names, taken as they are."""


def read_words(words: Words, background: bool = False) -> tuple[Thing, ...]:
    """Return the things that words ask for, in their order.

    Args:
        words: see `Words`; white space around names and empty parts do not count.
        background: pixels may also be background, which then nobody may type.

    Raises:
        ValueError: there is no thing, or a name stands twice.
    """
    entries = [words] if isinstance(words, str) else list(words)
    things = tuple(_things(entries))
    if not things:
        raise ValueError('name the things to find, for example "dog, red car, sofa/couch"')
    typed = _things(entry for entry in entries if isinstance(entry, str))
    if background and any(BACKGROUND in map(str.casefold, thing) for thing in typed):
        raise ValueError(f"{BACKGROUND!r} is what no word fits: leave it out, or do without it")
    seen = set()
    for name in (name for thing in things for name in thing):
        if name.casefold() in seen:
            raise ValueError(f"{name!r} is named twice: name it once")
        seen.add(name.casefold())
    return things


def _things(words: Iterable[str | Sequence[str]]) -> Iterator[Thing]:
    for entry in words:
        parts = entry.split(",") if isinstance(entry, str) else [entry]
        for names in (part.split("/") if isinstance(part, str) else part for part in parts):
            if thing := tuple(name for raw in names if (name := " ".join(raw.split()))):
                yield thing
