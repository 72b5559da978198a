"""One picture's result: its segments by word, the label map and an overlay; files.py writes it.

Letters: K things, H W rows and columns of the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeseg.model.pictures.overlay import OPACITY, Color, colors, overlay, with_legend
from codeseg.model.pictures.pixels import Pixels

BLACK: Color = (0, 0, 0)


@dataclass(frozen=True, eq=False)
class Segment:
    """The segment of one thing."""

    text: str
    """The thing's first name."""
    mask: npt.NDArray[np.float32]
    """float32 H×W, 0..1: its soft mask."""
    score: float
    """Highest value of the mask, 0..1: the confidence that the thing is present."""
    area: float
    """Its share of the label map, 0..1."""
    box: tuple[int, int, int, int] | None
    """Left, top, right, bottom of its region, pixels, the last two exclusive; None: no region."""

    def __repr__(self) -> str:
        return f"{self.text} {self.area:.0%} (score {self.score:.2f})"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One picture's result, at its own size (upright)."""

    pixels: Pixels
    """uint8 H×W×3: the picture."""
    label_map: npt.NDArray[np.uint8]
    """uint8 H×W: index into `names`."""
    names: tuple[str, ...]
    """Names of the label map's values: "background" first if there is one, then the things."""
    segments: tuple[Segment, ...]
    """One for each thing in the given order, found or not; none for the background."""

    @classmethod
    def of(
        cls,
        pixels: Pixels,
        label_map: npt.NDArray[np.uint8],
        masks_KHW: npt.NDArray[np.float32],
        names: Sequence[str],
    ) -> Self:
        """Split a label map and K soft masks into segments; the last K names are theirs."""
        first = len(names) - len(masks_KHW)
        segments = []
        for k, (text, mask) in enumerate(zip(names[first:], masks_KHW, strict=True), start=first):
            region = label_map == k
            box = Image.fromarray(region).getbbox()
            segments.append(Segment(text, mask, float(mask.max()), float(region.mean()), box))
        return cls(pixels, label_map, tuple(names), tuple(segments))

    def __getitem__(self, text: str) -> Segment:
        """Return the segment of a thing by its name."""
        for segment in self.segments:
            if segment.text == text:
                return segment
        raise KeyError(f"{text!r} is none of {', '.join(s.text for s in self.segments)}")

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        parts = [repr(segment) for segment in self.found()]
        return f"<Segmentation {width}×{height}: {', '.join(parts) or 'nothing found'}>"

    def found(self) -> list[Segment]:
        """Return the segments that have pixels, the largest first."""
        return sorted((s for s in self.segments if s.area > 0), key=lambda s: -s.area)

    @property
    def palette(self) -> list[Color | None]:
        """Return a color for each name; None for the background."""
        return [None] * (len(self.names) - len(self.segments)) + colors(len(self.segments))

    def overlay(self, opacity: float = OPACITY) -> Image.Image:
        """Return the picture with painted and outlined segments (opacity 0..1) and a legend."""
        areas = np.bincount(self.label_map.ravel(), minlength=len(self.names)) / self.label_map.size
        legend = [
            (f"{name} {area:.0%}", color or BLACK)
            for name, area, color in zip(self.names, areas, self.palette, strict=True)
            if area > 0
        ]
        painted = overlay(self.pixels, self.label_map, self.palette, opacity)
        return with_legend(painted, legend)

    def save(
        self, folder: str | Path, formats: Sequence[str] = ("png",), *, overwrite: bool = False
    ) -> None:
        """Write the result's files into a folder.

        Args:
            folder: made if it does not exist.
            formats: png (overlay, label map, soft masks), coco, yolo (see `ResultFolder`).
            overwrite: replace the files of an earlier result.

        Raises:
            ValueError: a format is unknown, or the folder holds an earlier result.
        """
        from codeseg.model.results.files import ResultFolder

        things = [segment.text for segment in self.segments]
        with ResultFolder(folder, things, formats, [""], overwrite=overwrite) as files:
            files.add("", "picture", self)
