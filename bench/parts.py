"""Which parts help, on storybook: trained runs in, the tables of docs/ablation.md out.

    codeseg demo                             # makes demo-run: data, benchmarks, two runs
    python -m bench.parts demo-run TABLE     # trains below demo-run/parts, resumes

TABLE is a key of TABLES, `captions` (how many of each selection are wrong), `sky` (what the demo's
own runs score on grounds), `pictures` (the parts' label maps side by side, as thesis figure 4.3),
`choose` (settings of longer runs, on development scenes and a development seed) or `order` (the
parts in longer runs with the chosen settings, on seeds and scenes that nothing was chosen on) or
`named` (baseline and CoDe on the same pictures with a caption that names all they show, once) or
`noisy` (alignments where more and more captions are of other pictures).
Every run is made by `codeseg train` and scored by `codeseg evaluate`; ± is the standard deviation
over training seeds.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bench.methods import THRESHOLDS, codeseg, curve, spread
from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.pictures.pixels import rgb_pixels
from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.audit.selection import Condition
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.storybook import scenes as storybook
from codeseg.pipeline.storybook.things import THINGS
from codeseg.stages.demo import BENCHMARKS, VIEWS

BASELINE, CODE = "storybook_baseline", "storybook"
ALIGNMENTS = ("storybook_align", "storybook_align_regions")
PARTS = {BASELINE: "baseline", "storybook_c": "+C", "storybook_cw": "+C +W", CODE: "CoDe"}
SELECTIONS = {"top70": Condition(top=("clip_score", 0.7)), "random70": Condition(sample=0.7)}
EMPTY = ("model.area_negative_weight=0.5",)
LONGER = ("train.steps=300", "train.checkpoint_every=300")
CANDIDATES = {
    "the recipe's weights": LONGER,
    "empty masks 0.5": (*LONGER, *EMPTY),
    "the better 70 %": (*LONGER, "train.selection=top70"),
}
"""What `choose` compares: steps are what the time allows; the rest is what brings the sky back."""
DEVELOPMENT, REPORTED = 10, (20, 21, 22)
"""Training seeds of `choose` and of `order`."""
ORDER_WORLD = 24
"""Seed of the 200 scenes of `order`; no training, choice or other benchmark draws from them."""


@dataclass(frozen=True)
class Way:
    """One row of a table: a recipe and what is changed in it."""

    title: str
    recipe: str
    changes: tuple[str, ...] = ()


TABLES = {
    "parts": [Way(title, recipe) for recipe, title in PARTS.items()],
    "selection": [
        Way("all pairs", CODE),
        *(Way(name, CODE, (f"train.selection={name}",)) for name in SELECTIONS),
    ],
    "contrast": [
        Way(f"λ_hcl {weight}", CODE, (f"model.hcl_weight={weight}",) if weight != 0.5 else ())
        for weight in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # thesis table 4.3
    ],
    "causes": [
        *(Way(PARTS[recipe], recipe) for recipe in (BASELINE, CODE)),
        *(Way(f"{PARTS[recipe]}, empty masks 0.5", recipe, EMPTY) for recipe in (BASELINE, CODE)),
        Way("CoDe, no loss of word masks", CODE, ("model.word_weight=0",)),
    ],
}


def main() -> None:
    """Train what is missing, evaluate what is missing, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="what `codeseg demo` made")
    parser.add_argument("table", choices=[*TABLES, *OTHERS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    demo, table, seeds = vars(parser.parse_args()).values()
    if not (demo / "results.json").exists():
        parser.error(f"{demo} is no finished demo: run `codeseg demo` first")
    for name, kept in SELECTIONS.items():
        if not (demo / "data" / "selections" / f"{name}.arrow").exists():
            how = ("--top", *kept.top) if kept.top else ("--sample", kept.sample)
            codeseg("select", demo / "data", name, *map(str, how))
    if table in OTHERS:
        OTHERS[table](demo)
    else:
        show(demo, TABLES[table], seeds)


def show(demo: Path, ways: Sequence[Way], seeds: Sequence[int]) -> None:
    """Print a row a way: both benchmarks, and what the second one's mean is made of."""
    print("| | seeds | things | scenes | sky | five other grounds | 20 things |")
    print("|---|---|---|---|---|---|---|")
    for way in ways:
        rows = []
        for seed in seeds:
            things, scenes = (scores(demo, way, seed, name) for name in BENCHMARKS)
            classes = scenes["per_class"]
            grounds = np.mean([classes[name] for name in storybook.GROUNDS if name != "sky"])
            objects = np.mean([classes[name] for name in storybook.THING_NAMES])
            rows.append((things["miou"], scenes["miou"], classes["sky"], grounds, objects))
        cells = " | ".join(spread(column) for column in zip(*rows, strict=True))
        print(f"| {way.title} | {len(rows)} | {cells} |", flush=True)


def scores(demo: Path, way: Way, seed: int, benchmark: str) -> dict[str, Any]:
    """Return the scores of a run on the demo's own scenes; the run is made unless it is there."""
    run = trained(demo, way, seed)
    return evaluated(run, benchmark, demo / "world" / benchmark, run / "evaluations" / benchmark)


def evaluated(
    run: Path, benchmark: str, data: Path, out: Path, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what `codeseg evaluate` says of a run, which it is asked unless `out` has it."""
    if not (out / "scores.json").exists():
        changes = [word for setting in settings for word in ("--set", setting)]
        codeseg("evaluate", run, "--benchmark", benchmark, "--data", data, "--out", out, *changes)
    return dict(json.loads((out / "scores.json").read_text()))


def trained(demo: Path, way: Way, seed: int) -> Path:
    """Train a run unless it has been evaluated; return where it lies."""
    changes = [change.partition(".")[2].replace("=", "-") for change in way.changes]
    run = demo / "parts" / "-".join([way.recipe, *changes, str(seed)])
    if not (run / "evaluations").exists():
        changed = (*way.changes, f"train.seed={seed}")
        settings = [word for change in changed for word in ("--set", change)]
        codeseg("train", demo / "data", run, "--recipe", way.recipe, *settings)
    return run


def world(demo: Path, seed: int, scenes: int) -> Path:
    """Return the folder of both benchmarks on a world's scenes; written unless they are there."""
    folder = demo / "parts" / f"world-{seed}"
    for name in BENCHMARKS:
        if not (folder / name / "val.txt").exists():
            storybook.write_benchmark(folder / name, name, scenes, seed)
    return folder


def played(run: Path, folder: Path, benchmark: str, *settings: str) -> float:
    """Return a run's mIoU on the scenes of a folder, percent."""
    out = run / "evaluations" / "-".join((folder.name, benchmark, *settings))
    return float(evaluated(run, benchmark, folder / benchmark, out, settings)["miou"])


@functools.cache
def developed(demo: Path, recipe: str, changes: tuple[str, ...]) -> tuple[float, float, float]:
    """Return a development run's best threshold, its mIoU on things there, and on scenes."""
    run = trained(demo, Way("", recipe, changes), DEVELOPMENT)
    folder = world(demo, storybook.DEV_SEED, 100)
    data = load_benchmark(BENCHMARKS[0]).open(folder / BENCHMARKS[0])
    mious = curve(Segmenter.open(run, device="cpu"), data, data.ids)
    best = int(np.argmax(mious))
    return float(THRESHOLDS[best]), mious[best], played(run, folder, BENCHMARKS[1])


def choose(demo: Path) -> str:
    """Print each candidate's mean over baseline and CoDe and both benchmarks; return the best.

    The mean is blind to the order of the two methods.
    """
    print("| settings | mean of both methods and both benchmarks |\n|---|---|")
    means = {}
    for title, changes in CANDIDATES.items():
        runs = [developed(demo, recipe, changes)[1:] for recipe in (BASELINE, CODE)]
        means[title] = float(np.mean(runs))
        print(f"| {title} | {means[title]:.1f} |", flush=True)
    return max(means, key=means.__getitem__)


def order(demo: Path) -> None:
    """Print the parts with the chosen settings, each at its own development threshold."""
    changes, folder = CANDIDATES[choose(demo)], world(demo, ORDER_WORLD, 200)
    print("| | threshold | things | scenes |\n|---|---|---|---|")
    for recipe, title in PARTS.items():
        threshold = developed(demo, recipe, changes)[0]
        runs = [trained(demo, Way("", recipe, changes), seed) for seed in REPORTED]
        at = f"background_threshold={threshold}"
        things = [played(run, folder, BENCHMARKS[0], at) for run in runs]
        scenes = [played(run, folder, BENCHMARKS[1]) for run in runs]
        rows = (" · ".join(f"{x:.1f}" for x in row) for row in (things, scenes))
        print(f"| {title} | {threshold} | {' | '.join(rows)} |", flush=True)


def own_root(folder: Path, captions: dict[int, str]) -> Path:
    """Return a root of the training scenes with these captions, by scene; made unless it is there.

    It has features of the CLIP, and vectors of the embedded ViT by heads and by regions.
    """
    pictures, data = folder / "pictures", folder / "data"
    if not (pictures / "metadata.jsonl").exists():
        pictures.mkdir(parents=True)
        lines = []
        for index, text in captions.items():
            scene = storybook.draw_scene(storybook.TRAIN_SEED, index)
            scene.image.save(pictures / f"{index:06d}.png")
            lines.append(json.dumps({"file_name": f"{index:06d}.png", "text": text}) + "\n")
        (pictures / "metadata.jsonl").write_text("".join(lines))
    manifest = folder / "own.toml"
    manifest.write_text(
        'name = "own"\ntitle = "own"\nlicence = "Apache-2.0"\nformat = "imagefolder"\n'
        f'url_list = "{pictures}"\nimage_size = {storybook.SIZE}\n'
    )
    codeseg("download", manifest, data)
    codeseg("nouns", data)
    clip = ("--clip", "storybook", "--pretrained", "storybook", "--views", VIEWS)
    codeseg("features", data, *clip)
    for pool in ("heads", "regions"):
        codeseg("features", data, *clip, "--backbone", "storybook", "--pool", pool)
    return data


def show_root(title: str, data: Path, world: Path, recipes: Sequence[str]) -> None:
    """Train recipes on a root with two seeds, and print a row of each."""
    for recipe in recipes:
        runs = [data.parent / f"{recipe}-{seed}" for seed in (0, 1)]
        for seed, run in enumerate(runs):
            codeseg("train", data, run, "--recipe", recipe, "--set", f"train.seed={seed}")
        cells = [
            " · ".join(f"{played(run, world, name):.1f}" for run in runs) for name in BENCHMARKS
        ]
        print(f"| {title} | {PARTS.get(recipe, recipe)} | {' | '.join(cells)} |", flush=True)


def named(demo: Path) -> None:
    """Print baseline and CoDe, trained on captions that name every class of their picture."""
    texts = {}
    for index, scene in enumerate(storybook.scenes(storybook.TRAIN_SEED, 2000)):
        said = dict.fromkeys([*(thing.name for thing in scene.things), *scene.grounds])
        texts[index] = " and ".join(f"a {name}" for name in said)
    print("| captions | | things | scenes |\n|---|---|---|---|")
    data = own_root(demo / "parts" / "named", texts)
    show_root("name everything", data, demo / "world", (BASELINE, CODE))


def noisy(demo: Path) -> None:
    """Print alignments, trained on captions of which a share belongs to other pictures."""
    drawn = [scene.caption for scene in storybook.scenes(storybook.TRAIN_SEED, 2000)]
    print("| captions | | things | scenes |\n|---|---|---|---|")
    for percent in (0, 25):
        draw = np.random.default_rng(percent)
        chosen = draw.permutation(len(drawn))[: len(drawn) * percent // 100]
        texts = dict(enumerate(drawn)) | {
            int(to): drawn[of] for to, of in zip(chosen, np.roll(chosen, 1), strict=True)
        }
        data = own_root(demo / "parts" / f"noisy-{percent}", texts)
        title = f"{percent} % exchanged" if percent else "as drawn"
        show_root(title, data, demo / "world", ALIGNMENTS)


def captions(demo: Path) -> None:
    """Print how many captions name what their picture does not show, or no class at all."""
    singular = {thing["plural"]: name for name, thing in THINGS.items()}
    print("| pairs | number | name what is not shown | name no class |\n|---|---|---|---|")
    with Audit(Storage.open(str(demo / "data")), AuditOptions(pictures=0)) as audit:
        for title, condition in {"all": Condition(), **SELECTIONS}.items():
            wrong, useless, rows = 0, 0, audit.query(condition.sql()).to_pylist()
            for row in rows:
                scene = storybook.draw_scene(storybook.TRAIN_SEED, int(row["url"][-10:-4]))
                words = {singular.get(word, word) for word in row["caption"].split()}
                named = words.intersection(storybook.CLASSES)
                useless += not named
                wrong += not named <= {*scene.grounds, *(thing.name for thing in scene.things)}
            print(f"| {title} | {len(rows):,} | {wrong} | {useless} |")


def explain(demo: Path) -> None:
    """Print how often each ground is shown where it is not named, and what its pixels score."""
    pairs = [(s.caption.split(), s.grounds) for s in storybook.scenes(storybook.TRAIN_SEED, 2000)]
    rows = {}
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
    print("| ground | negatives that show it | baseline: itself | other | CoDe: itself | other |")
    print("|---|---|---|---|---|---|")
    for ground, row in rows.items():
        print(f"| {ground} | {' | '.join(row)} |")


def mean_scores(run: Path, folder: Path) -> np.ndarray:
    """Mean score (pixels' class, class) over the first 60 pictures of the scenes benchmark."""
    data = load_benchmark(BENCHMARKS[1]).open(folder)
    segmenter = Segmenter.open(run, device="cpu")
    embeddings = segmenter.embed_texts(data.benchmark.texts)
    total, pixels = np.zeros((2, *[len(storybook.CLASSES)] * 2))
    for key in data.ids[:60]:
        chunks = segmenter.maps(rgb_pixels(data.image_path(key)), embeddings)
        maps, label = torch.cat([maps for _, maps in chunks]).numpy(), data.label(key)
        for k in np.unique(label):
            total[k] += maps[:, label == k].sum(1)
            pixels[k] += (label == k).sum()
    return np.asarray(total / np.maximum(pixels, 1))


def draw(demo: Path) -> None:
    """Draw the first pictures with two things, the truth and the maps of the parts' seed 0."""
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
    sheet.quantize(255).save(demo / "parts" / "pictures.png", optimize=True)


OTHERS = {
    "captions": captions,
    "sky": explain,
    "pictures": draw,
    "choose": choose,
    "order": order,
    "named": named,
    "noisy": noisy,
}

if __name__ == "__main__":
    main()
