"""Results -> a folder of files that other programs can read.

OUT/segments.json            always: text, area (share), score and box of every segment
OUT/NAME/overlay.png         png: the picture with painted and outlined segments and a legend
OUT/NAME/label.png           png: 8-bit palette PNG, index into [background and] the things
OUT/NAME/mask-001-TEXT.png   png: a soft mask, gray 0..255
OUT/coco.json                coco: run-length masks and boxes of all pictures
OUT/labels/NAME.txt          yolo: one polygon for each connected piece; OUT/data.yaml: the names

Every file appears whole or not at all; segments.json comes last.
"""

import importlib.util
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeseg.model.results.segmentation import BLACK, Segmentation

PACKAGES = {"png": (), "coco": ("pycocotools",), "yolo": ("cv2",)}
"""Formats, and the packages that each needs besides codeseg."""


class ResultFolder:
    """A folder of results that is filled picture by picture and complete when its context ends."""

    def __init__(
        self,
        root: str | Path,
        things: Sequence[str],
        formats: Sequence[str],
        places: Sequence[str],
        *,
        overwrite: bool = False,
    ) -> None:
        """Check that the files can be written.

        Args:
            root: OUT.
            things: the things to find; their order numbers them in coco and yolo.
            formats: of png, coco and yolo.
            places: the folders in OUT to which `add` will write.
            overwrite: replace the results of an earlier run, and delete its files in these places.

        Raises:
            ValueError: a format is unknown, or OUT holds earlier results.
            ModuleNotFoundError: a package that a format needs is not installed.
        """
        self.root, self.things, self.formats = Path(root).expanduser(), list(things), set(formats)
        self.about: dict[str, Any] = {}  # further entries of segments.json
        self.rows: list[dict[str, Any]] = []
        self.coco: dict[str, list[Any]] = {"images": [], "annotations": []}
        self.coco["categories"] = [{"id": k, "name": t} for k, t in enumerate(self.things, 1)]
        if unknown := self.formats - PACKAGES.keys():
            raise ValueError(f"format {min(unknown)!r} is none of {', '.join(PACKAGES)}")
        for package in (name for chosen in formats for name in PACKAGES[chosen]):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"{package} is missing: install it with `pip install 'codeseg[coco]'`"
                )
        patterns = ["segments.json", "coco.json", "data.yaml", "labels/*.txt"]
        for place in places:
            patterns += [str(Path(place, name)) for name in ("overlay.png", "label.png", "mask-*")]
        earlier = [path for pattern in patterns for path in self.root.glob(pattern)]
        if earlier and not overwrite:
            raise ValueError(
                f"{earlier[0]} is from an earlier run: use another --out, or --overwrite"
            )
        for path in earlier:
            path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.complete()

    def add(self, place: str, image: str, result: Segmentation, every: bool = True) -> None:
        """Write one picture's files.

        Args:
            place: its folder in OUT.
            image: the picture's name in segments.json, coco.json and the folder labels/.
            result: its segments.
            every: also write the soft masks of things without pixels.
        """
        height, width = result.label_map.shape
        row: dict[str, Any] = {"image": image, "folder": place, "width": width, "height": height}
        row["segments"] = [
            {"text": s.text, "area": s.area, "score": s.score, "box": s.box}
            for s in result.segments
        ]
        if "png" in self.formats:
            names = write_pictures(self.root / place, result, every)
            for segment, name in zip(row["segments"], names, strict=True):
                segment["mask"] = name
        if "yolo" in self.formats:
            lines = "".join(yolo_lines(result))
            write_whole(self.root / "labels" / f"{place or image}.txt", lines.encode())
        if "coco" in self.formats:
            number = len(self.coco["images"]) + 1
            size = {"width": width, "height": height}
            self.coco["images"].append({"id": number, "file_name": image, **size})
            first = len(self.coco["annotations"]) + 1
            for k, found in enumerate(coco_annotations(result), start=first):
                self.coco["annotations"].append({"id": k, "image_id": number, **found})
        self.rows.append(row)

    def refuse(self, image: str, reason: str) -> None:
        """Count a picture that could not be segmented."""
        self.rows.append({"image": image, "error": reason})

    def complete(self) -> None:
        """Write the files about all pictures."""
        if "coco" in self.formats:
            write_whole(self.root / "coco.json", _json(self.coco))
        if "yolo" in self.formats:
            names = {"nc": len(self.things), "names": self.things}
            write_whole(self.root / "data.yaml", _json(names))  # YAML reads JSON
        write_whole(self.root / "segments.json", _json(self.about | {"images": self.rows}))


def write_pictures(folder: Path, result: Segmentation, every: bool) -> list[str | None]:
    """Write the overlay, label map and soft masks; return each segment's mask file, or None."""
    write_whole(folder / "overlay.png", _png(result.overlay()))
    label = Image.fromarray(result.label_map)
    label.putpalette([channel for color in result.palette for channel in color or BLACK])
    write_whole(folder / "label.png", _png(label))
    names: list[str | None] = []
    for k, segment in enumerate(result.segments, start=1):
        plain = re.sub(r"[^a-z0-9]+", "-", segment.text.lower()).strip("-")[:40]
        wanted = every or segment.area > 0
        names.append(f"mask-{k:03d}-{plain}.png" if wanted else None)
        if wanted:
            gray = np.rint(segment.mask * 255).astype(np.uint8)
            write_whole(folder / str(names[-1]), _png(Image.fromarray(gray)))
    return names


def coco_annotations(result: Segmentation) -> Iterator[dict[str, Any]]:
    """Yield a COCO annotation of each thing with pixels: its whole region, run-length encoded."""
    from pycocotools import mask as coco

    for k, region in _regions(result):
        code = coco.encode(np.asfortranarray(region.astype(np.uint8)))
        box, area = coco.toBbox(code).tolist(), int(coco.area(code))
        segmentation = {"size": code["size"], "counts": code["counts"].decode("ascii")}
        yield {
            "category_id": k + 1,
            "segmentation": segmentation,
            "bbox": box,
            "area": area,
            "iscrowd": 0,
            "score": result.segments[k].score,
        }


def yolo_lines(result: Segmentation) -> Iterator[str]:
    """Yield a line per connected piece of each thing: its number, then a polygon's x y, 0..1."""
    height, width = result.label_map.shape
    for k, region in _regions(result):
        for points in polygons(region):
            # A quarter inside the pixel, so that rounding and truncating readers find the same one.
            shares = (points + 0.25) / (width, height)
            yield f"{k} {' '.join(f'{value:.6f}' for value in shares.ravel())}\n"


def polygons(region_HW: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the outline (N, 2) of each connected piece, x and y of pixels, at least three points.

    A hole is joined to its outline by a cut at their nearest points, as YOLO has no holes.
    """
    import cv2

    found, links = cv2.findContours(
        region_HW.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    for contour, (_, _, hole, parent) in zip(found, links[0] if found else [], strict=True):
        if parent >= 0:
            continue
        points = contour[:, 0]
        while hole >= 0:
            inner, hole = found[hole][:, 0], links[0][hole][0]
            distances = ((points[:, None] - inner[None]) ** 2).sum(-1)
            i, j = np.unravel_index(distances.argmin(), distances.shape)
            points = np.concatenate([points[: i + 1], inner[j:], inner[: j + 1], points[i:]])
        yield np.concatenate([points, points[:1].repeat(max(0, 3 - len(points)), 0)])


def _regions(result: Segmentation) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Yield (number of a thing, from 0; its region) for things with pixels."""
    first = len(result.names) - len(result.segments)
    for k, segment in enumerate(result.segments):
        if segment.area > 0:
            yield k, result.label_map == k + first


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _png(image: Image.Image) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
