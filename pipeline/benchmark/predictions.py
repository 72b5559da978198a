"""Read and write a folder of predicted label maps: OUT/labels/ID.png, OUT/settings.json. Light.

There is one palette PNG per image (more than 254 classes: 16-bit gray), written whole or not at
all. A run with the same settings resumes image by image; one with other settings is refused. Any
folder of ID.png files can be scored.
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codeseg.pipeline.benchmark.labels import LabelMap, read_raw_label
from codeseg.pipeline.benchmark.metrics import IGNORE_16
from codeseg.pipeline.engine.storage import write_file


class PredictionFolder:
    """The label maps of a run of `codeseg evaluate`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.labels = root / "labels"

    def claim(self, settings: dict[str, Any]) -> None:
        """Write the settings, or check that the folder was made with the same ones.

        Raises:
            ValueError: it was not; names the differences.
        """
        path = self.root / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if not path.is_file():
            self.labels.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
            return
        try:
            found = json.loads(path.read_text())
        except ValueError:
            raise ValueError(
                f"{path}: not JSON; delete the folder or choose another --out"
            ) from None
        differences = "; ".join(
            f"{key} was {found.get(key)!r}, now {wanted.get(key)!r}"
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        )
        if differences:
            raise ValueError(
                f"{self.root} holds predictions made with other settings ({differences}): "
                "choose another --out, or delete it"
            )

    def pending(self, ids: Iterable[str]) -> list[str]:
        """Return the ids that have no label map yet, in the given order."""
        return [image_id for image_id in ids if not self.path(image_id).is_file()]

    def path(self, image_id: str) -> Path:
        """Return the path of an image's label map."""
        return self.labels / f"{image_id}.png"

    def write(
        self, image_id: str, label_HW: LabelMap, palette: Sequence[tuple[int, int, int]]
    ) -> None:
        """Write a palette PNG (white beyond the palette's colors), or a gray one of 16 bits."""
        image = Image.fromarray(label_HW)
        if label_HW.dtype == np.uint8:
            colors = [*palette, *[(255, 255, 255)] * (256 - len(palette))]
            image.putpalette([channel for color in colors for channel in color])
        write_file(self.path(image_id), partial(image.save, format="PNG"))


def prediction_paths(folder: Path) -> Path:
    """Return the folder of the ID.png files: OUT/labels of `evaluate`, or the folder itself."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of predictions")
    return folder / "labels" if (folder / "labels").is_dir() else folder


def read_prediction(path: Path) -> LabelMap:
    """Return a predicted label map H×W; `confusion_matrix` checks its range.

    Raises:
        FileNotFoundError: there is no prediction for this image.
        ValueError: the file is damaged or not a label map.
    """
    raw = read_raw_label(path)
    if raw.size and (raw.min() < 0 or raw.max() > IGNORE_16):
        raise ValueError(f"{path}: label {int(raw.max())} is not 0..{IGNORE_16}")
    return raw if raw.dtype == np.uint8 else raw.astype(np.uint16)
