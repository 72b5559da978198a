"""Our shard function against a bare open_clip loop over decoded batches.

    python -m bench.features [--rows 64] [--rounds 3] [--precision fp32] [--device cpu]
    python -m bench.features --roofline "NVIDIA H100 80GB HBM3" --precision bf16 --batch-size 256

The model is ViT-B/16 with random weights. Ours starts from Parquet: it reads, decodes JPEGs of 256
pixels, augments, encodes, checks and writes an Arrow shard. The bare loop holds its batches in
memory, calls encode_image and encode_text as open_clip's documentation does, and keeps nothing; a
second one encodes only images, though ours encodes captions too. Ours without clip_score shows the
cost of the score. With --roofline nothing is timed: the encoder runs one batch of decoded pictures
on fake tensors, and `bench.gpu_step` counts it as it counts a training step.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import open_clip
import torch
import typer
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.gpu_step import BANDWIDTH, Counter, counting, fake, show
from bench.make_nouns import make_nouns
from codeseg.pipeline.features.encoder import DTYPES, Encoder
from codeseg.pipeline.features.plan import FeatureOptions, clip_facts, resolve_settings
from codeseg.pipeline.features.worker import FeaturesWorker
from codeseg.pipeline.stream.feature_settings import FeatureSettings


def bare_loop(
    clip: Any, images: list[torch.Tensor], texts: list[torch.Tensor], dtype: torch.dtype
) -> None:
    """Encode all batches of images and, if given, texts."""
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
    """Return wall seconds and this process's CPU seconds, which a busy machine hardly changes."""
    begin, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin, time.process_time() - cpu


def count(settings: FeatureSettings, gpu: str) -> None:
    """Print the roofline time of a batch of decoded pictures on a GPU."""
    clip, rows = settings.clip, settings.block_rows
    encoder = Encoder(settings, "cpu")
    pixels = np.zeros((rows, settings.views, clip.image_size, clip.image_size, 3), np.uint8)
    ends = np.zeros((rows, clip.text_width), np.float16)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake(encoder.clip, mode)
        counter = Counter(gpu)
        # In inference mode, a linear layer is not a product that can be counted.
        tokens, start = Encoder.image_tokens.__wrapped__, Encoder.start.__wrapped__
        plain = mock.patch.object(Encoder, "image_tokens", tokens)
        with plain, torch.no_grad(), counting(counter):
            start(encoder, pixels, ends)
    show(counter, rows)


def main(
    rows: Annotated[int, typer.Option(help="Pairs in the shard.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds, in which all variants alternate.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 16,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    model: Annotated[str, typer.Option(help="open_clip model.")] = "ViT-B-16",
    image_tokens: Annotated[str, typer.Option(help="fp16 or int8.")] = "fp16",
    roofline: Annotated[
        str | None, typer.Option(help=f"Estimate for a GPU instead: {', '.join(BANDWIDTH)}.")
    ] = None,
) -> None:
    """Measure all variants and print their rates."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        make_nouns(Path(folder), shards=1, rows=rows + 2, image_size=256)  # two rows drop out
        chosen = FeatureOptions(
            clip=model,
            pretrained="random:0",
            precision=precision,
            batch_size=batch_size,
            image_tokens=image_tokens,
        )
        settings = resolve_settings(chosen, clip_facts(model, "random:0"))
        if roofline:
            return count(settings, roofline)
        options = {"features": settings, "device": device, "threads": threads}
        worker = FeaturesWorker(folder, options)
        scoreless = {**options, "features": replace(settings, clip_score=False)}
        without = FeaturesWorker(folder, scoreless)
        clip = open_clip.create_model(model, device=device).eval()
        size = settings.clip.image_size
        images = [
            torch.rand(batch_size, 3, size, size).to(device) for _ in range(rows // batch_size)
        ]
        texts = [open_clip.tokenize(["a cat a dog a tree"] * batch_size).to(device) for _ in images]
        ways: dict[str, Callable[[], Any]] = {
            "shard function": lambda: worker.process(0, "bench"),
            "without clip_score": lambda: without.process(0, "bench"),
            "bare open_clip": lambda: bare_loop(clip, images, texts, DTYPES[precision]),
            "bare, images only": lambda: bare_loop(clip, images, [], DTYPES[precision]),
        }
        best = dict.fromkeys(ways, (float("inf"), float("inf")))
        for _ in range(rounds + 1):  # alternating, so that a busy machine slows all equally
            for way, function in ways.items():
                wall, cpu = seconds_of(function)
                best[way] = min(best[way][0], wall), min(best[way][1], cpu)
    print(f"{date.today()} {device} {platform.machine()} {model} {precision} {threads} threads")
    ours = best["shard function"]
    for way, (wall, cpu) in best.items():
        print(
            f"{way:18} {rows / wall:8.2f} pairs/s, {rows / cpu:7.2f} per CPU second; "
            f"shard function against it: {wall / ours[0]:.2f}, by CPU time {cpu / ours[1]:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
