"""A small dataset root with pairs and nouns, made without running their stages, for tests.

make_nouns(root) writes pairs/, nouns/ and their ledger records: colored JPEGs, captions such as
"a cat a dog" with the nouns' token spans, and some failed and some rejected rows.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.storage import Storage

NOUNS = ["cat", "dog", "tree", "car", "boat", "grass", "sky", "lighthouse", "wristwatch"]
TOKENIZER = open_clip.SimpleTokenizer()


def make_nouns(
    root: Path | str, *, shards: int = 2, rows: int = 12, image_size: int = 72, seed: int = 0
) -> None:
    """Write the root: row 0 of each shard failed; row 1 has one noun and is rejected."""
    storage = Storage.open(root)
    draw = np.random.default_rng(seed)
    for shard in range(shards):
        pairs = [_pair(draw, f"{shard:05d}{i:04d}", image_size, failed=i == 0) for i in range(rows)]
        write_table(storage, "pairs", shard, pairs, schema.PAIRS, input="urls")
        nouns = [
            _nouns(draw, pair["key"], count=1 if i == 1 else None)
            for i, pair in enumerate(pairs)
            if pair.get("jpg")
        ]
        write_table(storage, "nouns", shard, nouns, schema.NOUNS)


def write_table(
    storage: Storage,
    table: str,
    shard: int,
    rows: list[dict[str, Any]],
    arrow: pa.Schema,
    *,
    input: str | None = None,
) -> None:
    """Write one shard and its record, whose input is by default the pairs' output."""
    path = f"{table}/{shard:05d}.parquet"
    values = pa.Table.from_pylist(rows, schema=arrow)
    info = storage.write_atomic(path, lambda sink: pq.write_table(values, sink))
    ledger = Ledger(storage)
    rejected = sum(1 for row in rows if row.get("rejected") or row.get("error"))
    ledger.commit(
        ShardRecord(
            stage=table,
            shard=shard,
            input=input or ledger.record("pairs", shard).output,
            settings="",
            output=info.sha256,
            files={path: {"bytes": info.bytes, "sha256": info.sha256}},
            rows_in=len(rows),
            rows_out=len(rows) - rejected,
            rejected={"some": rejected} if rejected else {},
            bytes=info.bytes,
            seconds=0.0,
            versions={},
        )
    )


def jpeg(draw: np.random.Generator, height: int = 72) -> bytes:
    """Return a JPEG of coarse noise, 64 pixels wide."""
    pixels = draw.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((height + 8, height)).save(file, "JPEG")
    return file.getvalue()


def _pair(draw: np.random.Generator, key: str, image_size: int, *, failed: bool) -> dict:
    ok = {"status": "success", "jpg": jpeg(draw, image_size)}
    return {"key": key, "url": f"http://localhost/{key}", "caption": "a caption"} | (
        {"status": "failed", "error": "http_404"} if failed else ok
    )


def _nouns(draw: np.random.Generator, key: str, count: int | None) -> dict:
    chosen = draw.choice(NOUNS, size=count or draw.integers(2, 5), replace=False).tolist()
    tokens, nouns = [TOKENIZER.sot_token_id], []
    for noun in chosen:
        tokens += TOKENIZER.encode("a")
        ids = TOKENIZER.encode(noun)
        spans = [{"start": len(tokens), "end": len(tokens) + len(ids)}]
        nouns.append({"text": noun, "spans": spans})
        tokens += ids
    return {
        "key": key,
        "caption": " ".join(f"a {noun}" for noun in chosen),
        "caption_tokens": [*tokens, TOKENIZER.eot_token_id],
        "nouns": nouns,
        "rejected": "too_few_nouns" if count == 1 else None,
    }
