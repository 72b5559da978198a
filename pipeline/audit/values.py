"""Measure tensors and pictures, which SQL cannot read, as one small row each.

    features/NNNNN.arrow -> FEATURE_VALUES; vocabulary/nouns.arrow -> VOCABULARY_VALUES
    pairs/NNNNN.parquet, a benchmark's images -> PICTURE_VALUES (perceptual hashes by imagehash)

Every function streams record batches: memory is bounded by one batch of a file.
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import text_hash

FEATURE_VALUES = pa.schema(
    [
        ("key", pa.string()),
        ("image_nonfinite", pa.int64()),  # values of image_tokens that are NaN or infinite
        ("image_norm_min", pa.float32()),  # L2 norm of a token over D, over the row's V·P tokens
        ("image_norm_mean", pa.float32()),
        ("image_norm_max", pa.float32()),
        ("saturated", pa.float32()),  # share of int8 values at ±127, except one per token
        ("state_values", pa.int64()),  # length of caption_states; L·T is declared
        ("state_nonfinite", pa.int64()),
        ("state_norm_min", pa.float32()),  # L2 norm of a state over T
        ("state_norm_mean", pa.float32()),
    ]
)

VOCABULARY_VALUES = pa.schema(
    [
        ("id", pa.int64()),
        ("expected_id", pa.int64()),  # text_hash(text)
        ("knowledge_norm", pa.float32()),  # NaN when a value is not finite
    ]
)

PICTURE_VALUES = pa.schema(
    [
        ("key", pa.string()),  # of the pair, or path of the benchmark image
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),  # as decoded; null if it cannot be decoded
        ("height", pa.int32()),
        ("deviation", pa.float32()),  # standard deviation of the gray values, 0..255
        ("phash", pa.uint64()),  # perceptual hash, 64 bits
        ("dhash", pa.uint64()),  # gradient hash, 64 bits: confirms what phash finds
        ("problem", pa.string()),
    ]
)

INT8_LIMIT = 127
DRAFT_SIDE = 256  # pixels: much larger JPEGs are decoded at a fraction of their size
PICTURES_A_BATCH = 256
NOUNS_A_BATCH = 65_536  # the vocabulary is a single record batch


def feature_values(root: Storage, paths: Iterable[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Measure the tensors of the first `rows` rows of each features file (0: of all)."""
    for path in paths:
        with root.open_input(path) as source:
            reader = pa.ipc.open_file(source)
            left = rows or reader.count_rows()
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index).slice(0, left)
                left -= batch.num_rows
                if batch.num_rows:
                    yield _measure_features(batch)


def _measure_features(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = {"key": batch.column("key"), **_state_values(batch), **_image_values(batch)}
    absent = pa.nulls(batch.num_rows)
    arrays = [pa.array(columns.get(f.name, absent)).cast(f.type) for f in FEATURE_VALUES]
    return pa.RecordBatch.from_arrays(arrays, schema=FEATURE_VALUES)


def _image_values(batch: pa.RecordBatch) -> dict[str, Any]:
    """Return statistics of image_tokens, if there are any; D is in the file's settings."""
    if "image_tokens" not in batch.schema.names:
        return {}
    settings = json.loads((batch.schema.metadata or {}).get(b"codeseg", b"{}"))
    tokens = batch.column("image_tokens").flatten().to_numpy()
    scales = None
    if tokens.dtype == np.int8:
        scales = batch.column("image_scales").flatten().to_numpy()
    width = settings.get("clip", {}).get("width") or len(tokens) // batch.num_rows
    rows: defaultdict[str, list[float]] = defaultdict(list)
    for row, values in enumerate(tokens.reshape(batch.num_rows, -1)):  # a row takes 1 MB
        tokens_PD = values.reshape(-1, width).astype(np.float32)
        if scales is not None:
            at_limit = int((np.abs(tokens_PD) >= INT8_LIMIT).sum())  # one per token is the scale
            rows["saturated"].append(max(0, at_limit - len(tokens_PD)) / tokens_PD.size)
            tokens_PD *= scales.reshape(batch.num_rows, -1)[row, :, None]
        nonfinite, norms_P = _norms(tokens_PD)
        rows["image_nonfinite"].append(int(nonfinite.sum()))
        rows["image_norm_min"].append(float(norms_P.min()))
        rows["image_norm_mean"].append(float(norms_P.mean()))
        rows["image_norm_max"].append(float(norms_P.max()))
    return rows


def _state_values(batch: pa.RecordBatch) -> dict[str, Any]:
    """Return statistics of caption_states; norms only if every caption has whole states."""
    states = batch.column("caption_states")
    lengths = states.value_lengths().to_numpy()
    values = states.flatten().to_numpy().astype(np.float32)
    width = int((batch.schema.metadata or {}).get(b"text_width", 0))
    starts = np.cumsum(lengths) - lengths
    broken = np.concatenate([[0], np.cumsum(~np.isfinite(values))])
    found = {"state_values": lengths, "state_nonfinite": broken[starts + lengths] - broken[starts]}
    if not width or not (lengths > 0).all() or (lengths % width).any():
        return found
    _, norms = _norms(values.reshape(-1, width))
    starts //= width
    return found | {
        "state_norm_min": np.minimum.reduceat(norms, starts),
        "state_norm_mean": np.add.reduceat(norms, starts) / (lengths // width),
    }


def _norms(values_PD: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each row's number of non-finite values, and its L2 norm over the finite ones."""
    squares_P = np.einsum("pd,pd->p", values_PD, values_PD)  # in one pass if all are finite
    if np.isfinite(squares_P).all():
        return np.zeros(len(squares_P), np.int64), np.sqrt(squares_P)
    finite = np.isfinite(values_PD)
    squares_P = np.square(values_PD, where=finite, out=np.zeros_like(values_PD)).sum(1)
    return (~finite).sum(1), np.sqrt(squares_P)


def vocabulary_values(root: Storage, paths: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """Recompute every noun's id and measure its knowledge embedding."""
    for path in paths:
        with root.open_input(path) as source:
            reader = pa.ipc.open_file(source)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                for start in range(0, batch.num_rows, NOUNS_A_BATCH):
                    yield _measure_nouns(batch.slice(start, NOUNS_A_BATCH))


def _measure_nouns(batch: pa.RecordBatch) -> pa.RecordBatch:
    knowledge_UC = batch.column("knowledge_embedding").flatten().to_numpy()
    norms_U = np.linalg.norm(knowledge_UC.reshape(batch.num_rows, -1), axis=1)
    expected = [text_hash(text) for text in batch.column("text").to_pylist()]
    arrays = [batch.column("id"), pa.array(expected, pa.int64()), pa.array(norms_U, pa.float32())]
    return pa.RecordBatch.from_arrays(arrays, schema=VOCABULARY_VALUES)


def picture_values(root: Storage, paths: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Decode and hash the first `rows` pictures of each pairs file (0: all)."""
    columns = ["key", "sha256", "jpg"]
    size = min(rows, PICTURES_A_BATCH) or PICTURES_A_BATCH
    with ThreadPoolExecutor() as pool:
        for path in paths:
            left = rows
            with root.open_input(path) as source:
                for batch in pq.ParquetFile(source).iter_batches(size, columns=columns):
                    kept = batch.filter(batch.column("jpg").is_valid()).slice(0, left or None)
                    left -= kept.num_rows
                    measured = pool.map(lambda row: _measure(**row), kept.to_pylist())
                    yield pa.RecordBatch.from_pylist(list(measured), schema=PICTURE_VALUES)
                    if rows and left <= 0:
                        break


def benchmark_picture_values(images: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """Decode and hash a benchmark's images; `key` is the path, sha256 that of the file."""

    def measure(path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        return _measure(str(path), hashlib.sha256(data).hexdigest(), data)

    with ThreadPoolExecutor() as pool:
        yield pa.RecordBatch.from_pylist(list(pool.map(measure, images)), schema=PICTURE_VALUES)


def _measure(key: str, sha256: str | None, jpg: bytes) -> dict[str, Any]:
    """Return a row of PICTURE_VALUES; without hashes but with a problem if decoding fails."""
    import imagehash

    row: dict[str, Any] = {"key": key, "sha256": sha256, "bytes": len(jpg)}
    try:
        with Image.open(io.BytesIO(jpg)) as image:
            row["width"], row["height"] = image.size
            image.draft("L", (DRAFT_SIDE, DRAFT_SIDE))
            gray = image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return row | {"problem": str(error)[:120], "width": None, "height": None}
    return row | {
        "deviation": float(np.asarray(gray).std()),
        "phash": _bits(imagehash.phash(gray).hash),
        "dhash": _bits(imagehash.dhash(gray).hash),
    }


def _bits(hash_: NDArray[np.bool_]) -> int:
    """Return the 8×8 bits of a hash as an integer."""
    return int.from_bytes(np.packbits(hash_.reshape(-1)).tobytes(), "big")
