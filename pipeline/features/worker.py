"""pairs/NNNNN.parquet + nouns/NNNNN.parquet -> features/NNNNN.arrow; CPU or GPU.

The frozen CLIP's features of every trainable pair (METHOD §2.1, §4): image tokens of V augmented
views, caption states up to EOS; with a backbone (METHOD §13), its vectors of the views and the
caption's embedding, into features-BACKBONE/NNNNN.arrow. The record's rows_in counts the nouns rows
that are not rejected; this stage rejects too_few_nouns, no_image, broken_image, non_finite and
zero_norm.

A picture that several rows of the shard share is encoded once and stored once in each record batch;
it is kept in memory until the last of its rows.

The bytes do not depend on the number of workers: views are hashes of (seed, key, view), with the
key of the picture's first row, and batches depend only on the shard.

Letters: R rows, K pictures, V views, H W pixels, P image tokens, D vision width, C channels.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from operator import itemgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from codeseg.pipeline import schema
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.progress import SHARD_ROWS
from codeseg.pipeline.engine.shards import read_shard
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.encoder import FAULTS, Encoder
from codeseg.pipeline.stream import views
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.pipeline.stream.order import hash_numbers

FAULTY_STREAK = 8
LIBRARIES = ("torch", "open_clip_torch", "timm", "pillow")  # that affect the features
DECODED_AHEAD = 3  # batches of images decoded while one is encoded

Row = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Begun = TypeVar("Begun")

VALUES: dict[str, Callable[[Row], Any]] = {
    "key": itemgetter("key"),
    "jpg": lambda row: row["jpg"].as_py(),
    "clip_score": itemgetter("clip_score"),
    "caption_embedding": itemgetter("caption_embedding"),
    "caption_tokens": itemgetter("caption_tokens"),
    "noun_ids": lambda row: [schema.text_hash(noun["text"]) for noun in row["nouns"]],
    "spans": lambda row: [
        {"noun": i, **span} for i, noun in enumerate(row["nouns"]) for span in noun["spans"]
    ],
}
"""Column -> its value in a row."""


@dataclass
class Group:
    """Rows that go through the CLIP together, and their new pictures."""

    rows: list[Row] = field(default_factory=list)
    pixels: Arrays = field(default_factory=dict)  # picture -> (V, H, W, C), uint8


def ahead(begun: Iterable[Begun], count: int) -> Iterator[Begun]:
    """Yield started items in order, each after `count` more were started."""
    waiting: deque[Begun] = deque()
    for item in begun:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


class FeaturesWorker:
    """A ShardWorker that makes features; the CLIP is loaded once.

    Its options are "features": the settings, "device": "cpu" or "cuda", "threads": CPU cores.
    """

    READS: ClassVar[dict[str, tuple[str, ...]]] = {
        "pairs": ("key", "jpg", "sha256"),
        "nouns": ("key", "caption_tokens", "nouns", "rejected"),
    }
    MEMORY: ClassVar[int] = 4_000_000_000

    def __init__(self, root_uri: str, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._root = Storage.open(root_uri)
        self._settings: FeatureSettings = options["features"]
        self._encoder = Encoder(self._settings, options["device"])
        self._schema = features_schema(self._settings)
        self._streak = 0  # consecutive faulty rows
        self._pool = ThreadPoolExecutor(options["threads"], thread_name_prefix="decode")

    def process(self, shard: int, input: str) -> ShardRecord:
        """Encode a shard, write its file, commit its record."""
        start = time.perf_counter()
        rejected: Counter[str] = Counter()
        rows, rows_in = self._read(shard, rejected)
        states = self._encoder.caption_states([row["caption_tokens"] for row in rows])
        for row, values in zip(rows, states, strict=True):
            row["caption_states"] = values
        self._streak = 0

        def write(sink: pa.NativeFile) -> None:
            sound, size, rows_out = self._sound(rows, rejected), self._settings.block_rows, 0
            with pa.ipc.new_file(sink, self._schema) as writer, ThreadPoolExecutor(1) as pool:

                def write_batch(batch: list[Row]) -> int:
                    writer.write_batch(self._join(batch))
                    SHARD_ROWS.count(len(batch))
                    return len(batch)

                batches = iter(lambda: list(islice(sound, size)), [])
                # join, hash and write one batch while the next is encoded
                for writing in ahead((pool.submit(write_batch, batch) for batch in batches), 1):
                    rows_out += writing.result()
            assert rows_in == rows_out + rejected.total()

        return stage.commit(
            self._root, self._settings.stage, shard, input, self._settings.fingerprint(), write,
            rows_in=rows_in, rejected=rejected, start=start,
            versions={name: version(name) for name in LIBRARIES},
        )  # fmt: skip

    def _read(self, shard: int, rejected: Counter[str]) -> tuple[list[Row], int]:
        """Return the shard's usable rows with their JPEGs, and the number of trainable rows."""
        nouns = read_shard(self._root, stage.NOUNS, shard, self.READS["nouns"])
        nouns = nouns.filter(nouns["rejected"].is_null())
        pairs = read_shard(self._root, stage.PAIRS, shard, self.READS["pairs"])
        keys, hashes, jpgs = pairs["key"].to_pylist(), pairs["sha256"].to_pylist(), pairs["jpg"]
        place = {key: i for i, key in enumerate(keys)}
        first: dict[str, str] = {}  # a picture's name is the first key of its rows
        names = [first.setdefault(h or key, key) for h, key in zip(hashes, keys, strict=True)]
        rows = []
        context = self._settings.clip.context_length
        for full in nouns.drop_columns("rejected").to_pylist():
            row, i = cut(full, context), place.get(full["key"])
            if len(row["nouns"]) < self._settings.min_nouns:
                rejected["too_few_nouns"] += 1
            elif i is None or not jpgs[i].is_valid:
                rejected["no_image"] += 1
            else:
                rows.append(row | {"jpg": jpgs[i], "picture": names[i]})
        return rows, nouns.num_rows

    def _sound(self, rows: list[Row], rejected: Counter[str]) -> Iterator[Row]:
        """Yield the rows whose picture and features are sound, in order, with their features."""
        last = {row["picture"]: row["key"] for row in rows}
        known: dict[str, Arrays] = {}  # picture -> its features
        begun = ((group, self._start(group)) for group in self._groups(rows, rejected))
        for group, encoded in ahead(begun, 1):
            found = encoded()
            captions_RC = found.pop("captions", None)
            for k, (name, pixels) in enumerate(group.pixels.items()):
                known[name] = {"pixels": pixels} | {n: values[k] for n, values in found.items()}
            done = [row | {"features": known[row["picture"]]} for row in group.rows]
            if captions_RC is not None and self._settings.backbone:
                done = [
                    r | {"caption_embedding": c} for r, c in zip(done, captions_RC, strict=True)
                ]
            elif captions_RC is not None:
                images_RC = np.stack([row["features"]["images"] for row in done])
                scores = (torch.from_numpy(images_RC) * torch.from_numpy(captions_RC)).sum(dim=-1)
                done = [r | {"clip_score": s} for r, s in zip(done, scores.tolist(), strict=True)]
            for row in done:
                if fault := self._fault(row):
                    rejected[fault] += 1
                else:
                    yield row
                if last[row["picture"]] == row["key"]:
                    del known[row["picture"]]
            for name in known.keys() & group.pixels.keys():  # frees the group's arrays
                known[name] |= {column: values.copy() for column, values in known[name].items()}

    def _start(self, group: Group) -> Callable[[], Arrays]:
        """Start to encode a group; return a function that waits for the result."""
        if self._settings.image_tokens == "none":
            return dict  # nothing to encode
        ends = [row["caption_states"][-1] for row in group.rows]
        return self._encoder.start(np.stack([*group.pixels.values()]), np.stack(ends))

    def _groups(self, rows: list[Row], rejected: Counter[str]) -> Iterator[Group]:
        """Yield the rows whose picture can be decoded, `block_rows` new pictures at a time."""
        seen: set[str] = set()

        def begin(row: Row) -> tuple[Row, Future[NDArray[np.uint8] | None] | None]:
            new = row["picture"] not in seen
            seen.add(row["picture"])
            return row, self._pool.submit(self._decode, row) if new else None

        group, broken = Group(), set[str]()
        for row, decoding in ahead(map(begin, rows), DECODED_AHEAD * self._settings.block_rows):
            pixels = decoding.result() if decoding else None
            if pixels is not None:
                if len(group.pixels) == self._settings.block_rows:
                    yield group
                    group = Group()
                group.pixels[row["picture"]] = pixels
            elif decoding:
                broken.add(row["picture"])
            if row["picture"] in broken:
                rejected["broken_image"] += 1
            else:
                group.rows.append(row)
        if group.rows:
            yield group

    def _decode(self, row: Row) -> NDArray[np.uint8] | None:
        """Return the picture's views (V, H, W, C); none if the reader augments; None if broken."""
        settings = self._settings
        try:
            image = views.decode(row["jpg"].as_py())
        except OSError:
            return None
        if settings.image_tokens == "none":
            return np.empty(0, np.uint8)
        size, scale, flip = settings.view_size, settings.crop_scale, settings.flip
        key = schema.text_hash(row["picture"])
        bits = [hash_numbers(settings.seed, key, v) for v in range(settings.views)]
        made = [views.view(image, b, size=size, crop_scale=scale, flip=flip) for b in bits]
        return np.stack(made)

    def _fault(self, row: Row) -> str:
        """Return a row's reason for rejection; many in succession mean that a model is faulty."""
        text = "caption_embedding" if self._settings.backbone else "caption_states"
        finite = np.isfinite(row[text]).all()
        fault = FAULTS[row["features"].get("faults", 0)] if finite else "non_finite"
        self._streak = self._streak + 1 if fault else 0
        if self._streak == FAULTY_STREAK:
            raise FloatingPointError(
                f"the features of {FAULTY_STREAK} consecutive rows are {fault}; "
                "try --precision fp32 or check the weights"
            )
        return fault

    def _join(self, rows: list[Row]) -> pa.RecordBatch:
        """Return rows as Arrow columns; rows of one picture share its values."""
        pictures = {row["picture"]: row["features"] for row in rows}
        number = {name: k for k, name in enumerate(pictures)}
        number_R = np.array([number[row["picture"]] for row in rows])
        arrays = []
        for column in self._schema:
            if column.name in VALUES:
                arrays.append(pa.array(map(VALUES[column.name], rows), column.type))
            elif column.name == "caption_states":
                states = [row["caption_states"].reshape(-1) for row in rows]
                offsets = np.cumsum([0, *map(len, states)], dtype=np.int32)
                arrays.append(pa.ListArray.from_arrays(offsets, np.concatenate(states)))
            else:
                values = np.stack([picture[column.name] for picture in pictures.values()])
                size = values[0].size
                arrays.append(
                    pa.LargeListViewArray.from_arrays(
                        number_R * size, np.full(len(rows), size), values.reshape(-1)
                    )
                )
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


def cut(row: Row, context_length: int) -> Row:
    """Cut a nouns row to a CLIP's context, without the nouns beyond it."""
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
    """Return the shards' schema, with the settings as JSON in its metadata under `codeseg`."""
    facts = stage.FEATURES.matters(settings.to_json())  # without paths
    arrow, text = settings.schema(), json.dumps(facts, sort_keys=True)
    return arrow.with_metadata({**(arrow.metadata or {}), b"codeseg": text.encode()})
