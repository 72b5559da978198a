"""data_manifests/benchmarks/NAME.toml + a data folder -> image paths and label maps. Light.

A benchmark is data: classes, palette, folders, label rule, published scores. To add one, write a
TOML file; `load_benchmark` also takes the path of a file elsewhere.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from codeseg.model.pictures.overlay import colors
from codeseg.model.pictures.pixels import Pixels, rgb_pixels
from codeseg.pipeline.benchmark.labels import (
    CocoInstances,
    LabelForm,
    LabelMap,
    apply_rule,
    read_raw_label,
)
from codeseg.pipeline.benchmark.metrics import IGNORE_16
from codeseg.pipeline.manifests import manifest_names, parse_toml, read_manifest

MAX_CLASSES = IGNORE_16
"""Label maps are PNGs of at most 16 bits, whose largest value means "not scored"."""


@dataclass(frozen=True)
class Published:
    """A published score on this benchmark; protocols differ between rows."""

    method: str
    miou: float
    protocol: str  # a name of data_manifests/protocols, or "own"
    source: str
    clip: str = ""  # backbone and its weights; empty: not CLIP, or not stated
    extra: str = ""  # used besides a frozen CLIP: a second network, or training
    refinement: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's manifest."""

    name: str
    title: str
    background: bool  # class 0 is "background": no text, but a constant score (METHOD §8)
    images: int  # of the official split
    classes: tuple[str, ...]  # by number; empty until `open` if `names_file` lists them
    names_file: str | None  # the producer's list of class names in the data; see `read_names`
    palette: tuple[tuple[int, int, int], ...]
    roots: tuple[str, ...]
    image_pattern: str
    split: str | None
    exif: str | None  # stored | upright: images with an EXIF rotation; None: as the sizes fit
    forms: tuple[LabelForm, ...]
    published: tuple[Published, ...]
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """[names]: several names of a class, for protocols that use them."""
    lexicon: tuple[str, ...] = ()
    """Words that its background may be chosen from (rule vabs); empty: the general ones."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """[evaluate]: prediction settings of this benchmark in place of the defaults."""
    source: str = ""  # its name, or the path of its file
    sha256: str = ""  # of the manifest file: identifies the class list of a score

    @property
    def texts(self) -> tuple[str, ...]:
        """The class names that are used as texts, in class order, without "background".

        Raises:
            ValueError: they come with the data, which is not open.
        """
        if self.names_file and not self.classes:
            raise ValueError(f"{self.name} lists its classes in its data: give the data folder")
        return self.classes[1:] if self.background else self.classes

    def with_names_of(self, data: Path | None) -> "Benchmark":
        """Return it with its classes, read from the data folder if that lists them."""
        return self.open(data).benchmark if self.names_file and data else self

    def named(self, names: Sequence[str]) -> "Benchmark":
        """Return it with the producer's class names, which `sha256` then covers, too."""
        digest = hashlib.sha256("\n".join((self.sha256, *names)).encode()).hexdigest()
        named = replace(
            self, classes=tuple(names), palette=tuple(colors(len(names))), sha256=digest
        )
        _check(named)
        return named

    def open(self, data: Path) -> "BenchmarkData":
        """Find the split and the labels in `data`; FileNotFoundError names what is missing."""
        return BenchmarkData(self, data)

    def expected_layout(self) -> str:
        """Return the expected layout of the data folder, for messages."""
        lines = [f"{self.image_pattern}    ({self.images} images)"]
        lines += [form.pattern for form in self.forms[:1]]
        lines += [f"{form.pattern}    (instead)" for form in self.forms[1:]]
        lines += [name for name in (self.split, self.names_file) if name]
        return "\n".join(f"  DIR/{line}" for line in lines)


class BenchmarkData:
    """A benchmark's files in a folder: the ids of its images, their paths and label maps."""

    def __init__(self, benchmark: Benchmark, data: Path) -> None:
        self.benchmark = benchmark
        self.folder = data
        if not data.is_dir():
            raise FileNotFoundError(f"{data}: no such data folder")
        self.root = self._find_root(data)
        self.form = self._find_form()
        if benchmark.names_file:
            self.benchmark = benchmark.named(read_names(self.root / benchmark.names_file))
        self._coco = None
        if self.form.rule == "coco_instances":
            self._coco = CocoInstances(self.root / self.form.pattern, self.form.mapping)
        self._indexes: dict[str, dict[str, Path]] = {}
        self.turned: dict[str, bool] = {}  # image with an EXIF rotation -> whether it was applied

    def _find_root(self, data: Path) -> Path:
        probe = self.benchmark.split or self.benchmark.image_pattern.split("{id}")[0]
        bases = [data / root for root in self.benchmark.roots]
        absolute = Path(os.path.abspath(data))
        if absolute.name == probe.split("/")[0]:  # …/VOC2012 itself, where its parent is meant
            bases.append(absolute.parent)
        for base in bases:
            if (base / probe).exists() or any(base.glob(probe.rstrip("/"))):
                return base
        raise FileNotFoundError(
            f"{data}: {probe} is missing; expected layout of {self.benchmark.name}:\n"
            + self.benchmark.expected_layout()
        )

    def _find_form(self) -> LabelForm:
        for form in self.benchmark.forms:
            if any(self.root.glob(form.pattern.replace("{id}", "*"))):
                return form
        raise FileNotFoundError(
            f"{self.root}: no label maps; expected layout of {self.benchmark.name}:\n"
            + self.benchmark.expected_layout()
        )

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The image ids of the split, in its own order, or sorted if there is no split file."""
        if self.benchmark.split:
            return self._split_ids(self.root / self.benchmark.split)
        ids = self._coco.ids if self._coco else sorted(self._index(self.benchmark.image_pattern))
        if not ids:
            raise FileNotFoundError(f"{self.root}: no image matches {self.benchmark.image_pattern}")
        return tuple(ids)

    def _split_ids(self, path: Path) -> tuple[str, ...]:
        """Return the ids of a split file, one per line, as in the benchmarks' own lists."""
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8 text; save the list as UTF-8") from None
        ids = [line.strip() for line in lines if line.strip()]
        if not ids:
            raise ValueError(f"{path}: the split lists no image")
        for image_id in ids:
            outside = ".." in image_id.split("/") or image_id.startswith("/")
            if outside or (len(image_id.split()) > 1 and not self.image_path(image_id).exists()):
                form = "an image and more" if len(image_id.split()) > 1 else "a path"
                raise ValueError(
                    f"{path}: the line {image_id[:80]!r} lists {form}; {self.benchmark.name} needs "
                    f"one image id per line, the {{id}} of {self.benchmark.image_pattern}"
                )
        if len(set(ids)) < len(ids):
            twice = next(image_id for image_id, count in Counter(ids).items() if count > 1)
            raise ValueError(f"{path}: {twice} is listed twice; list every image once")
        return tuple(ids)

    def image_path(self, image_id: str) -> Path:
        """Return the path of an image, which need not exist."""
        return self._path(self.benchmark.image_pattern, image_id)

    def label_path(self, image_id: str) -> Path:
        """Return the path of a label map (of COCO-Object, the annotations); it need not exist."""
        return self._path(self.form.pattern, image_id)

    def _path(self, pattern: str, image_id: str) -> Path:
        found = self._index(pattern).get(image_id) if "*" in pattern else None
        return found or self.root / pattern.replace("{id}", image_id)

    def _index(self, pattern: str) -> dict[str, Path]:
        """Return all files that match a pattern with {id} and *, by id."""
        if pattern not in self._indexes:
            form = re.escape(pattern).replace(r"\{id\}", "(?P<id>[^/]+)").replace(r"\*", "[^/]+")
            paths = sorted(self.root.glob(pattern.replace("{id}", "*")))
            found = [(re.fullmatch(form, p.relative_to(self.root).as_posix()), p) for p in paths]
            self._indexes[pattern] = {match["id"]: path for match, path in found if match}
        return self._indexes[pattern]

    def image(self, image_id: str) -> Pixels:
        """Return the image, uint8 H×W×3 RGB, in the orientation of its label map.

        Raises:
            FileNotFoundError: there is no such image, or no label map that shows the orientation.
            ValueError: it is damaged, or its orientation is unknown (see `_is_turned`).
        """
        turned = partial(self._is_turned, image_id)
        return rgb_pixels(self.image_path(image_id), turned=turned)

    def _is_turned(self, image_id: str, stored: tuple[int, int], orientation: int) -> bool:
        """Return whether an image's EXIF orientation, 2..8, applies to its label map.

        `stored` is (width, height) of the stored pixels.

        Raises:
            FileNotFoundError: there is no label map to compare with.
            ValueError: both readings fit the label map, or neither, and [layout] lacks exif.
        """
        upright = self.benchmark.exif == "upright"
        if not self.benchmark.exif:
            size = self.label(image_id).shape[::-1]
            upright = size == (stored[::-1] if orientation >= 5 else stored)
            if upright == (size == stored):
                fits = "both readings fit" if upright else "no reading fits"
                raise ValueError(
                    f"{self.image_path(image_id)}: its EXIF tag turns it (orientation "
                    f"{orientation}), and {fits} its label map: write "
                    'exif = "stored" or "upright" under [layout] of the manifest'
                )
        self.turned[image_id] = upright
        return upright

    def label(self, image_id: str) -> LabelMap:
        """Return the label map, H×W, 0..K−1 or not scored.

        Raises:
            FileNotFoundError: there is no label map for this image.
            ValueError: the file is damaged or holds a label outside the class list.
        """
        if self._coco:
            return self._coco.label(image_id)
        path = self.label_path(image_id)
        return apply_rule(read_raw_label(path), self.form, len(self.benchmark.classes), path)


def read_names(path: Path) -> tuple[str, ...]:
    """Return a producer's class names in the order of their numbers.

    The file has a line `NUMBER: NAME` for each class, numbered from 0 or 1 without a gap, as in
    the labels.txt of PASCAL Context.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the list of class names is missing; it comes with the data"
        )
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    found = [re.fullmatch(r"\s*(\d+)\s*:\s*(.*?)\s*", line) for line in lines if line.strip()]
    named = {int(match[1]): match[2] for match in found if match}
    first = min(named, default=0)
    if not named or first > 1 or sorted(named) != list(range(first, first + len(found))):
        raise ValueError(
            f"{path}: not a list of class names: write NUMBER: NAME on each line, the numbers from "
            "0 or 1 without a gap"
        )
    return tuple(named[number] for number in sorted(named))


def benchmark_names() -> list[str]:
    """Return the names of the benchmarks that come with codeseg."""
    return manifest_names("benchmarks")


def load_benchmark(name: str | Path) -> Benchmark:
    """Read and check the benchmark of this name, or the manifest at this path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, or the manifest is wrong; one line says how.
    """
    stored = read_manifest(str(name), "benchmarks")
    content = parse_toml(stored, str(name))
    try:
        return _parse(content, stored, str(name))
    except KeyError as error:
        raise ValueError(f"{name}: the manifest lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def _parse(content: dict[str, Any], stored: bytes, source: str) -> Benchmark:
    layout, labels = content["layout"], dict(content["labels"])
    also = labels.pop("also", [])
    names_file = layout.get("names")
    benchmark = Benchmark(
        name=content["name"],
        title=content["title"],
        background=content["background"],
        images=content["images"],
        classes=() if names_file else tuple(content["classes"]),
        names_file=names_file,
        palette=() if names_file else tuple((r, g, b) for r, g, b in content["palette"]),
        roots=tuple(layout.get("roots", ["."])),
        image_pattern=layout["images"],
        split=layout.get("split"),
        exif=layout.get("exif"),
        forms=tuple(map(_form, [{"labels": layout["labels"], **labels}, *also])),
        published=tuple(Published(**row) for row in content.get("published") or ()),
        names=content.get("names", {}),
        lexicon=tuple(content.get("lexicon", ())),
        settings=content.get("evaluate", {}),
        source=source,
        sha256=hashlib.sha256(stored).hexdigest(),
    )
    if not names_file:
        _check(benchmark)
    return benchmark


def _form(table: dict[str, Any]) -> LabelForm:
    return LabelForm(
        pattern=table["labels"],
        rule=table["rule"],
        ignore=table.get("ignore"),
        mapping={int(raw): train for raw, train in table.get("map", {}).items()},
        raw_max=table.get("raw_max"),
    )


def _check(benchmark: Benchmark) -> None:
    classes = len(benchmark.classes)
    if not benchmark.texts:
        raise ValueError("the class list is empty: name at least one class besides background")
    if classes > MAX_CLASSES:
        raise ValueError(f"{classes} classes, but label maps hold at most {MAX_CLASSES}")
    if len(set(benchmark.classes)) < classes:
        raise ValueError("a class name occurs twice")
    if any(not name.strip() for name in benchmark.classes):
        raise ValueError("a class name is blank")
    if len(benchmark.palette) != classes:
        raise ValueError(f"{classes} classes but {len(benchmark.palette)} palette colors")
    if benchmark.exif not in (None, "stored", "upright"):
        raise ValueError(f'[layout] exif is "stored" or "upright", not {benchmark.exif!r}')
    for form in benchmark.forms:
        form.check(classes)
