"""Rows of a features table -> one rank's training batch of tensors. Light.

`codeseg.model.code.batch` documents the tensors and their letters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codeseg.model.code.batch import Batch
from codeseg.pipeline.stream import views
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.pipeline.stream.feature_table import Block
from codeseg.pipeline.stream.order import Hash, IntArray
from codeseg.pipeline.stream.region_table import RegionTable
from codeseg.pipeline.stream.vocabulary_table import Vocabulary

SIGN, EXPONENT = 0x8000, 0x7C00  # bits of fp16; all exponent bits set: infinite or NaN


@dataclass(frozen=True)
class Position:
    """A stream's resume position: all ranks have used `index` samples of epoch `epoch`."""

    epoch: int
    index: int


@dataclass(frozen=True, kw_only=True)
class StreamBatch(Batch):
    """One rank's share of a training batch, on the CPU."""

    keys: list[str]
    position: Position  # after this batch


@dataclass(frozen=True)
class Sample:
    """A row of the table at its position in the epoch's order."""

    block: Block
    row: int  # within the block
    place: str  # its file, for messages
    index: int  # position in the epoch's order
    mark: str = ""  # of its root, if there are several
    regions: RegionTable | None = None  # of its root, if the stream has regions

    @property
    def nouns(self) -> NDArray[np.int64]:
        """The ids of the caption's distinct nouns, in caption order."""
        return self.block.values("noun_ids", self.row)


class Collate:
    """A function that makes batches, in pinned memory for a GPU if `pin_memory`.

    With `pad` it rounds up the sizes of captions and noun tables, so that a compiler sees few of
    them, and never 1, which it would treat as a special case.
    """

    def __init__(
        self,
        settings: FeatureSettings,
        vocabulary: Vocabulary,
        *,
        pin_memory: bool = False,
        pad: bool = False,
    ) -> None:
        self._settings = settings
        self._vocabulary = vocabulary
        self._pin_memory = pin_memory
        self._pad = pad

    def __call__(
        self, samples: Sequence[Sample], nouns_BJ: IntArray, views_B: Hash, position: Position
    ) -> StreamBatch:
        """Return the batch of B samples; `position` is the one after it.

        `nouns_BJ` are the indices of each caption's selected nouns; `views_B` is a random number
        per image that determines its view.

        Raises:
            ValueError: a value is corrupt; names the file.
        """
        return StreamBatch(
            keys=[sample.mark + sample.block.key(sample.row) for sample in samples],
            position=position,
            **(
                self._vectors(samples, views_B)
                if self._settings.backbone
                else self._images(samples, views_B) | self._captions(samples, nouns_BJ)
            ),
            **self._noun_table(samples, nouns_BJ),
        )

    def _empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)

    def _tensor(self, values: NDArray[Any] | list[int]) -> Tensor:
        tensor = torch.from_numpy(np.asarray(values))
        return tensor.pin_memory() if self._pin_memory else tensor

    def _full(self, *shape: int, value: int, dtype: torch.dtype) -> Tensor:
        tensor = self._empty(*shape, dtype=dtype)
        tensor.numpy().fill(value)  # torch's fill would wait for the training step's threads
        return tensor

    def _size(self, needed: int, step: int) -> int:
        return -(-needed // step) * step if self._pad else needed

    def _images(self, samples: Sequence[Sample], views_B: Hash) -> dict[str, Any]:
        """Return pixels and image tokens of each sample's view."""
        kind, tensors = self._settings.image_tokens, dict[str, Any]()
        if kind == "none":
            made = map(self._augmented, samples, views_B)
            return {"pixels_BCHW": self._stack(samples, made).permute(0, 3, 1, 2)}
        places = self._places(samples, views_B)
        maps = [
            sample.regions.regions(sample.block.key(sample.row), v).ravel()
            for sample, (_, _, v) in zip(samples, places, strict=True)
            if sample.regions is not None
        ]
        if maps:
            tensors["regions_BQ"] = self._tensor(np.stack(maps).astype(np.int64))
            tables = [sample.regions for sample in samples if sample.regions is not None]
            tensors["regions"] = max(table.settings["grouping"]["regions"] for table in tables)
        pixels_BHWC = self._stack(samples, (b.pixels_KVHWC[k, v] for b, k, v in places))
        tensors["pixels_BCHW"] = pixels_BHWC.permute(0, 3, 1, 2)
        tokens = "image_tokens_BPD" if kind == "fp16" else "image_tokens_int8_BPD"
        tensors[tokens] = self._stack(samples, (b.image_tokens_KVPD[k, v] for b, k, v in places))
        if kind == "int8":
            scales = (b.image_scales_KVP[k, v] for b, k, v in places)
            tensors["image_token_scale_BP"] = self._stack(samples, scales)
        return tensors

    def _vectors(self, samples: Sequence[Sample], views_B: Hash) -> dict[str, Any]:
        """Return a backbone's vectors of each sample's view, and its caption's embedding."""
        places = self._places(samples, views_B)
        return {
            "vectors_BVD": self._stack(samples, (b.vectors_KVND[k, v] for b, k, v in places)),
            "captions_BC": self._stack(samples, (s.block.captions_RC[s.row] for s in samples)),
        }

    def _places(self, samples: Sequence[Sample], views_B: Hash) -> list[tuple[Block, int, int]]:
        """Return each sample's block, picture and view."""
        chosen = (views_B % np.uint64(self._settings.views)).tolist()
        return [
            (s.block, s.block.picture_R[s.row], v) for s, v in zip(samples, chosen, strict=True)
        ]

    def _stack(self, samples: Sequence[Sample], arrays: Iterable[NDArray[Any]]) -> Tensor:
        """Copy an array of each sample into a tensor; refuse values that are not finite."""
        rows = iter(arrays)
        first = next(rows)
        dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
        tensor = self._empty(len(samples), *first.shape, dtype=dtype)
        for sample, row, out in zip(samples, chain([first], rows), tensor.numpy(), strict=True):
            out[:] = row
            _refuse_non_finite(out, sample)
        return tensor

    def _augmented(self, sample: Sample, bits: Hash) -> views.Pixels:
        try:
            image = views.decode(sample.block.jpg(sample.row))
        except OSError as error:
            raise ValueError(_corrupt(sample, f"has a corrupt image ({error})")) from error
        return views.view(
            image,
            np.atleast_1d(bits),
            size=self._settings.clip.image_size,
            crop_scale=self._settings.crop_scale,
            flip=self._settings.flip,
        )

    def _captions(self, samples: Sequence[Sample], nouns_BJ: IntArray) -> dict[str, Any]:
        """Return caption tokens, states and the labels of METHOD §4."""
        rows = [s.block.values("caption_tokens", s.row) for s in samples]
        B, T = len(rows), self._settings.clip.text_width
        L = min(self._size(max(map(len, rows)), 8), self._settings.clip.context_length)
        tokens_BL = self._full(B, L, value=0, dtype=torch.int64)
        states_BLT = self._full(B, L, T, value=0, dtype=torch.float16)
        labels_BL = self._full(B, L, value=-1, dtype=torch.int64)
        out = zip(tokens_BL.numpy(), states_BLT.numpy(), labels_BL.numpy(), strict=True)
        for sample, row, chosen, (tokens, states, labels) in zip(
            samples, rows, nouns_BJ, out, strict=True
        ):
            tokens[: len(row)] = row
            stored = sample.block.values("caption_states", sample.row)
            states[: len(row)] = stored.reshape(-1, T)
            _refuse_non_finite(states, sample)
            label_of = {int(noun): label for label, noun in enumerate(chosen, start=1)}
            for noun, start, end in sample.block.values("spans", sample.row).tolist():
                labels[start:end] = label_of.get(noun, 0)
        return {
            "caption_tokens_BL": tokens_BL,
            "caption_lengths_B": self._tensor([len(row) for row in rows]),
            "caption_states_BLT": states_BLT,
            "labels_BL": labels_BL,
        }

    def _noun_table(self, samples: Sequence[Sample], nouns_BJ: IntArray) -> dict[str, Any]:
        """Return the batch's distinct nouns, in order of first occurrence."""
        ids_BJ = [s.nouns[chosen] for s, chosen in zip(samples, nouns_BJ, strict=True)]
        rows_N = self._vocabulary.rows(np.stack(ids_BJ, axis=1).reshape(-1))
        number = {row: i for i, row in enumerate(dict.fromkeys(rows_N.tolist()))}
        rows = list(number) + [int(rows_N[0])] * (self._size(len(number), 8) - len(number))
        tokens = [self._vocabulary.tokens(row) for row in rows]
        M = self._size(max(map(len, tokens)), 4)
        tokens_UM = self._full(len(tokens), M, value=0, dtype=torch.int64)
        for out, noun in zip(tokens_UM.numpy(), tokens, strict=True):
            out[: len(noun)] = noun
        return {
            "noun_tokens_UM": tokens_UM,
            "noun_lengths_U": self._tensor([len(noun) for noun in tokens]),
            "noun_index_N": self._tensor([number[row] for row in rows_N.tolist()]),
            "knowledge_UC": self._tensor(self._vocabulary.knowledge_UC(rows)),
        }


def _refuse_non_finite(values: NDArray[Any], sample: Sample) -> None:
    if values.dtype == np.float16:
        # checking the exponents costs 9 µs per sample of ViT-B/16; as signed integers, positive
        # values are the largest, as unsigned ones, negative values
        signed, unsigned = values.view(np.int16).max(), values.view(np.uint16).max()
        finite = signed < EXPONENT and unsigned < SIGN + EXPONENT
    else:
        finite = values.dtype.kind != "f" or np.isfinite(values).all()
    if not finite:
        raise ValueError(_corrupt(sample, "has features that are not finite"))


def _corrupt(sample: Sample, what: str) -> str:
    place = f"{sample.place}: {sample.block.key(sample.row)}"
    command = sample.block.settings.stage.command
    return f"{place} {what}; delete the shard's ledger record and run `codeseg {command}`"
