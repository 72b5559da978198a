"""Read the contents of storybook's scenes from world.toml, and draw one thing.

In: the thing's marks in its own unit square, its position and size. Out: marks on the picture and,
at the same pixels, the class number on the label map. Coordinates are rounded to whole pixels, so
every machine draws the same bytes.
"""

import tomllib
from pathlib import Path
from typing import Any

from PIL import ImageDraw

Color = tuple[int, int, int]

WORLD: dict[str, Any] = tomllib.loads(Path(__file__).with_name("world.toml").read_text())
THINGS: dict[str, Any] = WORLD["things"]


def shade(color: Color, amount: float) -> Color:
    """Return a lighter (amount > 0, toward white) or darker (amount < 0, toward black) color."""
    target = 255 if amount > 0 else 0
    red, green, blue = (round(c + (target - c) * abs(amount)) for c in color)
    return red, green, blue


def draw_thing(
    picture: ImageDraw.ImageDraw,
    label: ImageDraw.ImageDraw,
    name: str,
    color: str,
    center: tuple[float, float],
    half: float,
    mirror: bool,
) -> None:
    """Draw a thing on the RGB picture and its class number on the label map.

    `center` (x, y) and `half`, half the extent, are in pixels; `mirror` swaps left and right.
    """
    number, side = list(THINGS).index(name), -1 if mirror else 1
    for mark in THINGS[name]["marks"]:
        ink = tuple(mark.get("color") or shade(WORLD["colors"][color], mark.get("shade", 0)))
        (kind,) = mark.keys() - {"color", "shade", "width"}
        points = mark[kind]
        if kind in ("box", "oval"):
            left, top, right, bottom = points
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        places = [
            (round(center[0] + side * u * half), round(center[1] + v * half)) for u, v in points
        ]
        for pen, fill in ((picture, ink), (label, number)):
            if kind == "oval":
                pen.ellipse([*min(places[0], places[1]), *max(places[2], places[3])], fill=fill)
            elif kind == "line":
                pen.line(places, fill=fill, width=max(1, round(mark["width"] * half)))
            else:
                pen.polygon(places, fill=fill)
