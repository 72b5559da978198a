"""Numbers and pictures -> pieces of one offline HTML page: tables, SVG charts, embedded PNGs.

No plotting library: a report must open anywhere, years later, from one file. Colours are Okabe and
Ito's and a single-hue scale, which colour-blind people read; every mark carries its value as text
or as a tooltip.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeseg.model.pictures.overlay import Colour, colours

ROW = 16  # height of a bar, pixels
CHART = 460  # width of a chart's plotting area, pixels
MOST_LABELLED = 32  # classes that a heat map names; more are only shown as tooltips of the axis


def css(colour: Colour) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    """An HTML table; numbers right-aligned; the row `best` emphasised."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(
            f'<td class="number">{escape(cell)}</td>'
            if _is_number(cell)
            else f"<td>{escape(cell)}</td>"
            for cell in row
        )
        body += f'<tr class="best">{cells}</tr>' if i == best else f"<tr>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace(",", "").replace("−", "").replace("%", "").isdigit()


def legend(names: Sequence[str], palette: Sequence[Colour]) -> str:
    """Swatches with names."""
    items = "".join(
        f'<span class="key"><i style="background:{css(colour)}"></i>{escape(name)}</span>'
        for name, colour in zip(names, palette, strict=True)
    )
    return f'<p class="legend">{items}</p>'


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: str) -> str:
    """Horizontal bars, a group of them (one a series) for each name.

    Args:
        groups: what each group is, top to bottom.
        series: name -> a value a group; None draws nothing.
        unit: written behind the values.
    """
    palette = colours(len(series))
    height = (ROW * len(series) + 10) * len(groups) + 8
    largest = max((v for values in series.values() for v in values if v is not None), default=1)
    scale = CHART / max(largest, 1e-9)
    parts = []
    for g, group in enumerate(groups):
        top = 4 + g * (ROW * len(series) + 10)
        middle = top + ROW * len(series) / 2 + 4
        parts.append(f'<text x="150" y="{middle:.0f}" text-anchor="end">{escape(group)}</text>')
        for s, (name, values) in enumerate(series.items()):
            value = values[g]
            if value is None:
                continue
            y, width = top + s * ROW, max(1.0, value * scale)
            parts.append(
                f'<rect x="156" y="{y}" width="{width:.1f}" height="{ROW - 2}" '
                f'fill="{css(palette[s])}"><title>{escape(group)}, {escape(name)}: '
                f"{value:.1f} {unit}</title></rect>"
                f'<text class="small" x="{160 + width:.1f}" y="{y + ROW - 5}">{value:.1f}</text>'
            )
    chart = _svg(160 + CHART + 50, height, "".join(parts), f"bars of {', '.join(series)}")
    return legend(list(series), palette) + chart


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_name: str, y_name: str
) -> str:
    """A line chart; series: name -> (x values, y values)."""
    palette = colours(len(series))
    width, height, left, bottom, top, right = 430, 232, 52, 34, 20, 20
    xs = [x for values, _ in series.values() for x in values]
    ys = [y for _, values in series.values() for y in values if np.isfinite(y)]
    if not xs or not ys:
        return "<p>no data</p>"
    x0, x1, y0, y1 = min(xs), max(xs), min(0.0, min(ys)), max(ys)
    sx, sy = (width - left - right) / ((x1 - x0) or 1), (height - bottom - top) / ((y1 - y0) or 1)
    parts = []
    for value in np.linspace(y0, y1, 5):
        y = height - bottom - (value - y0) * sy
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="small" x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">'
            f"{value:.3g}</text>"
        )
    for value in np.linspace(x0, x1, 5):
        x = left + (value - x0) * sx
        parts.append(
            f'<text class="small" x="{x:.1f}" y="{height - bottom + 15}" text-anchor="middle">'
            f"{value:.3g}</text>"
        )
    for (name, (x_values, y_values)), colour in zip(series.items(), palette, strict=True):
        points = " ".join(
            f"{left + (x - x0) * sx:.1f},{height - bottom - (y - y0) * sy:.1f}"
            for x, y in zip(x_values, y_values, strict=True)
            if np.isfinite(y)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{css(colour)}" stroke-width="2">'
            f"<title>{escape(name)}</title></polyline>"
        )
    parts.append(
        f'<text x="{(left + width) / 2}" y="{height - 4}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
        f'<text x="{left - 5}" y="10" text-anchor="end" class="small">{escape(y_name)}</text>'
    )
    return legend(list(series), palette) + _svg(width, height, "".join(parts), y_name)


def heat_map(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """A confusion matrix, each row in shares of the labelled pixels; darker is more."""
    count = len(names)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    white, dark = np.array([255, 255, 255.0]), np.array([0, 62, 116.0])
    shade = white + (dark - white) * np.sqrt(share)[..., None]  # the root shows small confusions
    cell = 18 if count <= MOST_LABELLED else max(3, 600 // count)
    left, top = (96, 96) if count <= MOST_LABELLED else (8, 8)
    side = cell * count
    image = png(np.rint(shade).astype(np.uint8))
    parts = [
        f'<image x="{left}" y="{top}" width="{side}" height="{side}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{image}"/>'
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#888"/>'
    ]
    if count <= MOST_LABELLED:
        for k, name in enumerate(names):
            y, x = top + cell * k + 13, left + cell * k + 12
            parts.append(
                f'<text class="small" x="{left - 4}" y="{y}" text-anchor="end">'
                f"{escape(name)}</text>"
                f'<text class="small" transform="translate({x},{top - 4}) rotate(-60)">'
                f"{escape(name)}</text>"
            )
    svg = _svg(left + side + 60, top + side + 8, "".join(parts), "confusion matrix")
    return "<p>Rows: label; columns: prediction; shade: share of the label's pixels.</p>" + svg


def picture(pixels: npt.NDArray[np.uint8] | Image.Image, caption: str, width: int = 180) -> str:
    """An embedded picture with a line below it."""
    return (
        f'<figure><img src="{png(pixels, 2 * width)}" width="{width}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def png(pixels: npt.NDArray[np.uint8] | Image.Image, most: int = 640) -> str:
    """A data: URI; pictures wider than `most` are made smaller."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if image.width > most:
        image = image.resize((most, max(1, round(image.height * most / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg(width: float, height: float, content: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-label="{escape(label)}">{content}</svg>'
    )
