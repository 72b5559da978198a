"""Pixels and captions -> vectors of a self-supervised ViT and caption embeddings; CPU or GPU.

Letters: R rows, K pictures, V views, H W pixels, Q patches, N vectors of a view, D width, C joint
width of the CLIP, T text width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codeseg.model.align.backbone import Backbone, head_vectors, region_vectors
from codeseg.pipeline.features.encoder import Encoder, find_faults, one_thread
from codeseg.pipeline.stream.feature_settings import FeatureSettings


class VectorEncoder(Encoder):
    """The frozen CLIP for captions, and a self-supervised ViT for pictures.

    Args:
        settings: of the features, with a backbone.
        device: "cpu" or "cuda".

    Raises:
        ValueError: this machine's weights are not those of the settings.
    """

    def __init__(self, settings: FeatureSettings, device: str) -> None:
        super().__init__(settings, device)
        assert settings.backbone is not None
        self._facts = settings.backbone
        self._vit = Backbone(self._facts.name, self._facts.weights).to(device)
        if self._vit.weights_sha256 != self._facts.weights_sha256:
            raise ValueError(
                f"the weights of {self._facts.name} on this machine differ from those the stage "
                "was started with; give every machine the same file"
            )

    @torch.inference_mode()
    def start(
        self, pixels_KVHWC: NDArray[np.uint8], ends_RT: NDArray[np.float16]
    ) -> Callable[[], dict[str, NDArray[Any]]]:
        """Start to encode pictures and the EOS states of their captions.

        Args:
            pixels_KVHWC: views of pictures.
            ends_RT: hidden states at EOS of their captions.

        Returns:
            A function that waits for `vectors` (K, V, N, D), `faults` (K,) into FAULTS, and
            `captions` (R, C), embeddings as the CLIP projects them.
        """
        images_KVCHW = self._send(torch.from_numpy(pixels_KVHWC)).permute(0, 1, 4, 2, 3)
        views = [self._pool(images_KVCHW[:, v]) for v in range(images_KVCHW.shape[1])]
        vectors, patches = (torch.stack(part, dim=1) for part in zip(*views, strict=True))
        return self._fetch(
            {
                "vectors": vectors,
                "faults": find_faults(patches),
                "captions": self._project(ends_RT).half(),
            }
        )

    def _pool(self, images_KCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors (K, N, D) and the patches (K, Q, D) of one view, both fp16."""
        grid = (self._facts.grid, self._facts.grid)
        with self.autocast():
            if self._facts.pool == "heads":
                patches_KQD, logits_KHQ = self._vit.attend(images_KCHW, grid)
            else:
                patches_KQD = self._vit(images_KCHW, grid)
        patches_KQD = patches_KQD.float()
        with one_thread():
            vectors_KND = (
                head_vectors(patches_KQD, logits_KHQ.float())
                if self._facts.pool == "heads"
                else region_vectors(patches_KQD.nan_to_num(), grid)  # faulty ones are rejected
            )
        return vectors_KND.half(), patches_KQD.half()
