"""Typed words -> the things to look for, each with its names. Light: text only.

A comma separates things, a slash joins the names of one thing: "dog, red car, sofa/couch".
"""

from collections.abc import Iterable, Iterator, Sequence

BACKGROUND = "background"  # the name of pixels that no word fits; no thing may have it
Thing = tuple[str, ...]  # the names of one thing; results use the first
Words = str | Iterable[str | Sequence[str]]
"""A text in the syntax above, or a list of such texts and of lists of names, used unchanged."""


def read_words(words: Words, background: bool = False) -> tuple[Thing, ...]:
    """Return the things that words name, in order.

    Args:
        words: see `Words`; white space around names and empty parts are ignored.
        background: whether pixels may be background; then that word is no valid name.

    Raises:
        ValueError: there is no thing, or a name occurs twice.
    """
    entries = [words] if isinstance(words, str) else list(words)
    things = tuple(_things(entries))
    if not things:
        raise ValueError('name the things to find, for example "dog, red car, sofa/couch"')
    typed = _things(entry for entry in entries if isinstance(entry, str))
    if background and any(BACKGROUND in map(str.casefold, thing) for thing in typed):
        raise ValueError(f"{BACKGROUND!r} means pixels that no word fits: leave out the word")
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
