"""What a browser sends -> pixels and words, or one line that says why not. Nothing is opened.

A picture comes as the text of its bytes (a data: URL), never as a file's name or an address; words
come as plain strings. Anything else is refused here, before it reaches a model.
"""

import base64
import binascii
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from codeseg.model.pictures.pixels import Pixels

MAX_BYTES = 20_000_000
"""Of a picture's file."""
MAX_PIXELS = 50_000_000
"""Of a picture: a phone's 48 megapixels pass."""
MAX_SIDE = 1024
"""Larger pictures are shrunk to it: a session's memory and its answers stay small."""
MAX_WORDS = 20
MAX_WORD = 100
"""Characters of a word."""
MAX_CAPTION = 500
"""Characters of a caption."""


def picture(sent: object) -> "Pixels":
    """Read the picture that was dropped.

    Args:
        sent: `data:image/…;base64,…`, what a browser's FileReader makes of a file.

    Returns:
        uint8 H×W×3, its sides at most MAX_SIDE.

    Raises:
        ValueError: not such a text, too large, no picture, or too many pixels.
    """
    from codeseg.model.pictures.pixels import rgb_pixels

    if not isinstance(sent, str) or not sent.startswith("data:"):
        raise ValueError("a picture must come as its bytes: drop a file or choose one")
    content = sent.partition(",")[2]
    check_size(len(content) * 3 // 4)
    try:
        file = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the picture did not arrive whole: drop it again") from None
    return shrink(rgb_pixels(file, MAX_PIXELS))


def check_size(size: object) -> None:
    """Refuse a file of so many bytes.

    Raises:
        ValueError: it is too large.
    """
    if not isinstance(size, int) or size > MAX_BYTES:
        raise ValueError(
            f"the picture has more than {MAX_BYTES // 1_000_000} MB; make it smaller first"
        )


def shrink(pixels: "Pixels") -> "Pixels":
    """Bring the longer side to MAX_SIDE where it is beyond."""
    height, width = pixels.shape[:2]
    scale = MAX_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def words(sent: object, what: str = "word") -> tuple[str, ...]:
    """Read the words to look for.

    Args:
        sent: a list of strings.
        what: what one of them is called in a message.

    Raises:
        ValueError: none, too many, a repeated, blank or overlong one, or no list of strings.
    """
    if not isinstance(sent, list) or not all(isinstance(word, str) for word in sent):
        raise ValueError(f"give a list of {what}s")
    found = tuple(word.strip() for word in sent)
    if not found:
        raise ValueError(f"type at least one {what} and press Enter")
    if len(found) > MAX_WORDS:
        raise ValueError(f"{len(found)} {what}s are too many: at most {MAX_WORDS} at a time")
    for word in found:
        if not word:
            raise ValueError(f"a {what} is blank: remove it")
        if len(word) > MAX_WORD:
            raise ValueError(f"a {what} is longer than {MAX_WORD} characters: shorten it")
        if found.count(word) > 1:
            raise ValueError(f"the {what} {word!r} is there twice: remove one")
    return found


def caption(sent: object) -> str:
    """Read a caption.

    Raises:
        ValueError: it is blank, too long or no text.
    """
    if not isinstance(sent, str) or not sent.strip():
        raise ValueError("type a caption of the picture")
    if len(sent) > MAX_CAPTION:
        raise ValueError(f"the caption is longer than {MAX_CAPTION} characters: shorten it")
    return sent.strip()


def share(sent: object, what: str) -> float:
    """Read a slider's value, 0..1.

    Raises:
        ValueError: it is no such number.
    """
    if isinstance(sent, bool) or not isinstance(sent, int | float) or not 0 <= sent <= 1:
        raise ValueError(f"the {what} must be a number from 0 to 1")
    return float(sent)
