"""Pixels and caption tokens in, what the frozen CLIP says about them out; CPU or GPU.

Letters: R rows, V views, H W pixels, C channels, P image tokens, D vision width, L caption tokens,
T text width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from codeseg.model.clip.encoder import FrozenClip
from codeseg.pipeline.stream.feature_settings import FeatureSettings

CAPTIONS = 256  # encoded together, alike in length
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """The frozen CLIP, at the precision and with the views of the settings.

    Args:
        settings: of the features.
        device: "cpu" or "cuda".

    Raises:
        ValueError: this machine's weights are not those of the settings.
    """

    def __init__(self, settings: FeatureSettings, device: str) -> None:
        self._settings, self._device = settings, device
        clip = settings.clip
        self.clip = FrozenClip.load(clip.model, clip.pretrained, device)
        if self.clip.weights_sha256 != clip.weights_sha256:
            raise ValueError(
                f"the weights {clip.pretrained!r} of {clip.model} on this machine differ "
                "from those the stage was started with; give every machine the same file"
            )

    def autocast(self) -> torch.autocast:
        """Return the precision the CLIP runs at."""
        dtype = DTYPES[self._settings.precision]
        return torch.autocast(self._device, dtype=dtype, enabled=dtype is not torch.float32)

    @torch.inference_mode()
    def caption_states(self, captions: list[list[int]]) -> list[NDArray[np.float16]]:
        """Encode captions, in batches of similar length.

        Args:
            captions: token ids, SOS … EOS.

        Returns:
            (L, T) hidden states before ln_final for each, infinite where fp16 cannot hold them.
        """
        states: list[NDArray[np.float16]] = [np.empty(0, np.float16)] * len(captions)
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))  # stable
        for start in range(0, len(order), CAPTIONS):
            chosen = order[start : start + CAPTIONS]
            tokens_BL = torch.zeros(len(chosen), len(captions[chosen[-1]]), dtype=torch.int64)
            for row, i in zip(tokens_BL, chosen, strict=True):
                row[: len(captions[i])] = torch.tensor(captions[i])
            with self.autocast():
                states_BLT = self.clip.text_states(tokens_BL.to(self._device)).half().cpu()
            for values, i in zip(states_BLT.numpy(), chosen, strict=True):
                states[i] = values[: len(captions[i])].copy()
        return states

    @torch.inference_mode()
    def image_tokens(self, pixels_RVHWC: Tensor) -> Tensor:
        """Return trunk output of all views (R, V, P, D), fp16 on the device."""
        images_RVCHW = pixels_RVHWC.to(self._device, non_blocking=True).permute(0, 1, 4, 2, 3)
        with self.autocast():
            views_RPD = [
                self.clip.trunk(self.clip.normalise(images_RVCHW[:, v].contiguous())).half()
                for v in range(images_RVCHW.shape[1])
            ]
        tokens_RVPD = torch.stack(views_RPD, dim=1)
        assert tokens_RVPD.shape[-1] == self.clip.width
        return tokens_RVPD

    @torch.inference_mode()
    def clip_scores(
        self, tokens_RPD: Tensor, states: list[NDArray[np.float16]]
    ) -> NDArray[np.float32]:
        """Return the cosine of each image's and its caption's embedding, as CLIP was trained.

        The image is the view and has the normalisation that the features have. What is left to do
        is the last block for the class token, and both projections.

        Args:
            tokens_RPD: the trunk's output of one view of each row.
            states: each caption's hidden states before ln_final, the last one at EOS.
        """
        eos_RT = torch.from_numpy(np.stack([values[-1] for values in states])).to(self._device)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small products: on more threads their last bits would differ
        with self.autocast():
            image_RC = self.clip.class_embedding(tokens_RPD.float())
            text_RC = F.normalize(self.clip.project_text(eos_RT.float()).float(), dim=-1)
        torch.set_num_threads(threads)
        scores: NDArray[np.float32] = (image_RC * text_RC).sum(dim=-1).cpu().numpy()
        return scores


def to_int8(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Round tokens (…, D) to int8 with a scale a token: int8 values and fp32 scales (…)."""
    scale = tokens.float().abs().amax(dim=-1) / 127
    rounded = (tokens / scale.clamp(min=1e-12)[..., None]).round()
    return rounded.to(torch.int8), scale


def find_faults(tokens_RVPD: Tensor) -> list[str]:
    """Return what is wrong with each row's image tokens: "non_finite", "zero_norm" or nothing."""
    finite_R = tokens_RVPD.isfinite().flatten(1).all(dim=1)
    zero_R = (tokens_RVPD.float().abs().amax(dim=-1) == 0).flatten(1).any(dim=1)
    return [
        ("zero_norm" if zero else "") if finite else "non_finite"
        for finite, zero in zip(finite_R.tolist(), zero_R.tolist(), strict=True)
    ]
