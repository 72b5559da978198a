"""pairs/NNNNN.parquet + nouns/NNNNN.parquet -> features/NNNNN.arrow; CPU or GPU.

What the frozen CLIP says about every trainable pair (METHOD §2.1, §4): image tokens of V augmented
views, caption states up to EOS. rows_in of the record counts the nouns rows that are not rejected;
rejected here are too_few_nouns, no_image, broken_image, non_finite and zero_norm.

The same bytes come out whatever the number of workers: views are hashes of (seed, key, view), and
what is encoded together depends on the shard alone.

Letters: R rows of a record batch, V views, H W pixels, P image tokens, D vision width, C channels.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from codeseg.pipeline import schema
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.progress import SHARD_ROWS
from codeseg.pipeline.engine.shards import read_shard
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.encoder import Encoder, find_faults, to_int8
from codeseg.pipeline.stream import views
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.pipeline.stream.order import hash_numbers

FAULTY_STREAK = 8
DECODED_AHEAD = 3  # batches of images decoded while one is encoded

Row = dict[str, Any]


@dataclass(frozen=True)
class Image:
    """A row's image as it goes into the table."""

    row: Row
    jpg: bytes
    pixels_VHWC: NDArray[np.uint8]  # no views where the reader augments


class FeaturesWorker:
    """Makes one features shard at a time; the CLIP is loaded once.

    Args:
        root_uri: of the dataset.
        options: "features": the settings, "device": "cpu" or "cuda", "threads": CPU cores to use.
    """

    READS: ClassVar[dict[str, tuple[str, ...]]] = {
        "pairs": ("key", "jpg"),
        "nouns": ("key", "caption_tokens", "nouns", "rejected"),
    }
    ADDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "features": (
            *("key", "jpg", "pixels", "image_tokens", "image_scales", "clip_score"),
            *("caption_tokens", "caption_states", "noun_ids", "spans"),
        )
    }
    MEMORY: ClassVar[int] = 4_000_000_000

    def __init__(self, root_uri: str, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._root = Storage.open(root_uri)
        self._settings: FeatureSettings = options["features"]
        self._encoder = Encoder(self._settings, options["device"])
        self._schema = features_schema(self._settings)
        self._streak = 0  # faulty rows up to here
        self._pool = ThreadPoolExecutor(options["threads"], thread_name_prefix="decode")

    def process(self, shard: int, input: str) -> ShardRecord:
        """Encode a shard, write its file, commit its record."""
        start = time.perf_counter()
        rejected: Counter[str] = Counter()
        rows, rows_in = self._read(shard, rejected)
        states = self._encoder.caption_states([row["caption_tokens"] for row in rows])
        for row, values in zip(rows, states, strict=True):
            row["caption_states"] = values
        rows_out = self._streak = 0

        def write(sink: pa.NativeFile) -> None:
            nonlocal rows_out
            batches = self._encoded(rows, rejected)
            with pa.ipc.new_file(sink, self._schema) as writer, ThreadPoolExecutor(1) as pool:
                writing: Future[None] | None = None  # hash and write one batch, encode the next
                for batch in regroup(batches, self._settings.block_rows):
                    if writing is not None:
                        writing.result()
                    rows_out += batch.num_rows
                    SHARD_ROWS.count(batch.num_rows)
                    writing = pool.submit(writer.write_batch, batch)
                if writing is not None:
                    writing.result()
            assert rows_in == rows_out + rejected.total()

        return stage.commit(
            self._root, stage.FEATURES, shard, input, self._settings.fingerprint(), write,
            rows_in=rows_in, rejected=rejected, start=start,
            versions={name: version(name) for name in ("torch", "open_clip_torch", "pillow")},
        )  # fmt: skip

    def _read(self, shard: int, rejected: Counter[str]) -> tuple[list[Row], int]:
        """The shard's usable rows with their JPEGs, and how many were trainable to begin with."""
        nouns = read_shard(self._root, stage.NOUNS, shard, self.READS["nouns"])
        nouns = nouns.filter(nouns["rejected"].is_null())
        pairs = read_shard(self._root, stage.PAIRS, shard, self.READS["pairs"])
        place = {key: i for i, key in enumerate(pairs["key"].to_pylist())}
        jpgs, rows = pairs["jpg"], []
        context = self._settings.clip.context_length
        for full in nouns.drop_columns("rejected").to_pylist():
            row = cut(full, context)
            if len(row["nouns"]) < self._settings.min_nouns:
                rejected["too_few_nouns"] += 1
            elif row["key"] not in place or not jpgs[place[row["key"]]].is_valid:
                rejected["no_image"] += 1
            else:
                rows.append(row | {"jpg": jpgs[place[row["key"]]]})
        return rows, nouns.num_rows

    def _encoded(self, rows: list[Row], rejected: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Record batches of the rows whose image and features are sound, in order."""
        images: list[Image] = []
        for image in self._decoded(rows):
            if image is None:
                rejected["broken_image"] += 1
                continue
            images.append(image)
            if len(images) == self._settings.block_rows:
                yield self._encode(images, rejected)
                images = []
        if images:
            yield self._encode(images, rejected)

    def _decoded(self, rows: list[Row]) -> Iterator[Image | None]:
        """Yield images in the rows' order, decoded ahead in threads; None for a broken one."""
        waiting: deque[Future[Image | None]] = deque()
        for row in rows:
            waiting.append(self._pool.submit(self._decode, row))
            if len(waiting) > DECODED_AHEAD * self._settings.block_rows:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _decode(self, row: Row) -> Image | None:
        settings = self._settings
        jpg = row["jpg"].as_py()
        try:
            image = views.decode(jpg)
        except OSError:
            return None
        if settings.image_tokens == "none":
            return Image(row, jpg, np.empty(0, np.uint8))
        size, scale, flip = settings.clip.image_size, settings.crop_scale, settings.flip
        key = views.key_hash(row["key"])
        bits = [hash_numbers(settings.seed, key, v) for v in range(settings.views)]
        made = [views.view(image, b, size=size, crop_scale=scale, flip=flip) for b in bits]
        return Image(row, jpg, np.stack(made))

    def _encode(self, images: list[Image], rejected: Counter[str]) -> pa.RecordBatch:
        """Encode the images of a block and join everything to Arrow columns."""
        states = [image.row["caption_states"] for image in images]
        faults = ["" if np.isfinite(values).all() else "non_finite" for values in states]
        columns: dict[str, pa.Array] = {}
        if self._settings.image_tokens == "none":
            columns["jpg"] = pa.array([image.jpg for image in images], pa.binary())
        else:
            pixels = np.stack([image.pixels_VHWC for image in images])
            tokens_RVPD = self._encoder.image_tokens(torch.from_numpy(pixels))
            columns |= self._image_columns(pixels, tokens_RVPD)
            if self._settings.clip_score:
                scores = self._encoder.clip_scores(tokens_RVPD[:, 0], states)
                columns["clip_score"] = pa.array(scores)
            faults = [a or b for a, b in zip(faults, find_faults(tokens_RVPD), strict=True)]
        self._refuse_streak(faults)
        columns |= _caption_columns([image.row for image in images])
        arrays = [columns[name] for name in self._schema.names]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        rejected.update(fault for fault in faults if fault)
        return batch.filter(pa.array([not fault for fault in faults])) if any(faults) else batch

    def _refuse_streak(self, faults: list[str]) -> None:
        """A faulty row is rejected; many in a row, over blocks, say that the CLIP is at fault."""
        for fault in faults:
            self._streak = self._streak + 1 if fault else 0
            if self._streak == FAULTY_STREAK:
                raise FloatingPointError(
                    f"the CLIP's features of {FAULTY_STREAK} rows in a row are {fault}; "
                    "try --precision fp32 or look at the weights"
                )

    def _image_columns(self, pixels: NDArray[np.uint8], tokens_RVPD: Tensor) -> dict[str, pa.Array]:
        columns = {"pixels": pixels}
        if self._settings.image_tokens == "int8":
            rounded, scales = to_int8(tokens_RVPD)
            columns |= {"image_tokens": rounded.cpu().numpy(), "image_scales": scales.cpu().numpy()}
        else:
            columns["image_tokens"] = tokens_RVPD.cpu().numpy()
        return {
            name: pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), values.size // len(values)
            )
            for name, values in columns.items()
        }


def regroup(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of exactly `rows`, but the last."""
    rest: pa.RecordBatch | None = None
    for batch in batches:
        if rest is not None and rest.num_rows:
            batch = pa.Table.from_batches([rest, batch]).combine_chunks().to_batches()[0]
        while batch.num_rows >= rows:
            yield batch.slice(0, rows)
            batch = batch.slice(rows)
        rest = batch
    if rest is not None and rest.num_rows:
        yield rest


def cut(row: Row, context_length: int) -> Row:
    """Cut a nouns row to a CLIP's context; nouns that fall out are dropped."""
    tokens, eos = row["caption_tokens"], context_length - 1
    if len(tokens) <= context_length:
        return row
    kept = [
        noun | {"spans": [span for span in noun["spans"] if span["end"] <= eos]}
        for noun in row["nouns"]
    ]
    nouns = [noun for noun in kept if noun["spans"]]
    return row | {"caption_tokens": [*tokens[:eos], tokens[-1]], "nouns": nouns}


def features_schema(settings: FeatureSettings) -> pa.Schema:
    """Return schema of the shards; its metadata hold the settings as JSON under `codeseg`."""
    facts = settings.to_json()
    del facts["clip"]["pretrained"]  # may be a path
    arrow, text = settings.schema(), json.dumps(facts, sort_keys=True)
    return arrow.with_metadata({**(arrow.metadata or {}), b"codeseg": text.encode()})


def _caption_columns(rows: list[Row]) -> dict[str, pa.Array]:
    states = [row["caption_states"].reshape(-1) for row in rows]
    offsets = np.cumsum([0, *map(len, states)], dtype=np.int32)
    spans = [
        [{"noun": i, **span} for i, noun in enumerate(row["nouns"]) for span in noun["spans"]]
        for row in rows
    ]
    span = pa.struct([("noun", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])
    ids = [[schema.noun_id(noun["text"]) for noun in row["nouns"]] for row in rows]
    return {
        "key": pa.array([row["key"] for row in rows]),
        "caption_tokens": pa.array([row["caption_tokens"] for row in rows], pa.list_(pa.int32())),
        "caption_states": pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(np.concatenate(states))
        ),
        "noun_ids": pa.array(ids, pa.list_(pa.int64())),
        "spans": pa.array(spans, pa.list_(span)),
    }
