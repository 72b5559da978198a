"""Training of an alignment: samples/s beside the same loss in plain PyTorch over npz files.

    python -m bench.align [--steps 200] [--repeats 3] [--threads 2] [--rows 4096] [--width 768]

Writes a root of random features of ViT-B's shapes and the same arrays as npz shards, then trains
the projection from both in turns: ours by `codeseg train`'s own loop (order, checks, noun table,
clipping and log included), the peer by numpy, torch.nn and torch.optim alone, with all arrays in
memory. Prints bytes an image, and wall and CPU seconds, samples/s and their ratios, each the median
of the repeats.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import nn

from bench.make_features import make_features, make_vectors
from codeseg.model.clip.encoder import FrozenClip
from codeseg.pipeline.stream.feature_settings import BackboneFacts
from codeseg.stages.training.loop import fit
from codeseg.stages.training.recipes import resolve

NAME = "bench_vit"
CLIP = {"model": "storybook", "pretrained": "storybook"}
BATCH = 128


def write_data(folder: Path, rows: int, width: int, heads: int) -> tuple[Path, list[Path], float]:
    """Return the root, the npz shards with the same values, and bytes an image of ours."""
    clip = FrozenClip.load("storybook", "storybook")
    names = ("weights_sha256", "image_size", "patch_size", "width", "text_width", "embed_dim")
    names += ("layers", "context_length")
    facts = CLIP | {name: getattr(clip, name) for name in names}
    make_features(folder / "root", shards=4, rows=rows // 4, views=1, block_rows=64, clip=facts)
    vit = BackboneFacts(NAME, None, "0" * 64, 14, width, 16, "heads", heads)
    table = make_vectors(folder / "root", vit)
    paths, size = sorted((folder / "root" / table).glob("*.arrow")), 0
    shards = []
    for path in paths:
        made = pa.ipc.open_file(path).read_all().combine_chunks()
        vectors = np.stack(made["vectors"].to_numpy()).reshape(-1, heads, width)
        shards.append(path.with_suffix(".npz"))
        np.savez(
            folder / shards[-1].name,
            vectors=vectors.astype(np.float16),
            captions=np.stack(made["caption_embedding"].to_numpy()).astype(np.float16),
        )
        size += path.stat().st_size
    return folder / "root", [folder / shard.name for shard in shards], size / rows


def ours(root: Path, run: Path, steps: int) -> None:
    """Train by our loop."""
    settings = [f"model.backbone={NAME}", f"train.steps={steps}", "train.device=cpu",
                "train.checkpoint_every=1000000", "train.log_every=50"]  # fmt: skip
    with redirect_stdout(StringIO()):
        assert fit(root, run, resolve("storybook_align", None, settings))


def plain(shards: list[Path], steps: int) -> float:
    """Train by the plain loop; return the last loss."""
    loaded = [np.load(path) for path in shards]
    vectors = np.concatenate([shard["vectors"] for shard in loaded])
    captions = np.concatenate([shard["captions"] for shard in loaded])
    width = vectors.shape[-1]
    model = nn.Sequential(nn.Linear(captions.shape[1], width), nn.Tanh(), nn.Linear(width, width))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    draw, order = np.random.default_rng(0), np.empty(0, np.int64)
    target = torch.arange(BATCH)
    for _ in range(steps):
        if len(order) < BATCH:
            order = draw.permutation(len(vectors))
        chosen, order = order[:BATCH], order[BATCH:]
        texts = F.normalize(model(torch.from_numpy(captions[chosen]).float()), dim=-1)
        heads = F.normalize(torch.from_numpy(vectors[chosen]).float(), dim=-1)
        best = torch.einsum("bd,bhd->bh", texts, heads).argmax(1)
        logits = texts @ heads[target, best].T / 0.07
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss = loss / BATCH**2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return loss.item()


def main() -> None:
    """Measure both in turns; a run's start is measured by a run of one step, and taken off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root, shards, size = write_data(folder, asked.rows, asked.width, asked.heads)
        print(f"{size:,.0f} bytes an image; {asked.threads} threads")
        spent: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
        for repeat in range(asked.repeats + 1):
            for name, seconds in spent.items():
                moments = []
                for steps in (1, asked.steps + 1):
                    began = time.perf_counter(), time.process_time()
                    if name == "ours":
                        ours(root, folder / f"run-{repeat}-{steps}", steps)
                    else:
                        plain(shards, steps)
                    ended = time.perf_counter(), time.process_time()
                    moments.append((ended[0] - began[0], ended[1] - began[1]))
                if repeat:  # the first warms up
                    (wall, cpu), (more_wall, more_cpu) = moments
                    seconds.append((more_wall - wall, more_cpu - cpu))
        medians = {
            name: [statistics.median(kind) for kind in zip(*seconds, strict=True)]
            for name, seconds in spent.items()
        }
        for name, (wall, cpu) in medians.items():
            rate = BATCH * asked.steps / wall
            print(f"{name}: {wall:.2f} s of {asked.steps} steps, {cpu:.2f} CPU s, {rate:,.0f}/s")
        wall, cpu = (a / b for a, b in zip(medians["ours"], medians["plain"], strict=True))
        print(f"seconds, ours / plain: {wall:.2f} by wall, {cpu:.2f} by CPU")


if __name__ == "__main__":
    main()
