"""What passes between a command and its terminal: arguments, text, progress. Light.

In: this process's streams and arguments. Out: streams that show control characters instead of
obeying them, show what their encoding can, and outlive a closed pipe; arguments with ~ expanded;
progress over a known number of items, a bar on a terminal, a plain line now and then else.
"""

import io
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import control

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 20

HIDDEN = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}
"""Control characters, and those that turn the direction of writing, -> how they are shown."""

HOME = re.compile(r"((?:--)?[\w.-]+=|)~(?=/|$)")  # a shell leaves a ~ behind "=" alone


def visible(text: str) -> str:
    """Return the text with its control characters shown instead of obeyed."""
    return text.translate(HIDDEN)


class _Stream(io.TextIOWrapper):
    """A text stream that goes on silently when its reader has gone: the work is not the table."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            return self._close_pipe(len(text))

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._close_pipe(0)

    def _close_pipe(self, written: int) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        return written


def guard_streams() -> None:
    """Put guarded streams in the place of stdout and stderr."""
    # every text that rich shows goes through this table, which leaves ESC alone
    control._CONTROL_STRIP_TRANSLATE.update(HIDDEN)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            guarded = _Stream(
                stream.buffer,
                encoding=stream.encoding,
                errors="replace",
                line_buffering=stream.line_buffering,
            )
            setattr(sys, name, guarded)
    warnings.showwarning = lambda message, *_: print(
        f"warning: {visible(str(message))}", file=sys.stderr
    )


def expand_home(arguments: list[str]) -> list[str]:
    """Return the arguments with ~ for the home folder, also in --option=~/folder."""
    home = os.path.expanduser("~")
    found = [(text, HOME.match(text)) for text in arguments]
    return [m[1] + home + text[m.end() :] if m else text for text, m in found]


def progress(items: Sequence[str], what: str, console: "Console") -> Iterator[str]:
    """Yield the items and show how far it is.

    Args:
        items: what is worked on.
        what: the work, "segmenting".
        console: where it is shown.
    """
    if console.file.isatty():
        from rich.progress import track  # not for every command's start

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
