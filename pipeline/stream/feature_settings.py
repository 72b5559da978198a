"""The settings of a root's features: the CLIP, its views and their stored form. Light.

In and out: ROOT's ledger/features/settings.json, whose bytes and fingerprint must stay the same.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import Ledger, from_json
from codeseg.pipeline.engine.stage import FEATURES, VOCABULARY
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
class FeatureSettings:
    """The settings that affect a shard of features."""

    clip: ClipFacts
    image_tokens: str  # "fp16", "int8" or "none"
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

    @classmethod
    def read(cls, root: Storage) -> Self:
        """Return the settings of a root's features.

        Raises:
            FileNotFoundError: there are no features.
            ValueError: the file does not hold such settings.
        """
        value = Ledger(root).read_settings(FEATURES.table)
        if value is None:
            raise FileNotFoundError(f"{root.uri} holds no features; {FEATURES.again(root)}")
        try:
            return from_json(cls, value)
        except ValueError as error:
            raise ValueError(
                f"{root.uri}: ledger/features/settings.json holds no settings of features "
                f"({error}); delete it and {FEATURES.again(root)}"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON represents them, with lists for tuples."""
        plain = asdict(self)
        whole = {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}
        later = ("clip_score", "by_picture")
        return {name: value for name, value in whole.items() if value or name not in later}

    def fingerprint(self) -> str:
        """Return the fingerprint of the features' settings."""
        return FEATURES.fingerprint(self.to_json())

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
