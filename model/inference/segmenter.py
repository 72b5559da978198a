"""Pictures and words in, label map and masks out: the public inference API (METHOD §8).

    segmenter = Segmenter.open()                    # a CLIP of photographs, without training
    segmenter = Segmenter.open("runs/code")         # a RUN, a checkpoint or a hub id
    result = segmenter.segment("photo.jpg", "dog, red car, sofa/couch")
    result.segments, result["dog"].mask, result.label_map, result.overlay()

Letters: K names, C joint width, H W rows and columns of the picture, W windows, h w of a mask.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from codeseg.model.align.alignment import Align
from codeseg.model.align.backbone import Backbone
from codeseg.model.checkpoint import load_model
from codeseg.model.clip.dense import dense_embedding
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import template_embeddings
from codeseg.model.clip.sc_clip import FEWEST_BLOCKS
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.device import choose_device
from codeseg.model.inference.background import choose_background
from codeseg.model.inference.decision import Maps, decide
from codeseg.model.inference.laplacian import propagate
from codeseg.model.inference.masks import (
    clean,
    cut_to_patches,
    dense_logits,
    pad_to_patches,
    resize,
    segmenter_masks,
)
from codeseg.model.inference.pamr import refine
from codeseg.model.inference.region_masks import (
    average_inside,
    embed_regions,
    find_regions,
    label_regions,
)
from codeseg.model.inference.settings import (
    EMBEDDED,
    METHODS,
    PHOTOGRAPHS,
    SENTENCES,
    TRAINED,
    PredictionSettings,
    default_method,
    lexicon,
    run_settings,
)
from codeseg.model.inference.sliding import best_class, layout, stitched, working_size
from codeseg.model.inference.vocabulary import BACKGROUND, Thing, Words, read_words
from codeseg.model.inference.word_segments import WordSegments, segment_words
from codeseg.model.learner import Learner
from codeseg.model.override import override
from codeseg.model.pictures.pixels import Picture, Pixels, rgb_pixels
from codeseg.model.pictures.resize import resize_pixels
from codeseg.model.regions.config import CLIP
from codeseg.model.regions.patch_features import clip_keys
from codeseg.model.results.segmentation import Segmentation


@dataclass(frozen=True)
class TextEmbeddings:
    """Unit embeddings of the things to find."""

    words_KC: Tensor  # for trained masks: the learned prompt's or projected; else `templates_KC`
    templates_KC: Tensor  # for dense CLIP masks: the mean over the templates
    names: tuple[int, ...] = ()  # number of names of each thing; (): every name is its own thing

    @property
    def owners_K(self) -> Tensor:
        """The index of each text's thing, int64 (K,)."""
        counts = torch.tensor(self.names or [1] * len(self.templates_KC))
        return torch.arange(len(counts)).repeat_interleave(counts)

    def only(self, things: Sequence[int]) -> "TextEmbeddings":
        """Keep some things, in ascending order."""
        kept = torch.isin(self.owners_K, torch.tensor(list(things))).to(self.words_KC.device)
        counts = self.names or (1,) * len(kept)
        return TextEmbeddings(
            self.words_KC[kept], self.templates_KC[kept], tuple(counts[k] for k in things)
        )


class Segmenter:
    """Segments pictures by any words.

    Examples:
        >>> import numpy as np
        >>> from codeseg.model.clip.encoder import FrozenClip
        >>> segmenter = Segmenter(FrozenClip.load("ViT-B-32", "random"))
        >>> noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        >>> result = segmenter.segment(noise, "red car, dog/puppy")
        >>> result.names, result.label_map.shape, result["dog"].mask.shape
        (('background', 'red car', 'dog'), (60, 80), (60, 80))
    """

    def __init__(
        self,
        clip: FrozenClip,
        trained: Learner | None = None,
        settings: PredictionSettings | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            clip: the frozen CLIP.
            trained: CoDe or Align; None allows only training-free methods.
            settings: None uses the CLIP's defaults, with method code or align if `trained` is
                given.

        Raises:
            ValueError: invalid settings, or a trained method without such a model.
        """
        self.clip, self.trained = clip, trained
        self.code = trained if isinstance(trained, CoDe) else None
        self.align = trained if isinstance(trained, Align) else None
        self.recorded: Mapping[str, Any] = {}  # the run's settings, set by `open`
        kind = "align" if self.align else "code"
        method = kind if trained else default_method(None, clip.name)
        self.settings = settings or PredictionSettings.for_clip(clip, method=method)
        self.settings.check()
        self._able = kind if self.align or (self.code and self.code.config.masks) else None
        _refuse_untrained(self.settings, self._able)
        self.backbone: Backbone | None = None
        if self.align and self.settings.masks_by == "align":
            self.backbone = self.align.backbone
        elif self.settings.by_regions and self.settings.region_features != CLIP:
            self.backbone = Backbone(self.settings.region_features).to(self.device)
        dense = (self.settings.masks_by, self.settings.knowledge_dense)
        if "scclip" in dense and clip.layers < FEWEST_BLOCKS:
            raise ValueError(
                f"scclip needs a CLIP of at least {FEWEST_BLOCKS} blocks, {clip.name} has "
                f"{clip.layers}: use another method, such as naclip"
            )

    @classmethod
    def open(
        cls,
        run: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        protocol: Mapping[str, Any] | None = None,
        *,
        clip: str | None = None,
        pretrained: str | None = None,
        weights: str | None = None,
        device: str | torch.device = "auto",
    ) -> Self:
        """Load a trained segmenter, or a CLIP alone with a training-free method.

        Args:
            run: a RUN folder (its last complete checkpoint), a checkpoint folder or a hub id;
                None: a CLIP alone.
            settings: fields of PredictionSettings that override those recorded for the CLIP or, in
                settings.toml, for the run.
            protocol: a protocol's settings, for a CLIP of 224 pixels (see `for_clip`).
            clip: without a run, the CLIP (see `FrozenClip.load`). None: ViT-B-16, downloaded once
                from the hub; "storybook": the embedded CLIP for drawings.
            pretrained: the CLIP's weights; with a run, their new location if they have moved.
            weights: the new location of the weight file of the run's ViT, if it has moved.
            device: "auto" (cuda, else mps, else cpu) or a torch device.

        Raises:
            ValueError: there is no checkpoint, its CLIP is unavailable, or a setting is invalid.
        """
        if run is not None and clip is not None:
            raise ValueError(f"{run} has its own CLIP: leave out --clip {clip}")
        name = clip or PHOTOGRAPHS
        changes = {"method": default_method(run, name), **(settings or {})}
        wanted = override(PredictionSettings(), changes)  # refused before anything is loaded
        if run is None:
            _refuse_untrained(wanted, None)
        place = choose_device(device)
        if run is None:
            pretrained = pretrained or (EMBEDDED if name == EMBEDDED else "openai")
            trained, frozen, recorded = None, FrozenClip.load(name, pretrained, place), {}
        else:
            trained = load_model(run, place, pretrained, weights).eval().requires_grad_(False)
            frozen, recorded = trained.clip, run_settings(run)
        if weights and not isinstance(trained, Align):
            raise ValueError(f"leave out --weights {weights}: only a RUN of an alignment has a ViT")
        chosen = PredictionSettings.for_clip(frozen, protocol, recorded, **changes)
        segmenter = cls(frozen, trained, chosen)
        segmenter.recorded = recorded
        return segmenter

    @classmethod
    def from_pretrained(cls, run: str | Path, **options: Any) -> Self:
        """Load a trained segmenter; the options are those of `open`."""
        return cls.open(run, **options)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that this model supports."""
        return tuple(m for m in METHODS if m.partition("+")[0] not in {*TRAINED} - {self._able})

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.clip.mean.device

    # -- public methods ---------------------------------------------------------------------------

    def segment(self, picture: Picture, words: Words, *, background: bool = True) -> Segmentation:
        """Segment one picture.

        Args:
            picture: a path, a file's bytes, a PIL image, an array or a tensor (see `rgb_pixels`).
            words: the things to find: "dog, red car, sofa/couch", or a list (see `read_words`).
            background: whether pixels where no word scores above the threshold are background.

        Raises:
            ValueError: there is no word, one is repeated or too long, or the picture is damaged.
        """
        return next(self.segment_many([picture], words, background=background))

    def segment_many(
        self, pictures: Iterable[Picture], words: Words, *, background: bool = True, batch: int = 1
    ) -> Iterator[Segmentation]:
        """Segment pictures in order, encoding the words once.

        Args:
            pictures: as in `segment`; a tensor B×C×H×W is B pictures.
            words: as in `segment`.
            background: as in `segment`.
            batch: maximum number of consecutive pictures of one size that go through the network
                together: faster on a GPU, with equal masks up to rounding.
        """
        things = read_words(words, background)
        names = (*[BACKGROUND] * background, *(thing[0] for thing in things))
        if len(names) > 256:
            raise ValueError(f"{len(things)} things to find: find at most 255 in one run")
        settings = self.settings
        named = background and settings.background == "vabs"  # the background has its own words
        if named:
            flat = [name for thing in things for name in thing]
            things = (self.background_words(flat, lexicon()), *things)
        embeddings = self.embed_texts(things)
        threshold = settings.least if background and not named else None
        for group in _of_one_size(map(rgb_pixels, pictures), batch):
            for pixels, (masks, finish) in zip(
                group, self._stitchings(group, embeddings), strict=True
            ):
                soft = self._soft_masks(masks, finish, embeddings).cpu()
                if named:
                    soft[0].clamp_(min=settings.least)
                label = best_class(iter([(slice(0, len(soft)), soft)]), pixels.shape[:2], threshold)
                numbers = label.numpy().astype(np.uint8)
                yield Segmentation.of(pixels, numbers, soft[int(named) :].numpy(), names)

    def _soft_masks(
        self, masks: Tensor, finish: Callable[[Tensor], Maps], embeddings: TextEmbeddings
    ) -> Tensor:
        """Return each thing's mask (K, H, W), 0..1."""
        if self.settings.score == "sigmoid":
            return torch.cat([maps for _, maps in _things(masks, finish, embeddings)])
        names_QHW = torch.cat([maps for _, maps in finish(masks)])
        shares_QHW = (self.settings.logit_scale * names_QHW).softmax(0)
        counts = list(embeddings.names) or [1] * len(shares_QHW)
        return torch.stack([names.amax(0) for names in torch.split(shares_QHW, counts)])

    def word_segments(self, caption: str, nouns: Sequence[str]) -> WordSegments:
        """Return which words of a caption belong to which of the given nouns.

        Raises:
            ValueError: the segmenter is training-free, or the caption or a noun is invalid.
        """
        if self.code is None or self.settings.masks_by != "code":
            raise ValueError("word segments need method code: give a RUN of CoDe")
        return segment_words(self.code, caption, self.embed_texts(nouns).words_KC, tuple(nouns))

    def label_map(
        self, pixels: Pixels, embeddings: TextEmbeddings, background: bool
    ) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """Predict only the label map, in memory that does not grow with the number of classes.

        Args:
            pixels: uint8 H×W×3.
            embeddings: from `embed_texts`.
            background: whether class 0 is the background. With a sigmoid it has no name and
                precedes the things; with a softmax, the first thing is the background.

        Returns:
            uint8 H×W, or uint16 if there are more than 254 classes.
        """
        settings = self.settings
        owners_K = embeddings.owners_K
        if settings.score == "sigmoid":
            threshold = settings.background_threshold if background else None
            label = best_class(self.maps(pixels, embeddings), pixels.shape[:2], threshold)
        else:
            masks, finish = self.stitching(pixels, embeddings)
            thresholds = (settings.probability_threshold, settings.area_threshold)
            label = decide(
                lambda: finish(masks),
                owners_K,
                settings.logit_scale,
                *(thresholds if background else ()),
            )
        numbers_HW = label.cpu().numpy()
        few = int(owners_K[-1]) + 2 < 256
        return numbers_HW.astype(np.uint8) if few else numbers_HW.astype(np.uint16)

    @torch.no_grad()
    def embed_texts(self, things: Sequence[str | Thing]) -> TextEmbeddings:
        """Encode things once for many pictures; warn about words that the CLIP does not know.

        Args:
            things: one text or several names each, which are not split any further.

        Raises:
            ValueError: there is no text, or one is blank or too long.
        """
        named = [(thing,) if isinstance(thing, str) else thing for thing in things]
        texts = [name for thing in named for name in thing]
        counts = tuple(len(thing) for thing in named)
        settings = self.settings
        self._check_texts(texts)
        sentences = SENTENCES[settings.templates]
        raw_KSC = template_embeddings(self.clip, list(texts), sentences, unit=False)
        templates = F.normalize(F.normalize(raw_KSC, dim=-1).mean(1), dim=-1)
        if self.align is not None and settings.masks_by == "align":
            return TextEmbeddings(self.align.projection.things(raw_KSC), templates, counts)
        learned = settings.masks_by == "code" or settings.by_regions
        if self.code is None or not learned or settings.prompts == "templates":
            return TextEmbeddings(templates, templates, counts)
        ids = [torch.tensor(self.clip.tokenizer.encode(text)) for text in texts]
        lengths = torch.tensor([len(row) for row in ids]).to(self.device)
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)
        return TextEmbeddings(self.code.noun_embeddings(tokens, lengths), templates, counts)

    def background_words(self, names: Sequence[str], lexicon: Sequence[str]) -> tuple[str, ...]:
        """Choose the background's words from a lexicon, given the names of the things (VABS)."""
        words = [word for word in dict.fromkeys(lexicon) if word not in names]
        if not words:
            raise ValueError("every word of the lexicon is a thing to find: use another lexicon")
        distinct = list(dict.fromkeys(names))
        words_LC, names_KC = (self.embed_texts(texts).templates_KC for texts in (words, distinct))
        return tuple(words[index] for index in choose_background(words_LC, names_KC))

    def _check_texts(self, texts: Sequence[str]) -> None:
        if not texts:
            raise ValueError("give at least one text to find")
        prompt = self.code.config.context_tokens if self.code else 16
        room = self.clip.context_length - prompt - 2
        for text in texts:
            tokens = len(self.clip.tokenizer.encode(text))
            if not tokens:
                raise ValueError(f"the text {text!r} is blank")
            if tokens > room:
                raise ValueError(
                    f"the text {text[:40]!r}… has {tokens} tokens; at most {room} fit the CLIP's "
                    f"context of {self.clip.context_length} beside the prompt: shorten it"
                )
        if new := [text for text in texts if self.clip.is_new(text)]:
            warnings.warn(
                f"the CLIP {self.clip.name} was never trained on: {', '.join(new)}; their masks "
                "are meaningless: use a CLIP of photographs, such as --clip ViT-B-16",
                stacklevel=3,
            )

    # -- METHOD §8 --------------------------------------------------------------------------------

    def maps(self, pixels: Pixels, embeddings: TextEmbeddings) -> Iterator[tuple[slice, Tensor]]:
        """Yield ranges of things and their maps (k, H, W) for one picture."""
        return _things(*self.stitching(pixels, embeddings), embeddings)

    def stitching(
        self, pixels: Pixels, embeddings: TextEmbeddings
    ) -> tuple[Tensor, Callable[[Tensor], Maps]]:
        """Return the masks of one picture's windows, and a function that turns them into maps."""
        return self._stitchings([pixels], embeddings)[0]

    @torch.no_grad()
    def _stitchings(
        self, pictures: Sequence[Pixels], embeddings: TextEmbeddings
    ) -> list[tuple[Tensor, Callable[[Tensor], Maps]]]:
        """Do so for pictures of one size, whose windows go through the network together."""
        windows, finishes = zip(*map(self._windows, pictures), strict=True)
        crops = torch.cat(windows)
        # On a CPU, one window at a time needs the least memory and, in fp32, is as fast; in bf16
        # every call casts the weights.
        on_cpu = 1 if self.settings.precision == "fp32" else 2
        together = on_cpu if self.device.type == "cpu" else len(crops)
        parts = torch.split(crops, together)
        masks = torch.cat([self.window_masks(part, embeddings) for part in parts])
        return list(zip(masks.chunk(len(pictures)), finishes, strict=True))

    def _windows(self, pixels: Pixels) -> tuple[Tensor, Callable[[Tensor], Maps]]:
        """Return a picture's windows, and a function that turns their masks into maps."""
        settings, patch = self.settings, self.clip.patch_size
        height, width = pixels.shape[:2]
        size = working_size(height, width, settings.short_side, settings.long_side)
        resized = torch.from_numpy(resize_pixels(pixels, size, settings.resize).copy())
        image_CHW = self.clip.normalize(
            resized.to(self.device).permute(2, 0, 1), settings.normalisation
        )
        windows = layout(*size, settings.window or max(size), settings.stride)
        crops = windows.crops(image_CHW)
        if settings.edges == "cut" and min(crops.shape[-2:]) >= patch:
            covered, offset = (crops.shape[-2], crops.shape[-1]), (0, 0)
            crops = cut_to_patches(crops, patch)
        else:
            crops, (left, _, top, _) = pad_to_patches(crops, patch)
            covered, offset = (crops.shape[-2], crops.shape[-1]), (top, left)

        def finish(masks: Tensor) -> Maps:
            guide = None
            if settings.refinement != "none" and settings.refine_at == "picture":
                guide = F.interpolate(image_CHW[None], (height, width), mode="bilinear")
            for chunk, maps in stitched(masks, windows, covered, offset, (height, width)):
                yield chunk, maps if guide is None else self._refined(maps[None], guide)[0]

        return crops, finish

    def _refined(self, masks: Tensor, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            if self.settings.refinement == "laplacian":
                return propagate(masks, images)
            return refine(masks, images, dilations=self.settings.dilations)

    @torch.no_grad()
    def window_masks(self, windows_WCHW: Tensor, embeddings: TextEmbeddings) -> Tensor:
        """Run the networks on normalized windows whose sides are multiples of the patch size.

        Return masks (W, K, rows, columns), 0..1 (for a softmax: cosines), at the segmenter's
        resolution (4 rows per patch); for a training-free method without refinement, per patch.
        """
        settings = self.settings
        with torch.autocast(self.device.type, torch.bfloat16, settings.precision == "bf16"):
            states = self._states(windows_WCHW)
            patches = None if self.backbone is None else self._patches(self.backbone, windows_WCHW)
            masks = None
            if settings.masks_by is not None:
                masks = self._masks(windows_WCHW, states, patches, embeddings)
                if not settings.by_regions:
                    return masks
            return self._region_masks(masks, windows_WCHW, states, patches, embeddings).float()

    def _states(self, windows_WCHW: Tensor) -> list[Tensor]:
        """Return the CLIP's block outputs that the method reads, the trunk's last; may be []."""
        settings, by_factor = self.settings, self.settings.positions == "factor"
        if settings.masks_by == "align" and not settings.knowledge_weight:
            return []
        if "scclip" in (settings.masks_by, settings.knowledge_dense):
            return self.clip.states(windows_WCHW, by_factor=by_factor)
        return [self.clip.trunk(windows_WCHW, by_factor=by_factor)]

    def _patches(self, backbone: Backbone, windows_WCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the ViT's patch tokens (W, Q, D) and, if needed for cleaning, its attention."""
        grid = self.clip.grid(windows_WCHW)
        pixels_WCHW = self.clip.denormalize(windows_WCHW, self.settings.normalisation)
        if self.settings.masks_by == "align" and self.settings.cleaning:
            return backbone.attend(pixels_WCHW, grid)
        return backbone(pixels_WCHW, grid), None

    def _masks(
        self,
        windows_WCHW: Tensor,
        states: list[Tensor],
        patches: tuple[Tensor, Tensor | None] | None,
        embeddings: TextEmbeddings,
    ) -> Tensor:
        """Return a method's masks (W, K, rows, columns) without regions."""
        settings, method = self.settings, self.settings.masks_by
        if method == "code":
            assert self.code is not None
            masks = segmenter_masks(
                self.code,
                windows_WCHW,
                embeddings.words_KC,
                tokens_BPD=states[-1],
                cosines=settings.score == "softmax",
            )
        elif method == "align":
            assert patches is not None
            (patches_WQD, logits_WHQ), words_KD = patches, embeddings.words_KC
            units_WDQ = F.normalize(patches_WQD.float(), dim=-1).mT
            units_WDhw = units_WDQ.view(*units_WDQ.shape[:2], *self.clip.grid(windows_WCHW))
            scale, threshold = settings.align_scale, settings.align_threshold
            masks = self._patch_masks(units_WDhw, words_KD, scale, threshold)
            if logits_WHQ is not None:
                masks = clean(masks, words_KD, patches_WQD, logits_WHQ, settings.cleaning)
        else:
            assert method is not None
            masks = self._dense_masks(windows_WCHW, states, method, embeddings)
        if settings.refinement != "none" and settings.refine_at == "mask":
            if method != "code":  # whose masks have four rows per patch already
                masks = F.interpolate(masks, scale_factor=4, mode="bilinear")
            masks = self._refined(masks, windows_WCHW)
        if method in TRAINED and settings.knowledge_weight > 0:
            dense = self._dense_masks(windows_WCHW, states, settings.knowledge_dense, embeddings)
            masks = torch.lerp(masks, resize(dense, masks), settings.knowledge_weight)
        return masks

    def _region_masks(
        self,
        masks: Tensor | None,
        windows_WCHW: Tensor,
        states: list[Tensor],
        patches: tuple[Tensor, Tensor | None] | None,
        embeddings: TextEmbeddings,
    ) -> Tensor:
        """Label regions and mix in the means of the method's masks inside regions, if any (§9)."""
        settings, code = self.settings, self.code
        features_WQD = patches[0] if patches else clip_keys(self.clip, states[-1])
        regions = find_regions(
            features_WQD,
            windows_WCHW,
            self.clip.grid(windows_WCHW),
            settings.grouping,
            follow_edges=settings.refinement != "none",
        )
        recognizer = code.region_recogniser if code and code.config.region_weight else None
        texts_KC = embeddings.words_KC
        if settings.masks_by == "align":
            found_WRC = F.normalize(regions.patches_WRQ.float() @ features_WQD.float(), dim=-1)
        else:
            found_WRC = embed_regions(self.clip, recognizer, states[-1], regions)
            texts_KC = embeddings.templates_KC if recognizer is None else texts_KC
        labels = label_regions(
            regions,
            found_WRC,
            texts_KC,
            settings.region_scale,
            settings.region_threshold,
            cosines=settings.score == "softmax",
        )
        if masks is None:
            return labels
        return torch.lerp(average_inside(masks, regions), labels, settings.region_weight)

    def _dense_masks(
        self, windows_WCHW: Tensor, states: list[Tensor], variant: str, embeddings: TextEmbeddings
    ) -> Tensor:
        """Return `_patch_masks` of the frozen CLIP alone."""
        dense_WChw = dense_embedding(self.clip, states, self.clip.grid(windows_WCHW), variant)
        scale, threshold = self.settings.knowledge_scale, self.settings.knowledge_threshold
        return self._patch_masks(dense_WChw, embeddings.templates_KC, scale, threshold)

    def _patch_masks(
        self, patches_WChw: Tensor, texts_KC: Tensor, scale: float, threshold: float
    ) -> Tensor:
        """Return masks (for a softmax: cosines), (W, K, h, w), of unit patches and texts."""
        if self.settings.score == "softmax":
            return dense_logits(patches_WChw, texts_KC, 1.0, 0.0)
        return torch.sigmoid(dense_logits(patches_WChw, texts_KC, scale, threshold))


def _refuse_untrained(settings: PredictionSettings, able: str | None) -> None:
    """Refuse a trained method other than `able`, the one that the model was trained for."""
    if settings.masks_by in TRAINED and settings.masks_by != able:
        wanted = "makes masks" if settings.masks_by == "code" else "aligns words to a ViT"
        raise ValueError(
            f"method {settings.method} needs a trained model that {wanted}: give such "
            "a RUN, or another method (scg for one trained on regions alone)"
        )


def _things(masks: Tensor, finish: Callable[[Tensor], Maps], embeddings: TextEmbeddings) -> Maps:
    """Yield the maps of things from the masks of names: each is the maximum over its names."""
    if all(count == 1 for count in embeddings.names):
        yield from finish(masks)
        return
    for k, names in enumerate(torch.split(masks, list(embeddings.names), dim=1)):
        maps = torch.cat([maps for _, maps in finish(names)])
        yield slice(k, k + 1), maps.amax(0, keepdim=True)


def _of_one_size(pictures: Iterable[Pixels], most: int) -> Iterator[list[Pixels]]:
    """Yield groups of at most `most` consecutive pictures of one size."""
    group: list[Pixels] = []
    for pixels in pictures:
        if group and pixels.shape != group[0].shape:
            yield group
            group = []
        group.append(pixels)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group
