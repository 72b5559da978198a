"""The settings of an alignment: its ViT and its losses. Light, no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AlignConfig:
    """Settings of the projection's training; the defaults are Talk2DINO's."""

    backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    """The self-supervised ViT, by its name in timm; its table of features is read."""
    pool: Literal["heads", "regions"] = "heads"
    """What an image's vectors are pooled by: the attention of each head, or regions."""
    nouns_per_image: int = 2
    """Number of nouns sampled from each caption (J)."""
    temperature: float = 0.07
    """Temperature of both contrastive losses; not trained."""
    noun_weight: float = 0.0
    """Weight of the one-way InfoNCE between nouns and the vectors that they select; the captions'
    loss has weight 1."""
    squared_batch: bool = True
    """Divide the captions' loss by the squared number of images, as the authors do."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"setting model.temperature must be above 0, not {self.temperature}")
