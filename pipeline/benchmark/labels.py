"""Label files as published -> label maps, uint8 H×W: class 0..K−1, 255 = not scored. Light.

Each benchmark manifest names a rule under [labels]; a rule is a function here. Values that no rule
explains are refused with the file's name: a silently ignored label would change the score.
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

IGNORE = 255
RULES = ("identity", "zero_is_ignored", "map", "coco_instances")

LabelMap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelForm:
    """One way in which a benchmark's labels may lie on disk."""

    pattern: str
    """Path below the data folder, with {id}; for coco_instances the annotation file."""
    rule: str
    """identity | zero_is_ignored | map | coco_instances."""
    ignore: int = IGNORE
    """Raw value that is never scored."""
    mapping: dict[int, int] = field(default_factory=dict)
    """map: raw value -> class. coco_instances: category id -> class."""
    raw_max: int = IGNORE
    """map: the largest raw value that may occur; unlisted ones up to it are not scored."""

    def table(self, classes: int) -> npt.NDArray[np.int16]:
        """Raw value -> class, 255 (not scored) or −1 (must not occur), for all 256 raw values."""
        table = np.full(256, -1, np.int16)
        if self.rule == "identity":
            table[:classes] = np.arange(classes)
        elif self.rule == "zero_is_ignored":
            table[0] = IGNORE
            table[1 : classes + 1] = np.arange(classes)
        else:
            table[: self.raw_max + 1] = IGNORE
            for raw, train in self.mapping.items():
                table[raw] = train
        table[self.ignore] = IGNORE
        return table


def read_raw_label(path: Path) -> npt.NDArray[Any]:
    """Read a label PNG's stored values (palette index or grey level), H×W.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a single-channel image, or is damaged.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                raise ValueError(
                    f"{path}: a label map must have one channel (grey or palette), "
                    f"but this image is {image.mode}"
                )
            stored: npt.NDArray[Any] = np.asarray(image)
            return stored
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such label map") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a label map ({error})") from None


def apply_rule(raw: npt.NDArray[Any], form: LabelForm, classes: int, path: Path) -> LabelMap:
    """Turn stored values into classes.

    Args:
        raw: Stored values, H×W, integer.
        form: The rule and its tables.
        classes: K, background included where it is a class.
        path: Named in the error.

    Returns:
        uint8 H×W, 0..K−1 or 255.

    Raises:
        ValueError: A value is neither a class nor ignored.
    """
    if raw.size and (int(raw.min()) < 0 or int(raw.max()) > 255):
        raise ValueError(
            f"{path}: label {raw.max() if raw.max() > 255 else raw.min()} is not 0..255"
        )
    label = form.table(classes)[raw]
    if (label < 0).any():
        raise ValueError(
            f"{path}: label {int(raw[label < 0].max())} is outside the benchmark's {classes} "
            f"classes (rule {form.rule}, ignore {form.ignore})"
        )
    scored: LabelMap = label.astype(np.uint8)
    return scored


class CocoInstances:
    """instances_*.json -> label maps: 0 background, class by category id.

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
        """Image file names without their suffix, sorted."""
        return sorted(self._content[0])

    def label(self, image_id: str) -> LabelMap:
        """Draw the label map of one image, uint8 H×W."""
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
