"""Which parts help, on storybook: trained runs in, the tables of docs/ablation.md out.

    codeseg demo                             # makes demo-run: data, benchmarks, two runs
    python -m bench.parts demo-run TABLE     # trains below demo-run/parts, resumes

TABLE is a key of TABLES, `sky` (what the demo's own runs score on the pixels of the grounds) or
`pictures` (the label maps of the four parts side by side, as figure 4.3 of the thesis has them).
Every run is trained and every number made by `codeseg train` and `codeseg evaluate` with the
manifests' settings; ± is the standard deviation over training seeds.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bench.methods import codeseg, spread
from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.pictures.pixels import rgb_pixels
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.storybook import scenes as storybook
from codeseg.stages.demo import BENCHMARKS

BASELINE, CODE = "storybook_baseline", "storybook"
PARTS = {BASELINE: "baseline", "storybook_c": "+C", "storybook_cw": "+C +W", CODE: "CoDe"}
SELECTIONS: dict[str, tuple[str, ...]] = {
    "top70": ("--top", "clip_score", "0.7"),
    "random70": ("--sample", "0.7"),
}
WEIGHTS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # thesis table 4.3


@dataclass(frozen=True)
class Way:
    """One row of a table: a recipe and what is changed in it."""

    title: str
    recipe: str
    changes: tuple[str, ...] = ()


CHANGES = {
    "as it is": (),
    "empty masks weigh 0.5": ("model.area_negative_weight=0.5",),
    "top70": ("train.selection=top70",),
}
TABLES = {
    "parts": [Way(title, recipe) for recipe, title in PARTS.items()],
    "selection": [
        Way("all pairs", CODE),
        *(Way(name, CODE, (f"train.selection={name}",)) for name in ("top70", "random70")),
    ],
    "contrast": [
        Way(f"λ_hcl {weight}", CODE, (f"model.hcl_weight={weight}",) if weight != 0.5 else ())
        for weight in WEIGHTS
    ],
    "causes": [
        Way(f"{PARTS[recipe]}, {title}", recipe, changes)
        for title, changes in CHANGES.items()
        for recipe in (BASELINE, CODE)
    ],
}


def main() -> None:
    """Train what is missing, evaluate what is missing, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="what `codeseg demo` made")
    parser.add_argument("table", choices=[*TABLES, "sky", "pictures"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    arguments = parser.parse_args()
    demo, table = arguments.demo, arguments.table
    if not (demo / "results.json").exists():
        parser.error(f"{demo} is no finished demo: run `codeseg demo` first")
    for name, how in SELECTIONS.items():
        if not (demo / "data" / "selections" / f"{name}.arrow").exists():
            codeseg("select", demo / "data", name, *how)
    if table == "sky":
        explain(demo)
    elif table == "pictures":
        draw(demo, demo / "parts" / "pictures.png")
    else:
        show(demo, TABLES[table], arguments.seeds)


def show(demo: Path, ways: Sequence[Way], seeds: Sequence[int]) -> None:
    """Print a row a way: both benchmarks, and what the second one's mean is made of."""
    print("| | seeds | things | scenes | sky | five other grounds | 20 things |")
    print("|---|---|---|---|---|---|---|")
    for way in ways:
        rows = []
        for seed in seeds:
            things, scenes = (scores(demo, way, seed, name) for name in BENCHMARKS)
            classes = scenes["per_class"]
            grounds = [classes[name] for name in storybook.GROUNDS if name != "sky"]
            objects = [classes[name] for name in storybook.THING_NAMES]
            parts = (classes["sky"], float(np.mean(grounds)), float(np.mean(objects)))
            rows.append((things["miou"], scenes["miou"], *parts))
        cells = " | ".join(spread(column) for column in zip(*rows, strict=True))
        print(f"| {way.title} | {len(rows)} | {cells} |", flush=True)


def scores(demo: Path, way: Way, seed: int, benchmark: str) -> dict[str, Any]:
    """Return what `codeseg evaluate` says of a run; both are made unless they are there."""
    run = trained(demo, way, seed)
    out = run / "evaluations" / benchmark
    if not (out / "scores.json").exists():
        data = demo / "world" / benchmark
        codeseg("evaluate", run, "--benchmark", benchmark, "--data", data, "--out", out)
    found: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return found


def trained(demo: Path, way: Way, seed: int) -> Path:
    """Train a run unless it has been evaluated; return where it lies."""
    changes = [change.partition(".")[2].replace("=", "-") for change in way.changes]
    run = demo / "parts" / "-".join([way.recipe, *changes, str(seed)])
    if not (run / "evaluations").exists():
        settings = [word for change in way.changes for word in ("--set", change)]
        settings += ["--set", f"train.seed={seed}"]
        codeseg("train", demo / "data", run, "--recipe", way.recipe, *settings)
    return run


def explain(demo: Path) -> None:
    """Print a row a ground: how often it is shown unnamed, and what its pixels score.

    A negative is a picture whose caption does not name the ground. Scores are means over the
    ground's pixels in the first 60 pictures of the scenes benchmark.
    """
    pairs = [(s.caption.split(), s.grounds) for s in storybook.scenes(storybook.TRAIN_SEED, 2000)]
    rows: dict[str, list[str]] = {}
    for ground in storybook.GROUNDS:
        negatives = [ground in shown for words, shown in pairs if ground not in words]
        rows[ground] = [f"{100 * np.mean(negatives):.0f} %"]
    for run in ("baseline", "code"):
        mean = mean_scores(demo / "runs" / run, demo / "world" / BENCHMARKS[1])
        for ground, row in rows.items():
            found = dict(zip(storybook.CLASSES, mean[storybook.CLASSES.index(ground)], strict=True))
            own = found.pop(ground)
            other = max(found, key=found.__getitem__)
            row += [f"{own:.2f}", f"{found[other]:.2f} ({other})"]
    print("| ground | negatives that show it | baseline: itself | best other ", end="")
    print("| CoDe: itself | best other |\n|---|---|---|---|---|---|")
    for ground, row in rows.items():
        print(f"| {ground} | {' | '.join(row)} |")


def mean_scores(run: Path, folder: Path, pictures: int = 60) -> np.ndarray:
    """Mean score (K, K) of every class on the pixels of every class, the pixels' class first."""
    data = load_benchmark(BENCHMARKS[1]).open(folder)
    segmenter = Segmenter.open(run, device="cpu")
    embeddings = segmenter.embed_texts(data.benchmark.texts)
    total, pixels = np.zeros((2, *[len(storybook.CLASSES)] * 2))
    for key in data.ids[:pictures]:
        chunks = segmenter.maps(rgb_pixels(data.image_path(key)), embeddings)
        maps, label = torch.cat([maps for _, maps in chunks]).numpy(), data.label(key)
        for k in np.unique(label):
            total[k] += maps[:, label == k].sum(1)
            pixels[k] += (label == k).sum()
    return np.asarray(total / np.maximum(pixels, 1))


def draw(demo: Path, target: Path) -> None:
    """Draw pictures of the things benchmark, their true label map and those of the four parts.

    The pictures are the first that show at least two things; the runs are those of seed 0.
    """
    name = BENCHMARKS[0]
    for way in TABLES["parts"]:
        scores(demo, way, 0, name)
    data = load_benchmark(name).open(demo / "world" / name)
    shown = [key for key in data.ids if len(np.unique(data.label(key))) > 2][:5]
    maps = [trained(demo, way, 0) / "evaluations" / name / "labels" for way in TABLES["parts"]]
    columns = [data.folder / "images", data.folder / "labels", *maps]
    cell, head = 2 * storybook.SIZE + 4, 20
    sheet = Image.new("RGB", (cell * len(columns), head + cell * len(shown)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(("picture", "truth", *PARTS.values())):
        pen.text((cell * column + 4, 4), title, fill="black", font_size=12)
        for row, key in enumerate(shown):
            found = Image.open(columns[column] / f"{key}.png").convert("RGB")
            found = found.resize((cell - 4, cell - 4), Image.Resampling.NEAREST)
            sheet.paste(found, (cell * column, head + cell * row))
    sheet.quantize(255).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
