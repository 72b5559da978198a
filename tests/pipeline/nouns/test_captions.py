"""Captions: the ids are open_clip's own, and a span's tokens spell exactly its word."""

import html

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from codeseg.pipeline.nouns.captions import (
    HIDDEN,
    LONGEST_WORD,
    MOST_CHARACTERS,
    STYLED,
    CaptionTokenizer,
    find_spans,
)

CLIP = SimpleTokenizer()
READER = CaptionTokenizer()

PIECES = "dog|dog's|wildcat|cat|T-shirt|&amp;|&lt;b&gt;|😀|café|x2|2x|'s|שלום|مرحبا|ﬀ|\u200b|Ünï"
NASTY = st.one_of(
    st.text(),
    st.text(alphabet="aİıßﬁǅ\u0301\u200d\u200f'’\"&;<>_- \t\n1٣½😀👩‍👩‍👧שלוםمرحبا漢字é"),
    st.lists(st.sampled_from(PIECES.split("|"))).map(" ".join),
)


def skip_what_only_we_clean(text):
    cleaned = CLIP.clean_fn(text)
    assume(not (HIDDEN.search(cleaned) or STYLED.search(cleaned)))


def decoded(tokens):
    return CLIP.decode(tokens).replace(" ", "")


@settings(max_examples=300)
@given(NASTY)
def test_tokens_are_those_of_open_clip(text):
    skip_what_only_we_clean(text)
    caption = READER.read(READER.clean(text))
    if caption is not None:
        reference = CLIP([text])[0].tolist()
        assert caption.tokens == reference[: len(caption.tokens)]
        assert not any(reference[len(caption.tokens) :])


@settings(max_examples=300)
@given(st.one_of(NASTY, st.text(alphabet=st.characters(max_codepoint=255))))
def test_cleaning_is_that_of_open_clip(text):
    skip_what_only_we_clean(text)
    assert READER.clean(text) == CLIP.clean_fn(text)


@settings(max_examples=300)
@given(NASTY)
def test_every_span_spells_its_word(text):
    caption = READER.read(READER.clean(text))
    if caption is None:
        return
    words = list(dict.fromkeys(w for w in caption.text.split() if any(c.isalnum() for c in w)))
    for word, spans in find_spans(caption, words).items():
        for start, end in spans:
            assert 1 <= start < end <= len(caption.tokens) - 1, "SOS or EOS is covered"
            assert decoded(caption.tokens[start:end]) == word


@settings(max_examples=200)
@given(NASTY)
def test_spans_never_overlap(text):
    caption = READER.read(READER.clean(text))
    if caption is None:
        return
    ends = list(caption.ends)[:6]
    pieces = {caption.text[start:end] for start in caption.starts for end in ends}
    spans = [
        s for found in find_spans(caption, sorted(filter(None, pieces))).values() for s in found
    ]
    covered = [position for start, end in spans for position in range(start, end)]
    assert len(covered) == len(set(covered))


def read(text):
    return READER.read(READER.clean(text))


def test_a_word_inside_a_longer_word_is_none():
    assert find_spans(read("a wildcat and bobcats2 cat2"), ["cat"]) == {}
    assert find_spans(read("wildcat, cat; cat"), ["cat"]) == {"cat": [(3, 4), (5, 6)]}


def test_a_longer_noun_keeps_its_tokens_from_a_shorter_one():
    caption = read("hot-dog and dog")
    spans = find_spans(caption, ["dog", "hot-dog"])
    assert decoded(caption.tokens[slice(*spans["hot-dog"][0])]) == "hot-dog"
    assert len(spans["dog"]) == 1


def test_entities_and_mojibake_are_cleaned_as_open_clip_does():
    assert read("Caf&amp;eacute; &lt;b&gt;CAFÃ‰").text == html.unescape("café <b>café")


def test_truncation_keeps_only_whole_words():
    long_word = "antidisestablishmentarianism"
    pieces = len(CLIP.encode(long_word))
    assert pieces > 2
    caption = read("cat " * (75 - pieces + 1) + long_word + " dog")
    assert len(caption.tokens) == 77 and caption.tokens[-1] == CLIP.eot_token_id
    assert find_spans(caption, [long_word, "dog"]) == {}, "cut in the middle, and cut off"
    assert not caption.readable.endswith(long_word)
    fits = read("cat " * (75 - pieces) + long_word)
    assert find_spans(fits, [long_word]) == {long_word: [(76 - pieces, 76)]}


@pytest.mark.parametrize(
    "text", ["", "  ", "!!! 123", "a" * (LONGEST_WORD + 1), "the <end_of_text> dog", "😀"]
)
def test_what_is_no_text_is_refused(text):
    assert read(text) is None


def test_a_caption_of_a_million_characters_is_read_at_once():
    caption = read("word " * 200_000)
    assert len(caption.tokens) == 77


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a d\u200bog and a c\u00adat", "a dog and a cat"),
        ("a d&shy;og, a c&#8203;at", "a dog, a cat"),
        ("\ufeffa dog \u200f \u2060 here", "a dog here"),
        ("a \U0001d403\U0001d428\U0001d420 and \U0001d68c\U0001d68a\U0001d69d", "a dog and cat"),
    ],
)
def test_nothing_hides_a_word(text, seen):
    assert READER.clean(text) == seen


@pytest.mark.parametrize(
    "text", ["a dog &" + "amp;" * 25_000, "a dog " + "\u0301\u0316" * 50_000, "Ã¢â‚¬â„¢" * 12_000]
)
def test_a_caption_is_cut_before_it_is_cleaned(text, monkeypatch):
    """Cleaning takes the square of the length: the first of these did not end."""
    lengths = []
    reader = CaptionTokenizer()
    monkeypatch.setattr(reader._clip, "clean_fn", lambda given: lengths.append(len(given)) or "")
    reader.clean(text)
    assert lengths == [MOST_CHARACTERS]
