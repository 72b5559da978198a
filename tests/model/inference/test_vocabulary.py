import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeseg.model.inference.vocabulary import read_words

NAME = st.text("abcXYZ -.'é", min_size=1).map(lambda text: " ".join(text.split())).filter(bool)
THINGS = st.lists(st.lists(NAME, min_size=1, max_size=3), min_size=1, max_size=4).filter(
    lambda things: len({n.casefold() for t in things for n in t}) == sum(map(len, things))
)


@given(THINGS)
def test_commas_separate_things_and_slashes_join_names(things):
    wanted = tuple(map(tuple, things))
    assert read_words(", ".join(" / ".join(names) for names in things) + ",") == wanted
    assert read_words(["/".join(names) for names in things]) == wanted
    assert read_words(things) == wanted


def test_lists_mix_texts_and_names_as_they_are():
    words = ["dog,  red   car", ("sofa, brown", "a/b"), "cup/mug"]
    assert read_words(words) == (("dog",), ("red car",), ("sofa, brown", "a/b"), ("cup", "mug"))
    assert read_words(["background"]) == (("background",),)


@pytest.mark.parametrize("words", ["", " , ", [], ["", " / "], [()]])
def test_nothing_to_look_for_is_refused(words):
    with pytest.raises(ValueError, match="name the things to find"):
        read_words(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dog, Dog", "'Dog' is named twice: name it once"),
        (["sofa/couch", "couch"], "'couch' is named twice"),
        ("dog, Background", "'background' means pixels that no word fits: leave out the word"),
    ],
)
def test_a_name_stands_once(words, message):
    with pytest.raises(ValueError, match=message):
        read_words(words, background=True)
