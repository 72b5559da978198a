"""A caption as CLIP reads it, with each token's place in the text: text -> ids, spans of words.

Cleaning, splitting and BPE are open_clip's own (its SimpleTokenizer is called word by word), so the
ids are exactly those of its tokenizer; what is added here is which characters each word came from.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from open_clip.tokenizer import SimpleTokenizer

CONTEXT_LENGTH = 77
LONGEST_WORD = 200  # characters: longer runs are no words, and BPE is quadratic in them


@dataclass(frozen=True)
class Word:
    """One word of CLIP's split: characters [start, end) of the text, tokens [first, last)."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Caption:
    """A cleaned caption and its tokens."""

    text: str
    tokens: list[int]  # SOS … EOS, at most the context length
    words: list[Word]  # those whose tokens are all kept

    @cached_property
    def readable(self) -> str:
        """The text up to the last word that is kept whole: no noun beyond it can be used."""
        return self.text[: self.words[-1].end] if self.words else ""


class CaptionTokenizer:
    """Cleans and tokenizes captions; remembers words it has seen until `forget` is called."""

    def __init__(self, context_length: int = CONTEXT_LENGTH) -> None:
        self._clip = SimpleTokenizer(context_length=context_length)
        self._special = dict(self._clip.cache)  # the special tokens' names
        self._room = context_length - 2
        self._ids: dict[str, list[int]] = {}

    def clean(self, text: str) -> str:
        """The text as CLIP's tokenizer cleans it: mojibake, entities, white space, lower case."""
        return str(self._clip.clean_fn(text))

    def read(self, cleaned: str) -> Caption | None:
        """Tokenize a cleaned caption.

        Returns:
            None when it is no text: a word of more than `LONGEST_WORD` characters, the name of a
            special token, or no letter at all.
        """
        ids: list[int] = []
        words: list[Word] = []
        letters = False
        for match in self._clip.pat.finditer(cleaned):
            word = match.group()
            if len(word) > LONGEST_WORD or word in self._special:
                return None
            letters = letters or word[0].isalpha()
            first = len(ids)
            ids += self._word_ids(word)
            if len(ids) > self._room:
                break
            # 1: SOS comes first
            words.append(Word(match.start(), match.end(), first + 1, len(ids) + 1))
        if not letters:
            return None
        return Caption(cleaned, self.wrap(ids[: self._room]), words)

    def wrap(self, ids: list[int]) -> list[int]:
        """SOS, ids, EOS."""
        return [self._clip.sot_token_id, *ids, self._clip.eot_token_id]

    def forget(self) -> None:
        """Drop the remembered words: over a whole corpus they would fill the memory."""
        self._ids.clear()
        self._clip.cache = dict(self._special)

    def _word_ids(self, word: str) -> list[int]:
        known = self._ids.get(word)
        if known is None:
            encoded = "".join(self._clip.byte_encoder[byte] for byte in word.encode())
            known = [self._clip.encoder[piece] for piece in self._clip.bpe(encoded).split(" ")]
            self._ids[word] = known
        return known


def find_spans(caption: Caption, nouns: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Token spans of every whole-word occurrence of every noun (METHOD §4).

    An occurrence inside a longer noun's occurrence belongs to the longer one.

    Args:
        caption: cleaned and tokenized.
        nouns: distinct strings as they stand in the caption's text.

    Returns:
        noun -> half-open spans into `caption.tokens`, in order; nouns without one are left out.
    """
    starts = {word.start: word for word in caption.words}
    ends = {word.end: word for word in caption.words}
    taken: list[tuple[int, int]] = []
    spans: dict[str, list[tuple[int, int]]] = {}
    for noun in sorted(nouns, key=lambda text: (-len(text), text)):
        # not glued to another letter or digit; characters and CLIP words must end together
        for match in re.finditer(rf"(?<![^\W_]){re.escape(noun)}(?![^\W_])", caption.text):
            start, end = match.span()
            if start not in starts or end not in ends:
                continue
            if any(start < other_end and other_start < end for other_start, other_end in taken):
                continue
            taken.append((start, end))
            spans.setdefault(noun, []).append((starts[start].first, ends[end].last))
    return {noun: sorted(places) for noun, places in spans.items()}
