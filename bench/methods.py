"""Every method, alone and with regions, on both storybook benchmarks -> a table.

    codeseg demo                                   # makes demo-run: data, benchmarks
    python -m bench.methods demo-run               # trains 21 runs in demo-run/methods, resumes
    python -m bench.methods demo-run --choose      # thresholds on development scenes instead
    python -m bench.methods demo-run --protocols   # methods under every protocol instead

`codeseg train` and `codeseg evaluate` make all runs and numbers, with the manifests' settings and
three seeds; ± is the standard deviation over them. Boundary F is the F-score of the predicted
boundaries against the true ones within 2 pixels, averaged over the pictures. ms is CPU time per
picture in one thread, with model and words loaded. Training bytes are what the trainer reads of an
image, training ms its wall time per image, both of the first seed. With --protocols, the ways that
name PLAYED use the protocols code, sclip and plain, and sclip with chosen background words (vabs),
on held-out scenes of three worlds; ± is over the worlds (for trained methods, one run per world).
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench.regions import boundary_f
from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.pictures.pixels import rgb_pixels
from codeseg.pipeline.benchmark.labels import read_raw_label
from codeseg.pipeline.benchmark.manifest import BenchmarkData, load_benchmark
from codeseg.pipeline.benchmark.metrics import Scores, confusion_matrix
from codeseg.pipeline.storybook import scenes as storybook
from codeseg.stages.demo import BENCHMARKS, VIEWS

SEEDS = (0, 1, 2)
TIMED_PICTURES = 20
THRESHOLDS = np.round(np.arange(0.025, 1.0, 0.025), 3)

WORLDS = (21, 22, 23)
"""Seeds of held-out scenes; no training, choice or other benchmark draws from them."""
PROTOCOLS = (("code",), ("sclip",), ("sclip", "--set", "background=vabs"), ("plain",))

ALIGN = "storybook_align"


@dataclass(frozen=True)
class Way:
    """One row: a method of a recipe's runs, or of the frozen CLIP alone."""

    title: str
    recipe: str | None
    method: str
    settings: tuple[str, ...] = ()
    played: bool = False
    """Whether it is a row of --protocols."""

    @property
    def words(self) -> list[str]:
        """What `codeseg evaluate` is asked."""
        return ["--method", self.method, *(w for s in self.settings for w in ("--set", s))]

    @property
    def changes(self) -> dict[str, str]:
        """The settings as a dictionary."""
        return dict(setting.split("=", 1) for setting in self.settings)


VIT_REGIONS = ("region_features=storybook",)
WAYS = (
    Way("MaskCLIP", None, "maskclip", played=True),
    Way("SCLIP", None, "sclip", played=True),
    Way("ClearCLIP", None, "clearclip", played=True),
    Way("NACLIP", None, "naclip", played=True),
    Way("SC-CLIP", None, "scclip", played=True),
    Way("SCG, frozen CLIP", None, "scg"),
    Way("SCG", "storybook_scg", "scg"),
    Way("MaskCLIP + SCG, frozen CLIP", None, "maskclip+scg"),
    Way("MaskCLIP + SCG", "storybook_scg", "maskclip+scg"),
    Way("NACLIP + SCG, frozen CLIP", None, "naclip+scg"),
    Way("NACLIP + SCG", "storybook_scg", "naclip+scg"),
    Way("CoDe", "storybook", "code", played=True),
    Way("CoDe + SCG, frozen CLIP", "storybook", "code+scg", played=True),
    Way("CoDe + SCG, frozen CLIP, regions of the ViT", "storybook", "code+scg", VIT_REGIONS),
    Way("CoDe, trained with SCG", "storybook_code_scg", "code"),
    Way("CoDe + SCG, trained together", "storybook_code_scg", "code+scg"),
    Way("align", ALIGN, "align", played=True),
    Way("align, nouns", f"{ALIGN}_nouns", "align", played=True),
    Way("align, nouns and regions", f"{ALIGN}_regions", "align", played=True),
    Way("align + SCG, nouns", f"{ALIGN}_nouns", "align+scg", played=True),
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
    parser.add_argument("--ways", nargs="+", help="titles of the rows (default: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (arguments.demo / "results.json").exists():
        parser.error(f"{arguments.demo} is no finished demo: run `codeseg demo` first")
    ways = [way for way in WAYS if way.title in (arguments.ways or [way.title])]
    if any(way.recipe for way in ways):
        make_tables(arguments.demo)
    if arguments.protocols:
        show_protocols(arguments.demo, [way for way in ways if way.played], arguments.scenes)
        return
    runs = [run for way in ways for run in runs_of(arguments.demo, way.recipe) if run]
    for run in dict.fromkeys(runs):
        train(arguments.demo, run)
    if arguments.choose:
        choose(arguments.demo, ways, arguments.scenes)
    else:
        show(arguments.demo, ways)


def codeseg(*words: str | Path | int) -> None:
    """Run one command as a user would; show its output only if it fails."""
    command = [sys.executable, "-m", "codeseg", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def make_tables(demo: Path) -> None:
    """Make the regions, and the ViT's vectors of heads and of regions."""
    codeseg("regions", demo / "data")
    clip = ("--clip", "storybook", "--pretrained", "storybook", "--views", VIEWS)
    for pool in ("heads", "regions"):
        codeseg("features", demo / "data", *clip, "--backbone", "storybook", "--pool", pool)


def train(demo: Path, run: Path) -> None:
    """Train a run unless it is finished."""
    recipe, _, seed = run.name.rpartition("-")
    print(f"training {run.name}", file=sys.stderr, flush=True)
    codeseg("train", demo / "data", run, "--recipe", recipe, "--set", f"train.seed={seed}")


def runs_of(demo: Path, recipe: str | None) -> list[Path | None]:
    """Return the folders of a recipe's runs: one per seed, or [None] for a frozen CLIP."""
    if recipe is None:
        return [None]
    return [demo / "methods" / "runs" / f"{recipe}-{seed}" for seed in SEEDS]


def show(demo: Path, ways: Iterable[Way]) -> None:
    """Print the table of the held-out benchmarks."""
    names = " | ".join(f"{name}, mIoU | boundary F" for name in BENCHMARKS)
    print(f"| way | runs | {names} | ms | training bytes | training ms |")
    print("|---|---|" + "---|" * (2 * len(BENCHMARKS) + 3))
    for way in ways:
        runs = runs_of(demo, way.recipe)
        cells = []
        for benchmark in BENCHMARKS:
            found = [evaluated(demo, run, way, benchmark) for run in runs]
            cells += [spread([miou for miou, _ in found]), spread([f for _, f in found])]
        cells += [f"{milliseconds(demo, runs[0], way):.0f}", *cost(demo, runs[0])]
        print(f"| {way.title} | {len(runs)} | {' | '.join(cells)} |", flush=True)


def cost(demo: Path, run: Path | None) -> tuple[str, str]:
    """Return the bytes that the trainer reads of an image, and milliseconds that it takes."""
    if run is None:
        return "0", "0"
    model = json.loads((run / "config.json").read_text())["model"]
    table = "features"
    if "backbone" in model:
        table += f"-{model['backbone']}" + ("-regions" if model["pool"] == "regions" else "")
    shards = list((demo / "data" / table).glob("*.arrow"))
    rows = sum(pa.ipc.open_file(shard).read_all().num_rows for shard in shards)
    rate = np.median(pq.read_table(run / "metrics.parquet")["samples_per_second"].to_numpy())
    size = sum(shard.stat().st_size for shard in shards)
    return f"{size / rows:,.0f}", f"{1000 / rate:.2f}"


def show_protocols(demo: Path, ways: Iterable[Way], scenes: int) -> None:
    """Print mIoU of ways under every protocol, on both benchmarks."""
    columns = [(name, how) for name in BENCHMARKS for how in PROTOCOLS]
    columns = [(name, how) for name, how in columns if len(how) == 1 or name.endswith("things")]
    titles = (f"{name}, {how[0]}{' + vabs' if len(how) > 1 else ''}" for name, how in columns)
    print(f"| method | {' | '.join(titles)} |")
    print("|---|" + "---|" * len(columns))
    for way in ways:
        cells = []
        for benchmark, how in columns:
            mious = [played(demo, world, way, benchmark, how, scenes) for world in WORLDS]
            cells.append(spread(mious))
        print(f"| {way.title} | {' | '.join(cells)} |", flush=True)


def played(
    demo: Path, world: int, way: Way, benchmark: str, how: Sequence[str], scenes: int
) -> float:
    """Return one way's mIoU on one held-out world under one protocol, percent."""
    data = demo / "methods" / f"world-{world}-{scenes}" / benchmark
    if not (data / "val.txt").exists():
        storybook.write_benchmark(data, benchmark, scenes, world)
    model: list[str | Path] = ["--clip", "storybook"]
    run = runs_of(demo, way.recipe)[WORLDS.index(world) if way.recipe else 0]
    if run:
        train(demo, run)
        model = [run]
    out = data.parent / "-".join((benchmark, slug(way, run), *how)).replace("=", "-")
    codeseg(
        *("evaluate", *model, *way.words, "--protocol", *how),
        *("--benchmark", benchmark, "--data", data, "--out", out),
    )
    miou: float = json.loads((out / "scores.json").read_text())["miou"]
    return miou


def slug(way: Way, run: Path | None) -> str:
    """Return a folder's name for the predictions of a run."""
    return "-".join((run.name if run else "frozen", way.method, *way.settings)).replace("=", "-")


def spread(values: Sequence[float]) -> str:
    """Return the mean ± sample standard deviation, or the single value."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def evaluated(demo: Path, run: Path | None, way: Way, benchmark: str) -> tuple[float, float]:
    """Return a run's mIoU and boundary F, percent, after `codeseg evaluate` has predicted."""
    out = demo / "methods" / benchmark / slug(way, run)
    data = demo / "world" / benchmark
    model = [run] if run else []
    codeseg("evaluate", *model, *way.words, "--benchmark", benchmark, "--data", data, "--out", out)
    opened = load_benchmark(benchmark).open(data)
    fs = [
        boundary_f(read_raw_label(out / "labels" / f"{name}.png"), opened.label(name))
        for name in opened.ids
    ]
    return json.loads((out / "scores.json").read_text())["miou"], 100 * float(np.mean(fs))


def loaded(run: Path | None, way: Way) -> Segmenter:
    """Open the segmenter as `codeseg evaluate` does."""
    clip = None if run else "storybook"
    return Segmenter.open(run, {"method": way.method} | way.changes, clip=clip, device="cpu")


def milliseconds(demo: Path, run: Path | None, way: Way) -> float:
    """Return CPU milliseconds per scene, without loading and word embedding."""
    segmenter = loaded(run, way)
    data = load_benchmark("storybook_scenes").open(demo / "world" / "storybook_scenes")
    embeddings = segmenter.embed_texts(data.benchmark.texts)
    pictures = [rgb_pixels(data.image_path(name)) for name in data.ids[: TIMED_PICTURES + 1]]
    segmenter.label_map(pictures[0], embeddings, False)
    start = time.process_time()
    for pixels in pictures[1:]:
        segmenter.label_map(pixels, embeddings, False)
    return 1000 * (time.process_time() - start) / TIMED_PICTURES


def choose(demo: Path, ways: Iterable[Way], scenes: int) -> None:
    """Print each method's best background threshold on development scenes, averaged over runs."""
    folder = demo / "methods" / f"development-{scenes}"
    if not (folder / "val.txt").exists():
        storybook.write_benchmark(folder, "storybook_things", scenes, storybook.DEV_SEED)
    data = load_benchmark("storybook_things").open(folder)
    print("| way | best threshold | mIoU there | at the manifest's | the manifest's |")
    print("|---|---|---|---|---|")
    for way in ways:
        segmenters = [loaded(run, way) for run in runs_of(demo, way.recipe)]
        mious = functools.reduce(np.add, [curve(s, data, data.ids[:scenes]) for s in segmenters])
        mious = np.asarray(mious) / len(segmenters)
        best = int(mious.argmax())
        used = segmenters[0].settings.background_threshold
        there = mious[np.abs(THRESHOLDS - used).argmin()]
        print(
            f"| {way.title} | {THRESHOLDS[best]} | {mious[best]:.1f} | {there:.1f} | {used} |",
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
