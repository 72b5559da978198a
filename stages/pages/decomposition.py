"""A picture, its caption and nouns -> one figure: words and regions wear their noun's colour.

The co-segmentation view of the report and of the browser page (thesis, figure 4.2).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from codeseg.model.pictures.overlay import colours, overlay
from codeseg.stages.pages import figures
from codeseg.stages.pages.html import Html, fill, join

if TYPE_CHECKING:
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.pictures.pixels import Pixels


def decomposition(
    segmenter: "Segmenter", pixels: "Pixels", caption: str, nouns: Sequence[str]
) -> Html:
    """Take a caption and its picture apart.

    Args:
        segmenter: a trained one, with co-decomposition.
        pixels: uint8 H×W×3.
        caption: any sentence that fits the CLIP's context.
        nouns: in any words; those that stand in the caption are underlined there.

    Returns:
        HTML: the caption, a legend, the picture, its regions and a soft mask a noun.

    Raises:
        ValueError: a segmenter without a text segmenter, or a caption or noun that cannot be.
    """
    palette = colours(len(nouns))
    words = segmenter.word_segments(caption, nouns)
    result = segmenter.segment(pixels, [(noun,) for noun in nouns])  # the tagger's, as they are
    parts = []
    for word, label in zip(words.words, words.labels, strict=True):
        own = next((j for j, noun in enumerate(nouns) if word in noun.lower().split()), None)
        style = "" if label < 0 else f"background:{figures.css(palette[label])}66;"
        if own is not None:
            style += f"border-bottom:3px solid {figures.css(palette[own])};"
        parts.append(fill('<span style="{}">{}</span>', style, word))
    cells = [figures.picture(pixels, "picture")]
    cells.append(figures.picture(overlay(pixels, result.label_map, result.palette), "regions"))
    for segment in result.segments:
        grey = np.rint(segment.mask * 255).astype(np.uint8)
        cells.append(figures.picture(grey, f"soft mask: {segment.text}"))
    form = '<p class="caption">{}</p>{}<div class="row">{}</div>'
    return fill(form, join(parts, " "), figures.legend(nouns, palette), join(cells))
