"""A small dataset root with features but without the stages before, to test readers of features.

make_vectors(root, facts) adds a table of a backbone's random vectors, for the same pairs.
make_features(root) writes ledger/, features/NNNNN.arrow and vocabulary/nouns.arrow: random pixels,
tokens and states of the right shapes, and captions "a w1 w2 …" whose nouns have the right spans.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, from_json
from codeseg.pipeline.engine.stage import FEATURES, VOCABULARY, commit
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_settings import BackboneFacts, ClipFacts, FeatureSettings

SOS, EOS = 49406, 49407
NONE: dict[str, Any] = {"rejected": {}, "start": 0.0, "versions": {"codeseg": "0"}}

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
) -> None:
    """Write the dataset root; shard i has rows + i rows."""
    settings = FeatureSettings(
        clip=from_json(ClipFacts, clip),
        image_tokens=image_tokens,
        views=views,
        precision="fp32",
        block_rows=block_rows,
        min_nouns=min_nouns,
        crop_scale=(0.9, 1.0),
        flip=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        seed=0,
        templates=80,
    )
    storage = Storage.open(root)
    ledger = Ledger(storage)
    draw = np.random.default_rng(seed)
    for shard in range(shards):
        for stage in ("pairs", "nouns"):
            ledger.commit(_upstream(stage, shard, rows + shard))
    records = {stage: ledger.records(stage) for stage in ("pairs", "nouns")}
    inputs = FEATURES.inputs_today(records, None) or {}
    ledger.write_settings("features", settings.to_json())
    for shard in range(shards):
        table = [_row(draw, settings, shard, i, vocabulary) for i in range(rows + shard)]
        write = _writer(settings.schema(), table, block_rows)
        made = settings.fingerprint()
        commit(storage, FEATURES, shard, inputs[shard], made, write, rows_in=len(table), **NONE)
    ledger.write_settings("vocabulary", settings.vocabulary())
    width = settings.clip.embed_dim
    nouns = sorted((_noun(draw, width, i) for i in range(vocabulary)), key=lambda noun: noun["id"])
    write = _writer(schema.vocabulary(width), nouns, len(nouns) or 1)
    whole = VOCABULARY.inputs_today(records, None) or {}
    made = settings.vocabulary_fingerprint()
    commit(storage, VOCABULARY, 0, whole[0], made, write, rows_in=len(nouns), **NONE)


def make_vectors(root: Path, facts: BackboneFacts, seed: int = 0) -> str:
    """Write features-BACKBONE for every row of a root made by `make_features`; return the table."""
    storage = Storage.open(root)
    ledger = Ledger(storage)
    plain = FeatureSettings.read(storage)
    settings = replace(plain, image_tokens="vectors", by_picture=True, backbone=facts)
    stage, draw = settings.stage, np.random.default_rng(seed)
    ledger.write_settings(stage.table, settings.to_json())
    size = settings.views * facts.vectors * facts.width
    for shard, record in ledger.records("features").items():
        made = pa.ipc.open_file(storage.open_input(FEATURES.path(shard))).read_all()
        rows = made.select(["key", "noun_ids"]).to_pylist()
        for row in rows:
            for name, count in (("caption_embedding", plain.clip.embed_dim), ("vectors", size)):
                row[name] = draw.standard_normal(count, np.float32).astype(np.float16)
        write = _writer(settings.schema(), rows, settings.block_rows)
        commit(
            storage, stage, shard, record.input, settings.fingerprint(), write,
            rows_in=len(rows), **NONE,
        )  # fmt: skip
    return stage.table


def noun_text(number: int) -> str:
    """Return the text of the noun with this number."""
    return f"thing{number}"


def noun_tokens(number: int) -> list[int]:
    """Return one token, or two for every third noun."""
    return [1000 + number] if number % 3 else [2000 + number, 3000 + number]


def _noun(draw: np.random.Generator, width: int, number: int) -> dict[str, Any]:
    return {
        "id": schema.text_hash(noun_text(number)),
        "text": noun_text(number),
        "count": 1,
        "noun_tokens": noun_tokens(number),
        "knowledge_embedding": draw.standard_normal(width).astype(np.float32),
    }


def _row(
    draw: np.random.Generator, settings: FeatureSettings, shard: int, row: int, vocabulary: int
) -> dict[str, Any]:
    clip, views = settings.clip, settings.views
    S, D, T, P = clip.image_size, clip.width, clip.text_width, clip.tokens
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
        "noun_ids": [schema.text_hash(noun_text(noun)) for noun in nouns],
        "spans": spans,
    }
    pixels = draw.integers(0, 256, (views, S, S, 3), dtype=np.uint8)
    if settings.image_tokens == "none":
        file = io.BytesIO()
        Image.fromarray(pixels[0]).resize((S + 8, S)).save(file, "JPEG")
        return values | {"jpg": file.getvalue()}
    values["pixels"] = pixels.reshape(-1)
    if settings.image_tokens == "fp16":
        values["image_tokens"] = draw.standard_normal(views * P * D).astype(np.float16)
    else:
        values["image_tokens"] = draw.integers(-127, 128, views * P * D, dtype=np.int8)
        values["image_scales"] = draw.random(views * P).astype(np.float32)
    return values


def _writer(
    arrow: pa.Schema, rows: list[dict[str, Any]], block_rows: int
) -> Callable[[pa.NativeFile], None]:
    blocks = [rows[start : start + block_rows] for start in range(0, len(rows), block_rows)]

    def write(sink: pa.NativeFile) -> None:
        with pa.ipc.new_file(sink, arrow) as writer:
            for block in blocks:  # a slice of a table would take all values of its lists along
                writer.write_batch(pa.RecordBatch.from_pylist(block, schema=arrow))

    return write


def _upstream(stage: str, shard: int, rows: int) -> ShardRecord:
    """Return a record without a file, since nothing here reads pairs or nouns."""
    output = hashlib.sha256(f"{stage}{shard}".encode()).hexdigest()
    return ShardRecord(
        stage, shard, "input", "settings", output, {}, rows, rows, {}, 0, 0.0, {"codeseg": "0"}
    )
