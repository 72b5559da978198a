"""A segmenter's networks as one graph for other programs: Segmenter in, ONNX or .pt2 out.

Inputs, all float32: `image` (1, 3, H, W) normalized, sides multiples of the patch size; `classes`
(K, C) unit embeddings of the texts (align: (K, D), projected to the ViT's width); `templates`
(K, C), only if the method mixes two branches.
Outputs: `logits` (1, K, R, S) of the method's own masks; `masks` (1, K, R, S), 0..1, equal to
`Segmenter.window_masks`. H, W and K are free; R and S are 4 mask pixels per patch for code, one
for all other methods. PAMR is left out: unrolled, it would be thousands of nodes.

Letters: C joint width, K texts, H W pixels, R S rows and columns of a mask, P = 1 + h·w tokens.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from codeseg.model.clip.dense import dense_embedding
from codeseg.model.inference.masks import dense_logits, resize
from codeseg.model.inference.segmenter import Segmenter, TextEmbeddings
from codeseg.model.inference.settings import TRAINED

OPSET = 18
PROTOBUF_BYTES = 2_000_000_000  # limit of an ONNX file without side files
LARGEST_GRID, MOST_TEXTS = 1024, 4096
INPUTS = ("image", "classes", "templates")
OUTPUTS = ("logits", "masks")
GRAPH = {"refinement": "none", "score": "sigmoid", "positions": "size", "normalisation": "imagenet"}
"""The only values of these settings that the graph and its description support."""


class SegmenterNetworks(nn.Module):
    """The computation of `Segmenter.window_masks` on one window, in a traceable form."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Take a segmenter's networks; refuse methods and settings that are no networks."""
        super().__init__()
        settings, code = segmenter.settings, segmenter.code
        if settings.by_regions or settings.masks_by in (None, "scclip"):
            raise ValueError(
                f"method {settings.method} groups patches by clustering or repairs them, which "
                "cannot be exported: choose code, align, maskclip, sclip, clearclip or naclip"
            )
        if settings.masks_by == "align" and settings.cleaning:
            raise ValueError("cleaning cannot be exported: set it to 0")
        for name, only in GRAPH.items():
            if (given := getattr(settings, name)) != only:
                raise ValueError(f"{name} {given} cannot be exported: set it to {only}")
        self.settings = settings
        # In a tuple the CLIP is not registered, so its text encoder is not written into the file.
        self._clip = (segmenter.clip,)
        self.backbone = segmenter.backbone
        trained = code is not None and settings.masks_by == "code"
        self.image_segmenter = code.image_segmenter if code is not None and trained else None
        # Whether masks of the frozen CLIP, with their own embeddings, are mixed in.
        self.mixed = settings.masks_by in TRAINED and settings.knowledge_weight > 0
        self.visual = None if self.backbone and not self.mixed else segmenter.clip.clip.visual
        self.inputs = INPUTS if self.mixed else INPUTS[:-1]

    def named(self, embeddings: TextEmbeddings) -> dict[str, Tensor]:
        """Return the embeddings under the names of the graph's inputs."""
        words_KC, templates_KC = embeddings.words_KC, embeddings.templates_KC
        if self.mixed:
            return {"classes": words_KC, "templates": templates_KC}
        trained = self.settings.masks_by in TRAINED
        return {"classes": words_KC if trained else templates_KC}

    def forward(
        self, image: Tensor, classes: Tensor, templates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits and masks, as described at the top of this file."""
        (clip,), settings = self._clip, self.settings
        grid = clip.grid(image)
        tokens_1PD = None if self.visual is None else clip.trunk(image)
        if self.backbone is not None:
            patches_1QD = self.backbone(clip.denormalize(image, settings.normalisation), grid)
            units_1Dhw = F.normalize(patches_1QD, dim=-1).mT.reshape(1, -1, *grid)
            scale, threshold = settings.align_scale, settings.align_threshold
            logits = dense_logits(units_1Dhw, classes, scale, threshold)
        elif self.image_segmenter is not None:
            pixels_1CRS = self.image_segmenter(tokens_1PD, grid)
            logits = self.image_segmenter.mask_logits(pixels_1CRS, classes)
        else:
            assert settings.masks_by is not None and tokens_1PD is not None
            logits = self._dense(tokens_1PD, grid, settings.masks_by, classes)
        masks = torch.sigmoid(logits)
        if self.mixed:
            assert templates is not None and tokens_1PD is not None
            dense = self._dense(tokens_1PD, grid, settings.knowledge_dense, templates)
            dense = resize(torch.sigmoid(dense), masks)
            masks = torch.lerp(masks, dense, settings.knowledge_weight)
        return logits, masks

    def _dense(
        self, tokens_1PD: Tensor, grid: tuple[int, int], variant: str, texts_KC: Tensor
    ) -> Tensor:
        settings = self.settings
        dense_1Chw = dense_embedding(self._clip[0], [tokens_1PD], grid, variant)
        scale, threshold = settings.knowledge_scale, settings.knowledge_threshold
        return dense_logits(dense_1Chw, texts_KC, scale, threshold)


def sample(
    segmenter: Segmenter, grid: tuple[int, int], texts: int
) -> tuple[Tensor, TextEmbeddings]:
    """Return a noise image and random embeddings, the same for the same arguments."""
    clip = segmenter.clip
    draw = torch.Generator().manual_seed(0)
    h, w = grid
    image = torch.randn(1, 3, h * clip.patch_size, w * clip.patch_size, generator=draw)
    width = segmenter.backbone.width if segmenter.backbone else clip.embed_dim
    words = torch.randn(texts, width, generator=draw)
    templates = torch.randn(texts, clip.embed_dim, generator=draw)
    return image, TextEmbeddings(F.normalize(words, dim=-1), F.normalize(templates, dim=-1))


@torch.no_grad()
def trace(segmenter: Segmenter) -> ExportedProgram:
    """Trace a segmenter's networks on the CPU with free height, width and number of texts."""
    networks = SegmenterNetworks(segmenter).eval()
    image, embeddings = sample(segmenter, (9, 11), 3)  # all sizes differ: none looks constant
    named = networks.named(embeddings)
    patch = segmenter.clip.patch_size
    h, w = (Dim(name, min=2, max=LARGEST_GRID) for name in ("h", "w"))
    texts = Dim("texts", min=1, max=MOST_TEXTS)
    free = {"image": {2: patch * h, 3: patch * w}, **{name: {0: texts} for name in named}}
    return torch.export.export(
        networks, (image, *named.values()), dynamic_shapes=free, strict=False
    )


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an ONNX file with fp32 weights; refuse more weights than one file can hold."""
    size = sum(4 * weight.numel() for weight in program.state_dict.values())
    if size > PROTOBUF_BYTES:
        raise ValueError(
            f"{size / 1e9:.1f} GB of weights: an ONNX file holds 2 GB at most; write a .pt2 file"
        )
    names = INPUTS[: len(program.graph_signature.user_inputs)]
    options: dict[str, Any] = {"input_names": names, "output_names": OUTPUTS, "verbose": False}
    model = torch.onnx.export(program, dynamo=True, opset_version=OPSET, **options)
    assert model is not None
    model.save(path, external_data=False)
