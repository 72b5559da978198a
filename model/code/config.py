"""The settings of CoDe: its parts, their forms and the weights of the losses (METHOD §3–6)."""

from dataclasses import dataclass

from codeseg.model.regions.config import Pool


@dataclass(frozen=True)
class CoDeConfig:
    """The trained parts and the weights of the losses; the defaults are the reference's."""

    nouns_per_image: int = 2
    """Nouns drawn from each caption (J)."""
    context_tokens: int = 16
    """Learnable context vectors in front of a noun."""

    co_decomposition: bool = True
    """Ablation switch C: also segment captions and contrast both highlights (L_seg^t, L_hcl)."""
    word_prompt: bool = True
    """Ablation switch W: learn P^t; off keeps it at zero."""
    region_prompt: bool = True
    """Ablation switch R: learn P^v; off keeps it at zero."""

    masks: bool = True
    """Learn masks (CoDe, or its baseline); off: learn only region recognition (SCG)."""
    region_weight: float = 0.0
    """Weight of the one-way loss between nouns and regions (SCG); 0 turns it off."""
    region_pool: Pool = "max"
    """A noun's score in a picture: max (its best region's) or soft (softmax-weighted mean)."""

    knowledge_weight: float = 8.0
    """Weight of L_kg."""
    tcl_feature_weight: float = 0.1
    """Weight of the InfoNCE between mask-pooled pixel embeddings and nouns."""
    tcl_image_weight: float = 0.1
    """Weight of the InfoNCE between highlighted images and nouns."""
    tv_embedding_weight: float = 1.0
    """Weight of the pixel embedding's total variation."""
    tv_mask_weight: float = 1.0
    """Weight of the masks' total variation."""
    area_positive_weight: float = 0.5
    """Weight of the area prior for masks of an image's own nouns."""
    area_negative_weight: float = 0.05
    """Weight of the empty-mask prior for masks of all other nouns."""
    word_weight: float = 1.0
    """Weight of L_seg^t."""
    hcl_weight: float = 0.5
    """Weight of the InfoNCE between highlighted images and highlighted captions."""
    area_prior: float = 0.25
    """Share of an image that a noun is expected to cover."""
    none_class_weight: float = 0.5
    """Weight of the class "none" in L_seg^t; a noun's is 1."""

    squared_knowledge: bool = False
    """The paper's L_kg: squared distance, twice the reference's."""
    argmax_labels: bool = False
    """The paper's pseudo labels of words: the argmax of the probabilities themselves."""
    random_template: bool = False
    """The reference's L_kg: a template drawn for each noun of a step, not the expectation."""
    attend_padding: bool = False
    """The reference's text segmenter: all positions of the context attend and are attended to."""
    clip_start: bool = False
    """Initialize the text segmenter like CLIP's text transformer; off, as in the reference: by
    PyTorch's default initialization, which adds half as much to the states."""
