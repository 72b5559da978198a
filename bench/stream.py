"""The Arrow stream alone against webdataset reading the same samples from tars on the same disk.

    python -m bench.stream [--rows 1000] [--rounds 3] [--folder DIR]

Makes random features of ViT-B/16's shapes (453 kB a row) as Arrow shards and as tars, then reads
both in turn, single process and with two worker processes for webdataset, and prints samples/s and
the ratio to webdataset's better way. Our side also chooses nouns, makes labels, looks nouns up and
checks that everything is finite; theirs only decodes, pads and stacks.
"""

import io
import json
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer

from bench.make_features import TINY_CLIP, make_features
from codeseg.pipeline.stream.batches import FeatureStream

VIT_B_16 = {
    **TINY_CLIP,
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "text_width": 512,
    "embed_dim": 512,
    "context_length": 77,
}
SHARDS = 4
SHUFFLE = 256  # samples that webdataset's buffer holds


def write_tars(root: Path) -> list[str]:
    """Write each Arrow shard's samples as a tar of .npy and .json members."""
    names = []
    for path in sorted((root / "features").glob("*.arrow")):
        names.append(str(path.with_suffix(".tar")))
        with tarfile.open(names[-1], "w") as tar:
            for row in rows_of(path):
                key = row.pop("key")
                arrays = {name: row.pop(name) for name in list(row) if "_" not in name}
                arrays |= {name: row.pop(name) for name in ("image_tokens", "caption_states")}
                for name, array in arrays.items():
                    file = io.BytesIO()
                    np.save(file, array)
                    add(tar, f"{key}.{name}.npy", file.getvalue())
                add(tar, f"{key}.json", json.dumps(row).encode())
    return names


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a shard, as a user of tars would store them."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        for i in range(batch.num_rows):
            numpy = {n: batch.column(n)[i].values.to_numpy() for n in ("pixels", "image_tokens")}
            states = batch.column("caption_states")[i].values.to_numpy()
            yield {
                "key": batch.column("key")[i].as_py(),
                "pixels": numpy["pixels"].reshape(224, 224, 3),
                "image_tokens": numpy["image_tokens"].reshape(197, 768),
                "caption_states": states.reshape(-1, 512),
                "caption_tokens": batch.column("caption_tokens")[i].as_py(),
                "noun_ids": batch.column("noun_ids")[i].as_py(),
            }


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add one member."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack the fixed shapes, pad the captions."""
    lengths = [len(sample["json"]["caption_tokens"]) for sample in samples]
    tokens = torch.zeros(len(samples), max(lengths), dtype=torch.int64)
    states = torch.zeros(len(samples), max(lengths), 512, dtype=torch.float16)
    for i, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        tokens[i, :length] = torch.tensor(sample["json"]["caption_tokens"])
        states[i, :length] = torch.from_numpy(sample["caption_states.npy"])
    return {
        "pixels": torch.from_numpy(np.stack([sample["pixels.npy"] for sample in samples])),
        "tokens": torch.from_numpy(np.stack([sample["image_tokens.npy"] for sample in samples])),
        "caption_tokens": tokens,
        "caption_states": states,
    }


def webdataset_batches(tars: list[str], batch_size: int, workers: int) -> Iterator[Any]:
    """Batches from the tars, as webdataset's documentation reads them."""
    import webdataset as wds

    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), nodesplitter=None, empty_check=False)
        .shuffle(SHUFFLE)
        .decode()
        .batched(batch_size, collation_fn=collate, partial=False)
    )
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers))


def samples_per_second(
    make: Callable[[], Iterator[Any]], batch_size: int, batches: int
) -> tuple[float, float]:
    """Samples/s over `batches` batches, start-up included; and the same CPU-time-wise."""
    begin, cpu = time.perf_counter(), time.process_time()
    stream = make()
    for _ in range(batches):
        next(stream)
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return batches * batch_size / wall, batches * batch_size / cpu


def main(
    rows: Annotated[int, typer.Option(help="Samples in all.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Times everything is read.")] = 3,
    batch_size: Annotated[int, typer.Option()] = 32,
    folder: Annotated[Path | None, typer.Option(help="On the disk to measure.")] = None,
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) if folder is None else nullcontext(folder) as name:
        root = Path(name)
        make_features(
            root, shards=SHARDS, rows=rows // SHARDS, views=1, clip=VIT_B_16, block_rows=64
        )
        tars = write_tars(root)
        halves = [root / "one", root / "two"]
        for seed, half in enumerate(halves):
            make_features(
                half, shards=SHARDS // 2, rows=rows // SHARDS, views=1, clip=VIT_B_16,
                block_rows=64, seed=seed,
            )  # fmt: skip
        batches = rows // batch_size - 2  # within one epoch of either
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "codeseg": lambda: iter(FeatureStream(root, batch_size=batch_size)),
            "codeseg, two roots": lambda: iter(FeatureStream(halves, batch_size=batch_size)),
            "webdataset": lambda: webdataset_batches(tars, batch_size, 0),
            "webdataset, 2 workers": lambda: webdataset_batches(tars, batch_size, 2),
        }
        best: dict[str, tuple[float, float]] = {}
        for _ in range(rounds):  # in turn, so that a busy machine is unfair to none
            for way, make in ways.items():
                speed = samples_per_second(make, batch_size, batches)
                best[way] = max(best.get(way, (0.0, 0.0)), speed)
    print(f"{date.today()} {platform.processor() or platform.machine()}, {rows} samples of 453 kB")
    for way, (wall, cpu) in best.items():
        note = f", {cpu:,.0f} a CPU second" if "workers" not in way else ""
        print(f"{way:22} {wall:8,.0f} samples/s{note}")
    print(f"ratio of two roots to one: {best['codeseg, two roots'][0] / best['codeseg'][0]:.2f}")
    theirs = max(wall for way, (wall, _) in best.items() if "codeseg" not in way)
    print(f"ratio to webdataset's better way: {best['codeseg'][0] / theirs:.2f}")


if __name__ == "__main__":
    typer.run(main)
