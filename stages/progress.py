"""Progress over a known number of items: a bar on a terminal, a plain line now and then else."""

import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import track

SECONDS_BETWEEN_LINES = 20


def progress(items: Sequence[str], what: str, console: Console) -> Iterator[str]:
    """Yield the items and show how far it is.

    Args:
        items: what is worked on.
        what: the work, "segmenting".
        console: where it is shown.
    """
    if console.file.isatty():
        yield from track(items, what, console=console)
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - shown > SECONDS_BETWEEN_LINES:
            shown = now
            left = (now - start) / done * (len(items) - done)
            console.print(f"{what}: {done}/{len(items)}, about {left:.0f} s left")
        yield item
    console.print(f"{what}: {len(items)} in {time.monotonic() - start:.1f} s")
