"""`codeseg evaluate`: a RUN (or a CLIP alone) + a benchmark -> label maps, their score, a table.

    OUT/settings.json    every setting that affects label maps; other settings need another OUT
    OUT/labels/ID.png    an 8-bit palette PNG per image, written atomically: existing ones are done
    OUT/scores.json …    see stages/score.py
    OUT/cost.json        milliseconds per image and peak memory of the last run that predicted

Predicting resumes image by image; under torchrun the images are divided among the ranks. An image's
label map depends only on the image, the model and the settings, so neither resuming nor the
number of ranks changes a byte. Damaged images are counted, and the exit code is then 1.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from codeseg.pipeline.benchmark.check import check_data
from codeseg.pipeline.benchmark.labels import LabelMap, as_label_map
from codeseg.pipeline.benchmark.manifest import Benchmark, BenchmarkData, load_benchmark
from codeseg.pipeline.benchmark.predictions import PredictionFolder
from codeseg.pipeline.benchmark.protocol import Protocol, load_protocol, own_protocol
from codeseg.pipeline.engine.storage import write_json
from codeseg.stages import options
from codeseg.stages.score import print_caveat, score_folder, write_and_show
from codeseg.stages.terminal import progress

if TYPE_CHECKING:
    from codeseg.model.inference.segmenter import Segmenter, TextEmbeddings
    from codeseg.model.pictures.pixels import Pixels
    from codeseg.stages.training.processes import Processes

READ_AHEAD = 4  # images decoded while one is being segmented


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(help="RUN folder, checkpoint or hub id (default: a CLIP alone, scclip)."),
    ] = None,
    *,
    benchmark: Annotated[str, typer.Option(help="Benchmark: a name or a .toml file.")],
    data: Annotated[Path, typer.Option(help="The benchmark's data folder.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for label maps and scores (default: evaluations/BENCHMARK/METHOD)."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="code, align (need RUN) | maskclip | sclip | clearclip | naclip | scclip | scg "
            "(regions), or one combined with regions: code+scg, naclip+scg …"
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Evaluation protocol: code | sclip | naclip | clearclip | scclip | plain, "
            "or a .toml file (default: the benchmark's, else the method's own)."
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="CLIP to use without RUN (default: storybook for its benchmarks, else ViT-B-16)."
        ),
    ] = None,
    pretrained: options.Pretrained = None,
    weights: options.VitWeights = None,
    assignments: options.Assignments = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the data folder.")] = False,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle", help="Give each image only the classes of its label map: an upper bound."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Use only the first N images.", min=1)] = None,
    device: options.Device = "auto",
    json_file: options.JsonFile = None,
) -> None:
    """Predict the label maps of a benchmark and score them.

    Rerun the same command to resume. Every setting that affects a label map is printed with
    the score and saved in OUT/settings.json.
    """
    console = Console()
    manifest = load_benchmark(benchmark)
    if check:
        show_check(console, manifest, data, limit)
        return
    opened = manifest.open(data)
    manifest, ids = opened.benchmark, opened.ids[:limit]
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.inference.settings import EMBEDDED, PHOTOGRAPHS, default_method, for_method
    from codeseg.stages.training.processes import Processes

    if run is None and clip is None:
        clip = EMBEDDED if manifest.name.startswith("storybook") else PHOTOGRAPHS
    wanted = options.prediction_settings(method, assignments)
    wanted.setdefault("method", default_method(run, clip or ""))
    recorded = for_method(manifest.settings, wanted["method"])
    named = (wanted.pop("protocol", None), recorded.pop("protocol", None))
    played = load_protocol(protocol or named[0] or named[1] or own_protocol(wanted["method"]))
    with Processes.start(device) as processes:
        segmenter = Segmenter.open(
            run,
            recorded | wanted,
            played.settings_for(manifest),
            clip=clip,
            pretrained=pretrained,
            weights=weights,
            device=processes.device,
        )
        names = names_of_classes(segmenter, played, manifest)
        settings = record(run, manifest, segmenter) | {"protocol_sha256": played.sha256}
        if segmenter.settings.background == "vabs" and manifest.background:
            settings["background_words"] = list(names[0])
        if oracle:
            settings["oracle"] = True
        folder = PredictionFolder(out or default_out(run, settings))
        if processes.is_main:
            folder.claim(settings)
        processes.wait()
        failed, cost = predict(segmenter, names, opened, ids, folder, processes, console, oracle)
        failed = {k: v for part in processes.gather(failed) for k, v in part.items()}
        if processes.is_main and cost:
            write_json(folder.root / "cost.json", cost)
            console.print(
                f"{cost['milliseconds_an_image']:.0f} ms per image on {cost['device']}, "
                f"peak memory {cost['peak_memory_bytes'] / 1e6:,.0f} MB"
            )
        if processes.is_main:
            origin = places(run, opened, folder.root) | {"settings": settings}
            score_and_show(console, opened, ids, folder, failed, origin, json_file)


def show_check(console: Console, benchmark: Benchmark, data: Path, limit: int | None) -> None:
    """Print what was found and what is wrong; exit with 1 if anything is wrong."""
    found = check_data(benchmark, data, limit, lambda ids: progress(ids, "checking", console))
    for line in found.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.problems:
        if any("missing" in kind for kind in found.problems):
            layout = benchmark.expected_layout()
            console.print(f"expected layout of {benchmark.name}:\n{layout}", soft_wrap=True)
        raise typer.Exit(1)
    console.print("nothing is missing")


def names_of_classes(
    segmenter: "Segmenter", protocol: Protocol, benchmark: Benchmark
) -> list[tuple[str, ...]]:
    """Return the names of every class to find; a constant background has none."""
    from codeseg.model.inference.settings import lexicon

    names, rule = protocol.class_names(benchmark), segmenter.settings.background
    if not benchmark.background or rule == "names":
        return names
    if rule == "constant":
        return names[1:]
    things = [name for group in names[1:] for name in group]
    return [segmenter.background_words(things, benchmark.lexicon or lexicon()), *names[1:]]


def record(run: str | None, benchmark: Benchmark, segmenter: "Segmenter") -> dict[str, Any]:
    """Return everything that affects the label maps; files by name and hash."""
    from codeseg.model.checkpoint import MODEL, locate
    from codeseg.model.clip.dense import VARIANTS

    settings = {
        "benchmark": benchmark.name,
        "manifest_sha256": benchmark.sha256,
        "clip": segmenter.clip.name,
        "pretrained": segmenter.clip.pretrained,
        "clip_sha256": segmenter.clip.weights_sha256,
        **segmenter.settings.record(),
    }
    if run is not None and segmenter.settings.method not in VARIANTS:
        checkpoint = locate(run)
        settings["checkpoint"] = checkpoint.name
        settings["checkpoint_sha256"] = sha256((checkpoint / MODEL).read_bytes()).hexdigest()
    if vit := segmenter.backbone:
        settings |= {"backbone": vit.name, "backbone_sha256": vit.weights_sha256}
    return settings


def default_out(run: str | None, settings: dict[str, Any]) -> Path:
    """Return evaluations/BENCHMARK/METHOD, inside the RUN if there is one."""
    place = Path("evaluations", settings["benchmark"], settings["method"])
    return Path(run) / place if run is not None and Path(run).is_dir() else place


def predict(
    segmenter: "Segmenter",
    names: Sequence[tuple[str, ...]],
    data: BenchmarkData,
    ids: Sequence[str],
    folder: PredictionFolder,
    processes: "Processes",
    console: Console,
    oracle: bool = False,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write the missing label maps; return the failures (id -> reason) and the cost.

    The cost is this process's time and memory in this call.
    """
    share = ids[processes.rank :: processes.world_size]
    pending = folder.pending(share)
    if processes.is_main and len(pending) < len(share):
        console.print(f"{len(share) - len(pending)} of {len(share)} images were already done")
    if not pending:
        return {}, {}
    benchmark = data.benchmark
    embeddings = segmenter.embed_texts(names)
    shown = progress(pending, "segmenting", console) if processes.is_main else pending
    failed, seconds = {}, 0.0
    for image_id, reading in zip(shown, read_ahead(data, pending), strict=True):
        try:
            pixels, start = reading.result(), time.perf_counter()
            label = (
                oracle_map(segmenter, pixels, embeddings, benchmark, data.label(image_id))
                if oracle
                else segmenter.label_map(pixels, embeddings, benchmark.background)
            )
        except (FileNotFoundError, ValueError) as error:
            failed[image_id] = str(error)
            continue
        seconds += time.perf_counter() - start
        folder.write(image_id, label, benchmark.palette)
    done = len(pending) - len(failed)
    return failed, cost_of(segmenter, done, seconds) if done else {}


def cost_of(segmenter: "Segmenter", images: int, seconds: float) -> dict[str, Any]:
    """Return milliseconds per image, without reading and writing, and peak memory.

    On a GPU, an image's time ends with the label map's copy to the CPU, and memory is torch's peak;
    on a CPU, it is the process's.
    """
    import resource

    import torch

    on_gpu = segmenter.device.type == "cuda"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "device": torch.cuda.get_device_name(segmenter.device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "images": images,
        "milliseconds_an_image": 1000 * seconds / images,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak * scale,
    }


def oracle_map(
    segmenter: "Segmenter",
    pixels: "Pixels",
    embeddings: "TextEmbeddings",
    benchmark: Benchmark,
    label: LabelMap,
) -> LabelMap:
    """Predict with only the classes that the image's label map contains."""
    present = [k for k in np.unique(label).tolist() if k < len(benchmark.classes)]
    shift = len(benchmark.classes) - len(embeddings.names)  # 1: the background has no name
    things = [k - shift for k in present if k >= shift]
    background = benchmark.background and 0 in present
    if not things:
        return np.zeros_like(label)
    found = segmenter.label_map(pixels, embeddings.only(things), background)
    numbers = [k + shift for k in things]
    table = np.array([0] * (background and shift) + numbers)
    return as_label_map(table[found], len(benchmark.classes))


def read_ahead(data: BenchmarkData, ids: Iterable[str]) -> Iterator["Future[Pixels]"]:
    """Decode images in a thread while others are segmented; yield each one's future in order."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Pixels]] = deque()
        for image_id in ids:
            waiting.append(reader.submit(data.image, image_id))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


def places(run: str | None, data: BenchmarkData, out: Path) -> dict[str, str | None]:
    """Return paths relative to `out`, so that the report finds them after a move of the folder."""
    manifest = data.benchmark.source
    return {
        "data": os.path.relpath(data.folder, out),
        "manifest": os.path.relpath(manifest, out) if manifest.endswith(".toml") else manifest,
        "run": os.path.relpath(run, out) if run and Path(run).exists() else run,
    }


def score_and_show(
    console: Console,
    data: BenchmarkData,
    ids: Sequence[str],
    folder: PredictionFolder,
    failed: dict[str, str],
    origin: dict[str, Any],
    json_file: Path | None,
) -> None:
    """Score the predictions, write and print the scores; exit with 1 if an image failed."""
    predicted = [image_id for image_id in ids if image_id not in failed]
    result = score_folder(
        data, folder.root, predicted, lambda i: progress(i, "scoring", console), strict=False
    )
    result.failed.update(failed)
    settings = origin["settings"]
    named = {key: settings[key] for key in ("method", "protocol")}
    summary = {**named, **result.summary(), **origin}
    write_and_show(console, result, summary, settings["method"], folder.root, json_file)
    knobs = {k: v for k, v in settings.items() if not k.endswith("sha256")}
    console.print(
        "settings: " + json.dumps(knobs, ensure_ascii=False), markup=False, soft_wrap=True
    )
    print_caveat(console, result)
    if result.failed:
        raise typer.Exit(1)
