"""Terminal input and output: arguments, text, progress. Light to import.

In: this process's streams and arguments. Out: streams that escape control characters, replace
characters outside their encoding, and survive a closed pipe; arguments with ~ expanded;
progress over a known number of items: a bar on a terminal, or else an occasional plain line.
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
"""Control characters, and those that change the text direction -> their escapes."""

HOME = re.compile(r"((?:--)?[\w.-]+=|)~(?=/|$)")  # a shell does not expand ~ after "="


def visible(text: str) -> str:
    """Return the text with its control characters escaped."""
    return text.translate(HIDDEN)


class _Stream(io.TextIOWrapper):
    """A text stream that ignores a closed pipe: the work must continue without its output."""

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
    """Replace stdout and stderr by guarded streams."""
    # Rich passes every text through this table, which does not escape ESC itself.
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
    """Expand ~ in arguments to the home folder, also in --option=~/folder."""
    home = os.path.expanduser("~")
    found = [(text, HOME.match(text)) for text in arguments]
    return [m[1] + home + text[m.end() :] if m else text for text, m in found]


def progress(items: Sequence[str], what: str, console: "Console") -> Iterator[str]:
    """Yield items and show progress on the console; `what` names the work ("segmenting")."""
    if console.file.isatty():
        from rich.progress import track  # imported late: most commands do not need it

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
