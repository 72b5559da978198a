"""Prediction: ours against a straightforward version of the reference's, in one run.

    python -m bench.evaluate                              # CPU, ViT-B/16, 21, 81 and 171 classes
    python -m bench.evaluate --forms --classes 20 60 150 171 --repeats 5   # our own variants
    python -m bench.evaluate --before CHECKOUT --repeats 5   # alternate with another commit

A random ViT-B/16 segments a 375×500 picture (two windows of 448), with and without PAMR. Every
measurement runs in its own single-threaded process, so its peak memory is its own; time is the
process's CPU time, which a busy machine hardly changes. Memory is the peak that prediction holds in
tensors besides the model, from PyTorch's allocation events; "resident" is the growth of the process
(Linux), including the libraries' pages and what the allocator kept. With --forms, one process
alternates PAMR and Laplacian on the masks of one window of 448, and the picture in fp32 with PAMR
and in bf16 with Laplacian; it prints the median and the best of the repeats.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.plain_predict import plain_maps
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.inference.laplacian import propagate
from codeseg.model.inference.pamr import refine
from codeseg.model.inference.segmenter import Segmenter, TextEmbeddings
from codeseg.model.inference.settings import PredictionSettings
from codeseg.model.inference.sliding import working_size
from codeseg.model.pictures.resize import resize_pixels

SIZE = (375, 500)
CLASSES = (21, 81, 171)


def main() -> None:
    """Measure everything and print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--classes", type=int, nargs="*", default=CLASSES)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--measure", choices=("plain", "ours", "both"))
    parser.add_argument("--pamr", action="store_true")
    parser.add_argument("--forms", action="store_true", help="compare refinements and precisions")
    parser.add_argument("--before", type=Path, help="checkout of another commit to compare with")
    arguments = parser.parse_args()
    if arguments.forms or arguments.before:
        (forms if arguments.forms else before_and_after)(arguments)
        return
    if arguments.measure:
        figures = measure(arguments)
        print(json.dumps(figures))
        return
    print(f"{arguments.model}, picture {SIZE[1]}×{SIZE[0]}, one thread, fp32")
    print(
        "| classes | PAMR | plain s | ours s | ratio | plain MB | ours MB | share "
        "| plain, ours resident MB | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for classes in arguments.classes:
        for pamr in (False, True):
            plain, ours, both = (
                child(arguments, contestant, classes, pamr)
                for contestant in ("plain", "ours", "both")
            )
            print(
                f"| {classes} | {'on' if pamr else 'off'} | {plain['seconds']:.2f} "
                f"| {ours['seconds']:.2f} | {plain['seconds'] / ours['seconds']:.2f} "
                f"| {both['plain_bytes'] / 1e6:.0f} | {both['ours_bytes'] / 1e6:.0f} "
                f"| {both['ours_bytes'] / both['plain_bytes']:.2f} "
                f"| {plain['bytes'] / 1e6:.0f}, {ours['bytes'] / 1e6:.0f} "
                f"| {both['difference']:.1e} |",
                flush=True,
            )


def forms(arguments: argparse.Namespace) -> None:
    """Print, per number of classes, CPU time of both refinements and of a whole picture."""
    torch.set_num_threads(1)
    code = untrained(arguments.model)
    image = torch.rand(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    print("| classes | PAMR ms | Laplacian ms | fp32, PAMR s | bf16, Laplacian s | share |")
    print("|---|---|---|---|---|---|")
    for classes in arguments.classes:
        masks = torch.rand(1, classes, 112, 112)
        found = TextEmbeddings(*embeddings(code.clip, classes))
        ways = [lambda m=masks: refine(m, image), lambda m=masks: propagate(m, image)]
        for refinement, precision in (("pamr", "fp32"), ("laplacian", "bf16")):
            settings = PredictionSettings.for_clip(
                code.clip, refinement=refinement, precision=precision
            )
            segmenter = Segmenter(code.clip, code, settings)
            ways.append(lambda s=segmenter, f=found: s.label_map(picture(), f, False))
        rounds = [[cpu_seconds(way) for way in ways] for _ in range(arguments.repeats + 1)][1:]
        median, best = np.median(rounds, axis=0), np.min(rounds, axis=0)
        ms = [f"{1000 * m:.0f} ({1000 * b:.0f})" for m, b in zip(median[:2], best[:2], strict=True)]
        s = [f"{m:.2f} ({b:.2f})" for m, b in zip(median[2:], best[2:], strict=True)]
        print(
            f"| {' | '.join([str(classes), *ms, *s])} | {median[3] / median[2]:.2f} |", flush=True
        )


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def before_and_after(arguments: argparse.Namespace) -> None:
    """Print the median and best CPU seconds of this checkout and another, run alternately."""
    print("| classes | PAMR | before s | now s | ratio of medians |\n|---|---|---|---|---|")
    rounds = [1] * arguments.repeats
    arguments.repeats = 1
    for classes in arguments.classes:
        for pamr in (False, True):
            found = np.array([
                [child(arguments, "ours", classes, pamr, folder)["seconds"]
                 for folder in (arguments.before, None)]
                for _ in rounds
            ])  # fmt: skip
            (old, new), best = np.median(found, axis=0), found.min(axis=0)
            times = f"{old:.2f} ({best[0]:.2f}) | {new:.2f} ({best[1]:.2f})"
            switch = "on" if pamr else "off"
            print(f"| {classes} | {switch} | {times} | {old / new:.2f} |", flush=True)


def child(
    arguments: argparse.Namespace,
    contestant: str,
    classes: int,
    pamr: bool,
    folder: Path | None = None,
) -> dict:
    """Run one measurement in its own process, optionally with the code in another folder."""
    command = [sys.executable, "-m", "bench.evaluate", "--measure", contestant]
    command += ["--model", arguments.model, "--classes", str(classes)]
    command += ["--repeats", str(arguments.repeats), *(["--pamr"] if pamr else [])]
    env = os.environ | ({"PYTHONPATH": str(folder)} if folder else {})
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the time and memory of one contestant, or the largest difference of both."""
    torch.set_num_threads(1)
    code = untrained(arguments.model)
    clip, pixels = code.clip, picture()
    words, templates = embeddings(clip, arguments.classes[0])
    refinement = "pamr" if arguments.pamr else "none"
    settings = PredictionSettings.for_clip(clip, refinement=refinement)

    def resized() -> Tensor:
        image = resize_pixels(pixels, working_size(*SIZE, 448, 2048))
        return clip.normalize(torch.from_numpy(image).permute(2, 0, 1)[None])

    segmenter = Segmenter(clip, code, settings)

    def ours() -> Tensor:
        return torch.from_numpy(
            segmenter.label_map(pixels, TextEmbeddings(words, templates), False)
        )

    def plain() -> Tensor:
        maps = plain_maps(code, resized(), words, templates, SIZE, pamr=arguments.pamr)
        return maps[0].argmax(0)

    if arguments.measure == "both":
        expected = plain_maps(code, resized(), words, templates, SIZE, pamr=arguments.pamr)[0]
        maps = torch.cat([m for _, m in segmenter.maps(pixels, TextEmbeddings(words, templates))])
        return {
            "difference": (maps - expected).abs().max().item(),
            "plain_bytes": tensor_peak(plain),
            "ours_bytes": tensor_peak(ours),
        }
    contestant = ours if arguments.measure == "ours" else plain
    before, start = reset_peak(), time.process_time()
    for _ in range(arguments.repeats):
        contestant()
    seconds = (time.process_time() - start) / arguments.repeats
    return {"seconds": seconds, "bytes": peak_bytes() - before}


def untrained(model: str) -> CoDe:
    """Return a random CoDe whose every part affects the result."""
    code = CoDe(FrozenClip.load(model, "random"), CoDeConfig()).eval()
    for stage in code.image_segmenter.stages:  # an untrained gate of 0 would hide the decoder
        stage.gate.data.fill_(0.5)
    return code


def embeddings(clip: FrozenClip, count: int) -> Tensor:
    """Return random unit vectors for the words and for the templates."""
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(2, count, clip.embed_dim, generator=generator), dim=-1)


def picture() -> np.ndarray:
    """Return noise, uint8 H×W×3."""
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def tensor_peak(run: Callable[[], Tensor]) -> int:
    """Return the peak bytes of tensors that `run` allocates and holds at the same time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(sizes.max())


def reset_peak() -> int:
    """Reset the process's peak resident size (Linux); return its current size."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the largest resident size since `reset_peak`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
