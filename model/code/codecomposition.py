"""CoDe (METHOD §2–6): a batch in, weighted loss terms out. This file only wires the modules.

Letters: B images of this rank, J nouns per image, N = J*B pairs of this rank (noun-major: all first
nouns, then all second), A = pairs of all ranks, U distinct nouns, M noun tokens, L caption tokens,
P = 1 + h*w trunk tokens, D vision width, T text width, C joint width, H W mask rows and columns,
K = 1+J word classes. Images are (B, 3, pixel rows, pixel columns).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codeseg.model import distributed
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import (
    TEMPLATES,
    NounPrompt,
    Templates,
    highlight_region,
    highlight_words,
)
from codeseg.model.code import losses
from codeseg.model.code.batch import Batch
from codeseg.model.code.composition import (
    CaptionParts,
    Composition,
    Losses,
    Masks,
    argmax_labels,
    harden,
    own_pairs,
)
from codeseg.model.code.config import CoDeConfig
from codeseg.model.code.image_segmenter import MASK_PIXELS, ImageSegmenter
from codeseg.model.code.text_segmenter import TextSegmenter
from codeseg.model.learner import Learner
from codeseg.model.regions.recognition import RegionRecognizer, noun_keys

LOG_TEMPERATURE = torch.tensor(1 / 0.07).log().item()
MAP_PIXELS = 2**28  # maximum number of mask pixels (images × nouns) at a time: 1 GiB in fp32


class CoDe(Learner):
    """The whole model: a frozen CLIP and all trained modules."""

    config: CoDeConfig

    def __init__(self, clip: FrozenClip, config: CoDeConfig) -> None:
        super().__init__()
        if clip.context_length < config.context_tokens + 3:
            raise ValueError(
                f"{config.context_tokens} context tokens, SOS, a noun and EOS do not fit the "
                f"{clip.context_length} tokens of {clip.name}: lower context_tokens"
            )
        if not config.masks and (config.co_decomposition or not config.region_weight):
            raise ValueError(
                "without masks, the model can only learn from regions: set model.region_weight "
                "above 0 and model.co_decomposition=false"
            )
        self.clip = clip
        self.config = config
        self.noun_prompt = NounPrompt(clip, config.context_tokens)
        if config.random_template:
            self.templates = Templates(clip)
        if config.region_weight:
            self.region_recogniser = RegionRecognizer(clip, config.region_pool)
        if config.masks:
            self.image_segmenter = ImageSegmenter(clip)
            self.region_prompt = nn.Parameter(
                torch.zeros(3, clip.image_size, clip.image_size), requires_grad=config.region_prompt
            )
            self.tcl_feature_temperature = nn.Parameter(torch.tensor(LOG_TEMPERATURE))
            self.tcl_image_temperature = nn.Parameter(torch.tensor(LOG_TEMPERATURE))
        if config.co_decomposition:
            self.text_segmenter = TextSegmenter(clip, clip_start=config.clip_start)
            self.word_prompt = nn.Parameter(
                torch.zeros(clip.context_length, clip.text_width), requires_grad=config.word_prompt
            )
            self.hcl_temperature = nn.Parameter(torch.tensor(LOG_TEMPERATURE))

    # -- what is trained --------------------------------------------------------------------------

    def set_phase(self, phase: Literal[1, 2]) -> None:
        """Freeze the last block's copy in phase 1, train it in phase 2 (METHOD §7).

        The region recognizer has no decoder to warm up: its copy trains from the start.
        """
        if self.config.masks:
            self.image_segmenter.block.requires_grad_(phase == 2)

    def draws(self, seed: int, batch: Batch) -> tuple[Tensor | None, ...]:
        """Draw the Gumbel noise and, if the config has random_template, the templates."""
        B, _, H, W = batch.pixels_BCHW.shape
        drawn = self.draw_templates(seed, B) if self.config.random_template else None
        return self.mask_noise(seed, B, (H, W)), drawn

    # -- inference --------------------------------------------------------------------------------

    def noun_embeddings(self, noun_tokens_UM: Tensor, noun_lengths_U: Tensor) -> Tensor:
        """Return n (U, C), unit, from BPE ids without SOS and EOS (METHOD §3)."""
        embeddings: Tensor = self.noun_prompt(self.clip, noun_tokens_UM, noun_lengths_U)
        return embeddings

    def pixel_embedding(self, images_BCHW: Tensor, tokens_BPD: Tensor | None = None) -> Tensor:
        """Return x^v (B, C, H, W), unit, from normalized images (or their trunk tokens)."""
        if tokens_BPD is None:
            with torch.no_grad():
                tokens_BPD = self.clip.trunk(images_BCHW).float()
        embedding: Tensor = self.image_segmenter(tokens_BPD, self.clip.grid(images_BCHW))
        return embedding

    # -- training ---------------------------------------------------------------------------------

    def mask_noise(self, seed: int, images: int, size: tuple[int, int]) -> Tensor:
        """Draw one step's Gumbel noise for this rank's pairs: (J, B, H, W).

        Each value is the difference of two Gumbel draws, that is, a logistic draw. It depends only
        on the seed (of run, step and micro-batch) and on the pair's place in the global batch, not
        on the number of ranks (of the same kind of device).

        Args:
            seed: from `step_seed`.
            images: number of this rank's images.
            size: the images' rows and columns.
        """
        device = self.clip.mean.device
        generator = torch.Generator(device).manual_seed(seed)
        H, W = (MASK_PIXELS * (side // self.clip.patch_size) for side in size)
        shape = (self.config.nouns_per_image, images * distributed.world_size(), H, W)
        noise = torch.rand(shape, generator=generator, device=device)
        noise = torch.logit(noise, eps=torch.finfo(noise.dtype).eps)
        return noise[:, images * distributed.rank() :][:, :images]

    def draw_templates(self, seed: int, images: int) -> Tensor:
        """Draw a template for each of this rank's pairs, as `mask_noise` draws: int64 (N,)."""
        device, rank = self.clip.mean.device, distributed.rank()
        generator = torch.Generator(device).manual_seed(seed)
        shape = (self.config.nouns_per_image, images * distributed.world_size())
        drawn_JA = torch.randint(len(TEMPLATES), shape, generator=generator, device=device)
        return drawn_JA[:, images * rank : images * (rank + 1)].flatten()

    def forward(
        self, batch: Batch, noise_JBHW: Tensor | None = None, template_N: Tensor | None = None
    ) -> Losses:
        """Return the weighted loss terms of a batch.

        Args:
            batch: this rank's share, on the model's device.
            noise_JBHW: from `mask_noise`; None means no noise (evaluation, reference test).
            template_N: from `draw_templates`, if the config has random_template.

        Raises:
            ValueError: random_template without templates, or region_weight without region maps.
        """
        if self.config.masks:
            composition = self.decompose(batch, noise_JBHW, template_N)
            nouns_NC = composition.nouns_NC
            with torch.autocast(nouns_NC.device.type, enabled=False):
                terms = self.losses(composition)
        else:
            nouns_NC, knowledge_NC = self._nouns(batch, template_N)
            with torch.autocast(nouns_NC.device.type, enabled=False):
                terms = Losses(kg=self._knowledge_loss(nouns_NC, knowledge_NC))
        if self.config.region_weight:
            terms["region"] = self._region_loss(batch, nouns_NC)
        return terms

    def _nouns(self, batch: Batch, template_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return noun embeddings and their template embeddings, (N, C) each."""
        if self.config.random_template != (template_N is not None):
            raise ValueError("random_template and the templates of the step must come together")
        tokens_UM, lengths_U = batch.noun_tokens_UM, batch.noun_lengths_U
        index_N = batch.noun_index_N
        # Not nouns_UC[index]: its gradient is summed in the order in which CPU threads finish.
        nouns_NC = self.noun_embeddings(tokens_UM, lengths_U).index_select(0, index_N)
        if template_N is None:
            return nouns_NC, batch.knowledge_UC[index_N]
        tokens_NM, lengths_N = tokens_UM[index_N], lengths_U[index_N]
        knowledge_NC: Tensor = self.templates(self.clip, template_N, tokens_NM, lengths_N)
        return nouns_NC, knowledge_NC

    def _knowledge_loss(self, nouns_NC: Tensor, knowledge_NC: Tensor) -> Tensor:
        """Return the weighted L_kg."""
        distance = losses.knowledge_distance(
            nouns_NC.float(), knowledge_NC, squared=self.config.squared_knowledge
        )
        return self.config.knowledge_weight * distance

    def _region_loss(self, batch: Batch, nouns_NC: Tensor) -> Tensor:
        """Return the weighted one-way loss between nouns and regions (METHOD §9)."""
        if batch.regions_BQ is None:
            raise ValueError("region_weight needs the region maps of the batch")
        tokens_BPD = batch.trunk_tokens()
        if tokens_BPD is None:
            with torch.no_grad():
                tokens_BPD = self.clip.trunk(self.clip.normalize(batch.pixels_BCHW))
        noun_N = noun_keys(batch.noun_tokens_UM)[batch.noun_index_N]
        loss = self.region_recogniser.loss(
            tokens_BPD.float(), batch.regions_BQ, nouns_NC, noun_N, batch.regions or None
        )
        return self.config.region_weight * loss

    def decompose(
        self, batch: Batch, noise_JBHW: Tensor | None = None, template_N: Tensor | None = None
    ) -> Composition:
        """Decompose this rank's share of a batch into regions and words; inputs as in `forward`."""
        images = batch.pixels_BCHW
        if not images.is_floating_point():
            images = self.clip.normalize(images)
        nouns_NC, knowledge_NC = self._nouns(batch, template_N)
        captions = None
        if self.config.co_decomposition:
            captions = self._decompose_captions(batch, nouns_NC)
        J = self.config.nouns_per_image
        tokens_BPD = batch.trunk_tokens()
        pixels_BCHW = self.pixel_embedding(
            images, None if tokens_BPD is None else tokens_BPD.float()
        )
        nouns_AC = self._gather_pairs(nouns_NC)
        with torch.autocast(images.device.type, enabled=False):
            masks = self._masks(pixels_BCHW, nouns_AC)
            hard_JBHW = harden(masks.logits_JBHW, noise_JBHW)
            highlighted = highlight_region(
                images.repeat(J, 1, 1, 1), hard_JBHW.flatten(0, 1)[:, None], self.region_prompt
            )
        return Composition(
            pixels_BCHW=pixels_BCHW,
            nouns_NC=nouns_NC,
            nouns_AC=nouns_AC,
            knowledge_NC=knowledge_NC,
            masks=masks,
            hard_JBHW=hard_JBHW,
            regions_NC=self.clip.encode_image(highlighted),
            captions=captions,
        )

    def _masks(self, pixels_BCHW: Tensor, nouns_AC: Tensor) -> Masks:
        """Mask every image with the nouns of all ranks, as many images at a time as memory allows.

        If there is more than one chunk, each is recomputed for its gradient instead of kept.
        """
        B, _, H, W = pixels_BCHW.shape
        most = max(1, MAP_PIXELS // (len(nouns_AC) * H * W))

        def some(pixels_BCHW: Tensor, first: int) -> tuple[Tensor, ...]:
            J, place = self.config.nouns_per_image, distributed.rank() * B + first
            logits_BAHW = self.image_segmenter.mask_logits(pixels_BCHW, nouns_AC)
            logits_JBHW = own_pairs(logits_BAHW, J, place)
            soft_BAHW = logits_BAHW.sigmoid_()  # in place: one map less
            return (
                logits_JBHW,
                own_pairs(soft_BAHW, J, place),
                losses.pooled_similarity(pixels_BCHW, soft_BAHW, nouns_AC),
                soft_BAHW.sum(),
                losses.total_variation(soft_BAHW) * (len(soft_BAHW) / B),
            )

        if most >= B:
            return Masks(*some(pixels_BCHW, 0))
        chunks = [
            checkpoint(some, part, most * number, use_reentrant=False)
            for number, part in enumerate(torch.split(pixels_BCHW, most))
        ]
        logits, soft, pooled, sums, variations = zip(*chunks, strict=True)
        return Masks(
            torch.cat(logits, 1), torch.cat(soft, 1), torch.cat(pooled), sum(sums), sum(variations)
        )

    def _decompose_captions(self, batch: Batch, nouns_NC: Tensor) -> CaptionParts:
        """Segment the captions by their own nouns, and encode what each mask highlights."""
        clip, J = self.clip, self.config.nouns_per_image
        tokens_BL, labels_BL = batch.caption_tokens_BL, batch.labels_BL
        lengths_B, states_BLT = batch.caption_lengths_B, batch.caption_states_BLT
        if self.config.attend_padding:  # cached states end at EOS; padding's must be computed
            padding = (0, clip.context_length - tokens_BL.shape[1])
            tokens_BL, labels_BL = F.pad(tokens_BL, padding), F.pad(labels_BL, padding, value=-1)
            states_BLT = None
        embeddings_BLT = clip.embed_tokens(tokens_BL)
        if states_BLT is None:
            states_BLT = clip.text_states(tokens_BL)
        words_BLC = self.text_segmenter(
            states_BLT.float(),
            None if self.config.attend_padding else lengths_B,
            clip.text_projection,
        )
        with torch.autocast(tokens_BL.device.type, enabled=False):
            nouns_JBC = nouns_NC.float().view(J, -1, clip.embed_dim)
            logits_BKL = self.text_segmenter.word_logits(words_BLC, nouns_JBC)
            masks_NL = logits_BKL.softmax(dim=1)[:, 1:].transpose(0, 1).flatten(0, 1)
            if self.config.argmax_labels:
                labels_BL = argmax_labels(logits_BKL, lengths_B)
            lengths_N = lengths_B.repeat(J)
            highlighted = highlight_words(
                embeddings_BLT.repeat(J, 1, 1), masks_NL, lengths_N, self.word_prompt
            )
        return CaptionParts(
            words_BLC=words_BLC,
            logits_BKL=logits_BKL,
            masks_NL=masks_NL,
            labels_BL=labels_BL,
            embeddings_NC=clip.encode_embeddings(highlighted, lengths_N - 1),
        )

    def losses(self, c: Composition) -> Losses:
        """Return every weighted term of METHOD §6."""
        config, J = self.config, self.config.nouns_per_image
        # An image has one row for each of its J nouns.
        pooled_AA = distributed.gather(c.masks.pooled_BA).repeat(J, 1)
        regions_AC = self._gather_pairs(c.regions_NC)
        positive, negative = losses.areas(
            c.masks.sum, c.masks.soft_JBHW, len(c.nouns_AC), config.area_prior
        )
        terms = Losses(
            kg=self._knowledge_loss(c.nouns_NC, c.knowledge_NC),
            tcl_feature=config.tcl_feature_weight
            * losses.info_nce(pooled_AA, self.tcl_feature_temperature),
            tcl_image=config.tcl_image_weight
            * losses.info_nce(regions_AC @ c.nouns_AC.T, self.tcl_image_temperature),
            tv_embedding=config.tv_embedding_weight * losses.total_variation(c.pixels_BCHW),
            tv_mask=config.tv_mask_weight * c.masks.variation,
            area_positive=config.area_positive_weight * positive,
            area_negative=config.area_negative_weight * negative,
        )
        if c.captions is not None:
            words = losses.word_segmentation(
                c.captions.logits_BKL, c.captions.labels_BL, config.none_class_weight
            )
            texts_AC = self._gather_pairs(c.captions.embeddings_NC)
            terms["word"] = config.word_weight * words
            terms["hcl"] = config.hcl_weight * losses.info_nce(
                regions_AC @ texts_AC.T, self.hcl_temperature
            )
        return terms

    def _gather_pairs(self, x_NC: Tensor) -> Tensor:
        """Gather (N, C) of this rank into (A, C) of all ranks; keep the noun-major order."""
        J = self.config.nouns_per_image
        return distributed.gather(x_NC.float().view(J, -1, x_NC.shape[1]), dim=1).flatten(0, 1)
