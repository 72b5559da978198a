"""Masks -> pieces of the page: the painted picture with a legend to hover, pictures to choose from.

Everything is embedded (data: URIs) and every text that came from a user is escaped, braces
included, because the page's template language reads them.
"""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from codeseg.model.pictures.overlay import colours, overlay
from codeseg.pipeline.storybook.scenes import Scene
from codeseg.stages.browser.inputs import MAX_SIDE
from codeseg.stages.browser.masks import Masks
from codeseg.stages.pages import figures

Threshold = float | None
"""Below which a pixel is background; None: every pixel gets a word."""


def text(written: str) -> str:
    """Escape a user's text for HTML and for the page's templates."""
    return literal(escape(written))


def literal(html: str) -> str:
    """Write the signs that the page's templates read as character references."""
    for sign in "{}$`\\":
        html = html.replace(sign, f"&#{ord(sign)};")
    return html


def alert(line: str) -> str:
    """Return one line that says what is wrong."""
    return f'<p class="alert" role="alert">{text(line)}</p>' if line else ""


def hint(line: str) -> str:
    """Return what stands where a picture will be."""
    return f'<p class="hint">{text(line)}</p>'


def plain(pixels: np.ndarray) -> str:
    """Return a picture before anything was looked for."""
    return _stage(
        f'<img class="painted" alt="the picture" src="{figures.embedded(pixels, MAX_SIDE)}">'
    )


def painted(masks: Masks, threshold: Threshold, opacity: float, title: str = "") -> str:
    """Return the overlay, the label map that the hover legend reads, and the legend.

    Args:
        masks: what the network said.
        threshold: of the background.
        opacity: of the colours, 0..1.
        title: stands above the picture.
    """
    label, palette = masks.labels(threshold), colours(len(masks.words))
    shown = overlay(masks.pixels_HW3, label, [None, *palette], opacity)
    areas = np.bincount(label.ravel(), minlength=len(palette) + 1) / label.size
    keys = ""
    for k, (word, colour, score) in enumerate(zip(masks.words, palette, masks.scores, strict=True)):
        said = f"covers {areas[k + 1]:.1%}, highest score {score:.2f}"
        keys += (
            f'<button type="button" class="key" data-k="{k + 1}" title="{said}">'
            f'<i style="background:{figures.css(colour)}"></i>{text(word)}'
            f" <small>{areas[k + 1]:.0%}</small></button>"
        )
    if threshold is not None:
        keys += (
            '<button type="button" class="key" data-k="0" title="no word above the threshold">'
            f"<i></i>background <small>{areas[0]:.0%}</small></button>"
        )
    names = text(", ".join(masks.words))
    plain = figures.embedded(label, MAX_SIDE, lossless=True)
    pictures = (
        f'<img class="painted" alt="the picture, painted by {names}" '
        f'src="{figures.embedded(shown, MAX_SIDE)}">'
        f'<img class="labels" alt="" hidden src="{plain}">'
        '<canvas class="dim"></canvas><span class="tip" hidden></span>'
    )
    head = f"<h3>{text(title)}</h3>" if title else ""
    return f'{head}{_stage(pictures)}<div class="legend">{keys}</div>'


def _stage(content: str) -> str:
    return f'<div class="stage">{content}</div>'


def side_by_side(left: Masks, right: Masks, threshold: Threshold, opacity: float) -> str:
    """Return two methods' painted pictures, and on how much of the picture they agree."""
    views = "".join(
        f'<div class="seg">{painted(masks, threshold, opacity, masks.method)}</div>'
        for masks in (left, right)
    )
    agreement = np.mean(left.labels(threshold) == right.labels(threshold))
    return (
        f'<div class="pair">{views}</div>'
        f'<p class="hint">the two agree on {agreement:.0%} of the pixels</p>'
    )


def thumbnails(scenes: Sequence[Scene]) -> str:
    """Return example pictures, a button each."""
    buttons = "".join(
        f'<button type="button" data-example="{i}" title="{text(scene.caption)}">'
        f'<img alt="{text(scene.caption)}" src="{figures.embedded(scene.image, 128)}"></button>'
        for i, scene in enumerate(scenes)
    )
    return f'<div class="examples">{buttons}</div>'


def download_link(archive: bytes) -> str:
    """Return the zip itself, as a link; the page follows it."""
    content = base64.b64encode(archive).decode()
    return (
        f'<a download="segments.zip" href="data:application/zip;base64,{content}">'
        f"segments.zip, {max(1, len(archive) // 1000)} kB</a>"
    )
