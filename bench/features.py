"""Our shard function against a bare open_clip loop over batches that are decoded already.

    python -m bench.features [--rows 64] [--rounds 3] [--precision fp32] [--device cpu]

ViT-B/16, random weights. Ours starts from Parquet: reads, decodes JPEGs of 256 pixels, augments,
encodes, checks, writes an Arrow shard. The bare loop holds its batches in memory and calls
encode_image and encode_text as open_clip's documentation does; it keeps nothing. Images only is
shown too: no text at all, though ours encodes the captions.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
import typer

from bench.make_nouns import make_nouns
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.encoder import DTYPES
from codeseg.pipeline.features.plan import FeatureOptions, clip_facts, resolve_settings
from codeseg.pipeline.features.worker import FeaturesWorker


def bare_loop(
    clip: Any, images: list[torch.Tensor], texts: list[torch.Tensor], dtype: torch.dtype
) -> None:
    """Encode all batches; no texts = images only."""
    device = images[0].device.type
    with (
        torch.inference_mode(),
        torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32),
    ):
        for image in images:
            clip.encode_image(image)
        for text in texts:
            clip.encode_text(text)
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process (what a busy machine does not change)."""
    begin, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin, time.process_time() - cpu


def main(
    rows: Annotated[int, typer.Option(help="Pairs in the shard.")] = 64,
    rounds: Annotated[int, typer.Option(help="Times both are run, in turn.")] = 3,
    batch_size: Annotated[int, typer.Option()] = 16,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    model: Annotated[str, typer.Option(help="open_clip model.")] = "ViT-B-16",
) -> None:
    """Measure and print."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        root = Storage.open(folder)
        make_nouns(Path(folder), shards=1, rows=rows + 2, image_size=256)  # two rows drop out
        wishes = FeatureOptions(
            clip=model, pretrained="random:0", precision=precision, batch_size=batch_size
        )
        settings = resolve_settings(wishes, clip_facts(root, model, "random:0"))
        options = {"features": settings, "device": device, "threads": threads}
        worker = FeaturesWorker(folder, options)
        clip = open_clip.create_model(model, device=device).eval()
        size = settings.clip.image_size
        images = [
            torch.rand(batch_size, 3, size, size).to(device) for _ in range(rows // batch_size)
        ]
        texts = [open_clip.tokenize(["a cat a dog a tree"] * batch_size).to(device) for _ in images]
        ways: dict[str, Callable[[], Any]] = {
            "shard function": lambda: worker.process(0, "bench"),
            "bare open_clip": lambda: bare_loop(clip, images, texts, DTYPES[precision]),
            "bare, images only": lambda: bare_loop(clip, images, [], DTYPES[precision]),
        }
        best = dict.fromkeys(ways, (float("inf"), float("inf")))
        for _ in range(rounds + 1):  # in turn, so that a busy machine is unfair to none
            for way, function in ways.items():
                wall, cpu = seconds_of(function)
                best[way] = min(best[way][0], wall), min(best[way][1], cpu)
    print(f"{date.today()} {device} {platform.machine()} {model} {precision} {threads} threads")
    ours = best["shard function"]
    for way, (wall, cpu) in best.items():
        print(
            f"{way:18} {rows / wall:8.2f} pairs/s, {rows / cpu:7.2f} a CPU second; "
            f"shard function against it: {wall / ours[0]:.2f}, by CPU time {cpu / ours[1]:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
