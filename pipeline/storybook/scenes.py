"""Generate storybook, the embedded dataset: drawn scenes with captions and exact label maps.

In: (seed, index). Out: a picture, its label map and a caption, the same bytes on any machine.
From them this file writes the stand-ins for a real dataset: a folder of pictures with a URL list
(dead links and useless captions included), and two benchmarks from held-out seeds.
Light: Pillow and numpy; about 600 scenes/s/core at 96 pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from codeseg.pipeline.engine.storage import write_file
from codeseg.pipeline.storybook.things import THINGS, WORLD, Color, draw_thing, shade

THING_NAMES = tuple(THINGS)
GROUNDS: dict[str, Color] = WORLD["grounds"]
CLASSES = THING_NAMES + tuple(GROUNDS)
"""Names of the label map's values: things first, then grounds; every pixel has one."""
USELESS: list[str] = WORLD["captions"]["useless"]

TRAIN_SEED = 1  # the captioned pictures that a user downloads
CLIP_SEED = 2  # the pictures that the tiny CLIP was trained on
DEV_SEED = 3  # for choosing recipes
BENCHMARK_SEEDS = {"storybook_things": 11, "storybook_scenes": 12}  # held out

T = TypeVar("T")
SIZE = 96  # pixels
SUPERSAMPLE = 3  # odd, so that a label pixel is the center of its 3×3 block

Layout = Sequence[tuple[str, float]]
"""Grounds from top to bottom, and where each begins (share of the height)."""


@dataclass(frozen=True)
class Placed:
    """A thing in a scene; its center and extent are shares of the picture."""

    name: str
    color: str
    x: float
    y: float
    extent: float
    ground: str  # that it stands on, floats in or flies through


@dataclass(frozen=True)
class Scene:
    """A picture (RGB), its label map (uint8 H×W, indices into CLASSES) and its caption."""

    image: Image.Image
    label: np.ndarray
    caption: str
    things: tuple[Placed, ...]
    grounds: tuple[str, ...]


def draw_scene(seed: int, index: int, size: int = SIZE) -> Scene:
    """Return scene `index` of the world `seed`; its composition does not depend on the size.

    `size` is the picture's side in pixels.
    """
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    layout: Layout = _pick(rng, WORLD["layouts"])
    things = _compose(rng, layout)
    caption = _caption(rng, things, tuple(name for name, _ in layout))
    jitter = rng.integers(-3, 4, size=(len(layout), 2))
    marks = rng.random((60, 3))
    image, label = _paint(size, layout, things, jitter, marks)
    present = {CLASSES[number] for number in np.unique(label)}
    grounds = tuple(name for name, _ in layout if name in present)
    return Scene(image, label, caption, things, grounds)


def _compose(rng: np.random.Generator, layout: Layout) -> tuple[Placed, ...]:
    """Return things with their positions; later ones are in front."""
    count = int(rng.choice([0, 1, 2, 3, 4], p=[0.05, 0.35, 0.32, 0.18, 0.10]))
    placed: list[Placed] = []
    for _ in range(count):
        name = _pick(rng, THING_NAMES)
        if placed and rng.random() < 0.12:
            name = placed[-1].name  # two of a kind, for plurals
        thing = THINGS[name]
        color = _pick(rng, thing["colors"])
        extent = float(rng.uniform(0.36, 0.62) if count == 1 else rng.uniform(0.26, 0.48))
        liked = [band for band in layout if band[0] in WORLD["likes"][thing["place"]]]
        # three in four are where they belong: a boat on a road is still a boat
        ground, _ = _pick(rng, liked if liked and rng.random() < 0.75 else layout)
        x, y = _free_place(rng, layout, ground, extent, placed)
        placed.append(Placed(name, color, x, y, extent, ground))
    return tuple(sorted(placed, key=lambda thing: thing.y + thing.extent / 2))


def _free_place(
    rng: np.random.Generator, layout: Layout, ground: str, extent: float, placed: list[Placed]
) -> tuple[float, float]:
    """Return the least crowded of six random centers with the thing's foot in the ground's band."""
    names = [name for name, _ in layout]
    band = names.index(ground)
    top = layout[band][1]
    bottom = layout[band + 1][1] if band + 1 < len(layout) else 1.0
    best, crowd = (0.5, 0.5), float("inf")
    for _ in range(6):
        x = float(rng.uniform(extent / 2 - 0.04, 1.04 - extent / 2))
        foot = float(rng.uniform(top + 0.3 * (bottom - top), bottom + 0.02))
        y = max(extent / 2 - 0.04, min(foot - extent / 2, 1.04 - extent / 2))
        overlap = sum(
            max(0.0, (extent + other.extent) / 2 - max(abs(x - other.x), abs(y - other.y)))
            for other in placed
        )
        if overlap < crowd:
            best, crowd = (x, y), overlap
    return best


def _paint(
    size: int, layout: Layout, things: tuple[Placed, ...], jitter: np.ndarray, marks: np.ndarray
) -> tuple[Image.Image, np.ndarray]:
    """Draw at three times the size; average the picture, sample the label at pixel centers."""
    side = size * SUPERSAMPLE
    picture, label = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    pens = ImageDraw.Draw(picture), ImageDraw.Draw(label)
    tops = [top for _, top in layout] + [1.0]
    for band, (ground, top) in enumerate(layout):
        left, right = (round((top + int(j) / 100 * (band > 0)) * side) for j in jitter[band])
        _paint_ground(*pens, ground, side, left, right)
        _texture(pens[0], ground, side, max(left, right), round(tops[band + 1] * side), marks)
    for thing in things:
        center = (thing.x * side, thing.y * side)
        half, mirror = thing.extent * side / 2, round(thing.x * 1000) % 2 == 1
        draw_thing(*pens, thing.name, thing.color, center, half, mirror)
    small = picture.resize((size, size), Image.Resampling.BOX)
    start = SUPERSAMPLE // 2
    return small, np.array(label)[start::SUPERSAMPLE, start::SUPERSAMPLE].copy()


def _paint_ground(
    picture: ImageDraw.ImageDraw,
    label: ImageDraw.ImageDraw,
    ground: str,
    side: int,
    left: int,
    right: int,
) -> None:
    """Draw a band from a slightly tilted edge down to the bottom, lighter at the top."""
    steps = 8
    for step in range(steps):
        offset = (side - min(left, right)) * step // steps
        corners = [(0, left + offset), (side, right + offset), (side, side), (0, side)]
        picture.polygon(corners, fill=shade(GROUNDS[ground], 0.28 - 0.36 * step / steps))
        if step == 0:
            label.polygon(corners, fill=CLASSES.index(ground))


def _texture(
    pen: ImageDraw.ImageDraw, ground: str, side: int, top: int, bottom: int, marks: np.ndarray
) -> None:
    """Draw waves, blades of grass, grains, drifts or lane marks; the sky has none."""
    if ground == "sky" or bottom - top < 8:
        return
    unit = side / 96
    if ground == "road":
        middle, yellow = (top + bottom) // 2, (240, 226, 150)
        for x in range(0, side, side // 6):
            dash = [(x, middle), (x + side // 12, middle)]
            pen.line(dash, fill=yellow, width=round(2 * unit))
        return
    for u, v, w in marks:
        x, y = round(u * side), round(top + v * (bottom - top))
        tone = shade(GROUNDS[ground], 0.3 if w > 0.5 else -0.16)
        if ground == "sea":
            pen.line([(x, y), (round(x + 7 * unit), y)], fill=tone, width=round(unit))
        elif ground == "grass":
            pen.line([(x, y), (round(x + unit), round(y - 4 * unit))], fill=tone, width=round(unit))
        else:
            reach = unit if ground == "sand" else 2.5 * unit
            pen.ellipse([x, y, round(x + reach), round(y + reach / 2)], fill=tone)


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _caption(rng: np.random.Generator, things: tuple[Placed, ...], grounds: tuple[str, ...]) -> str:
    """Return a human-style caption: mostly right, rarely complete, sometimes useless."""
    say, luck = WORLD["captions"], rng.random()
    if luck < 0.02:
        return str(_pick(rng, USELESS))
    if luck < 0.05:  # of another picture
        return f"a {_pick(rng, THING_NAMES)} {_pick(rng, say['places'][_pick(rng, list(GROUNDS))])}"
    if not things or luck < 0.12:
        first, *rest = rng.permutation(list(grounds))
        if rest and luck > 0.09:
            return f"{first} and {rest[0]}"
        return str(_pick(rng, say["ground_only"]).format(first))
    order = [things[int(i)] for i in rng.permutation(len(things))]
    if luck < 0.34:
        name = _named(rng, order[0], color=luck > 0.26)
        return str(_pick(rng, say["alone"]).format(name, a=_article(name)))
    said = order[: 1 + int(rng.integers(len(order)))]
    names = [thing.name for thing in things]
    twin = next((name for name in names if names.count(name) > 1), None)
    if twin and luck < 0.75:
        text = f"two {THINGS[twin]['plural']}"
        said = [thing for thing in order if thing.name == twin]
    else:
        join = _pick(rng, say["joins"])
        text = join.join(_article(_named(rng, t, rng.random() < 0.4)) for t in said)
    if luck < 0.85:
        text += " " + _pick(rng, say["places"][said[-1].ground])
    return text + (" ." if luck > 0.95 else "")


def _named(rng: np.random.Generator, thing: Placed, color: bool) -> str:
    """Return the thing's name, sometimes with its color or size before it."""
    words = [thing.name]
    if color:
        words.insert(0, thing.color)
    if rng.random() < 0.1:
        words.insert(0, "big" if thing.extent > 0.4 else "small")
    return " ".join(words)


def _article(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def scenes(seed: int, count: int) -> Iterator[Scene]:
    """Yield the first `count` scenes of a world."""
    return (draw_scene(seed, index) for index in range(count))


def write_world(folder: Path, count: int, seed: int = TRAIN_SEED) -> list[str]:
    """Write `NNNNNN.png` for every scene and a file that is not a picture; return the captions."""
    captions = []
    for index, scene in enumerate(scenes(seed, count)):
        _save_whole(scene.image, folder / f"{index:06d}.png")
        captions.append(scene.caption)
    write_file(folder / "broken.png", b"this is no picture")
    return captions


def write_url_list(path: Path, base_url: str, captions: list[str]) -> None:
    """Write `caption<TAB>url` rows without a header, as in CC3M.

    As in every real list some rows are useless: one in 40 links is dead, one in 200 is not a
    picture, one in 150 has no caption, one in 100 appears twice.
    """
    rows = []
    for index, caption in enumerate(captions):
        url = f"{base_url}/{index:06d}.png"
        if index % 40 == 17:
            url = f"{base_url}/gone-{index:06d}.png"
        elif index % 200 == 101:
            url = f"{base_url}/broken.png"
        rows.append(f"{'' if index % 150 == 77 else caption}\t{url}\n")
        if index % 100 == 50:
            rows.append(rows[-1])
    write_file(path, "".join(rows))


def palette() -> list[list[int]]:
    """Return an RGB color for each of CLASSES: the grounds' own, things' by a fixed hue walk."""
    colors = []
    for number in range(len(THING_NAMES)):
        hue = (number * 97 % 256, 200 - 70 * (number % 2), 235 - 90 * (number % 3 == 2))
        colors.append(list(Image.new("HSV", (1, 1), hue).convert("RGB").tobytes()))
    return colors + [list(color) for color in GROUNDS.values()]


def write_benchmark(folder: Path, name: str, count: int, seed: int | None = None) -> None:
    """Write `images/`, `labels/` (palette PNGs) and `val.txt` of a storybook benchmark.

    `storybook_things`: 0 is background (all ground), then the things. `storybook_scenes`: CLASSES.
    A seed other than the benchmark's own, such as DEV_SEED, gives other scenes.

    Raises:
        ValueError: it is not the name of a storybook benchmark.
    """
    if name not in BENCHMARK_SEEDS:
        raise ValueError(f"no storybook benchmark {name!r}; there are {', '.join(BENCHMARK_SEEDS)}")
    names = [f"{index:06d}" for index in range(count)]
    colors = palette()
    if name == "storybook_things":
        colors = [[0, 0, 0], *colors[: len(THING_NAMES)]]
    drawn = scenes(BENCHMARK_SEEDS[name] if seed is None else seed, count)
    for identifier, scene in zip(names, drawn, strict=True):
        label = scene.label
        if name == "storybook_things":
            label = np.where(label < len(THING_NAMES), label + 1, 0).astype(np.uint8)
        picture = Image.fromarray(label, mode="P")
        picture.putpalette([value for color in colors for value in color])
        _save_whole(scene.image, folder / "images" / f"{identifier}.png")
        _save_whole(picture, folder / "labels" / f"{identifier}.png")
    write_file(folder / "val.txt", "\n".join(names) + "\n")


def _save_whole(image: Image.Image, path: Path) -> None:
    write_file(path, lambda file: image.save(file, format="PNG"))
