"""A picture and words -> masks that a session keeps; thresholded and packed without the network.

Letters: K words, H W rows and columns of the picture.
"""

import io
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.pictures.pixels import Pixels
    from codeseg.model.results.segmentation import Segmentation


@dataclass(frozen=True)
class Masks:
    """What the network said about one picture; every view is made from it."""

    method: str
    """Of the segmenter that made them."""
    pixels_HW3: "Pixels"
    words: tuple[str, ...]
    first_HW: npt.NDArray[np.uint8]
    """Index of the word whose mask is highest."""
    highest_HW: npt.NDArray[np.float32]
    """Its value; float32 because a threshold must cut where the network's own result does."""
    grey_KHW: npt.NDArray[np.uint8]
    """Soft masks in 256 steps, as files hold them: a quarter of the memory."""
    scores: tuple[float, ...]
    """Highest value of each mask."""

    @classmethod
    def look(cls, segmenter: "Segmenter", pixels: "Pixels", words: Sequence[str]) -> "Masks":
        """Run the network.

        Raises:
            ValueError: a word that cannot be looked for.
        """
        result = segmenter.segment(pixels, [(word,) for word in words], background=False)
        masks_KHW = np.stack([segment.mask for segment in result.segments])
        return cls(
            segmenter.settings.method,
            pixels,
            tuple(words),
            result.label_map,
            masks_KHW.max(0),
            np.rint(masks_KHW * 255).astype(np.uint8),
            tuple(segment.score for segment in result.segments),
        )

    def labels(self, threshold: float | None) -> npt.NDArray[np.uint8]:
        """Label map: 0 where no mask is above the threshold (None: nowhere), 1 … the words."""
        label: npt.NDArray[np.uint8] = self.first_HW + np.uint8(1)
        if threshold is not None:
            # In float32, like the network's own comparison: 0.3 is not the same number in both.
            label[self.highest_HW <= np.float32(threshold)] = 0
        return label

    def segmentation(self, threshold: float | None) -> "Segmentation":
        """Return the same as a result of the inference API."""
        from codeseg.model.results.segmentation import Segmentation

        label, texts = self.labels(threshold), ("background", *self.words)
        if threshold is None:
            label, texts = self.first_HW, self.words
        masks = self.grey_KHW.astype(np.float32) / np.float32(255)
        return Segmentation.of(self.pixels_HW3, label, masks, texts)

    def archive(self, threshold: float | None) -> bytes:
        """A zip of what `codeseg segment` writes: overlay, label map, soft masks, segments.json."""
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(packed, "w") as archive:
            folder = Path(place) / "segments"
            self.segmentation(threshold).save(folder)
            for path in sorted(folder.iterdir()):
                archive.write(path, f"segments/{path.name}")
        return packed.getvalue()
