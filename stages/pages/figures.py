"""Numbers and pictures -> parts of an offline page: tables, SVG charts and embedded pictures.

There is no plotting library: a page must open anywhere, years later, from one file. The colors are
Okabe and Ito's and a single-hue scale, which color-blind people can read; every axis has a name,
and every mark shows its value as text or as a tooltip.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeseg.model.pictures.overlay import Color, colors
from codeseg.stages.pages.html import Html, fill, join, readable

WIDTH, HEIGHT = 430, 250  # of a chart, pixels: as wide as a phone
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 24, 40  # margins of a plot, for its axes
BAR = 15  # height of a bar, pixels
NAMES = 150  # width for the names of bars, pixels
WIDEST = 60  # maximum width of a column, pixels
ALONE: Color = (0, 114, 178)  # of a single series
GRID: Color = (226, 230, 235)
MOST_LETTERS = 34  # of a name beside a chart; the tooltip shows all of them
MOST_POINTED = 60  # a line with more values has no points with tooltips
MOST_SHADED = 32  # classes of a heat map
CELL = 18  # of a heat map, pixels

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def css(color: Color) -> str:
    """Return #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], best: int | None = None) -> Html:
    """Return a table that can be sorted by its headings; emphasize row `best`."""
    head = join(fill("<th>{}</th>", name) for name in header)
    body = []
    for i, row in enumerate(rows):
        texts = [value if isinstance(value, Html) else readable(value) for value in row]
        cells = [fill('<td class="{}">{}</td>', _kind(text), text) for text in texts]
        body.append(fill('<tr class="{}">{}</tr>', "best" if i == best else "", join(cells)))
    form = '<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return fill(form, head, join(body))


def _kind(text: str) -> str:
    if text.translate({ord(mark): None for mark in ".,−%+- "}).isdigit():
        return "number"
    return "long" if len(text) > MOST_LETTERS else ""


def legend(names: Sequence[str], palette: Sequence[Color]) -> Html:
    """Return swatches with names."""
    form = '<span class="key"><i style="background:{}"></i>{}</span>'
    keys = [fill(form, css(color), name) for name, color in zip(names, palette, strict=True)]
    return fill('<p class="legend">{}</p>', join(keys))


def _key(names: Sequence[str]) -> tuple[Sequence[Color], Html]:
    """Return a color per series, and their legend if there are several."""
    if len(names) == 1:
        return [ALONE], Html()
    palette = colors(len(names))
    return palette, legend(names, palette)


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], x_name: str) -> Html:
    """Return horizontal bars: from top to bottom, a group with one bar per series for each name.

    `series` maps names to a value per group; None draws no bar. `x_name` names the values.
    """
    palette, key = _key(list(series))
    step = BAR * len(series) + 8
    largest = max((v for values in series.values() for v in values if v is not None), default=1)
    scale = (WIDTH - NAMES - 56) / max(largest, 1e-9)
    parts = []
    for g, group in enumerate(groups):
        top = 4 + g * step
        parts.append(_text(NAMES - 6, top + BAR * len(series) / 2 + 4, group, "end"))
        for s, (name, values) in enumerate(series.items()):
            if (value := values[g]) is not None:
                y, width, number = top + s * BAR, max(1.0, value * scale), readable(value)
                text = f"{group}, {name}: {number}"
                parts.append(_box(NAMES, y, width, BAR - 2, palette[s], text))
                parts.append(_text(NAMES + width + 4, y + BAR - 4, number, "start"))
    height = step * len(groups) + 24
    parts.append(_text(NAMES, height - 6, x_name, "start"))
    return join([key, _svg(WIDTH, height, parts, f"bars: {x_name}")])


def plot(
    series: Series, x_name: str, y_name: str, *, log: bool = False, columns: bool = False
) -> Html:
    """Return lines over a numeric axis, or `columns` from zero for one series of counts.

    `series` maps names to (x values, y values); values that are not finite are left out. With
    `log`, both axes are logarithmic and values that are not positive are left out.
    """
    points = {name: _drawable(*values, log) for name, values in series.items()}
    xs = sorted({x for values in points.values() for x, _ in values})
    ys = [y for values in points.values() for _, y in values]
    if not ys:
        return fill('<p class="note">No numbers to draw.</p>')
    gap = min((b - a for a, b in pairwise(xs)), default=1.0) * columns
    x0, x1, y0, y1 = xs[0] - gap / 2, xs[-1] + gap / 2, min(ys), max(ys)
    if not log:
        y0, y1 = min(y0, 0.0), max(y1, 0.0)
    x_scale = (WIDTH - LEFT - RIGHT) / ((x1 - x0) or 1)
    y_scale = (HEIGHT - TOP - BOTTOM) / ((y1 - y0) or 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - x0) * x_scale, HEIGHT - BOTTOM - (y - y0) * y_scale

    parts = []
    for value in ticks(y0, y1, log):
        y = place(x0, value)[1]
        parts.append(_box(LEFT, y, WIDTH - LEFT - RIGHT, 1, GRID, ""))
        parts.append(_text(LEFT - 5, y + 4, _tick(value, log), "end"))
    for value in ticks(x0, x1, log):
        parts.append(_text(place(value, y0)[0], HEIGHT - BOTTOM + 15, _tick(value, log), "middle"))
    palette, key = _key(list(series))
    for (name, values), color in zip(points.items(), palette, strict=True):
        places = [place(x, y) for x, y in values]
        tooltips = [f"{name} {_tick(x, log)}: {_tick(y, log)}" for x, y in values]
        if columns:
            wide, bottom = min(WIDEST, max(1.0, 0.86 * gap * x_scale)), HEIGHT - BOTTOM
            boxes = [(x - wide / 2, y, wide, bottom - y) for x, y in places]
        else:
            form = '<polyline points="{}" fill="none" stroke="{}"><title>{}</title></polyline>'
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(fill(form, path, css(color), name))
            few = len(places) < MOST_POINTED
            boxes = [(x - 2.5, y - 2.5, 5.0, 5.0) for x, y in places] if few else []
        parts += [_box(*box, color, text) for box, text in zip(boxes, tooltips, strict=False)]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, x_name, "middle"))
    parts.append(_text(4, 12, y_name, "start"))
    return join([key, _svg(WIDTH, HEIGHT, parts, f"{y_name} over {x_name}")])


def _drawable(xs: Sequence[float], ys: Sequence[float], log: bool) -> list[tuple[float, float]]:
    """Return the points that can be drawn, as logarithms if `log`."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    if log:
        return [(math.log10(x), math.log10(y)) for x, y in pairs if min(x, y) > 0]
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Return about five round values between two others; whole powers of ten if `log`."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= (high - low) / 5)
    step = max(1.0, round(step)) if log else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * k for k in range(first, last + 1)]


def _tick(value: float, log: bool) -> str:
    return readable(10**value if log else value)


def heat_map(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> Html:
    """Return a confusion matrix, each row in shares of the labeled pixels; darker is more.

    It shows only classes that occur and, if there are many, only those with the most pixels.
    """
    pixels = matrix.sum(0) + matrix.sum(1)
    shown = sorted(k for k in np.argsort(-pixels, kind="stable")[:MOST_SHADED] if pixels[k])
    labelled = [k for k in shown if matrix[k].any()]
    parts = [_text(120, 12, "columns: prediction; rows: label", "start")]
    for j, k in enumerate(shown):
        x = 132 + CELL * j
        parts.append(_text(x, 118, names[k], "start", f"rotate(-60 {x} 118)"))
    for i, label in enumerate(labelled):
        parts.append(_text(116, 136 + CELL * i, names[label], "end"))
        for j, k in enumerate(shown):
            share = float(matrix[label, k] / matrix[label].sum())
            shade = 1 - math.sqrt(share)  # the square root makes small confusions visible
            color = (round(255 * shade), round(62 + 193 * shade), round(116 + 139 * shade))
            tooltip = f"{names[label]} as {names[k]}: {readable(share, share=True)}"
            parts.append(_box(120 + CELL * j, 122 + CELL * i, CELL - 1, CELL - 1, color, tooltip))
    width, height = 200 + CELL * len(shown), 130 + CELL * len(labelled)
    return _svg(width, height, parts, "confusion matrix", "wide")


def picture(
    pixels: npt.NDArray[np.uint8] | Image.Image, caption: str, width: int = 180, most: int = 640
) -> Html:
    """Return an embedded picture, `width` pixels wide on the page, which a click enlarges."""
    form = (
        '<figure style="width:{}px"><button type="button" title="enlarge"><img src="{}" '
        'width="{}" alt="{}"></button><figcaption>{}</figcaption></figure>'
    )
    return fill(form, width, embedded(pixels, most), width, caption, caption)


def embedded(pixels: npt.NDArray[np.uint8] | Image.Image, most: int) -> str:
    """Return a WebP as a data: URI, reduced if a side is longer than `most` pixels."""
    image = (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).convert("RGB")
    image.thumbnail((most, most))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _text(x: float, y: float, text: str, anchor: str, transform: str = "") -> Html:
    """Return a line of text with a tooltip; a long text is cut."""
    short = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
    form = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" transform="{}">{}<title>{}</title></text>'
    return fill(form, x, y, anchor, transform, short, text)


def _box(x: float, y: float, width: float, height: float, color: Color, tooltip: str) -> Html:
    form = (
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title>'
        "</rect>"
    )
    return fill(form, x, y, width, height, css(color), tooltip)


def _svg(width: float, height: float, parts: Sequence[Html], label: str, kind: str = "") -> Html:
    form = (
        '<div class="scroll"><svg class="{}" viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" '
        'height="{:.0f}" role="img" aria-label="{}">{}</svg></div>'
    )
    return fill(form, kind, width, height, width, height, label, join(parts))
