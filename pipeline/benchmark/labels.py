"""Label files as published -> label maps H×W: class 0..K−1, or not scored. Light.

uint8 with 255 = not scored; benchmarks of more than 254 classes: uint16 with 65535.

Each benchmark manifest names a rule under [labels]. Values that the rule does not explain are
refused with the file's name, because a silently ignored label would change the score.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeseg.pipeline.benchmark.metrics import ignored_label

RULES = ("identity", "zero_is_ignored", "map", "coco_instances")
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")  # JPEG changes values near every edge

LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class LabelForm:
    """A layout and an encoding of a benchmark's labels on disk."""

    pattern: str  # path under the data folder, with {id}; coco_instances: the annotation file
    rule: str  # one of RULES
    ignore: int | None = None  # raw value that is not scored; None: 255, with 16 bits 65535
    mapping: dict[int, int] = field(default_factory=dict)
    """map: raw value -> class. coco_instances: category id -> class."""
    raw_max: int | None = None
    """map: the largest raw value that may occur; unlisted ones up to it are not scored."""

    def raw_classes(self, classes: int) -> dict[int, int]:
        """Return the class of each raw value."""
        if self.rule == "identity":
            return {k: k for k in range(classes)}
        if self.rule == "zero_is_ignored":
            return {k + 1: k for k in range(classes)}
        return self.mapping

    def table(self, classes: int) -> npt.NDArray[np.int32]:
        """Return class, not scored, or −1 (must not occur) for every raw value of 8 or 16 bits."""
        unscored = ignored_label(classes)
        table = np.full(unscored + 1, -1, np.int32)
        if self.rule == "zero_is_ignored":
            table[0] = unscored
        elif self.rule != "identity":
            table[: (unscored if self.raw_max is None else self.raw_max) + 1] = unscored
        table[unscored if self.ignore is None else self.ignore] = unscored
        for raw, train in self.raw_classes(classes).items():
            table[raw] = train
        return table

    def check(self, classes: int) -> None:
        """Refuse a rule that would silently leave labels out.

        Raises:
            ValueError: names the value and the correction.
        """
        if self.rule not in RULES:
            raise ValueError(f"unknown label rule {self.rule!r}; rules: {', '.join(RULES)}")
        unscored = ignored_label(classes)
        ignore = unscored if self.ignore is None else self.ignore
        if self.rule != "coco_instances" and ignore in self.raw_classes(classes):
            raise ValueError(
                f"[labels] both scores and ignores the value {ignore}: give the value that marks "
                "unscored pixels as ignore = …, or one that never occurs"
            )
        for value in (ignore, self.raw_max or 0, *self.mapping):
            if self.rule != "coco_instances" and not 0 <= value <= unscored:
                raise ValueError(f"[labels] names the value {value}, outside 0..{unscored}")
        if self.raw_max is not None and max(self.mapping, default=0) > self.raw_max:
            raise ValueError(f"[labels.map] goes beyond raw_max = {self.raw_max}")
        if any(not 0 <= train < classes for train in self.mapping.values()):
            raise ValueError("[labels.map] names a class outside the class list")


def read_raw_label(path: Path) -> npt.NDArray[Any]:
    """Return a label image's stored values (palette index or gray level), integer H×W.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not a single-channel lossless image.
    """
    try:
        with Image.open(path) as image:
            if image.format not in LOSSLESS or "jpeg" in str(image.info.get("compression")):
                raise ValueError(
                    f"{path}: a {image.format} file holds no exact label values, whatever its "
                    "name: save label maps as PNG, from the original values"
                )
            depth = _gray_bits(image)
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                raise ValueError(
                    f"{path}: a label map must have one channel (gray or palette), "
                    f"but this image is {image.mode}"
                )
            stored: npt.NDArray[Any] = np.asarray(image)
            if stored.dtype == np.bool_:
                return stored.astype(np.uint8)
            return stored if depth == 8 else stored // (255 // (2**depth - 1))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such label map") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a label map ({error})") from None


def _gray_bits(image: Image.Image) -> int:
    """Return 2 or 4 for a gray PNG of as many bits, which Pillow stretches to 0..255; else 8."""
    tile = getattr(image, "tile", None) if image.mode == "L" else None
    return {"L;2": 2, "L;4": 4}.get(str(tile[0][3]) if tile else "", 8)


def apply_rule(raw: npt.NDArray[Any], form: LabelForm, classes: int, path: Path) -> LabelMap:
    """Return stored values H×W as 0..K−1 or `ignored_label(K)`, with K `classes`.

    Raises:
        ValueError: a value is neither a class nor ignored; names `path`.
    """
    unscored = ignored_label(classes)
    if raw.size and (int(raw.min()) < 0 or int(raw.max()) > unscored):
        raise ValueError(
            f"{path}: label {raw.max() if raw.max() > unscored else raw.min()} is not 0..{unscored}"
        )
    label = form.table(classes)[raw]
    if (label < 0).any():
        raise ValueError(
            f"{path}: label {int(raw[label < 0].max())} is outside the benchmark's {classes} "
            f"classes (rule {form.rule}, ignore {unscored if form.ignore is None else form.ignore})"
        )
    return as_label_map(label, classes)


def as_label_map(label: npt.NDArray[Any], classes: int) -> LabelMap:
    """Return class numbers in the fewest bits that represent K classes and "not scored"."""
    return label.astype(np.uint8) if ignored_label(classes) < 256 else label.astype(np.uint16)


class CocoInstances:
    """The label maps of an instances_*.json: 0 is background, `mapping` is category id -> class.

    Instances are drawn in the file's order, a later one over an earlier one; a crowd region
    (run-length encoded) is drawn like any instance of its class.
    """

    def __init__(self, path: Path, mapping: dict[int, int]) -> None:
        self.path = path
        self.mapping = mapping

    @cached_property
    def _content(self) -> tuple[dict[str, dict[str, Any]], dict[int, list[dict[str, Any]]]]:
        try:
            content = json.loads(self.path.read_text())
            images = {Path(image["file_name"]).stem: image for image in content["images"]}
            annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for annotation in content["annotations"]:
                annotations[annotation["image_id"]].append(annotation)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: no such annotation file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: not a COCO instances file ({error!r})") from None
        return images, annotations

    @property
    def ids(self) -> list[str]:
        """The image file names without their extension, sorted."""
        return sorted(self._content[0])

    def label(self, image_id: str) -> LabelMap:
        """Return the label map of an image, uint8 H×W."""
        try:
            from pycocotools import mask as coco_mask
        except ImportError:
            raise ValueError(
                "COCO-Object's label maps are drawn with pycocotools: pip install 'codeseg[coco]'"
            ) from None
        images, annotations = self._content
        image = images[image_id]
        height, width = image["height"], image["width"]
        label = np.zeros((height, width), np.uint8)
        for annotation in annotations.get(image["id"], []):
            category = annotation["category_id"]
            if category not in self.mapping:
                raise ValueError(f"{self.path}: category {category} is not one of the benchmark's")
            shape = annotation["segmentation"]
            if isinstance(shape, list):  # polygons
                encoded = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):  # uncompressed run lengths: a crowd
                encoded = coco_mask.frPyObjects(shape, height, width)
            else:
                encoded = shape
            label[coco_mask.decode(encoded) > 0] = self.mapping[category]
        return label
