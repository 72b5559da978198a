"""A small sound dataset root, and ways to spoil it: what the audit's tests run on.

Real files in the real schemas: JPEGs of smooth noise, captions of distinct words, fp16 or int8
features, ledger records with true hashes. Shards of 100 URLs, 85 of them alive.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, fingerprint
from codeseg.pipeline.engine.stage import FEATURES, VOCABULARY
from codeseg.pipeline.engine.storage import Storage

ROWS, SHARDS = 100, 4
SOS, EOS = 49406, 49407
WIDTH, TEXT_WIDTH, EMBED_DIM, PATCHES = 32, 8, 16, 5
CLIP = {
    "model": "test", "pretrained": "random", "weights_sha256": "0" * 64,
    "image_size": 16, "patch_size": 8, "width": WIDTH,
    "text_width": TEXT_WIDTH, "embed_dim": EMBED_DIM, "layers": 2, "context_length": 77,
}  # fmt: skip
NOUNS = [a + b for a in ("fen", "bar", "cor", "dul", "kes", "mol") for b in
         ("ton", "gate", "ridge", "mire", "well", "berg", "lock", "stead")]  # fmt: skip
CLASSES = ("cat", "dog", "traffic light", "bus", "boat")
Rows = list[dict[str, Any]]


@dataclass
class Spoils:
    """Hooks that change rows before they are written; each gets all rows of its table."""

    pairs: Callable[[Rows], None] = lambda rows: None
    nouns: Callable[[Rows], None] = lambda rows: None
    features: Callable[[Rows], None] = lambda rows: None
    vocabulary: Callable[[Rows], None] = lambda rows: None
    record: Callable[[ShardRecord], ShardRecord] = lambda record: record
    settings: dict[str, Any] = field(default_factory=dict)


def picture(seed: int, side: int = 80) -> bytes:
    """A JPEG of smooth color noise, different for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side + 16, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pair_rows() -> Rows:
    rows = []
    for index in range(ROWS * SHARDS):
        shard, row = divmod(index, ROWS)
        alive = row % 20 not in (3, 9, 17)
        served = f"served {index}".encode()
        words = [NOUNS[(index * 7 + k * 11) % len(NOUNS)] for k in range(2)]
        rows.append(
            {
                "key": f"{shard:05d}{row:04d}",
                "url": f"https://host{index % 3}.example.org/{index}.jpg",
                "caption": f"the {words[0]} number {index} by a {words[1]} and a "
                f"{CLASSES[index % 5]}",
                "status": "success" if alive else "failed",
                "error": None if alive else "http_404",
                "jpg": picture(index) if alive else None,
                "width": 96 if alive else None,
                "height": 80 if alive else None,
                "original_width": 480 if alive else None,
                "original_height": 400 if alive else None,
                "sha256": hashlib.sha256(served).hexdigest() if alive else None,
            }
        )
    return rows


def noun_rows(pairs: Rows) -> Rows:
    """What a tagger would say of the alive pairs: the class words and the invented ones."""
    rows = []
    for pair in pairs:
        if pair["status"] != "success":
            continue
        words = pair["caption"].split()[: CLIP["context_length"] - 2]
        tokens = [SOS, *(sum(word.encode()) for word in words), EOS]
        spans: dict[str, Rows] = {}
        for position, word in enumerate(words):
            if word in NOUNS or word in " ".join(CLASSES).split():
                spans.setdefault(word, []).append({"start": position + 1, "end": position + 2})
        nouns = [{"text": text, "spans": where} for text, where in spans.items()]
        rows.append(
            {"key": pair["key"], "caption": pair["caption"], "caption_tokens": tokens,
             "nouns": nouns, "rejected": None if len(nouns) > 1 else "too_few_nouns"}
        )  # fmt: skip
    return rows


def feature_rows(nouns: Rows, tokens: str) -> Rows:
    rows = []
    for number, noun in enumerate(noun for noun in nouns if noun["rejected"] is None):
        rng = np.random.default_rng(number)
        values = rng.normal(size=(PATCHES, WIDTH)).astype(np.float32)
        row: dict[str, Any] = {
            "key": noun["key"],
            "pixels": rng.integers(0, 256, 16 * 16 * 3, dtype=np.uint8),
            "image_tokens": values.reshape(-1).astype(np.float16),
            "caption_tokens": noun["caption_tokens"],
            "caption_states": rng.normal(size=len(noun["caption_tokens"]) * TEXT_WIDTH).astype(
                np.float16
            ),
            "noun_ids": [schema.text_hash(n["text"]) for n in noun["nouns"]],
            "spans": [{"noun": i} | s for i, n in enumerate(noun["nouns"]) for s in n["spans"]],
        }
        if tokens == "int8":
            scales = np.abs(values).max(1) / 127
            row["image_tokens"] = np.round(values / scales[:, None]).astype(np.int8).reshape(-1)
            row["image_scales"] = scales
        rows.append(row)
    return rows


def vocabulary_rows(nouns: Rows) -> Rows:
    texts = [noun["text"] for row in nouns for noun in row["nouns"]]
    rng = np.random.default_rng(0)
    rows = []
    for text in sorted(set(texts), key=schema.text_hash):
        embedding = rng.normal(size=EMBED_DIM)
        rows.append(
            {"id": schema.text_hash(text), "text": text, "count": texts.count(text),
             "noun_tokens": [sum(text.encode())],
             "knowledge_embedding": 0.9 * embedding / np.linalg.norm(embedding)}
        )  # fmt: skip
    return rows


def make_root(root: Path, spoils: Spoils | None = None, tokens: str = "fp16") -> Path:
    """Write a whole root; `spoils` says what is wrong with it."""
    spoils = spoils or Spoils()
    storage = Storage.open(root)
    ledger = Ledger(storage)
    settings = {
        "clip": CLIP, "image_tokens": tokens, "views": 1, "precision": "fp32", "block_rows": 64,
        "min_nouns": 2, "crop_scale": [1.0, 1.0], "flip": False, "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2], "seed": 0, "templates": 80,
    } | spoils.settings  # fmt: skip
    shapes = {"views": 1, "image_size": 16, "tokens": PATCHES, "width": WIDTH,
              "text_width": TEXT_WIDTH, "image_tokens": tokens}  # fmt: skip
    ledger.write_settings("features", settings)
    pairs = pair_rows()
    spoils.pairs(pairs)
    nouns = noun_rows(pairs)
    spoils.nouns(nouns)
    vocabulary = vocabulary_rows(nouns)
    features = feature_rows(nouns, tokens)
    spoils.features(features)
    spoils.vocabulary(vocabulary)
    columns = schema.features(**shapes)
    columns = columns.with_metadata(columns.metadata | {b"codeseg": json.dumps(settings).encode()})
    for shard in range(SHARDS):
        mine = [[row for row in rows if int(row["key"][:5]) == shard]
                for rows in (pairs, nouns, features)]  # fmt: skip
        alive = sum(row["status"] == "success" for row in mine[0])
        kept = sum(row["rejected"] is None for row in mine[1])
        lost = {"http_404": len(mine[0]) - alive}
        few = {"too_few_nouns": len(mine[1]) - kept} if len(mine[1]) > kept else {}
        write = _writer(storage, ledger, spoils, shard)
        write("pairs", mine[0], schema.PAIRS, "0", len(mine[0]), alive, lost)
        write("nouns", mine[1], schema.NOUNS, ledger.records("pairs")[shard].output,
              len(mine[1]), kept, few)  # fmt: skip
        records = {table: ledger.records(table) for table in ("pairs", "nouns")}
        inputs = FEATURES.inputs_today(records, None)
        write("features", mine[2], columns, inputs[shard], kept, len(mine[2]), {})
    write = _writer(storage, ledger, spoils, 0)
    size = len(vocabulary)
    write("vocabulary", vocabulary, schema.vocabulary(EMBED_DIM),
          VOCABULARY.inputs_today(records, None)[0], size, size, {})  # fmt: skip
    return root


def _writer(storage: Storage, ledger: Ledger, spoils: Spoils, shard: int) -> Callable[..., None]:
    def write(
        stage: str, rows: Rows, columns: pa.Schema, made_from: str, rows_in: int, rows_out: int,
        rejected: dict[str, int],
    ) -> None:  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=columns)
        path = {"vocabulary": "vocabulary/nouns.arrow", "features": f"features/{shard:05d}.arrow"}
        name = path.get(stage, f"{stage}/{shard:05d}.parquet")
        info = storage.write_atomic(name, lambda sink: _write(table, name, sink))
        record = ShardRecord(
            stage=stage, shard=shard, input=made_from, settings=fingerprint(stage),
            output=info.sha256, files={name: asdict(info)}, rows_in=rows_in, rows_out=rows_out,
            rejected=rejected, bytes=info.bytes, seconds=1.0, versions={"codeseg": "0.1.0"},
        )  # fmt: skip
        ledger.commit(spoils.record(record))

    return write


def _write(table: pa.Table, name: str, sink: pa.NativeFile) -> None:
    if name.endswith(".parquet"):
        pq.write_table(table, sink, compression="zstd")
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def recommit(root: Path, stage: str, shard: int, **changes: Any) -> None:
    """Change a committed record."""
    ledger = Ledger(Storage.open(root))
    ledger.commit(replace(ledger.records(stage)[shard], **changes))
