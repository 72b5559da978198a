"""CLIP's text embeddings -> a self-supervised ViT's patch tokens: the projection and its losses.

Letters: B images of this rank, A images of all ranks, V vectors of an image (one for each head or
region), D width of the ViT, C joint width of the CLIP, N nouns (noun-major), K things.

Source: Talk2DINO (Barsellotti et al., ICCV 2025); the noun loss is ours.
"""

from collections.abc import Mapping
from typing import Any

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
from codeseg.model.regions.recognition import noun_keys, one_way_loss


class Projection(nn.Module):
    """Two linear layers with a tanh between them: text embeddings (…, C) to (…, D).

    Neither its input nor its output is normalized.
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
    return units_BVD.take_along_dim(similarity_BV.argmax(1)[:, None, None], dim=1)[:, 0]


def real(vectors_BVD: Tensor) -> Tensor:
    """Return which vectors are no padding, bool (B, V): those that are not all zeros."""
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
        config: settings of the losses.
        facts: the ViT's name, weights (file), weights_sha256 and width, saved in checkpoints.
        backbone: the ViT itself, which only inference needs.
    """

    config: AlignConfig

    def __init__(
        self,
        clip: FrozenClip,
        config: AlignConfig,
        facts: Mapping[str, Any],
        backbone: Backbone | None = None,
    ) -> None:
        super().__init__()
        self.clip, self.config, self.backbone = clip, config, backbone
        self.backbone_facts = facts
        self.projection = Projection(clip.embed_dim, facts["width"])

    def forward(self, batch: Batch) -> Losses:
        """Return the weighted loss terms of this rank's share of a batch, equal on every rank."""
        assert batch.captions_BC is not None and batch.vectors_BVD is not None
        config, vectors_BVD = self.config, batch.vectors_BVD.float()
        with torch.autocast(vectors_BVD.device.type, enabled=False):
            captions_BC = batch.captions_BC.float()
            texts_BD = self.projection(captions_BC)
            texts_AD = distributed.gather(F.normalize(texts_BD, dim=-1))
            images_AD = distributed.gather(own_vectors(texts_BD, vectors_BVD))
            terms = Losses(caption=caption_loss(texts_AD @ images_AD.T, config))
            if config.noun_weight:
                loss = self._noun_loss(batch, captions_BC, vectors_BVD)
                terms["noun"] = config.noun_weight * loss
        return terms

    def _noun_loss(self, batch: Batch, captions_BC: Tensor, vectors_BVD: Tensor) -> Tensor:
        """Return the one-way loss of SCG (METHOD §9): each noun must find its own image.

        The projection is trained for raw embeddings of captions, so the nouns' mean embeddings
        are scaled to the mean norm of the batch's captions.
        """
        length = distributed.gather(captions_BC.norm(dim=-1)).mean()
        nouns_UD = self.projection(length * F.normalize(batch.knowledge_UC, dim=-1))
        return one_way_loss(
            F.normalize(nouns_UD, dim=-1).index_select(0, batch.noun_index_N),
            noun_keys(batch.noun_tokens_UM)[batch.noun_index_N],
            F.normalize(vectors_BVD, dim=-1),
            real(vectors_BVD),
            1 / self.config.temperature,
        )
