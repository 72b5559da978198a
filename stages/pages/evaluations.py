"""FOLDER/**/scores.json -> evaluations by name, in groups of comparable scores.

Scores are comparable if benchmark, class list, protocol and scored images are the same; no table
of the page mixes others. A protocol is identified by its name, its file and the settings that
`--set` may change.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from codeseg.pipeline.benchmark.manifest import Benchmark, load_benchmark
from codeseg.stages.pages.html import readable

METHODS = {
    "code": "CoDe", "scg": "SCG", "maskclip": "MaskCLIP", "sclip": "SCLIP", "naclip": "NACLIP",
    "clearclip": "ClearCLIP", "scclip": "SC-CLIP", "align": "Aligned words",
    "maskclip_bare": "MaskCLIP without the MLP",
}  # fmt: skip
PLAYED = ("short_side", "window", "stride", "score", "background")  # that `--set` may change


@dataclass(frozen=True)
class Evaluation:
    """One method's score on one benchmark, as written by `codeseg evaluate` or `codeseg score`."""

    folder: Path
    summary: dict[str, Any]
    manifest: Benchmark
    images: tuple[str, ...]  # ids of the scored images, sorted
    miou: float | None  # percent; None where no pixel was scored
    shown: str  # mIoU as text, with its 95 % interval if one was recorded
    compared: str  # the paired difference that `codeseg score --against` recorded, or ""
    name: str = ""  # the name on the page: the method and, in a group, what distinguishes it

    @property
    def settings(self) -> dict[str, Any]:
        """All recorded settings that affect the label maps; empty for maps made elsewhere."""
        return dict(self.summary.get("settings") or {})

    @property
    def method(self) -> str:
        """The method's usual name."""
        recorded = self.settings.get("method", self.summary.get("method"))
        if recorded is None:
            return "label maps made elsewhere"
        return " + ".join(METHODS.get(part, part) for part in str(recorded).split("+"))

    @property
    def protocol(self) -> str:
        """The protocol's name and those of its settings that `--set` may change."""
        recorded = self.summary.get("protocol") or self.settings.get("protocol")
        known = [k for k in PLAYED if k in self.settings]
        settings = [f"{k.replace('_', ' ')} {readable(self.settings[k])}" for k in known]
        name = "no protocol recorded" if recorded is None else f"protocol {readable(recorded)}"
        return f"{name} ({', '.join(settings)})" if settings else name

    @property
    def data(self) -> Path | None:
        """The benchmark's data folder, if it is known and still exists."""
        place = self.summary.get("data")
        return self.folder / place if place and (self.folder / place).is_dir() else None

    def per_class(self) -> dict[str, float | None]:
        """Return IoU of each class in percent, to a tenth; None where it never occurs."""
        found = ((name, self.summary["per_class"][name]) for name in self.manifest.classes)
        return {name: None if value is None else round(value, 1) for name, value in found}

    def confusion(self) -> npt.NDArray[np.int64]:
        """Return the confusion matrix, int64 K×K."""
        return np.array(pq.read_table(self.folder / "scores.parquet")["confusion"].to_pylist())


def find_evaluations(folder: Path) -> list[list[Evaluation]]:
    """Return groups of comparable evaluations, each from the lowest mIoU to the highest.

    Refuse a scores.json that neither `codeseg evaluate` nor `codeseg score` wrote.
    """
    found = [_read(path) for path in sorted(folder.glob("**/scores.json"))]
    found.sort(key=_comparability)
    groups = []
    for _, same in groupby(found, key=_comparability):
        group = sorted(same, key=lambda e: -1 if e.miou is None else e.miou)
        apart = names_apart([e.folder for e in group])
        methods = [e.method for e in group]
        pairs = zip(methods, apart, strict=True)
        names = [m if methods.count(m) == 1 else f"{m} ({more})" for m, more in pairs]
        groups.append([replace(e, name=name) for e, name in zip(group, names, strict=True)])
    return groups


def _comparability(evaluation: Evaluation) -> tuple[Any, ...]:
    """Return a key that is equal for evaluations with comparable scores."""
    manifest = evaluation.manifest
    protocol = (evaluation.protocol, str(evaluation.settings.get("protocol_sha256")))
    return manifest.title, manifest.name, manifest.sha256, *protocol, evaluation.images


def _read(path: Path) -> Evaluation:
    folder = path.parent
    try:
        summary = json.loads(path.read_text())
        source = str(summary.get("manifest", summary["benchmark"]))
        manifest = load_benchmark(folder / source if source.endswith(".toml") else source)
        if manifest.names_file:
            manifest = manifest.named(list(summary["per_class"]))
        images = pq.read_table(folder / "images.parquet", columns=["id"])["id"].to_pylist()
        miou = None if summary["miou"] is None else float(summary["miou"])
        shown = "–" if miou is None else f"{miou:.2f}{_bounds(summary.get('miou_interval'))}"
        compared = ""
        if against := summary.get("against"):
            found = against["difference"]
            compared = f"{found['value']:+.2f}{_bounds(found)} against {against['predictions']}"
            compared += f", p {against['p']:.3f}; protocol there: {against['protocol']}"
        ids = tuple(sorted(images))
        evaluation = Evaluation(folder, summary, manifest, ids, miou, shown, compared)
        evaluation.per_class()
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a score of codeseg evaluate ({error!r})") from None
    return evaluation


def _bounds(interval: dict[str, float] | None) -> str:
    return f" ({interval['low']:.2f} to {interval['high']:.2f})" if interval else ""


def names_apart(folders: Sequence[Path]) -> list[str]:
    """Return distinguishing names of folders: their paths without the common beginning and end.

    runs/a/evaluations/voc/code and runs/b/evaluations/voc/code become a and b; a single folder
    keeps its own name.
    """

    def shared(parts: Sequence[tuple[str, ...]]) -> int:
        same = [len(set(names)) == 1 for names in zip(*parts, strict=False)]
        return [*same, False].index(False)

    parts = [folder.parts for folder in folders]
    first = min(shared(parts), *(len(part) - 1 for part in parts))
    last = shared([part[::-1] for part in parts])
    return ["/".join(part[first : max(first + 1, len(part) - last)]) for part in parts]
