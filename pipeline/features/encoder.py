"""Pixels and caption tokens -> features of the frozen CLIP, or of a ViT and the CLIP; CPU or GPU.

Letters: R rows, K pictures, V views, H W pixels, C channels or joint width, P image tokens,
Q patches, N vectors of a view, D vision width, L caption tokens, T text width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codeseg.model.align.backbone import Backbone, head_vectors, region_vectors
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import TEMPLATES
from codeseg.pipeline.stream.feature_settings import FeatureSettings

CAPTIONS = 256  # encoded together, of similar length
NOUNS = {"cpu": 1, "cuda": 32}  # encoded together, in all templates
FAULTS = ("", "zero_norm", "non_finite")  # of image tokens
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread for small products, whose last bits more threads would change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Encoder:
    """The frozen CLIP, and the settings' self-supervised ViT if any, on "cpu" or "cuda".

    Raises:
        ValueError: this machine's weights are not those of the settings.
    """

    def __init__(self, settings: FeatureSettings, device: str) -> None:
        self._settings, self._device = settings, device
        clip = settings.clip
        self._up: Any = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        self._down: Any = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        self.clip = FrozenClip.load(clip.model, clip.pretrained, device)
        self.nouns_at_once = NOUNS[device]
        encode, sos = self.clip.tokenizer.encode, self.clip.tokenizer.sot_token_id
        parts = [template.split("{}") for template in TEMPLATES]
        self._templates = [([sos, *encode(before)], encode(after)) for before, after in parts]
        _refuse_other_weights(clip.model, clip.weights_sha256, self.clip.weights_sha256)
        self._vit: Backbone | None = None
        if vit := settings.backbone:
            self._vit = Backbone(vit.name, vit.weights).to(device)
            _refuse_other_weights(vit.name, vit.weights_sha256, self._vit.weights_sha256)

    def autocast(self) -> torch.autocast:
        """Return the context of the CLIP's precision."""
        dtype = DTYPES[self._settings.precision]
        return torch.autocast(self._device, dtype=dtype, enabled=dtype is not torch.float32)

    @torch.inference_mode()
    def caption_states(self, captions: list[list[int]]) -> list[NDArray[np.float16]]:
        """Encode captions (token ids, SOS … EOS) in batches of similar length.

        Returns:
            (L, T) hidden states before ln_final for each, infinite where fp16 overflows.
        """
        states: list[NDArray[np.float16]] = [np.empty(0, np.float16)] * len(captions)
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))  # stable
        for start in range(0, len(order), CAPTIONS):
            chosen = order[start : start + CAPTIONS]
            tokens_BL = self._padded([captions[i] for i in chosen])
            with self.autocast():
                states_BLT = self.clip.text_states(tokens_BL).half().cpu()
            for values, i in zip(states_BLT.numpy(), chosen, strict=True):
                states[i] = values[: len(captions[i])].copy()
        return states

    def _padded(self, rows: list[list[int]]) -> Tensor:
        tokens_BL = [torch.tensor(row) for row in rows]
        return nn.utils.rnn.pad_sequence(tokens_BL, batch_first=True).to(self._device)

    @torch.inference_mode()
    def knowledge(self, nouns: list[list[int]]) -> NDArray[np.float32]:
        """Return the un-normalized mean over the templates of each noun's unit embeddings (U, C).

        The BPE ids of at most `nouns_at_once` nouns all have the same length. A batch always has
        the same shape, so that a noun's values do not depend on the others.
        """
        clip, sides = self.clip, self._templates
        filled = nouns + nouns[-1:] * (self.nouns_at_once - len(nouns))
        room, eos = clip.context_length - 1, clip.tokenizer.eot_token_id
        rows = [[*[*a, *noun, *b][:room], eos] for noun in filled for a, b in sides]
        with self.autocast():
            units_BC = clip.encode_text(self._padded(rows)).float()
        units_UKC = units_BC.view(len(filled), len(sides), -1)
        means_UC = torch.stack([units_KC.mean(dim=0) for units_KC in units_UKC])
        values: NDArray[np.float32] = means_UC[: len(nouns)].cpu().numpy()
        return values

    @torch.inference_mode()
    def start(
        self, pixels_KVHWC: NDArray[np.uint8], ends_RT: NDArray[np.float16]
    ) -> Callable[[], dict[str, NDArray[Any]]]:
        """Start to encode views of pictures and the hidden states at EOS of their captions.

        Returns:
            A function that waits for the pictures' columns of the table (image_tokens …), `faults`
            (K,) into FAULTS and, for scores, unit embeddings: `images` (K, C), of the first view in
            the features' normalization, and `captions` (R, C). With a ViT, it waits for `vectors`
            (K, V, N, D), `faults` and `captions`, not normalized.
        """
        if self._vit is not None:
            images_KVCHW = self._send(torch.from_numpy(pixels_KVHWC)).permute(0, 1, 4, 2, 3)
            views = [self._pool(self._vit, images_KCHW) for images_KCHW in images_KVCHW.unbind(1)]
            vectors, patches = (torch.stack(part, dim=1) for part in zip(*views, strict=True))
            captions = self._project(ends_RT).half()
            return self._fetch(
                {"vectors": vectors, "faults": find_faults(patches), "captions": captions}
            )
        tokens_KVPD = self.image_tokens(torch.from_numpy(pixels_KVHWC))
        found = {"image_tokens": tokens_KVPD, "faults": find_faults(tokens_KVPD)}
        if self._settings.image_tokens == "int8":
            found["image_tokens"], found["image_scales"] = to_int8(tokens_KVPD)
        if self._settings.clip_score:
            with one_thread(), self.autocast():
                found["images"] = self.clip.class_embedding(tokens_KVPD[:, 0].float())
                found["captions"] = F.normalize(self._project(ends_RT), dim=-1)
        return self._fetch(found)

    def _project(self, ends_RT: NDArray[np.float16]) -> Tensor:
        """Return the captions' joint embeddings (R, C), fp32, not normalized."""
        ends = self._send(torch.from_numpy(ends_RT)).float()
        with one_thread(), self.autocast():
            return self.clip.project_text(ends).float()

    def _pool(self, vit: Backbone, images_KCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors (K, N, D) and the patches (K, Q, D) of one view, both fp16."""
        facts = self._settings.backbone
        assert facts is not None
        grid, by_heads = (facts.grid, facts.grid), facts.pool == "heads"
        with self.autocast():
            if by_heads:
                patches_KQD, logits_KHQ = vit.attend(images_KCHW, grid)
            else:
                patches_KQD = vit(images_KCHW, grid)
        patches_KQD = patches_KQD.float()
        with one_thread():
            vectors_KND = (
                head_vectors(patches_KQD, logits_KHQ.float())
                if by_heads
                else region_vectors(patches_KQD.nan_to_num(), grid)  # non-finite ones are rejected
            )
        return vectors_KND.half(), patches_KQD.half()

    @torch.inference_mode()
    def image_tokens(self, pixels_RVHWC: Tensor) -> Tensor:
        """Return the trunk's output for all views (R, V, P, D), fp16 on the device."""
        images_RVCHW = self._send(pixels_RVHWC).permute(0, 1, 4, 2, 3)
        with self.autocast():
            views_RPD = [
                self.clip.trunk(self.clip.normalize(images_RVCHW[:, v].contiguous())).half()
                for v in range(images_RVCHW.shape[1])
            ]
        tokens_RVPD = torch.stack(views_RPD, dim=1)
        assert tokens_RVPD.shape[-1] == self.clip.width
        return tokens_RVPD

    # on a GPU, copies to and from pinned memory run on their own streams beside the arithmetic

    def _send(self, values: Tensor) -> Tensor:
        if self._up is None:
            return values
        with torch.cuda.stream(self._up):
            sent = values.pin_memory().to(self._device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._up)
        sent.record_stream(torch.cuda.current_stream())
        return sent

    def _fetch(self, found: dict[str, Tensor]) -> Callable[[], dict[str, NDArray[Any]]]:
        done = None
        if self._down is not None:
            self._down.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._down):
                for name, values in found.items():
                    values.record_stream(self._down)
                    host = torch.empty_like(values, device="cpu", pin_memory=True)
                    found[name] = host.copy_(values, non_blocking=True)
                done = self._down.record_event()

        def wait() -> dict[str, NDArray[Any]]:
            if done is not None:
                done.synchronize()
            return {name: values.numpy() for name, values in found.items()}

        return wait


def _refuse_other_weights(name: str, expected: str, actual: str) -> None:
    if actual != expected:
        raise ValueError(
            f"the weights of {name} on this machine differ from those the stage was started with; "
            "give every machine the same file"
        )


def to_int8(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Round tokens (…, D) to int8 with a scale per token: int8 values and fp32 scales (…)."""
    scale = tokens.float().abs().amax(dim=-1) / 127
    rounded = (tokens / scale.clamp(min=1e-12)[..., None]).round()
    return rounded.to(torch.int8), scale


def find_faults(tokens_RVPD: Tensor) -> Tensor:
    """Return the fault of each row's image tokens, as an index (R,) into FAULTS."""
    finite_R = tokens_RVPD.isfinite().flatten(1).all(dim=1)
    zero_R = (tokens_RVPD.float().abs().amax(dim=-1) == 0).flatten(1).any(dim=1)
    return torch.where(finite_R, zero_R.long(), 2)
