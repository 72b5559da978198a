"""Label maps -> readable pictures: colors, outlines and a legend. Pillow and NumPy only.

The first colors are Okabe and Ito's, which color-blind people can distinguish; further colors
alternate in lightness. Outlines are drawn too, so no region depends on its color alone.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
GOLDEN_ANGLE = 0.381966
OPACITY = 0.55
LEGEND_FONT = 14
SWATCH = 14


def colors(count: int) -> list[Color]:
    """Return distinct colors for `count` classes."""
    chosen = list(OKABE_ITO[:count])
    for i in range(len(chosen), count):
        lightness = (0.35, 0.55, 0.75)[i % 3]
        r, g, b = colorsys.hls_to_rgb(i * GOLDEN_ANGLE % 1, lightness, 0.75)
        chosen.append((round(255 * r), round(255 * g), round(255 * b)))
    return chosen


def overlay(
    pixels_HW3: Pixels,
    label_HW: npt.NDArray[np.integer],
    palette: Sequence[Color | None],
    opacity: float = OPACITY,
) -> Image.Image:
    """Blend a label map's colors over a picture (opacity 0..1) and outline its regions.

    `palette` has a color per class; classes beyond it, or with None (background), are not painted.
    """
    painted = pixels_HW3.astype(np.float32)
    for k, color in enumerate(palette):
        if color is not None:
            inside = label_HW == k
            painted[inside] = (1 - opacity) * painted[inside] + opacity * np.array(color)
    painted[edges(label_HW)] = 255
    return Image.fromarray(np.rint(painted).astype(np.uint8))


def edges(label_HW: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbor has another label."""
    edge = np.zeros(label_HW.shape, bool)
    edge[:, :-1] |= label_HW[:, 1:] != label_HW[:, :-1]
    edge[:-1] |= label_HW[1:] != label_HW[:-1]
    return edge


def with_legend(image: Image.Image, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """Add a legend below a picture: swatches with texts, as many in a row as fit."""
    font = ImageFont.load_default(LEGEND_FONT)
    row_height, margin = SWATCH + 8, 8
    width = max(image.width, 240)
    places, x, y = [], margin, margin
    for text, _ in entries:
        needed = SWATCH + 6 + round(font.getlength(text)) + 14
        if x > margin and x + needed > width:
            x, y = margin, y + row_height
        places.append((x, y))
        x += needed
    canvas = Image.new("RGB", (width, image.height + y + row_height + margin), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (text, color), (x, y) in zip(entries, places, strict=True):
        top = image.height + y
        draw.rectangle((x, top, x + SWATCH, top + SWATCH), fill=color, outline="black")
        draw.text((x + SWATCH + 6, top - 1), text, fill="black", font=font)
    return canvas
