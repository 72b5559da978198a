"""The settings of an alignment of words to patches."""

from dataclasses import dataclass
from typing import Literal

Pool = Literal["heads", "regions"]


@dataclass(frozen=True)
class AlignConfig:
    """The loss of the projection of words; the defaults are Talk2DINO's."""

    backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    """The self-supervised ViT, a name of timm; its features are read."""
    pool: Pool = "heads"
    """Vectors of an image: one for each head's attention, or one for each region."""
    nouns_per_image: int = 2
    """Nouns drawn from each caption (J)."""
    temperature: float = 0.07
    """Of both contrastive losses; not trained."""
    caption_weight: float = 1.0
    """Weight of the InfoNCE between captions and the vectors that they choose."""
    noun_weight: float = 0.0
    """Weight of the one-way InfoNCE between nouns and the vectors that they choose."""
    squared_batch: bool = True
    """Divide the captions' loss by the number of pictures squared, as the authors do."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"setting model.temperature must be above 0, not {self.temperature}")
