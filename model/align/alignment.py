"""Words -> the patches of a self-supervised ViT: the projection and its training losses.

Letters: B images of this rank, A images of all ranks, V vectors of an image (its heads, or its
regions), D width of the ViT, C joint width of the CLIP, J nouns per image, N = J*B pairs (noun-
major), K things.

Source: Talk2DINO (Barsellotti et al., ICCV 2025): captions choose a head, InfoNCE over pictures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeseg.model import distributed
from codeseg.model.align.backbone import Backbone
from codeseg.model.align.config import AlignConfig
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.batch import Batch
from codeseg.model.code.composition import Losses
from codeseg.model.learner import Learner
from codeseg.model.regions.recognition import noun_keys, noun_region_loss, noun_region_scores


class Projection(nn.Module):
    """The map of CLIP's text embeddings, not normalized, to a ViT's patches: (…, C) to (…, D).

    Two linear layers with a tanh between them; the result is not normalized.
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(text_width, width)
        self.second = nn.Linear(width, width)

    def forward(self, texts: Tensor) -> Tensor:
        """Project texts."""
        projected: Tensor = self.second(self.first(texts).tanh())
        return projected

    def things(self, sentences_KSC: Tensor) -> Tensor:
        """Return unit embeddings (K, D) of things from the raw embeddings of their S sentences."""
        return F.normalize(self(sentences_KSC.mean(1)), dim=-1)


def own_vectors(texts_BD: Tensor, vectors_BVD: Tensor) -> Tensor:
    """Return each image's unit vector that is most similar to its own caption: (B, D)."""
    units_BVD = F.normalize(vectors_BVD, dim=-1)
    similarity_BV = (units_BVD @ F.normalize(texts_BD, dim=-1)[..., None])[..., 0]
    similarity_BV = similarity_BV.masked_fill(~real(vectors_BVD), -torch.inf)
    return units_BVD[torch.arange(len(units_BVD)), similarity_BV.argmax(1)]


def real(vectors_BVD: Tensor) -> Tensor:
    """Return which vectors are there (B, V): rows of zeros pad images with fewer regions."""
    return vectors_BVD.abs().amax(-1) > 0


def caption_loss(scores_AA: Tensor, config: AlignConfig) -> Tensor:
    """Return symmetric InfoNCE of captions (rows) and images (columns)."""
    logits_AA = scores_AA / config.temperature
    target_A = torch.arange(len(logits_AA), device=logits_AA.device)
    both = F.cross_entropy(logits_AA, target_A) + F.cross_entropy(logits_AA.T, target_A)
    return both / 2 / (len(logits_AA) ** 2 if config.squared_batch else 1)


class Align(Learner):
    """The projection, trained on precomputed vectors of images.

    Args:
        clip: the frozen CLIP whose text embeddings are projected.
        width: D of the ViT's patches.
        config: settings of the losses.
        backbone: the ViT, which only inference needs.
    """

    config: AlignConfig

    def __init__(
        self, clip: FrozenClip, width: int, config: AlignConfig, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        self.clip, self.config, self.backbone = clip, config, backbone
        self.projection = Projection(clip.embed_dim, width)

    def forward(self, batch: Batch) -> Losses:
        """Return the weighted loss terms of a batch, equal on every rank.

        Args:
            batch: this rank's share, with `captions_BC` and `vectors_BVD`.
        """
        assert batch.captions_BC is not None and batch.vectors_BVD is not None
        config, vectors_BVD = self.config, batch.vectors_BVD.float()
        with torch.autocast(vectors_BVD.device.type, enabled=False):
            texts_BD = self.projection(batch.captions_BC.float())
            texts_AD = distributed.gather(F.normalize(texts_BD, dim=-1))
            images_AD = distributed.gather(own_vectors(texts_BD, vectors_BVD))
            terms = Losses(
                caption=config.caption_weight * caption_loss(texts_AD @ images_AD.T, config)
            )
            if config.noun_weight:
                terms["noun"] = config.noun_weight * self._noun_loss(batch, vectors_BVD)
        return terms

    def _noun_loss(self, batch: Batch, vectors_BVD: Tensor) -> Tensor:
        """Return the one-way loss of SCG (METHOD §9): each noun must find its own image.

        Nouns have mean embeddings of unit length over the templates; they are brought to the mean
        length of the batch's captions, which is what the projection is made for.
        """
        assert batch.captions_BC is not None
        config, B = self.config, len(vectors_BVD)
        length = distributed.gather(batch.captions_BC.float().norm(dim=-1)).mean()
        nouns_UC = length * F.normalize(batch.knowledge_UC, dim=-1)
        nouns_UD = F.normalize(self.projection(nouns_UC), dim=-1)
        nouns_ND = nouns_UD.index_select(0, batch.noun_index_N)
        scores_AB = noun_region_scores(
            distributed.gather(nouns_ND), F.normalize(vectors_BVD, dim=-1), real(vectors_BVD)
        )
        ranks = torch.arange(distributed.world_size(), device=nouns_ND.device)
        own_N = torch.arange(len(nouns_ND), device=nouns_ND.device) % B
        image_A = (ranks[:, None] * B + own_N).flatten()
        noun_A = distributed.gather(noun_keys(batch.noun_tokens_UM)[batch.noun_index_N])
        scores_AA = distributed.gather(scores_AB, dim=1)
        return noun_region_loss(scores_AA, image_A, noun_A, 1 / config.temperature)
