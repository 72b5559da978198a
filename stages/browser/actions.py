"""What the page can do: what a browser sent in, pieces of the page out. No Gradio here.

Only `segment`, `decompose` and `compare` run a network; `paint` and `pack` work on kept masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from codeseg.pipeline.storybook.scenes import DEV_SEED, draw_scene
from codeseg.stages.browser import inputs as app_input
from codeseg.stages.browser import view as app_view
from codeseg.stages.browser.masks import Masks
from codeseg.stages.pages.decomposition import decomposition

if TYPE_CHECKING:
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.pictures.pixels import Pixels

EXAMPLES = (76, 277, 112, 58, 243, 109)  # held-out scenes, each on other grounds
EXAMPLE_SIDE = 560  # pixels
NO_PICTURE = "drop a picture or pick an example first"
UNTRAINED = (
    "words and regions are cut together by a trained model: start the page with --run RUN, "
    "which `codeseg demo` makes in minutes"
)


@dataclass(frozen=True)
class Session:
    """What one visitor's page keeps between two clicks."""

    pixels: "Pixels | None" = None
    masks: Masks | None = None


class Actions:
    """The page's actions on one model."""

    def __init__(self, segmenter: "Segmenter") -> None:
        from codeseg.model.inference.settings import METHODS

        self.segmenter = segmenter
        self.examples = [draw_scene(DEV_SEED, index, EXAMPLE_SIDE) for index in EXAMPLES]
        code = segmenter.code
        trained = code is not None and code.config.masks
        self.methods = [name for name in METHODS if trained or not name.startswith("code")]
        self.decomposes = bool(trained and code and code.config.co_decomposition)

    def take(self, sent: object) -> tuple[Session, str]:
        """A picture was dropped: {"picture": data URL}, or {"size": bytes} of one too large."""
        if not isinstance(sent, Mapping):
            raise ValueError(NO_PICTURE)
        if "size" in sent:
            app_input.check_size(sent["size"])
        pixels = app_input.picture(sent.get("picture"))
        return Session(pixels), app_view.plain(pixels)

    def pick(self, sent: object) -> tuple[Session, str, list[str], str, list[str]]:
        """An example was picked, {"example": number}: session, view, words, caption, its nouns."""
        number = sent.get("example") if isinstance(sent, Mapping) else None
        if not isinstance(number, int) or not 0 <= number < len(self.examples):
            raise ValueError("there is no such example")
        scene = self.examples[number]
        pixels = np.asarray(scene.image)
        names = list(dict.fromkeys([*(thing.name for thing in scene.things), *scene.grounds]))
        told = [name for name in names if name in scene.caption]
        return Session(pixels), app_view.plain(pixels), names, scene.caption, told

    def segment(
        self,
        session: Session,
        words: object,
        background: object,
        threshold: object,
        opacity: object,
    ) -> tuple[Session, str]:
        """Look for words; keep the masks."""
        masks = self._look(session, words, self.segmenter)
        session = replace(session, masks=masks)
        return session, self.paint(session, background, threshold, opacity)

    def paint(
        self, session: Session, background: object, threshold: object, opacity: object
    ) -> str:
        """Paint the kept masks anew; before there are any, the picture."""
        if session.masks is None:
            return "" if session.pixels is None else app_view.plain(session.pixels)
        cut, alpha = _numbers(background, threshold, opacity)
        return app_view.painted(session.masks, cut, alpha)

    def decompose(self, session: Session, caption: object, nouns: object) -> str:
        """Return the co-segmentation view."""
        if not self.decomposes:
            raise ValueError(UNTRAINED)
        if session.pixels is None:
            raise ValueError(NO_PICTURE)
        read = app_input.caption(caption), app_input.words(nouns, "noun")
        return app_view.literal(decomposition(self.segmenter, session.pixels, *read))

    def compare(
        self,
        session: Session,
        words: object,
        left: object,
        right: object,
        background: object,
        threshold: object,
        opacity: object,
    ) -> str:
        """Return two methods on the same words, side by side."""
        cut, alpha = _numbers(background, threshold, opacity)
        one, two = (self._look(session, words, self._by(method)) for method in (left, right))
        return app_view.side_by_side(one, two, cut, alpha)

    def pack(self, session: Session, background: object, threshold: object, opacity: object) -> str:
        """Return the results as one zip."""
        if session.masks is None:
            raise ValueError("segment a picture first, then download what was found")
        cut, _ = _numbers(background, threshold, opacity)
        return app_view.download_link(session.masks.archive(cut))

    def _look(self, session: Session, words: object, segmenter: "Segmenter") -> Masks:
        if session.pixels is None:
            raise ValueError(NO_PICTURE)
        return Masks.look(segmenter, session.pixels, app_input.words(words))

    def _by(self, method: object) -> "Segmenter":
        """Return the same weights by another method, with that method's own settings."""
        from codeseg.model.inference.segmenter import Segmenter
        from codeseg.model.inference.settings import PredictionSettings

        if method not in self.methods:
            raise ValueError(f"choose two methods of {', '.join(self.methods)}")
        clip = self.segmenter.clip
        settings: Any = PredictionSettings.for_clip(clip, method=method)
        return Segmenter(clip, self.segmenter.code, settings)


def _numbers(background: object, threshold: object, opacity: object) -> tuple[float | None, float]:
    """(threshold, None without a background; opacity)."""
    cut = app_input.share(threshold, "threshold")
    return (cut if background is True else None), app_input.share(opacity, "opacity")
