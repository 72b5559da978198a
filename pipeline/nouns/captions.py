"""Tokenize captions as CLIP does, and locate each token in the text: text -> ids, word spans.

Cleaning, splitting and BPE are open_clip's own (its SimpleTokenizer is called word by word), so the
ids are exactly those of its tokenizer; this file adds the characters of each word.
"""

import re
import unicodedata
from dataclasses import dataclass

from open_clip.tokenizer import SimpleTokenizer

CONTEXT_LENGTH = 77
MOST_CHARACTERS = 2000  # of a caption; 77 tokens need fewer, and cleaning takes quadratic time
HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
"""Invisible characters, such as soft hyphens, which hide words that contain them."""
STYLED = re.compile("[\U0001d400-\U0001d7ff]+")  # mathematical letters, used to look bold
LONGEST_WORD = 200  # characters: longer runs are not words, and BPE takes quadratic time


@dataclass(frozen=True)
class Caption:
    """A cleaned caption, its tokens, and the boundaries of the words that are kept whole."""

    text: str
    tokens: list[int]  # SOS … EOS, at most the context length
    starts: dict[int, int]  # first character of a word -> its first token
    ends: dict[int, int]  # character after a word -> the token after it

    @property
    def readable(self) -> str:
        """The text up to the last word that is kept whole; nouns after it cannot be used."""
        return self.text[: next(reversed(self.ends), 0)]


@dataclass(frozen=True)
class _Chunk:
    """The text between two spaces: one or more of CLIP's words."""

    ids: list[int]
    words: list[tuple[int, int, int, int]]  # first and last character, first and last id
    has_letters: bool


class CaptionTokenizer:
    """A cleaner and tokenizer of captions; caches words until `forget` is called."""

    def __init__(self, context_length: int = CONTEXT_LENGTH) -> None:
        self._clip = SimpleTokenizer(context_length=context_length)
        self._special = dict(self._clip.cache)  # the special tokens' names
        self._room = context_length - 2
        self._chunks: dict[str, _Chunk | None] = {}
        self._words: dict[str, list[int]] = {}

    def clean(self, text: str) -> str:
        """Return the text cleaned as by CLIP's tokenizer, without invisible characters.

        CLIP's tokenizer repairs mojibake, entities, white space and case. This method first limits
        the length; it then removes invisible characters and the style of mathematical letters.
        """
        text = text[:MOST_CHARACTERS]
        if text.isascii() and text.isprintable() and "&" not in text:
            return " ".join(text.split()).lower()  # nothing to clean: ten times faster
        cleaned = str(self._clip.clean_fn(text))
        if not (HIDDEN.search(cleaned) or STYLED.search(cleaned)):
            return cleaned
        plain = STYLED.sub(lambda m: unicodedata.normalize("NFKC", m[0]), HIDDEN.sub("", cleaned))
        return " ".join(plain.split()).lower()

    def read(self, cleaned: str) -> Caption | None:
        """Tokenize a cleaned caption; return None if it is not a text.

        That is, if it has a word of more than `LONGEST_WORD` characters, the name of a special
        token, or no letter.
        """
        ids: list[int] = []
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        has_letters = False
        place = 0
        before = 1  # SOS comes first
        last_end = self._room + 1
        chunks = self._chunks
        for text in cleaned.split(" "):  # CLIP's words never span a space
            chunk = chunks[text] if text in chunks else self._read_chunk(text)
            if chunk is None:
                return None
            has_letters = has_letters or chunk.has_letters
            for start, end, first, last in chunk.words:
                if before + last <= last_end:
                    starts[place + start] = before + first
                    ends[place + end] = before + last
            ids += chunk.ids
            before = len(ids) + 1
            if before > last_end:
                break
            place += len(text) + 1
        if not has_letters:
            return None
        return Caption(cleaned, self.wrap(ids[: self._room]), starts, ends)

    def wrap(self, ids: list[int]) -> list[int]:
        """Return SOS, ids, EOS."""
        return [self._clip.sot_token_id, *ids, self._clip.eot_token_id]

    def forget(self) -> None:
        """Clear the cache, which would fill the memory over a whole corpus."""
        self._chunks.clear()
        self._words.clear()
        self._clip.cache = dict(self._special)

    def _read_chunk(self, text: str) -> _Chunk | None:
        """Split and encode; return None if it is not a text. Cached, as captions repeat words."""
        ids: list[int] = []
        words = []
        chunk: _Chunk | None = None
        for match in self._clip.pat.finditer(text):
            word = match.group()
            if len(word) > LONGEST_WORD or word in self._special:
                break
            first = len(ids)
            ids += self._words[word] if word in self._words else self._encode(word)
            words.append((match.start(), match.end(), first, len(ids)))
        else:
            chunk = _Chunk(ids, words, any(text[start].isalpha() for start, *_ in words))
        self._chunks[text] = chunk
        return chunk

    def _encode(self, word: str) -> list[int]:
        """Return the ids of one of CLIP's words."""
        encoded = "".join(self._clip.byte_encoder[byte] for byte in word.encode())
        ids = [self._clip.encoder[piece] for piece in self._clip.bpe(encoded).split(" ")]
        self._words[word] = ids
        return ids


def find_spans(caption: Caption, nouns: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Return noun -> token spans of its whole-word occurrences (METHOD §4), if it has any.

    Spans are half-open, into `caption.tokens`, in order. An occurrence inside a longer noun's
    occurrence belongs to the longer one. The nouns are distinct.
    """
    text, starts, ends = caption.text, caption.starts, caption.ends
    taken: list[tuple[int, int]] = []
    spans: dict[str, list[tuple[int, int]]] = {}
    for noun in sorted(nouns, key=lambda noun: (-len(noun), noun)):
        end = 0
        while (start := text.find(noun, end)) >= 0:
            end = start + len(noun)
            # it must begin and end with CLIP's words, and not beside another letter or digit
            whole = start in starts and end in ends
            if not whole or text[start - 1 : start].isalnum() or text[end : end + 1].isalnum():
                continue
            if any(start < other_end and other_start < end for other_start, other_end in taken):
                continue
            taken.append((start, end))
            spans.setdefault(noun, []).append((starts[start], ends[end]))
    return {noun: sorted(places) for noun, places in spans.items()}
