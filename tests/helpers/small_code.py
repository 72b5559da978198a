"""A small random CoDe and a batch for it, shared by the tests of the model."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import template_embeddings
from codeseg.model.code.batch import Batch
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig

TINY = str(Path(__file__).parents[1] / "data" / "tiny_clip.json")
TEXTS = [
    ("a red car near two dogs", ["car", "dogs"]),
    ("an old man with a green hat feeding some pigeons", ["pigeons", "hat"]),
    ("the blue boat by a bridge", ["boat", "bridge"]),
    ("a hat on a parking meter", ["parking meter", "hat"]),
]


def small_code(clip: FrozenClip, **settings: Any) -> CoDe:
    """Every trained weight is away from its start, so that every path counts."""
    torch.manual_seed(3)
    code = CoDe(clip, CoDeConfig(**settings))
    with torch.no_grad():
        for parameter in code.parameters():
            if parameter.requires_grad and parameter.dim() == 0:
                parameter += 0.3
            elif parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return code


def small_batch(
    clip: FrozenClip, rows: slice = slice(None), *, pad: bool = False, distinct: bool = True
) -> Batch:
    """Images and captions `rows` of four; texts padded to the context, nouns repeated on demand."""
    texts = TEXTS[rows]
    images = torch.randint(
        256, (len(TEXTS), 3, clip.image_size, clip.image_size), generator=_generator()
    )
    encode = clip.tokenizer.encode
    captions = clip.tokenize([caption for caption, _ in texts])
    lengths = captions.argmax(dim=1) + 1
    labels = torch.full_like(captions, -1)
    for row, (_, nouns), label in zip(captions.tolist(), texts, labels, strict=True):
        label[1] = 0  # a noun that was not selected
        for j, noun in enumerate(nouns, start=1):
            ids = encode(noun)
            start = next(i for i in range(len(row)) if row[i : i + len(ids)] == ids)
            label[start : start + len(ids)] = j
    selected = [nouns[j] for j in range(2) for _, nouns in texts]
    listed = sorted(set(selected)) if distinct else selected
    index = [listed.index(noun) if distinct else i for i, noun in enumerate(selected)]
    ids = [encode(noun) for noun in listed]
    longest = max(map(len, ids)) + 5 * pad
    cut = clip.context_length if pad else int(lengths.max())
    return Batch(
        pixels_BCHW=images[rows].to(torch.uint8),
        caption_tokens_BL=captions[:, :cut],
        caption_lengths_B=lengths,
        labels_BL=labels[:, :cut],
        noun_tokens_UM=torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        noun_lengths_U=torch.tensor([len(row) for row in ids]),
        noun_index_N=torch.tensor(index),
        knowledge_UC=template_embeddings(clip, listed, ("a {}.", "some {} there")).mean(1),
    )


def other_clip(**vision: Any) -> FrozenClip:
    """A CLIP of other widths: text 48, joint 40, GELU."""
    torch.manual_seed(5)
    shape = {"image_size": 56, "layers": 2, "width": 60, "head_width": 20, "patch_size": 14}
    text = {"width": 48, "heads": 3, "layers": 2, "context_length": 40}
    return FrozenClip(open_clip.CLIP(40, shape | vision, text), "other", "random")


def gradients(code: CoDe) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in code.named_parameters() if p.grad is not None}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
