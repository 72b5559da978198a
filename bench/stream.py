"""The Arrow stream against webdataset, LitData and MosaicML Streaming on the same samples and disk.

    python -m bench.stream [--rows 1000] [--rounds 3] [--folder DIR] [--s3]

Makes random features of ViT-B/16's shapes (453 kB a row) as Arrow shards, as tars and as the
others' chunks, then reads each in turn, the others also with two worker processes, and prints
samples/s and the ratio to each one's better way; and JPEGs (image_tokens=none), whose rate is of
decoding. Our side also chooses nouns, makes labels, looks nouns up and checks that everything is
finite; theirs only decodes, pads and stacks. With --s3 all read the same files also from an object
store on loopback (moto), webdataset over HTTP.

LitData: `pip install -c constraints.txt '.[bench]'`. MosaicML Streaming is read where it can be
imported. Version 0.13 requires a NumPy below 2.2 and constraints.txt a later one, so it needs an
environment of its own, made without it: `pip install '.[dev,bench]' mosaicml-streaming`.
"""

import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from pyarrow import fs

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
SHAPES = {"pixels": (224, 224, 3), "image_tokens": (197, 768), "caption_states": (-1, 512)}
SHARDS = 4
JPEGS = "codeseg, JPEGs"
MOSAICML = find_spec("streaming") is not None
Peer = Callable[[int], Iterator[Any]]
"""How another library reads the samples, given a number of worker processes."""
SHUFFLE = 256  # samples that webdataset's buffer holds


def shards(root: Path) -> list[Path]:
    """The Arrow shards."""
    return sorted((root / "features").glob("*.arrow"))


def write_tars(root: Path) -> list[str]:
    """Write each Arrow shard's samples as a tar of .npy and .json members."""
    names = []
    for path in shards(root):
        names.append(str(path.with_suffix(".tar")))
        with tarfile.open(names[-1], "w") as tar:
            for sample in samples([path]):
                for name, value in sample.items():
                    file = io.BytesIO(json.dumps(value).encode() if name == "json" else b"")
                    if name != "json":
                        np.save(file, value)
                    add(tar, f"{sample['json']['key']}.{name}", file.getvalue())
    return names


def samples(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The samples of shards, as a user of tars would store them."""
    for path in paths:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for batch in map(reader.get_batch, range(reader.num_record_batches)):
            for i in range(batch.num_rows):
                names = ("key", "caption_tokens", "noun_ids")
                yield {
                    "json": {name: batch.column(name)[i].as_py() for name in names},
                    **{
                        f"{name}.npy": batch.column(name)[i].values.to_numpy().reshape(shape)
                        for name, shape in SHAPES.items()
                    },
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


def write_litdata(root: Path) -> str:
    """Write the samples as LitData's chunks, as `litdata.optimize` does."""
    from litdata.streaming.writer import BinaryWriter

    folder = str(root / "litdata")
    writer = BinaryWriter(folder, chunk_bytes="64MB")
    for number, sample in enumerate(samples(shards(root))):
        tokens = np.array(sample["json"]["caption_tokens"])
        writer[number] = {**sample, "json": {"caption_tokens": tokens}}
    writer.done()
    writer.merge()
    return folder


def write_mosaicml(root: Path) -> str:
    """Write the samples as MosaicML Streaming's shards."""
    from streaming import MDSWriter

    fixed = {"pixels.npy": "uint8:224,224,3", "image_tokens.npy": "float16:197,768"}
    columns = {name: f"ndarray:{kind}" for name, kind in fixed.items()}
    columns |= {"caption_states.npy": "ndarray:float16", "json": "json"}
    with MDSWriter(columns=columns, out=str(root / "mosaicml"), exist_ok=True) as writer:
        for sample in samples(shards(root)):
            writer.write(sample)
    return str(root / "mosaicml")


def mosaicml_batches(folder: str, batch_size: int, workers: int, **options: Any) -> Iterator[Any]:
    """Batches from the shards, as MosaicML Streaming's documentation reads them."""
    import streaming

    streaming.base.util.clean_stale_shared_memory()  # of the round before
    dataset = streaming.StreamingDataset(
        local=folder, batch_size=batch_size, shuffle=True, **options
    )
    return iter(
        torch.utils.data.DataLoader(
            dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate, drop_last=True
        )
    )


def litdata_batches(folder: str, batch_size: int, workers: int, **options: Any) -> Iterator[Any]:
    """Batches from the chunks, as LitData's documentation reads them."""
    import litdata

    dataset = litdata.StreamingDataset(folder, shuffle=True, drop_last=True, **options)
    return iter(
        litdata.StreamingDataLoader(
            dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate
        )
    )


@contextmanager
def object_store(root: Path, bucket: str = "bench") -> Iterator[str]:
    """Serve a folder's files as an S3 bucket; gives host:port of the server, a process."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    command = [sys.executable, "-u", "-m", "moto.server", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "Running on http://" in line)
        host = re.findall(r"http://([\d.]+:\d+)", line)[0]
        store = fs.S3FileSystem(
            endpoint_override=host, scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        store.create_dir(bucket)
        fs.copy_files(str(root), bucket, destination_filesystem=store)
        threading.Thread(
            target=server.stderr.read, daemon=True
        ).start()  # or it stops at a full pipe
        yield host
    finally:
        server.kill()


def peers_from_s3(root: Path, tars: list[str], host: str, batch_size: int) -> dict[str, Peer]:
    """Return how the others read from the bucket, given a number of worker processes."""
    urls = [f"http://{host}/bench/{Path(tar).relative_to(root)}" for tar in tars]
    os.environ["S3_ENDPOINT_URL"] = f"http://{host}"  # which MosaicML Streaming asks

    def litdata(workers: int) -> Iterator[Any]:
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # or it refuses loopback
        client = {"endpoint_url": f"http://{host}", "region_name": "us-east-1"}
        with tempfile.TemporaryDirectory(dir=root) as cache:  # a new one each time
            yield from litdata_batches(
                "s3://bench/litdata", batch_size, workers, storage_options=client, cache_dir=cache
            )

    def mosaicml(workers: int) -> Iterator[Any]:
        with tempfile.TemporaryDirectory(dir=root) as cache:
            yield from mosaicml_batches(cache, batch_size, workers, remote="s3://bench/mosaicml")

    peers = {"webdataset": partial(webdataset_batches, urls, batch_size), "litdata": litdata}
    return {**peers, "mosaicml": mosaicml} if MOSAICML else peers


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
    s3: Annotated[bool, typer.Option("--s3", help="Also from an object store.")] = False,
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) if folder is None else nullcontext(folder) as name:
        root = Path(name)
        make_features(
            root, shards=SHARDS, rows=rows // SHARDS, views=1, clip=VIT_B_16, block_rows=64
        )
        tars = write_tars(root)
        pictures = root / "pictures"
        make_features(pictures, shards=1, rows=rows // SHARDS, clip=VIT_B_16, image_tokens="none")
        halves = [root / "one", root / "two"]
        for seed, half in enumerate(halves):
            make_features(
                half, shards=SHARDS // 2, rows=rows // SHARDS, views=1, clip=VIT_B_16,
                block_rows=64, seed=seed,
            )  # fmt: skip
        batches = rows // batch_size - 2  # within one epoch of either
        peers: dict[str, Peer] = {
            "webdataset": partial(webdataset_batches, tars, batch_size),
            "litdata": partial(litdata_batches, write_litdata(root), batch_size),
        }
        if MOSAICML:
            peers["mosaicml"] = partial(mosaicml_batches, write_mosaicml(root), batch_size)
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "codeseg": lambda: iter(FeatureStream(root, batch_size=batch_size)),
            "codeseg, two roots": lambda: iter(FeatureStream(halves, batch_size=batch_size)),
            JPEGS: lambda: iter(FeatureStream(pictures, batch_size=batch_size)),
        }
        best: dict[str, tuple[float, float]] = {}
        with object_store(root) if s3 else nullcontext() as host:
            if host is not None:
                remote = f"s3://bench?endpoint_override={host}&scheme=http&region=us-east-1"
                ways["codeseg, S3"] = lambda: iter(FeatureStream(remote, batch_size=batch_size))
                there = peers_from_s3(root, tars, host, batch_size)
                peers |= {f"{name}, S3": read for name, read in there.items()}
            for name, read in peers.items():
                ways |= {name: partial(read, 0), f"{name}, 2 workers": partial(read, 2)}
            for _ in range(rounds):  # in turn, so that a busy machine is unfair to none
                for way, make in ways.items():
                    speed = samples_per_second(make, batch_size, batches)
                    best[way] = max(best.get(way, (0.0, 0.0)), speed)
    print(f"{date.today()} {platform.processor() or platform.machine()}, {rows} samples of 453 kB")
    for way, (wall, cpu) in best.items():
        note = f", {cpu:,.0f} a CPU second" if "workers" not in way else ""
        print(f"{way:26} {wall:8,.0f} samples/s{note}")
    print(f"ratio of two roots to one: {best['codeseg, two roots'][0] / best['codeseg'][0]:.2f}")
    for name in peers:
        ours = best["codeseg, S3" if name.endswith(", S3") else "codeseg"]
        ratio = ours[0] / max(best[name][0], best[f"{name}, 2 workers"][0])
        by_cpu = ours[1] / best[name][1]
        print(f"ratio to {name}, its better way: {ratio:.2f}; by CPU time {by_cpu:.2f}")
    print(f"16 cores would decode {16 * best[JPEGS][1]:,.0f} images/s")


if __name__ == "__main__":
    typer.run(main)
