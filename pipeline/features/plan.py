"""Plan `codeseg features`: settings, pending shards, estimates of size and time.

In: the command's options and ROOT's ledger. Out: resolved settings, the state of the vocabulary and
the features, and estimates.
"""

import time
from dataclasses import dataclass, fields
from pathlib import Path

from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.shards import read_shard
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_settings import BackboneFacts, ClipFacts, FeatureSettings

TEMPLATES = 80  # of CLIP's authors for ImageNet
JPG_BYTES = 20_000  # of a typical web image at 256 pixels
CAPTION_TOKENS = 16  # SOS, EOS and the mean web caption
PROBE_IMAGES = 4
SAMPLED_SHARDS = 8  # whose nouns are counted to estimate those of all shards
HEAPS = 0.6  # the number of distinct words grows with this power of the text (Heaps' law)


@dataclass(frozen=True)
class FeatureOptions:
    """The command's options."""

    clip: str = "ViT-B-16"
    pretrained: str = "openai"
    image_tokens: str = "fp16"  # or "int8", half the size; or "none", recomputed by the trainer
    views: int = 1  # fixed augmented views of each image
    precision: str = "fp32"  # or "bf16", "fp16"
    batch_size: int = 64  # images encoded together, and rows of a record batch
    min_nouns: int = 2  # captions with fewer distinct nouns are left out
    least_crop: float = 0.9  # share of the image's area; 1 = the whole image
    flip: bool = True  # mirror half the views
    seed: int = 0  # of the views
    backbone: str | None = None  # a self-supervised ViT whose vectors replace the image tokens
    weights: str | None = None  # file of its weights; None: the hub's
    pool: str = "heads"  # or "regions"
    grid: int | None = None  # its patches per side; None: as many as the CLIP has

    def __post_init__(self) -> None:
        for name, known in (
            ("image_tokens", ("fp16", "int8", "none")),
            ("precision", ("fp32", "bf16", "fp16")),
            ("pool", ("heads", "regions")),
        ):
            if getattr(self, name) not in known:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {', '.join(known)}, not {getattr(self, name)!r}")
        if self.backbone is None and (self.weights or self.grid or self.pool != "heads"):
            raise ValueError("--weights, --pool and --grid are options of --backbone: name a ViT")
        if self.backbone and self.image_tokens != "fp16":
            raise ValueError("--image-tokens has no effect with --backbone: leave one out")


def resolve_settings(options: FeatureOptions, clip: ClipFacts) -> FeatureSettings:
    """Return the settings that go to the ledger; load the options' backbone, if any."""
    backbone = backbone_facts(options, clip) if options.backbone else None
    from_pixels = options.image_tokens == "none"
    return FeatureSettings(
        clip=clip,
        image_tokens="vectors" if backbone else options.image_tokens,
        views=1 if from_pixels else options.views,
        precision=options.precision,
        block_rows=options.batch_size,
        min_nouns=options.min_nouns,
        crop_scale=(options.least_crop, 1.0),
        flip=options.flip,
        mean=(0.485, 0.456, 0.406),  # ImageNet's, not CLIP's (METHOD §1)
        std=(0.229, 0.224, 0.225),
        seed=options.seed,
        templates=TEMPLATES,
        clip_score=not from_pixels and not backbone,
        by_picture=not from_pixels,
        backbone=backbone,
    )


def clip_facts(model: str, pretrained: str) -> ClipFacts:
    """Load a CLIP and return its facts for the settings."""
    from codeseg.model.clip.encoder import FrozenClip

    model, pretrained = _absolute(model), _absolute(pretrained)
    clip = FrozenClip.load(model, pretrained)
    names = [field.name for field in fields(ClipFacts)][2:]
    return ClipFacts(model, pretrained, **{name: getattr(clip, name) for name in names})


def backbone_facts(options: FeatureOptions, clip: ClipFacts) -> BackboneFacts:
    """Load the options' backbone and return its facts for the settings."""
    import torch

    from codeseg.model.align.backbone import Backbone
    from codeseg.model.regions.config import Grouping

    assert options.backbone is not None
    weights = options.weights and _absolute(options.weights)
    vit, vectors = Backbone(options.backbone, weights), Grouping().regions
    if options.pool == "heads":  # their number; refuses a ViT whose attention cannot be read
        vectors = vit.attend(torch.zeros(1, 3, 1, 1), (1, 1))[1].shape[1]
    return BackboneFacts(
        name=vit.name,
        weights=weights,
        weights_sha256=vit.weights_sha256,
        patch_size=vit.patch_size,
        width=vit.width,
        grid=options.grid or clip.image_size // clip.patch_size,
        pool=options.pool,
        vectors=vectors,
    )


@dataclass(frozen=True)
class Work:
    """The work to do at a root."""

    settings: FeatureSettings
    vocabulary: stage.StageState
    features: stage.StageState
    rows: dict[int, int]  # pending shard -> trainable rows

    @property
    def new_bytes(self) -> int:
        """The estimated size of the pending features."""
        return sum(self.rows.values()) * row_bytes(self.settings)

    @property
    def replaced_bytes(self) -> int:
        """The size of the pending shards' older files."""
        old = (i for i, why in self.features.stale.items() if why != stage.DAMAGED)
        return sum(self.features.records[i].bytes for i in old)


def read_nouns(root: Storage) -> stage.StageState:
    """Return the state of the nouns.

    Raises:
        ValueError: there are none.
    """
    nouns = stage.state(root, stage.NOUNS)
    if not nouns.records:
        raise ValueError(f"{root.uri} holds no nouns; {stage.NOUNS.again(root)}")
    return nouns


def make_plan(root: Storage, settings: FeatureSettings) -> Work:
    """Return the work that remains according to the ledger.

    Raises:
        ValueError: there are no nouns, or they are older than the pairs, or another table of
            features needs another vocabulary.
    """
    nouns, ledger = read_nouns(root), Ledger(root)
    if nouns.inputs is None:
        raise ValueError(f"{root.uri} holds no pairs; {stage.PAIRS.again(root)}")
    for why, (_, line) in stage.faults(root, stage.NOUNS, nouns).items():
        if why != stage.MISSING:
            raise ValueError(line)
    for table, other in stage.root_stages(root).items():
        if table.startswith("features") and other != settings.stage and ledger.records(table):
            made = FeatureSettings.read(root, other)
            if made.vocabulary_fingerprint() != settings.vocabulary_fingerprint():
                raise ValueError(
                    f"{table} of {root.uri}, made with CLIP {made.clip.model}/"
                    f"{made.clip.pretrained} in {made.precision}, shares the vocabulary: use the "
                    f"same --clip, --pretrained and --precision, or delete ledger/{table} first"
                )
    features = stage.state(root, settings.stage, settings=settings.fingerprint())
    vocabulary = stage.state(root, stage.VOCABULARY, settings=settings.vocabulary_fingerprint())
    rows = {i: nouns.records[i].rows_out for i in features.pending}
    return Work(settings, vocabulary, features, rows)


def row_bytes(settings: FeatureSettings) -> int:
    """Return the estimated bytes of a features row."""
    clip = settings.clip
    if backbone := settings.backbone:
        return 2 * (settings.views * backbone.vectors * backbone.width + clip.embed_dim) + 60
    caption = CAPTION_TOKENS * (2 * clip.text_width + 4) + 200
    if settings.image_tokens == "none":
        return int(caption + JPG_BYTES)
    token = 2 * clip.width if settings.image_tokens == "fp16" else clip.width + 4
    return int(caption + settings.views * (3 * clip.image_size**2 + clip.tokens * token))


def known_speed(features: stage.StageState, settings: FeatureSettings) -> float | None:
    """Return a worker's rows per second on the shards made with these settings; None without."""
    mine = settings.fingerprint()
    made = [r for r in features.records.values() if r.settings == mine and r.rows_out]
    seconds = sum(record.seconds for record in made)
    return sum(record.rows_in for record in made) / seconds if seconds else None


def new_nouns(root: Storage, work: Work) -> int:
    """Estimate from a few shards how many nouns the vocabulary still has to embed."""
    if not work.vocabulary.pending:
        return 0
    shards = sorted(work.features.inputs or {})
    sample = shards[:: -(-len(shards) // SAMPLED_SHARDS)]
    texts: set[str] = set()
    for shard in sample:
        nouns = read_shard(root, stage.NOUNS, shard, ["nouns"])["nouns"].combine_chunks().flatten()
        texts.update(nouns.field("text").unique().to_pylist())
    there: float = len(texts) * (len(shards) / len(sample)) ** HEAPS
    mine = work.settings.vocabulary_fingerprint()
    kept = sum(r.rows_out for r in work.vocabulary.records.values() if r.settings == mine)
    return max(int(there) - kept, 0)


def probe_speed(settings: FeatureSettings, device: str, threads: int) -> tuple[float, float]:
    """Return a worker's rows and nouns per second, by encoding a few random ones here."""
    import numpy as np
    import torch

    from codeseg.pipeline.features.encoder import Encoder

    torch.set_num_threads(threads)
    encoder = Encoder(settings, device)
    shape = (PROBE_IMAGES, settings.views, settings.view_size, settings.view_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    seconds, words = [], []
    for _ in range(2):  # the first run is a warm-up
        begin = time.perf_counter()
        encoder.knowledge([[0]])
        words.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        states = encoder.caption_states([[0] * CAPTION_TOKENS] * PROBE_IMAGES)
        if settings.image_tokens != "none":
            encoder.start(pixels, np.stack([values[-1] for values in states]))()
        seconds.append(time.perf_counter() - begin)
    return PROBE_IMAGES / seconds[-1], encoder.nouns_at_once / words[-1]


def _absolute(name: str) -> str:
    """Return a file's absolute path, for workers elsewhere; other names unchanged."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_file() else name
