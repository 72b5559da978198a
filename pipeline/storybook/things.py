"""What a storybook scene may hold, read from world.toml, and how one thing of it is drawn.

In: the thing's marks in its own unit square, its place and size. Out: marks on the picture and, at
the same places, the class number on the label map. Coordinates are rounded to whole pixels, so
every machine draws the same bytes.
"""

import tomllib
from pathlib import Path
from typing import Any

from PIL import ImageDraw

Colour = tuple[int, int, int]

WORLD: dict[str, Any] = tomllib.loads(Path(__file__).with_name("world.toml").read_text())
THINGS: dict[str, Any] = WORLD["things"]


def shade(colour: Colour, amount: float) -> Colour:
    """Return a lighter (amount > 0, towards white) or darker (amount < 0, towards black) color."""
    target = 255 if amount > 0 else 0
    red, green, blue = (round(c + (target - c) * abs(amount)) for c in colour)
    return red, green, blue


def draw_thing(
    picture: ImageDraw.ImageDraw,
    label: ImageDraw.ImageDraw,
    name: str,
    colour: str,
    centre: tuple[float, float],
    half: float,
    mirror: bool,
) -> None:
    """Draw one thing on the picture and on the label map.

    Args:
        picture: RGB.
        label: gets the thing's class number.
        name: of THINGS.
        colour: of the world's colors.
        centre: x and y, pixels.
        half: half the extent, pixels.
        mirror: swap left and right.
    """
    number, side = list(THINGS).index(name), -1 if mirror else 1
    for mark in THINGS[name]["marks"]:
        ink = tuple(mark.get("colour") or shade(WORLD["colours"][colour], mark.get("shade", 0)))
        (kind,) = mark.keys() - {"colour", "shade", "width"}
        points = mark[kind]
        if kind in ("box", "oval"):
            left, top, right, bottom = points
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        places = [
            (round(centre[0] + side * u * half), round(centre[1] + v * half)) for u, v in points
        ]
        for pen, fill in ((picture, ink), (label, number)):
            if kind == "oval":
                pen.ellipse([*min(places[0], places[1]), *max(places[2], places[3])], fill=fill)
            elif kind == "line":
                pen.line(places, fill=fill, width=max(1, round(mark["width"] * half)))
            else:
                pen.polygon(places, fill=fill)
