"""A caption and its nouns -> the noun that each word belongs to (METHOD §4), by the text segmenter.

Letters: L tokens, J nouns, C joint width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from codeseg.model.code.codecomposition import CoDe

NO_NOUN = -1


@dataclass(frozen=True)
class WordSegments:
    """A caption's words, each with the noun it belongs to."""

    words: tuple[str, ...]
    """As cleaned and split by the tokenizer: lower case, punctuation separate."""
    nouns: tuple[str, ...]
    """The given nouns."""
    labels: tuple[int, ...]
    """Per word: index into nouns, or −1 for none."""
    probabilities: tuple[tuple[float, ...], ...]
    """Per word and noun: probability, 0..1; with "none" they sum to 1."""


@torch.no_grad()
def segment_words(
    code: CoDe, caption: str, nouns_JC: Tensor, nouns: tuple[str, ...]
) -> WordSegments:
    """Segment one caption by nouns, given as texts and as learned-prompt embeddings.

    Raises:
        ValueError: the model has no text segmenter, or the caption is empty or too long.
    """
    if not code.config.co_decomposition:
        raise ValueError("this model was trained without co-decomposition: it segments no words")
    clip = code.clip
    ids = clip.tokenizer.encode(caption)
    if not 0 < len(ids) <= clip.context_length - 2:
        raise ValueError(
            f"a caption must have 1 to {clip.context_length - 2} tokens; this one has {len(ids)}"
        )
    length = len(ids) + 2
    kept = clip.context_length if code.config.attend_padding else length
    tokens_1L = clip.tokenize([caption]).to(nouns_JC.device)[:, :kept]
    lengths = None if code.config.attend_padding else torch.tensor([length]).to(nouns_JC.device)
    features = code.text_segmenter(clip.text_states(tokens_1L), lengths, clip.text_projection)
    logits_1KL = code.text_segmenter.word_logits(features, nouns_JC[:, None])
    tokens_JL = logits_1KL.softmax(dim=1)[0, 1:, 1 : length - 1]

    pieces = [clip.tokenizer.decoder[index] for index in ids]
    words, probabilities, start = [], [], 0
    for end, piece in enumerate(pieces, start=1):
        if piece.endswith("</w>"):
            words.append(clip.tokenizer.decode(ids[start:end]).strip())
            probabilities.append(tokens_JL[:, start:end].mean(dim=1))
            start = end
    table = torch.stack(probabilities)  # (words, J)
    best, index = table.max(dim=1)
    sure = best > 1 - table.sum(dim=1)  # more than "none" has
    labels = torch.where(sure, index, NO_NOUN).tolist()
    return WordSegments(
        tuple(words), nouns, tuple(labels), tuple(tuple(row) for row in table.tolist())
    )
