"""A small features root without the stages before it, for tests of what reads features.

make_features(root) writes ledger/, features/NNNNN.arrow and vocabulary/nouns.arrow: random pixels,
tokens and states of the right shapes, captions "a w1 w2 …" whose nouns have the right spans.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.storage import FileInfo, Storage
from codeseg.pipeline.stream.feature_table import (
    features_fingerprint,
    features_inputs,
    features_path,
)
from codeseg.pipeline.stream.vocabulary_table import (
    VOCABULARY_PATH,
    vocabulary_fingerprint,
    vocabulary_input,
    vocabulary_settings,
)

SOS, EOS = 49406, 49407

TINY_CLIP = {
    "model": "tiny",
    "pretrained": "random",
    "weights_sha256": "0" * 64,
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "text_width": 24,
    "embed_dim": 12,
    "layers": 2,
    "context_length": 32,
}


def make_features(
    root: Path,
    *,
    shards: int = 3,
    rows: int = 40,
    image_tokens: str = "fp16",
    views: int = 2,
    vocabulary: int = 30,
    block_rows: int = 8,
    clip: dict[str, Any] = TINY_CLIP,
    min_nouns: int = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the root; shard i has rows + i rows. Returns the features settings."""
    settings: dict[str, Any] = {
        "clip": clip,
        "image_tokens": image_tokens,
        "views": views,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "seed": 0,
        "crop_scale": [0.9, 1.0],
        "flip": True,
        "templates": 80,
        "min_nouns": min_nouns,
        "block_rows": block_rows,
        "precision": "fp32",
    }
    storage = Storage.open(root)
    ledger = Ledger(storage)
    draw = np.random.default_rng(seed)
    for shard in range(shards):
        for stage in ("pairs", "nouns"):
            ledger.commit(_record(stage, shard, "input", "settings", rows + shard))
    inputs = features_inputs(ledger.records("pairs"), ledger.records("nouns"))
    ledger.write_settings("features", settings)
    for shard in range(shards):
        table = [_row(draw, settings, shard, i, vocabulary) for i in range(rows + shard)]
        info = _write(storage, features_path(shard), features_schema(settings), table, block_rows)
        ledger.commit(
            _record(
                "features", shard, inputs[shard], features_fingerprint(settings), len(table), info
            )
        )
    ledger.write_settings("vocabulary", vocabulary_settings(settings))
    nouns = sorted((_noun(draw, clip, i) for i in range(vocabulary)), key=lambda noun: noun["id"])
    info = _write(
        storage, VOCABULARY_PATH, schema.vocabulary(clip["embed_dim"]), nouns, len(nouns) or 1
    )
    inputs_of_all = vocabulary_input(ledger.records("nouns"))
    ledger.commit(
        _record("vocabulary", 0, inputs_of_all, vocabulary_fingerprint(settings), len(nouns), info)
    )
    return settings


def features_schema(settings: dict[str, Any]) -> pa.Schema:
    """Return the schema of the features table that these settings give."""
    clip = settings["clip"]
    return schema.features(
        views=settings["views"],
        image_size=clip["image_size"],
        tokens=1 + (clip["image_size"] // clip["patch_size"]) ** 2,
        width=clip["width"],
        text_width=clip["text_width"],
        image_tokens=settings["image_tokens"],
    )


def noun_text(number: int) -> str:
    """Return the text of the noun with this number."""
    return f"thing{number}"


def noun_tokens(number: int) -> list[int]:
    """One token, or two for every third noun."""
    return [1000 + number] if number % 3 else [2000 + number, 3000 + number]


def _noun(draw: np.random.Generator, clip: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "id": schema.noun_id(noun_text(number)),
        "text": noun_text(number),
        "count": 1,
        "noun_tokens": noun_tokens(number),
        "knowledge_embedding": draw.standard_normal(clip["embed_dim"]).astype(np.float32),
    }


def _row(
    draw: np.random.Generator, settings: dict[str, Any], shard: int, row: int, vocabulary: int
) -> dict[str, Any]:
    clip, views = settings["clip"], settings["views"]
    S, D, T = clip["image_size"], clip["width"], clip["text_width"]
    P = 1 + (S // clip["patch_size"]) ** 2
    nouns = draw.choice(vocabulary, size=draw.integers(2, 5), replace=False).tolist()
    nouns_again = [*nouns, nouns[0]]  # the first noun occurs twice
    tokens, spans = [SOS, 320], []
    for noun in nouns_again:
        ids = noun_tokens(noun)
        spans.append(
            {"noun": nouns.index(noun), "start": len(tokens), "end": len(tokens) + len(ids)}
        )
        tokens += [*ids, 500]
    tokens.append(EOS)
    values: dict[str, Any] = {
        "key": f"{shard:05d}{row:04d}",
        "caption_tokens": tokens,
        "caption_states": draw.standard_normal(len(tokens) * T).astype(np.float16),
        "noun_ids": [schema.noun_id(noun_text(noun)) for noun in nouns],
        "spans": spans,
    }
    pixels = draw.integers(0, 256, (views, S, S, 3), dtype=np.uint8)
    if settings["image_tokens"] == "none":
        file = io.BytesIO()
        Image.fromarray(pixels[0]).resize((S + 8, S)).save(file, "JPEG")
        return values | {"jpg": file.getvalue()}
    values["pixels"] = pixels.reshape(-1)
    if settings["image_tokens"] == "fp16":
        values["image_tokens"] = draw.standard_normal(views * P * D).astype(np.float16)
    else:
        values["image_tokens"] = draw.integers(-127, 128, views * P * D, dtype=np.int8)
        values["image_scales"] = draw.random(views * P).astype(np.float32)
    return values


def _write(
    storage: Storage, path: str, arrow: pa.Schema, rows: list[dict[str, Any]], block_rows: int
) -> FileInfo:
    table = pa.Table.from_pylist(rows, schema=arrow)

    def write(sink: pa.NativeFile) -> None:
        with pa.ipc.new_file(sink, arrow) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=block_rows)

    return storage.write_atomic(path, write)


def _record(
    stage: str, shard: int, source: str, settings: str, rows: int, info: FileInfo | None = None
) -> ShardRecord:
    path = VOCABULARY_PATH if stage == "vocabulary" else features_path(shard)
    return ShardRecord(
        stage=stage,
        shard=shard,
        input=source,
        settings=settings,
        output=info.sha256 if info else hashlib.sha256(f"{stage}{shard}".encode()).hexdigest(),
        files={path: {"bytes": info.bytes, "sha256": info.sha256}} if info else {},
        rows_in=rows,
        rows_out=rows,
        rejected={},
        bytes=info.bytes if info else 0,
        seconds=0.0,
        versions={},
    )
