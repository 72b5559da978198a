"""The Arrow schemas of all tables: the contract between the stages. Light: pyarrow only.

    pairs/NNNNN.parquet       PAIRS         one row per URL of shard NNNNN, failed ones included
    nouns/NNNNN.parquet       NOUNS         one row per successful pair, rejected ones included
    vocabulary/nouns.arrow    vocabulary()  one row per distinct noun of the corpus
    features/NNNNN.arrow      features()    one row per trainable pair
    features-NAME/NNNNN.arrow vectors()     one row per trainable pair, for a backbone's patches
    regions/NNNNN.parquet     REGIONS       rows as features
    selections/NAME.arrow     SELECTION     one row per features shard

Row order inside a shard is the same in every table: rows are dropped, never moved. `key` is the
shard number and the row number within it, as img2dataset writes them ("000120034"), so it sorts.
"""

import hashlib

import pyarrow as pa

SHARD_DIGITS = 5  # of a key: the shard it belongs to

PAIRS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # "success" or "failed"
        pa.field("error", pa.string()),  # null, or a reason that groups: "http_404", "dns", …
        pa.field("jpg", pa.binary()),  # JPEG, shorter side at most the stage's image size; null
        pa.field("width", pa.int32()),  # pixels of `jpg`
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),  # pixels as served
        pa.field("original_height", pa.int32()),
        pa.field("sha256", pa.string()),  # of the bytes as served, lower-case hex
    ]
)

SPAN = pa.struct([pa.field("start", pa.int32()), pa.field("end", pa.int32())])
"""Half-open [start, end) into caption_tokens; never covers SOS (0) or EOS."""

NOUNS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),  # cleaned as by the CLIP tokenizer
        pa.field("caption_tokens", pa.list_(pa.int32()), nullable=False),  # SOS … EOS, no padding
        pa.field(
            "nouns",  # distinct, in order of first occurrence
            pa.list_(pa.struct([pa.field("text", pa.string()), pa.field("spans", pa.list_(SPAN))])),
            nullable=False,
        ),
        pa.field("rejected", pa.string()),  # null, "empty", "not_text", "no_nouns", …
    ]
)

REGIONS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("regions", pa.binary(), nullable=False),  # PNG, uint8 h×w: region number
    ]
)

SELECTION = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("made_from", pa.string(), nullable=False),  # the features record's `output`
        pa.field("rows", pa.list_(pa.int32()), nullable=False),  # of the shard, ascending
    ]
)


def text_hash(text: str) -> int:
    """Return 63 bits of a text's BLAKE2b hash.

    A noun's id is its hash, not a row number, so that a features shard depends only on its own
    captions: a growing vocabulary leaves every other shard current.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def vocabulary(embed_dim: int) -> pa.Schema:
    """Return the schema of vocabulary/nouns.arrow, rows sorted by id, for joint width C."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),  # text_hash(text)
            pa.field("text", pa.string(), nullable=False),
            pa.field("count", pa.int64(), nullable=False),  # captions that name it
            pa.field("noun_tokens", pa.list_(pa.int32()), nullable=False),  # BPE ids, no SOS/EOS
            # METHOD §3: un-normalized mean over the templates of unit embeddings
            pa.field("knowledge_embedding", pa.list_(pa.float32(), embed_dim), nullable=False),
        ]
    )


def vectors(embed_dim: int) -> pa.Schema:
    """Return the schema of features-NAME/NNNNN.arrow, for joint width C."""
    columns = {
        "key": pa.string(),
        "caption_embedding": pa.list_(pa.float16(), embed_dim),  # of CLIP, not normalized
        "vectors": pa.large_list_view(pa.float16()),  # V·N·D, row-major, zeros pad; by picture
        "noun_ids": pa.list_(pa.int64()),  # as in features()
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def features(
    *,
    views: int,  # V, fixed augmented views of every image
    image_size: int,  # H = W of a view, pixels
    tokens: int,  # P, patches of a view and the class token
    width: int,  # D, of the vision trunk
    text_width: int,  # T, of the text transformer
    image_tokens: str,  # "fp16", "int8" (with a scale per token) or "none" (recomputed from pixels)
    clip_score: bool = False,  # whether this column exists
    by_picture: bool = False,  # whether the rows of one picture share its values in a record batch
) -> pa.Schema:
    """Return the schema of features/NNNNN.arrow.

    Raises:
        ValueError: `image_tokens` is unknown.
    """

    def fixed(kind: pa.DataType, size: int) -> pa.DataType:
        """Return a list of `size` values; with by_picture, values anywhere in the batch."""
        return pa.large_list_view(kind) if by_picture else pa.list_(kind, size)

    if image_tokens not in ("fp16", "int8", "none"):
        raise ValueError(f"image tokens are fp16, int8 or none, not {image_tokens!r}")
    columns = {"key": pa.string()}
    if image_tokens == "none":
        columns["jpg"] = pa.binary()  # augmented by the reader
    else:
        # V·H·W·3, row-major: views of RGB pixels in 0..255
        columns["pixels"] = fixed(pa.uint8(), views * image_size * image_size * 3)
        # V·P·D, row-major: output of block layers-2 (METHOD §2.1)
        kind = pa.float16() if image_tokens == "fp16" else pa.int8()
        columns["image_tokens"] = fixed(kind, views * tokens * width)
    if image_tokens == "int8":
        columns["image_scales"] = fixed(pa.float32(), views * tokens)  # token = int8 · scale
    if clip_score:  # cosine of the first view's and the caption's embeddings
        columns["clip_score"] = pa.float32()
    span = pa.struct([pa.field("noun", pa.int32()), *SPAN])  # noun: index into noun_ids
    columns |= {
        "caption_tokens": pa.list_(pa.int32()),  # SOS … EOS
        # L·T, row-major: last hidden states before ln_final (METHOD §4), up to EOS
        "caption_states": pa.list_(pa.float16()),
        "noun_ids": pa.list_(pa.int64()),  # text_hash, caption order
        "spans": pa.list_(span),
    }
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns.items()],
        metadata={"text_width": str(text_width)},
    )
