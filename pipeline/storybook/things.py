"""How each storybook thing looks: a function a thing, drawn with a pen in its own unit square.

In: a `Pen` (place, size, class number) and a main color. Out: marks on the picture and, at the
same places, the class number on the label map. Coordinates run from -1 (left, top) to 1 (right,
bottom); the pen rounds them to whole pixels, so every machine draws the same bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (214, 58, 52),
    "orange": (240, 140, 45),
    "yellow": (247, 208, 63),
    "green": (62, 150, 78),
    "blue": (52, 104, 200),
    "purple": (134, 78, 172),
    "pink": (240, 138, 176),
    "white": (246, 246, 242),
    "brown": (136, 88, 52),
    "black": (48, 46, 54),
    "grey": (150, 154, 162),
}


def shade(colour: Colour, amount: float) -> Colour:
    """Lighter (amount > 0, toward white) or darker (amount < 0, toward black)."""
    target = 255 if amount > 0 else 0
    red, green, blue = (round(c + (target - c) * abs(amount)) for c in colour)
    return red, green, blue


@dataclass(frozen=True)
class Pen:
    """Draws one thing on the picture and on the label map at once."""

    picture: ImageDraw.ImageDraw
    label: ImageDraw.ImageDraw
    number: int  # class number
    x: float  # center, pixels of the (supersampled) canvas
    y: float
    half: float  # half the extent, pixels
    mirror: bool

    def _at(self, point: Point) -> tuple[int, int]:
        u = -point[0] if self.mirror else point[0]
        return round(self.x + u * self.half), round(self.y + point[1] * self.half)

    def polygon(self, colour: Colour, *points: Point) -> None:
        """A filled polygon."""
        placed = [self._at(point) for point in points]
        self.picture.polygon(placed, fill=colour)
        self.label.polygon(placed, fill=self.number)

    def box(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        """A filled rectangle."""
        self.polygon(colour, (left, top), (right, top), (right, bottom), (left, bottom))

    def oval(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        """A filled ellipse."""
        (x0, y0), (x1, y1) = self._at((left, top)), self._at((right, bottom))
        corners = (min(x0, x1), y0, max(x0, x1), y1)
        self.picture.ellipse(corners, fill=colour)
        self.label.ellipse(corners, fill=self.number)

    def line(self, colour: Colour, width: float, *points: Point) -> None:
        """A polyline, `width` in units of the thing."""
        placed = [self._at(point) for point in points]
        pixels = max(1, round(width * self.half))
        self.picture.line(placed, fill=colour, width=pixels)
        self.label.line(placed, fill=self.number, width=pixels)


def house(pen: Pen, colour: Colour) -> None:
    """Walls, a gable roof, a door and two windows."""
    pen.box(shade(colour, -0.25), 0.42, -0.95, 0.66, -0.3)
    pen.box(colour, -0.8, -0.15, 0.8, 0.95)
    pen.box(shade(colour, -0.18), 0.45, -0.15, 0.8, 0.95)
    pen.polygon((120, 62, 50), (-1.0, -0.1), (0, -0.95), (1.0, -0.1))
    pen.box((92, 60, 44), -0.18, 0.35, 0.18, 0.95)
    pen.box((190, 224, 246), -0.65, 0.1, -0.32, 0.45)
    pen.box((190, 224, 246), 0.32, 0.1, 0.65, 0.45)


def tree(pen: Pen, colour: Colour) -> None:
    """A trunk under a crown of three rounds."""
    pen.box((112, 74, 46), -0.13, 0.2, 0.13, 1.0)
    pen.oval(shade(colour, -0.2), -0.85, -0.45, 0.1, 0.45)
    pen.oval(shade(colour, -0.1), -0.1, -0.45, 0.85, 0.45)
    pen.oval(colour, -0.55, -1.0, 0.55, 0.15)
    pen.oval(shade(colour, 0.2), -0.3, -0.85, 0.1, -0.45)


def car(pen: Pen, colour: Colour) -> None:
    """A body, a cabin with windows and two wheels."""
    pen.polygon(colour, (-0.5, 0.05), (-0.3, -0.4), (0.35, -0.4), (0.6, 0.05))
    pen.polygon((200, 230, 246), (-0.38, 0.02), (-0.22, -0.3), (0.0, -0.3), (0.0, 0.02))
    pen.polygon((200, 230, 246), (0.08, 0.02), (0.08, -0.3), (0.3, -0.3), (0.46, 0.02))
    pen.box(colour, -1.0, 0.0, 1.0, 0.42)
    pen.box(shade(colour, -0.3), -1.0, 0.28, 1.0, 0.42)
    for x in (-0.55, 0.55):
        pen.oval((40, 40, 46), x - 0.24, 0.2, x + 0.24, 0.68)
        pen.oval((180, 182, 188), x - 0.1, 0.34, x + 0.1, 0.54)


def boat(pen: Pen, colour: Colour) -> None:
    """A hull with a mast and two sails."""
    pen.box((100, 70, 48), -0.05, -1.0, 0.05, 0.4)
    pen.polygon((250, 248, 238), (0.1, -0.9), (0.1, 0.25), (0.85, 0.25))
    pen.polygon((226, 224, 214), (-0.1, -0.7), (-0.1, 0.25), (-0.7, 0.25))
    pen.polygon(colour, (-1.0, 0.38), (1.0, 0.38), (0.65, 0.9), (-0.65, 0.9))
    pen.polygon(shade(colour, -0.3), (-0.83, 0.64), (0.83, 0.64), (0.65, 0.9), (-0.65, 0.9))


def kite(pen: Pen, colour: Colour) -> None:
    """A diamond in two tones with a tail of bows."""
    pen.line((90, 90, 96), 0.07, (0, 0.4), (0.25, 0.65), (0.0, 1.0))
    pen.polygon(colour, (0, -1.0), (0.62, -0.3), (0, 0.5))
    pen.polygon(shade(colour, 0.35), (0, -1.0), (-0.62, -0.3), (0, 0.5))
    pen.line(shade(colour, -0.4), 0.07, (-0.62, -0.3), (0.62, -0.3))
    pen.polygon(shade(colour, -0.2), (0.05, 0.55), (0.45, 0.5), (0.45, 0.8), (0.05, 0.75))


def balloon(pen: Pen, colour: Colour) -> None:
    """A hot-air balloon: a striped envelope, ropes and a basket."""
    pen.line((110, 84, 60), 0.06, (-0.4, 0.2), (-0.16, 0.7))
    pen.line((110, 84, 60), 0.06, (0.4, 0.2), (0.16, 0.7))
    pen.oval(colour, -0.75, -1.0, 0.75, 0.4)
    pen.oval((250, 244, 220), -0.42, -1.0, 0.42, 0.4)
    pen.oval(colour, -0.16, -1.0, 0.16, 0.4)
    pen.box((134, 92, 56), -0.22, 0.66, 0.22, 1.0)


def bird(pen: Pen, colour: Colour) -> None:
    """A body with a raised wing, a tail, a beak and an eye."""
    pen.polygon(shade(colour, -0.2), (-0.4, 0.05), (-1.0, -0.2), (-0.95, 0.3))
    pen.oval(colour, -0.55, -0.25, 0.55, 0.45)
    pen.oval(colour, 0.25, -0.55, 0.8, 0.05)
    pen.polygon((240, 150, 40), (0.75, -0.35), (1.0, -0.2), (0.75, -0.1))
    pen.polygon(shade(colour, -0.35), (-0.25, 0.0), (0.3, 0.0), (-0.3, -0.95))
    pen.oval((30, 30, 34), 0.5, -0.4, 0.62, -0.28)


def fish(pen: Pen, colour: Colour) -> None:
    """A striped oval with a tail fin and an eye."""
    pen.polygon(shade(colour, -0.25), (-0.45, 0), (-1.0, -0.5), (-1.0, 0.5))
    pen.polygon(shade(colour, -0.25), (-0.1, -0.3), (0.35, -0.7), (0.35, -0.3))
    pen.oval(colour, -0.6, -0.45, 0.95, 0.45)
    pen.box(shade(colour, 0.5), -0.2, -0.4, -0.05, 0.4)
    pen.box(shade(colour, 0.5), 0.2, -0.42, 0.35, 0.42)
    pen.oval((250, 250, 250), 0.5, -0.25, 0.76, 0.01)
    pen.oval((20, 20, 24), 0.58, -0.18, 0.7, -0.06)


def cat(pen: Pen, colour: Colour) -> None:
    """A sitting cat: body, head with pointed ears, tail, whisker-white chin."""
    pen.line(colour, 0.16, (0.4, 0.85), (0.85, 0.75), (0.9, 0.2))
    pen.oval(colour, -0.5, -0.1, 0.5, 1.0)
    pen.polygon(colour, (-0.5, -0.4), (-0.52, -1.0), (-0.1, -0.65))
    pen.polygon(colour, (0.5, -0.4), (0.52, -1.0), (0.1, -0.65))
    pen.oval(colour, -0.55, -0.8, 0.55, 0.15)
    pen.oval(shade(colour, 0.6), -0.25, -0.25, 0.25, 0.1)
    pen.oval((70, 190, 90), -0.36, -0.5, -0.14, -0.26)
    pen.oval((70, 190, 90), 0.14, -0.5, 0.36, -0.26)


def sheep(pen: Pen, colour: Colour) -> None:
    """A woolly cloud on four legs with a dark face."""
    for x in (-0.5, -0.2, 0.2, 0.45):
        pen.box((60, 54, 54), x - 0.07, 0.3, x + 0.07, 0.95)
    for left, top in ((-0.9, -0.3), (-0.6, -0.6), (-0.1, -0.6), (0.1, -0.25), (-0.4, -0.1)):
        pen.oval(colour, left, top, left + 0.75, top + 0.75)
    pen.oval(shade(colour, -0.12), -0.7, 0.1, 0.6, 0.55)
    pen.oval((64, 58, 60), 0.5, -0.5, 1.0, 0.15)
    pen.oval((250, 250, 250), 0.68, -0.35, 0.8, -0.22)


def flower(pen: Pen, colour: Colour) -> None:
    """A stem with two leaves under five petals."""
    pen.box((58, 132, 66), -0.07, 0.0, 0.07, 1.0)
    pen.oval((76, 156, 80), -0.6, 0.45, 0.0, 0.7)
    pen.oval((76, 156, 80), 0.0, 0.55, 0.6, 0.8)
    for x, y in ((0.0, -0.75), (0.42, -0.45), (0.27, 0.02), (-0.27, 0.02), (-0.42, -0.45)):
        pen.oval(colour, x - 0.3, y - 0.28, x + 0.3, y + 0.3)
    pen.oval((250, 214, 70), -0.24, -0.58, 0.24, -0.1)


def mushroom(pen: Pen, colour: Colour) -> None:
    """A pale stem under a spotted cap."""
    pen.box((240, 228, 204), -0.25, 0.0, 0.25, 0.95)
    pen.box((216, 202, 176), 0.08, 0.0, 0.25, 0.95)
    pen.polygon(
        colour, (-1.0, 0.15), (-0.8, -0.4), (-0.35, -0.8), (0.35, -0.8), (0.8, -0.4), (1.0, 0.15)
    )
    pen.oval((252, 248, 240), -0.62, -0.35, -0.3, -0.05)
    pen.oval((252, 248, 240), -0.12, -0.7, 0.24, -0.34)
    pen.oval((252, 248, 240), 0.35, -0.3, 0.65, 0.0)


def sun(pen: Pen, colour: Colour) -> None:
    """A disc with eight rays."""
    ray = shade(colour, 0.1)
    for x, y in ((1.0, 0.0), (0.0, 1.0), (0.7, 0.7), (0.7, -0.7)):
        pen.line(ray, 0.18, (-x, -y), (x, y))
    pen.oval(colour, -0.62, -0.62, 0.62, 0.62)
    pen.oval(shade(colour, 0.4), -0.4, -0.42, 0.1, 0.08)


def cloud(pen: Pen, colour: Colour) -> None:
    """Four puffs on a flat, greyer base."""
    pen.oval(shade(colour, -0.1), -1.0, -0.1, -0.1, 0.5)
    pen.oval(shade(colour, -0.1), 0.1, -0.1, 1.0, 0.5)
    pen.oval(colour, -0.7, -0.5, 0.2, 0.38)
    pen.oval(colour, -0.15, -0.4, 0.7, 0.38)


def airplane(pen: Pen, colour: Colour) -> None:
    """A fuselage with a swept wing, a tail fin and windows."""
    pen.polygon(shade(colour, -0.3), (-0.75, -0.1), (-1.0, -0.7), (-0.7, -0.7), (-0.4, -0.1))
    pen.oval(colour, -0.95, -0.25, 1.0, 0.22)
    pen.polygon(shade(colour, -0.2), (-0.05, 0.0), (0.35, 0.0), (-0.2, 0.8), (-0.5, 0.8))
    pen.polygon(shade(colour, -0.4), (0.0, -0.15), (0.25, -0.15), (-0.1, -0.6), (-0.3, -0.6))
    for x in (-0.3, 0.0, 0.3, 0.6):
        pen.box((110, 170, 220), x, -0.12, x + 0.14, 0.02)


def umbrella(pen: Pen, colour: Colour) -> None:
    """A canopy of three panels on a hooked stick."""
    pen.line((96, 70, 50), 0.1, (0, -0.5), (0, 0.85), (0.25, 0.95), (0.3, 0.7))
    pen.polygon(colour, (-1.0, 0.1), (-0.8, -0.5), (0, -0.95), (0.8, -0.5), (1.0, 0.1))
    pen.polygon(shade(colour, 0.45), (-0.35, 0.1), (0, -0.95), (0.35, 0.1))
    pen.polygon(shade(colour, -0.3), (-1.0, 0.1), (-0.65, -0.08), (-0.35, 0.1))
    pen.polygon(shade(colour, -0.3), (0.35, 0.1), (0.65, -0.08), (1.0, 0.1))


def snowman(pen: Pen, colour: Colour) -> None:
    """Two snowballs, a hat, a carrot and a colored scarf."""
    snow = (248, 250, 254)
    pen.oval(shade(snow, -0.12), -0.62, -0.05, 0.62, 1.0)
    pen.oval(snow, -0.55, -0.05, 0.45, 0.92)
    pen.oval(snow, -0.4, -0.72, 0.4, 0.08)
    pen.box((44, 44, 52), -0.5, -0.66, 0.5, -0.56)
    pen.box((44, 44, 52), -0.3, -1.0, 0.3, -0.6)
    pen.box(colour, -0.42, -0.1, 0.42, 0.06)
    pen.box(colour, 0.1, 0.0, 0.28, 0.42)
    pen.polygon((240, 130, 40), (0.0, -0.36), (0.5, -0.26), (0.0, -0.2))


def tent(pen: Pen, colour: Colour) -> None:
    """A ridge tent with an open, dark door."""
    pen.polygon(shade(colour, -0.3), (0.0, -0.75), (0.45, -0.85), (1.0, 0.75), (0.6, 0.85))
    pen.polygon(colour, (-1.0, 0.85), (0.0, -0.8), (0.65, 0.85))
    pen.polygon((56, 48, 48), (-0.42, 0.85), (-0.05, -0.1), (0.15, 0.85))
    pen.polygon(shade(colour, 0.4), (-0.42, 0.85), (-0.05, -0.1), (-0.22, 0.85))


def cactus(pen: Pen, colour: Colour) -> None:
    """A column with two raised arms, ribs and a flower."""
    pen.box(colour, -0.22, -0.85, 0.22, 1.0)
    pen.oval(colour, -0.22, -1.0, 0.22, -0.6)
    pen.line(colour, 0.26, (-0.2, 0.35), (-0.65, 0.35), (-0.65, -0.3))
    pen.line(colour, 0.26, (0.2, 0.1), (0.65, 0.1), (0.65, -0.55))
    pen.line(shade(colour, -0.3), 0.06, (0.0, -0.7), (0.0, 1.0))
    pen.oval((240, 120, 160), -0.14, -1.0, 0.14, -0.76)


def ball(pen: Pen, colour: Colour) -> None:
    """A beach ball: white with colored panels."""
    pen.oval(colour, -0.8, -0.8, 0.8, 0.8)
    pen.oval((250, 250, 246), -0.45, -0.8, 0.45, 0.8)
    pen.oval(shade(colour, -0.15), -0.16, -0.8, 0.16, 0.8)
    pen.oval((255, 255, 255), -0.5, -0.55, -0.25, -0.3)


@dataclass(frozen=True)
class Thing:
    """A thing of the world: how it is drawn, in which colors, and where it likes to be."""

    draw: Callable[[Pen, Colour], None]
    colours: tuple[str, ...]
    place: str  # "air", "land" or "water"
    plural: str


THINGS: dict[str, Thing] = {
    "house": Thing(house, ("red", "yellow", "white", "blue", "orange"), "land", "houses"),
    "tree": Thing(tree, ("green",), "land", "trees"),
    "car": Thing(car, ("red", "blue", "yellow", "green", "black"), "land", "cars"),
    "boat": Thing(boat, ("red", "blue", "brown", "green", "purple"), "water", "boats"),
    "kite": Thing(kite, ("red", "blue", "purple", "orange", "green"), "air", "kites"),
    "balloon": Thing(balloon, ("red", "blue", "purple", "orange", "green"), "air", "balloons"),
    "bird": Thing(bird, ("red", "blue", "yellow", "black", "brown"), "air", "birds"),
    "fish": Thing(fish, ("orange", "red", "yellow", "purple"), "water", "fish"),
    "cat": Thing(cat, ("black", "orange", "grey", "brown", "white"), "land", "cats"),
    "sheep": Thing(sheep, ("white", "black", "grey"), "land", "sheep"),
    "flower": Thing(flower, ("red", "pink", "purple", "white", "orange"), "land", "flowers"),
    "mushroom": Thing(mushroom, ("red", "brown", "orange", "purple"), "land", "mushrooms"),
    "sun": Thing(sun, ("yellow", "orange", "red"), "air", "suns"),
    "cloud": Thing(cloud, ("white", "grey"), "air", "clouds"),
    "airplane": Thing(airplane, ("white", "red", "blue", "grey"), "air", "airplanes"),
    "umbrella": Thing(umbrella, ("red", "blue", "yellow", "purple", "pink"), "land", "umbrellas"),
    "snowman": Thing(snowman, ("red", "blue", "green", "purple"), "land", "snowmen"),
    "tent": Thing(tent, ("orange", "green", "blue", "red", "yellow"), "land", "tents"),
    "cactus": Thing(cactus, ("green",), "land", "cacti"),
    "ball": Thing(ball, ("red", "blue", "green", "orange", "purple"), "land", "balls"),
}
