"""nouns/*.parquet -> vocabulary/nouns.arrow: every distinct noun and its knowledge embedding.

The embedding is the un-normalized mean over CLIP's 80 templates of unit text embeddings (METHOD
§3). It does not depend on the rest of the corpus, so the embeddings of an older or unfinished file
are kept, and a killed run resumes from its last save.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby, islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from codeseg.pipeline import schema
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.lock import owned
from codeseg.pipeline.engine.progress import SHARD_ROWS
from codeseg.pipeline.engine.shards import read_shard
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.encoder import Encoder
from codeseg.pipeline.stream.feature_settings import FeatureSettings

PATH = stage.VOCABULARY.path(0)
SAVE_SECONDS = 300  # between saves of an unfinished vocabulary
PROMPT_TOKENS = 18  # SOS, EOS and METHOD §3's 16 context vectors must fit beside a noun's tokens

Embedding = NDArray[np.float32]


class VocabularyWorker:
    """A ShardWorker that makes the vocabulary, as its only shard 0.

    Its options are those of `FeaturesWorker`, and "shards": the nouns shards to count.
    """

    READS: ClassVar[dict[str, tuple[str, ...]]] = {"nouns": ("nouns", "rejected")}
    MEMORY: ClassVar[int] = 4_000_000_000

    def __init__(self, root_uri: str, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._root = Storage.open(root_uri)
        self._settings: FeatureSettings = options["features"]
        self._shards: list[int] = options["shards"]
        self._encoder = Encoder(replace(self._settings, backbone=None), options["device"])
        clip = self._encoder.clip
        made_with = {"made_with": self._settings.vocabulary_fingerprint()}
        self._schema = schema.vocabulary(clip.embed_dim).with_metadata(
            {"codeseg": json.dumps(made_with)}
        )

    def process(self, shard: int, input: str) -> ShardRecord:
        """Count, embed new nouns, write the file, commit the record."""
        start = time.perf_counter()
        counts = self._count()
        embeddings = self._saved(counts)
        saved = time.monotonic()
        SHARD_ROWS.count(len(embeddings), len(counts))
        for texts in self._batches(counts.keys() - embeddings.keys()):
            embeddings |= self._embed(texts)
            SHARD_ROWS.count(len(texts), len(counts))
            if time.monotonic() - saved > SAVE_SECONDS:
                mine = owned(self._root, stage.VOCABULARY.table)
                mine.write_atomic(PATH, self._writer(counts, embeddings))
                saved = time.monotonic()
        return stage.commit(
            self._root, stage.VOCABULARY, shard, input, self._settings.vocabulary_fingerprint(),
            self._writer(counts, embeddings),
            rows_in=len(counts), rejected={}, start=start,
            versions={name: version(name) for name in ("torch", "open_clip_torch")},
        )  # fmt: skip

    def _count(self) -> Counter[str]:
        """Return the number of trainable captions that name each noun."""
        counts: Counter[str] = Counter()
        for shard in self._shards:
            table = read_shard(self._root, stage.NOUNS, shard, self.READS["nouns"])
            nouns = table.filter(table["rejected"].is_null())["nouns"].combine_chunks().flatten()
            for pair in pc.value_counts(nouns.field("text")).to_pylist():
                counts[pair["values"]] += pair["counts"]
        return counts

    def _saved(self, counts: Counter[str]) -> dict[str, Embedding]:
        """Return the embeddings of an earlier file, if it was made with the same settings."""
        try:
            table = pa.ipc.open_file(self._root.open_input(PATH)).read_all()
        except (FileNotFoundError, pa.ArrowInvalid):
            return {}
        if not table.num_rows or not table.schema.equals(self._schema, check_metadata=True):
            return {}
        rows = table.select(["text", "knowledge_embedding"]).combine_chunks()
        texts = rows["text"].to_pylist()
        values = rows["knowledge_embedding"].chunk(0).flatten().to_numpy().reshape(len(texts), -1)
        return {text: row for text, row in zip(texts, values, strict=True) if text in counts}

    def _batches(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """Yield batches of nouns with the same number of tokens."""

        def length(text: str) -> int:
            return len(self._encoder.clip.tokenizer.encode(text))

        for _, alike in groupby(sorted(texts, key=lambda text: (length(text), text)), length):
            while batch := list(islice(alike, self._encoder.nouns_at_once)):
                yield batch

    def _embed(self, texts: list[str]) -> dict[str, Embedding]:
        means = self._encoder.knowledge([self._encoder.clip.tokenizer.encode(t) for t in texts])
        for text, norm in zip(texts, np.linalg.norm(means, axis=1), strict=True):
            # a mean of unit vectors: its norm shows that the text tower works
            if not 0 < norm <= 1 + 1e-3:
                raise FloatingPointError(
                    f"the knowledge embedding of {text!r} is not finite; try --precision fp32"
                )
        return dict(zip(texts, means, strict=True))

    def _writer(
        self, counts: Counter[str], embeddings: dict[str, Embedding]
    ) -> Callable[[pa.NativeFile], None]:
        """Return a function that writes the nouns that have an embedding, by id."""
        texts = sorted(embeddings, key=schema.text_hash)
        ids = np.array([schema.text_hash(text) for text in texts], dtype=np.int64)
        assert (np.diff(ids) > 0).all(), "two nouns of one id"
        clip = self._encoder.clip
        most = max(1, clip.context_length - PROMPT_TOKENS)
        tokens = [clip.tokenizer.encode(text)[:most] for text in texts]
        values = np.concatenate([embeddings[text] for text in texts] or [np.empty(0, np.float32)])
        columns = [
            pa.array(ids),
            pa.array(texts, pa.string()),
            pa.array([counts[text] for text in texts], pa.int64()),
            pa.array(tokens, pa.list_(pa.int32())),
            pa.FixedSizeListArray.from_arrays(pa.array(values), clip.embed_dim),
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)

        def write(sink: pa.NativeFile) -> None:
            with pa.ipc.new_file(sink, self._schema) as writer:
                writer.write_batch(batch)  # one batch, so that the reader maps whole columns

        return write
