"""The page's actions without a browser: what is sent, what is shown, what is refused."""

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.inference.segmenter import Segmenter
from codeseg.stages.browser import page
from codeseg.stages.browser.serve import FOLDER
from codeseg.stages.cli import app
from tests.helpers.toy_benchmark import TINY_CLIP


def png(width, height, mode="RGB"):
    packed = io.BytesIO()
    Image.new(mode, (width, height)).save(packed, "PNG")
    return packed.getvalue()


def bomb(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def put(content, name="picture.png"):
    (FOLDER / name).write_bytes(content)
    return {"path": str(FOLDER / name)}


@pytest.fixture(scope="module")
def untrained():
    return Segmenter.open(clip="storybook")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.json"
    path.write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(0)
    clip = FrozenClip.load(str(path), "random:1")
    return Segmenter(clip, CoDe(clip, CoDeConfig()))


@pytest.fixture
def boat():
    path, words, *_ = page.example(277)
    return {"path": path}, words


def shown(view):
    """(picture, masks by label, title) of an AnnotatedImage."""
    pixels, parts = view.value if isinstance(view.value, tuple) else view.constructor_args["value"]
    return np.asarray(pixels), {name: mask for mask, name in parts}, view.label


def test_words_get_the_segmenters_own_masks_with_their_share(untrained, boat):
    picture, words = boat
    view, _ = page.segment(untrained, picture, words, True, untrained.settings.background_threshold)
    pixels, masks, _ = shown(view)
    own = untrained.segment(pixels, words.split(", "), background=True).label_map
    for k, (name, word) in enumerate(zip(masks, words.split(", "), strict=True), 1):
        assert name == f"{word} {(own == k).mean():.0%}"
        assert np.array_equal(masks[name] > 0, own == k)
    assert len(set(view.color_map.values())) == len(masks)


def test_without_a_background_every_pixel_has_a_word(untrained, boat):
    picture, words = boat
    view, _ = page.segment(untrained, picture, words, False, 0.4)
    assert (sum(mask > 0 for mask in shown(view)[1].values()) == 1).all()
    nothing, _ = page.segment(untrained, picture, words, True, 1)
    assert not any(mask.any() for mask in shown(nothing)[1].values())


def test_the_download_is_what_the_segment_command_writes(untrained, boat):
    _, button = page.segment(untrained, boat[0], "sun, red boat", True, 0.4)
    with zipfile.ZipFile(button.value["path"]) as archive:
        names = {name.removeprefix("segments/") for name in archive.namelist()}
        pictures = {"label.png", "overlay.png", "mask-001-sun.png", "mask-002-red-boat.png"}
        assert names >= pictures | {"segments.json"}
        coco = find_spec("pycocotools") is not None
        assert ("coco.json" in names) is coco
        yolo = find_spec("cv2") is not None
        assert ("data.yaml" in names) is yolo
        told = json.loads(archive.read("segments/segments.json"))
    assert [part["text"] for part in told["images"][0]["segments"]] == ["sun", "red boat"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "name the things to find"),
        (" , ,", "name the things to find"),
        (None, "name the things to find"),
        ("dog, cat, dog ", "named twice"),
        (", ".join(f"word {i}" for i in range(21)), "at most 20"),
        ("d" * 501, "500 characters"),
        ("7" * 90, "has 90 tokens; at most"),
    ],
)
def test_wrong_words_are_one_line(untrained, boat, words, line):
    with pytest.raises(page.gr.Error) as refused:
        page.run_action(page.segment, untrained, boat[0], words, True, 0.4)
    assert line in refused.value.message and "\n" not in refused.value.message


def test_words_that_the_model_never_saw_are_named(untrained, boat, monkeypatch):
    shown = []
    monkeypatch.setattr(page.gr, "Warning", shown.append)
    page.run_action(page.segment, untrained, boat[0], "sun, <giraffe>", True, 0.4)
    assert len(shown) == 1 and "never trained on: &lt;giraffe&gt;" in shown[0]


def test_a_slash_joins_names_of_one_thing(untrained, boat):
    view, _ = page.segment(untrained, boat[0], "boat/ship, sea", True, 0.4)
    assert [name.rpartition(" ")[0] for name in shown(view)[1]] == ["boat", "sea"]


def test_a_users_text_is_text_in_a_message(untrained, boat):
    with pytest.raises(page.gr.Error) as refused:
        page.run_action(page.segment, untrained, boat[0], "<img src=x>, <img src=x>", True, 0.4)
    assert "<img" not in refused.value.message and "&lt;img" in refused.value.message


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n1 1 moveto\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no picture", "cannot be read as an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as an image"),
        (EPS, "cannot be read as an image"),
        (b"II*\0" + b"\0" * 1000, "cannot be read as an image"),  # TIFF: its tags take memory
        (png(60, 40)[:60], "cannot be read as an image"),
        (bomb(50_000, 50_000), "more than 50 million pixels"),
        (bomb(8000, 6300), "more than 50 million pixels"),
    ],
    ids=["text", "svg", "eps", "tiff", "cut", "huge", "large"],
)
def test_wrong_pictures_are_refused_before_they_are_decoded(monkeypatch, content, line):
    def decoded(self):
        raise AssertionError("decoded")

    if "pixels" in line:
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ValueError, match=line):
        page.read(put(content))


def test_the_refused_eps_is_one_that_pillow_would_hand_to_another_program():
    assert Image.open(io.BytesIO(EPS)).format == "EPS"


@pytest.mark.parametrize("sent", [None, "x.png", {}, {"path": None}, {"path": "/nowhere.png"}])
def test_without_a_picture_the_page_says_what_to_do(sent):
    with pytest.raises(ValueError, match="choose a picture or an example"):
        page.read(sent)


def test_a_picture_arrives_whole_upright_or_shrunk():
    assert page.read(put(png(40, 30))).shape == (30, 40, 3)
    assert page.read(put(png(3000, 2))).shape == (1, page.MAX_SIDE, 3)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(turned, "JPEG", exif=exif)
    assert page.read(put(turned.getvalue(), "turned.jpg")).shape == (40, 30, 3)


def test_a_trained_model_takes_a_caption_apart(trained, boat):
    nouns, sentence, view = page.decompose(trained, boat[0], "A red boat at sea", "red boat, sea")
    assert nouns == "red boat, sea"
    words = [part["token"].strip() for part in sentence.value]
    assert words == ["a", "red", "boat", "at", "sea"]
    owners = {part["class_or_confidence"] for part in sentence.value}
    assert owners <= {"red boat", "sea", None}
    assert set(sentence.color_map) == {"red boat", "sea"}
    assert [name.rpartition(" ")[0] for name in shown(view)[1]] == ["red boat", "sea"]


@pytest.mark.parametrize(
    ("caption", "nouns", "line"),
    [
        (" ", "boat", "type a caption"),
        (None, "boat", "type a caption"),
        ("boat " * 99, "boat", "1 to 75 tokens"),
        ("boat " * 101, "boat", "at most 500"),
        ("at last", ", ", "name the things to find"),
    ],
)
def test_wrong_captions_are_one_line(trained, boat, caption, nouns, line):
    with pytest.raises(ValueError, match=line):
        page.decompose(trained, boat[0], caption, nouns)


def test_the_tagger_proposes_a_captions_nouns_and_leaves_typed_ones(trained, boat):
    pytest.importorskip("spacy")
    assert page.propose("A Dog beside two red cars", "") == "dog, cars"
    assert page.propose("a dog", "cat") == "cat"
    assert page.propose(None, "") == "" and page.propose("", "") == ""
    assert page.decompose(trained, boat[0], "a dog at sea", "")[0] == "dog, sea"


def test_without_the_tagger_nouns_are_asked_for(trained, boat, monkeypatch):
    def missing(*_):
        raise ImportError("no spaCy")

    monkeypatch.setattr(page, "load_tagger", missing)
    assert page.propose("a dog", "") == ""
    with pytest.raises(ValueError, match="name the things to find"):
        page.decompose(trained, boat[0], "a dog at sea", "")


def test_an_untrained_model_says_how_to_get_captions(untrained, boat):
    with pytest.raises(ValueError, match="give a RUN"):
        page.decompose(untrained, boat[0], "a boat", "boat")
    parts = {
        part["props"].get("elem_id"): part for part in page.build(untrained).config["components"]
    }
    assert "codeseg app --run RUN" in parts["caption"]["props"]["info"]
    assert parts["cut"]["props"]["interactive"] is False


def test_two_methods_are_labelled_each_with_its_own_settings(trained, boat):
    sent = (boat[0], "boat, sea", False, 0.4)
    left, right = (shown(view) for view in page.compare(trained, "code", "maskclip", *sent))
    assert (left[2], right[2]) == ("Left: code", "Right: maskclip")
    assert list(left[1]) != list(right[1])
    own = Segmenter.open(clip="storybook").clip
    assert own is not trained.clip
    for wrong in ("magic", None, {"a": 1}):
        with pytest.raises(ValueError, match="method"):
            page.compare(trained, "code", wrong, *sent)


def test_only_another_host_is_warned_about(monkeypatch):
    monkeypatch.setattr("codeseg.stages.browser.serve.PageBlocks.block_thread", lambda self: None)
    monkeypatch.setattr(
        "codeseg.stages.browser.serve.serve", lambda page, host, port: f"http://{host}:{port}/"
    )
    sent = ["app", "--device", "cpu", "--clip", "storybook"]
    alone = CliRunner().invoke(app, sent)
    assert alone.exit_code == 0, alone.output
    assert "open http://127.0.0.1:7860/" in alone.output and "warning" not in alone.output
    open_to_all = CliRunner().invoke(app, [*sent, "--host", "0.0.0.0"])
    assert open_to_all.output.count("warning: --host 0.0.0.0") == 1


@pytest.mark.slow
def test_without_gradio_one_line_names_the_extra():
    code = (
        "import sys\n"
        "sys.modules['gradio'] = None\n"
        "sys.argv = ['codeseg', 'app']\n"
        "from codeseg.stages.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "pip install 'codeseg[app]'" in done.stderr
