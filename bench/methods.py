"""Every method, alone and with regions, on both storybook benchmarks -> a table.

    codeseg demo                                   # makes demo-run: data, benchmarks
    python -m bench.methods demo-run               # trains 9 runs in demo-run/methods, resumes
    python -m bench.methods demo-run --choose      # thresholds on development scenes instead
    python -m bench.methods demo-run --protocols   # every method under every protocol instead

`codeseg train` and `codeseg evaluate` make all runs and numbers, with the manifests' settings and
three seeds; ± is the standard deviation over them. Boundary F is the F-score of the predicted
boundaries against the true ones within 2 pixels, averaged over the pictures. ms is CPU time per
picture in one thread, with model and words loaded. With --protocols, the methods without regions
use the protocols code, sclip and plain, and sclip with chosen background words (vabs), on held-out
scenes of three worlds; ± is over the worlds (for CoDe, one run per world).
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench.regions import boundary_f
from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.pictures.pixels import rgb_pixels
from codeseg.pipeline.benchmark.labels import read_raw_label
from codeseg.pipeline.benchmark.manifest import BenchmarkData, load_benchmark
from codeseg.pipeline.benchmark.metrics import Scores, confusion_matrix
from codeseg.pipeline.storybook import scenes as storybook
from codeseg.stages.demo import BENCHMARKS

SEEDS = (0, 1, 2)
TIMED_PICTURES = 20
THRESHOLDS = np.round(np.arange(0.025, 1.0, 0.025), 3)

WORLDS = (21, 22, 23)
"""Seeds of held-out scenes; no training, choice or other benchmark draws from them."""
PROTOCOLS = (("code",), ("sclip",), ("sclip", "--set", "background=vabs"), ("plain",))

# Title, recipe (None: the frozen CLIP alone), --method.
WAYS = (
    ("MaskCLIP", None, "maskclip"),
    ("NACLIP", None, "naclip"),
    ("SCG, frozen CLIP", None, "scg"),
    ("SCG", "storybook_scg", "scg"),
    ("MaskCLIP + SCG, frozen CLIP", None, "maskclip+scg"),
    ("MaskCLIP + SCG", "storybook_scg", "maskclip+scg"),
    ("NACLIP + SCG, frozen CLIP", None, "naclip+scg"),
    ("NACLIP + SCG", "storybook_scg", "naclip+scg"),
    ("CoDe", "storybook", "code"),
    ("CoDe + SCG, frozen CLIP", "storybook", "code+scg"),
    ("CoDe, trained with SCG", "storybook_code_scg", "code"),
    ("CoDe + SCG, trained together", "storybook_code_scg", "code+scg"),
)


def main() -> None:
    """Train and evaluate what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder made by `codeseg demo`")
    parser.add_argument("--choose", action="store_true", help="thresholds on development scenes")
    parser.add_argument("--protocols", action="store_true", help="table of methods × protocols")
    parser.add_argument(
        "--scenes", type=int, default=100, help="scenes per world of --choose or --protocols"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (arguments.demo / "results.json").exists():
        parser.error(f"{arguments.demo} is no finished demo: run `codeseg demo` first")
    if arguments.protocols:
        show_protocols(arguments.demo, arguments.scenes)
        return
    train_all(arguments.demo)
    if arguments.choose:
        choose(arguments.demo, arguments.scenes)
    else:
        show(arguments.demo)


def codeseg(*words: str | Path) -> None:
    """Run one command as a user would; show its output only if it fails."""
    command = [sys.executable, "-m", "codeseg", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def train_all(demo: Path) -> None:
    """Make the regions and every run that is not finished."""
    codeseg("regions", demo / "data")
    for recipe in dict.fromkeys(recipe for _, recipe, _ in WAYS if recipe):
        for seed in SEEDS:
            train(demo, recipe, seed)


def train(demo: Path, recipe: str, seed: int) -> Path:
    """Train a run unless it is finished; return its folder."""
    run = run_folder(demo, recipe, seed)
    print(f"training {run.name}", file=sys.stderr, flush=True)
    codeseg("train", demo / "data", run, "--recipe", recipe, "--set", f"train.seed={seed}")
    return run


def run_folder(demo: Path, recipe: str, seed: int) -> Path:
    """Return the folder of a run."""
    return demo / "methods" / "runs" / f"{recipe}-{seed}"


def runs_of(demo: Path, recipe: str | None) -> list[Path | None]:
    """Return a method's runs: one per seed, or [None] for a frozen CLIP."""
    return [run_folder(demo, recipe, seed) for seed in SEEDS] if recipe else [None]


def show(demo: Path) -> None:
    """Print the table of the held-out benchmarks."""
    names = " | ".join(f"{name}, mIoU | boundary F" for name in BENCHMARKS)
    print(f"| way | runs | {names} | ms |")
    print("|---|---|" + "---|" * (2 * len(BENCHMARKS) + 1))
    for title, recipe, method in WAYS:
        runs = runs_of(demo, recipe)
        cells = []
        for benchmark in BENCHMARKS:
            found = [evaluated(demo, run, method, benchmark) for run in runs]
            cells += [spread([miou for miou, _ in found]), spread([f for _, f in found])]
        ms = milliseconds(demo, runs[0], method)
        print(f"| {title} | {len(runs)} | {' | '.join(cells)} | {ms:.0f} |", flush=True)


def show_protocols(demo: Path, scenes: int) -> None:
    """Print mIoU of every method without regions under every protocol, on both benchmarks."""
    columns = [(name, how) for name in BENCHMARKS for how in PROTOCOLS]
    columns = [(name, how) for name, how in columns if len(how) == 1 or name.endswith("things")]
    titles = (f"{name}, {how[0]}{' + vabs' if len(how) > 1 else ''}" for name, how in columns)
    print(f"| method | {' | '.join(titles)} |")
    print("|---|" + "---|" * len(columns))
    for method in ("maskclip", "sclip", "clearclip", "naclip", "scclip", "code"):
        cells = []
        for benchmark, how in columns:
            mious = [played(demo, world, method, benchmark, how, scenes) for world in WORLDS]
            cells.append(spread(mious))
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def played(
    demo: Path, world: int, method: str, benchmark: str, how: Sequence[str], scenes: int
) -> float:
    """One method's mIoU on one held-out world under one protocol, percent."""
    data = demo / "methods" / f"world-{world}-{scenes}" / benchmark
    if not (data / "val.txt").exists():
        storybook.write_benchmark(data, benchmark, scenes, world)
    model: list[str | Path] = ["--clip", "storybook"]
    if method == "code":
        model = [train(demo, "storybook", SEEDS[WORLDS.index(world)])]
    out = data.parent / "-".join((benchmark, method, *how)).replace("=", "-")
    codeseg(
        *("evaluate", *model, "--method", method, "--protocol", *how),
        *("--benchmark", benchmark, "--data", data, "--out", out),
    )
    miou: float = json.loads((out / "scores.json").read_text())["miou"]
    return miou


def spread(values: Sequence[float]) -> str:
    """Return the mean ± sample standard deviation, or the single value."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def evaluated(demo: Path, run: Path | None, method: str, benchmark: str) -> tuple[float, float]:
    """Return a run's mIoU and boundary F, percent, after `codeseg evaluate` has predicted."""
    out = demo / "methods" / benchmark / f"{run.name if run else 'frozen'}-{method}"
    data = demo / "world" / benchmark
    model = [run] if run else []
    codeseg(
        *("evaluate", *model, "--method", method, "--benchmark", benchmark),
        *("--data", data, "--out", out),
    )
    opened = load_benchmark(benchmark).open(data)
    fs = [
        boundary_f(read_raw_label(out / "labels" / f"{name}.png"), opened.label(name))
        for name in opened.ids
    ]
    return json.loads((out / "scores.json").read_text())["miou"], 100 * float(np.mean(fs))


def loaded(run: Path | None, method: str) -> Segmenter:
    """Open the segmenter as `codeseg evaluate` does."""
    clip = None if run else "storybook"
    return Segmenter.open(run, {"method": method}, clip=clip, device="cpu")


def milliseconds(demo: Path, run: Path | None, method: str) -> float:
    """Return CPU milliseconds per scene, without loading and word embedding."""
    segmenter = loaded(run, method)
    data = load_benchmark("storybook_scenes").open(demo / "world" / "storybook_scenes")
    embeddings = segmenter.embed_texts(data.benchmark.texts)
    pictures = [rgb_pixels(data.image_path(name)) for name in data.ids[: TIMED_PICTURES + 1]]
    segmenter.label_map(pictures[0], embeddings, False)
    start = time.process_time()
    for pixels in pictures[1:]:
        segmenter.label_map(pixels, embeddings, False)
    return 1000 * (time.process_time() - start) / TIMED_PICTURES


def choose(demo: Path, scenes: int) -> None:
    """Print each method's best background threshold on development scenes, averaged over runs."""
    folder = demo / "methods" / f"development-{scenes}"
    if not (folder / "val.txt").exists():
        storybook.write_benchmark(folder, "storybook_things", scenes, storybook.DEV_SEED)
    data = load_benchmark("storybook_things").open(folder)
    print("| way | best threshold | mIoU there | at the manifest's | the manifest's |")
    print("|---|---|---|---|---|")
    for title, recipe, method in WAYS:
        segmenters = [loaded(run, method) for run in runs_of(demo, recipe)]
        mious = functools.reduce(np.add, [curve(s, data, data.ids[:scenes]) for s in segmenters])
        mious = np.asarray(mious) / len(segmenters)
        best = int(mious.argmax())
        used = segmenters[0].settings.background_threshold
        there = mious[np.abs(THRESHOLDS - used).argmin()]
        print(
            f"| {title} | {THRESHOLDS[best]} | {mious[best]:.1f} | {there:.1f} | {used} |",
            flush=True,
        )


def curve(segmenter: Segmenter, data: BenchmarkData, ids: Iterable[str]) -> list[float]:
    """Return the mIoU in percent at every threshold on some images of the split."""
    classes = len(data.benchmark.classes)
    totals = np.zeros((len(THRESHOLDS), classes, classes), np.int64)
    embeddings = segmenter.embed_texts(data.benchmark.texts)
    for image_id in ids:
        chunks = segmenter.maps(rgb_pixels(data.image_path(image_id)), embeddings)
        best, index = torch.cat([maps for _, maps in chunks]).max(0)
        label = data.label(image_id)
        for t, threshold in enumerate(THRESHOLDS):
            guess = torch.where(best > threshold, index + 1, 0).cpu().numpy()
            totals[t] += confusion_matrix(label, guess, classes)
    return [100 * Scores(total).miou for total in totals]


if __name__ == "__main__":
    main()
