"""The settings of a root's features: the CLIP, its views and their stored form. Light.

In and out: ROOT's ledger/features/settings.json (and ledger/features-BACKBONE/settings.json), whose
bytes and fingerprint must stay the same.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import Ledger, from_json
from codeseg.pipeline.engine.stage import FEATURES, VOCABULARY, Stage, backbone_table, stage_of
from codeseg.pipeline.engine.storage import Storage


@dataclass(frozen=True)
class ClipFacts:
    """The facts about a CLIP in the settings; sizes in pixels."""

    model: str
    pretrained: str  # location of the weights
    weights_sha256: str  # their identity
    image_size: int
    patch_size: int
    width: int  # of the vision trunk
    text_width: int
    embed_dim: int
    layers: int
    context_length: int  # tokens

    @property
    def tokens(self) -> int:
        """The number of image tokens of a view: its patches and the class token."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class BackboneFacts:
    """The facts about a self-supervised ViT in the settings, and how its patches are pooled."""

    name: str  # timm's
    weights: str | None  # location of a file; None: the hub's
    weights_sha256: str  # their identity
    patch_size: int  # pixels
    width: int  # D
    grid: int  # patches per side of a view
    pool: str  # "heads" or "regions"
    vectors: int  # of a view: the heads, or the most regions


@dataclass(frozen=True)
class FeatureSettings:
    """The settings that affect a shard of features."""

    clip: ClipFacts
    image_tokens: str  # "fp16", "int8", "none" or, with a backbone, "vectors"
    views: int
    precision: str  # "fp32", "bf16" or "fp16"
    block_rows: int  # images encoded together, and rows of a record batch
    min_nouns: int  # captions with fewer distinct nouns are left out
    crop_scale: tuple[float, float]  # share of the image's area
    flip: bool  # mirror half the views
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int  # of the views
    templates: int  # of the knowledge embeddings
    # older roots do not record these:
    clip_score: bool = False  # whether this column exists
    by_picture: bool = False  # the rows of a picture share its views
    backbone: BackboneFacts | None = None  # whose vectors are stored, instead of image tokens

    @property
    def stage(self) -> Stage:
        """The stage that makes them."""
        backbone = self.backbone
        return stage_of(backbone_table(backbone.name, backbone.pool)) if backbone else FEATURES

    @property
    def view_size(self) -> int:
        """The height and width of a view, pixels."""
        backbone = self.backbone
        return backbone.grid * backbone.patch_size if backbone else self.clip.image_size

    @classmethod
    def read(cls, root: Storage, stage: Stage = FEATURES) -> Self:
        """Return the settings of a root's features, or of those of a backbone.

        Raises:
            FileNotFoundError: there are no features.
            ValueError: the file does not hold such settings.
        """
        table, again = stage.table, stage.again(root)
        value = Ledger(root).read_settings(table)
        if value is None:
            there = [name for name in root.folders("ledger") if name.startswith("features")]
            some = f" (there are: {', '.join(there)})" if there else ""
            raise FileNotFoundError(f"{root.uri} holds no {table}; {again}{some}")
        try:
            settings = from_json(cls, value)
            if settings.stage != stage:
                raise ValueError(f"they are of {settings.stage.table}")
        except ValueError as error:
            raise ValueError(
                f"{root.uri}: ledger/{table}/settings.json holds no settings of {table} "
                f"({error}); delete it and {again}"
            ) from None
        return settings

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON represents them, with lists for tuples."""
        plain = asdict(self)
        whole = {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}
        later = ("clip_score", "by_picture", "backbone")
        return {name: value for name, value in whole.items() if value or name not in later}

    def fingerprint(self) -> str:
        """Return the fingerprint of the features' settings."""
        return self.stage.fingerprint(self.to_json())

    def vocabulary(self) -> dict[str, Any]:
        """Return the settings that affect the vocabulary, as in its settings.json."""
        whole = self.to_json()
        return {name: whole[name] for name in ("clip", "precision", "templates")}

    def vocabulary_fingerprint(self) -> str:
        """Return the fingerprint of the vocabulary's settings."""
        return VOCABULARY.fingerprint(self.vocabulary())

    def schema(self) -> Any:
        """Return the Arrow schema of the shards."""
        clip = self.clip
        if self.backbone:
            return schema.vectors(clip.embed_dim)
        return schema.features(
            views=self.views,
            image_size=clip.image_size,
            tokens=clip.tokens,
            width=clip.width,
            text_width=clip.text_width,
            image_tokens=self.image_tokens,
            clip_score=self.clip_score,
            by_picture=self.by_picture,
        )
