"""The page's actions without a browser: what is sent, what is kept, what is shown."""

import base64
import io
import json
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.inference.segmenter import Segmenter
from codeseg.stages.browser import inputs as app_input
from codeseg.stages.browser import page as app_page
from codeseg.stages.browser import view as app_view
from codeseg.stages.browser.actions import Actions, Session
from codeseg.stages.browser.masks import Masks
from codeseg.stages.cli import app
from tests.helpers.toy_benchmark import TINY_CLIP

LOOK = (True, 0.4, 0.5)  # background, threshold, opacity


def data_url(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(width, height, mode="RGB"):
    packed = io.BytesIO()
    Image.new(mode, (width, height)).save(packed, "PNG")
    return packed.getvalue()


@pytest.fixture(scope="module")
def untrained():
    return Segmenter.open(clip="storybook")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.json"
    path.write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(0)
    return Segmenter(
        *(lambda clip: (clip, CoDe(clip, CoDeConfig())))(FrozenClip.load(str(path), "random:1"))
    )


@pytest.fixture(scope="module")
def actions(untrained):
    return Actions(untrained)


@pytest.fixture
def picked(actions):
    return actions.pick({"example": 1})[0]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.4, 0.55, None])
def test_kept_masks_give_the_networks_own_label_map_at_any_threshold(untrained, picked, threshold):
    words = ["sun", "boat", "sea"]
    kept = Masks.look(untrained, picked.pixels, words).segmentation(threshold)
    settings = replace(untrained.settings, background_threshold=threshold or 0.0)
    own = Segmenter(untrained.clip, None, settings).segment(
        picked.pixels, words, background=threshold is not None
    )
    assert np.array_equal(kept.label_map, own.label_map)
    assert kept.names == own.names
    for one, other in zip(kept.segments, own.segments, strict=True):
        assert np.abs(one.mask - other.mask).max() <= 0.5 / 255 + 1e-6


def test_sliders_change_the_view_without_the_network(actions, picked, monkeypatch):
    session, first = actions.segment(picked, ["sun", "sea"], *LOOK)

    def no_network(*_, **__):
        raise AssertionError("the network ran")

    monkeypatch.setattr(actions.segmenter.clip, "trunk", no_network)
    with pytest.raises(AssertionError):
        actions.segment(picked, ["sun"], *LOOK)
    views = [first, actions.paint(session, True, 0.4, 0.9), actions.paint(session, True, 0.5, 0.5)]
    views.append(actions.paint(session, False, 0.4, 0.5))
    assert len(set(views)) == 4
    assert actions.paint(session, *LOOK) == first


def test_the_download_is_what_the_segment_command_writes(actions, picked):
    session, _ = actions.segment(picked, ["sun", "red boat"], *LOOK)
    link = actions.pack(session, *LOOK)
    content = base64.b64decode(link.split("base64,")[1].split('"')[0])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == [
            f"segments/{name}"
            for name in (
                "label.png",
                "mask-001-sun.png",
                "mask-002-red-boat.png",
                "overlay.png",
                "segments.json",
            )
        ]
        label = np.asarray(Image.open(archive.open("segments/label.png")))
        mask = np.asarray(Image.open(archive.open("segments/mask-002-red-boat.png")))
        told = json.loads(archive.read("segments/segments.json"))
    assert np.array_equal(label, session.masks.labels(0.4))
    assert np.array_equal(mask, session.masks.grey_KHW[1])
    assert [part["text"] for part in told["images"][0]["segments"]] == ["sun", "red boat"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "at least one word"),
        ([" "], "a word is blank"),
        (["dog", "cat", "dog "], "'dog' is there twice"),
        ([f"word {i}" for i in range(200)], "200 words are too many: at most 20"),
        (["d" * 101], "longer than 100 characters"),
        (["7" * 90], "has 90 tokens; at most"),
        ("dog", "a list of words"),
        ([{"path": "/etc/passwd"}], "a list of words"),
        (None, "a list of words"),
    ],
)
def test_wrong_words_are_one_line_and_change_nothing(actions, picked, words, line):
    session, view, message = app_page.told(actions.segment, 2)(picked, words, *LOOK)
    assert line in message.replace("&#x27;", "'") and "Traceback" not in message
    assert message.count("\n") == 0 and message.startswith('<p class="alert"')
    assert session["__type__"] == view["__type__"] == "update"  # left as it is


BOMB = bytearray(png(8, 8))
BOMB[16:24] = (60_000).to_bytes(4, "big") * 2  # the header claims 3.6 thousand million pixels
BOMB[29:33] = zlib.crc32(BOMB[12:29]).to_bytes(4, "big")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        ({"picture": data_url(bytes(BOMB))}, "more than 50 million pixels"),
        ({"picture": data_url(png(8000, 6300, "1"))}, "8000×6300 is more than 50 million"),
        ({"picture": data_url(b"no picture")}, "cannot be read as an image"),
        ({"picture": data_url(EPS)}, "cannot be read as an image"),
        ({"picture": data_url(b"")}, "cannot be read as an image"),
        ({"picture": "data:image/png;base64,***"}, "did not arrive whole"),
        ({"picture": "data:," + "A" * 28_000_000}, "more than 20 MB"),
        ({"size": 20_000_001}, "more than 20 MB"),
        ({"picture": "/etc/passwd"}, "must come as its bytes"),
        ({"picture": "file:///etc/passwd"}, "must come as its bytes"),
        ({"picture": "http://127.0.0.1/a.png"}, "must come as its bytes"),
        ({"picture": {"path": "/etc/passwd"}}, "must come as its bytes"),
        ({}, "must come as its bytes"),
        (None, "drop a picture"),
    ],
)
def test_wrong_pictures_are_one_line(actions, sent, line):
    _, _, message = app_page.told(actions.take, 2)(sent)
    assert line in message and message.count("\n") == 0


def test_the_refused_eps_is_one_that_pillow_would_hand_to_another_program():
    assert Image.open(io.BytesIO(EPS)).format == "EPS"


def test_a_picture_arrives_whole_or_shrunk(actions):
    session, view = actions.take({"picture": data_url(png(40, 30))})
    assert session.pixels.shape == (30, 40, 3) and session.masks is None
    assert 'class="painted"' in view
    session, _ = actions.take({"picture": data_url(png(3000, 2))})
    assert session.pixels.shape == (1, app_input.MAX_SIDE, 3)


def test_a_new_picture_forgets_the_old_ones_masks(actions, picked):
    session, _ = actions.segment(picked, ["sun"], *LOOK)
    assert session.masks is not None
    assert actions.pick({"example": 0})[0].masks is None
    for wrong in ({"example": 99}, {"example": -1}, {"example": "0"}, {}, None):
        with pytest.raises(ValueError, match="no such example"):
            actions.pick(wrong)


def test_actions_before_a_picture_say_what_to_do(actions):
    empty = Session()
    assert actions.paint(empty, *LOOK) == ""
    with pytest.raises(ValueError, match="drop a picture or pick an example"):
        actions.segment(empty, ["dog"], *LOOK)
    with pytest.raises(ValueError, match="segment a picture first"):
        actions.pack(empty, *LOOK)
    for numbers in ((True, "0.4", 0.5), (True, 1.1, 0.5), (True, 0.4, float("nan"))):
        with pytest.raises(ValueError, match="number from 0 to 1"):
            actions.compare(empty, ["dog"], "maskclip", "naclip", *numbers)


def test_a_users_text_is_text_on_the_page(actions, trained, picked):
    word = "<img src=x onerror=alert(1)> ${alert(2)} {{x}} `"
    _, view = actions.segment(picked, [word], *LOOK)
    figure = Actions(trained).decompose(picked, "a dog ${alert(2)} {{x}}", ["dog", "<b>${x}"])
    for html in (view, figure, app_view.alert(word)):
        assert "<img src=x" not in html and "<b>" not in html
        assert "${" not in html and "{{" not in html and "`" not in html


def test_an_untrained_model_says_how_to_get_captions(actions, picked):
    with pytest.raises(ValueError, match="--run RUN"):
        actions.decompose(picked, "a boat", ["boat"])
    assert not any(name.startswith("code") for name in actions.methods)


def test_a_trained_model_cuts_words_and_regions_together(trained, picked):
    actions = Actions(trained)
    figure = actions.decompose(picked, "A red boat at sea", ["red boat", "sea"])
    for part in ("boat", "soft mask: red boat", "soft mask: sea", "regions"):
        assert part in figure
    for caption, nouns, line in (
        (" ", ["boat"], "type a caption"),
        ("a boat", [], "at least one noun"),
        ("boat " * 99, ["boat"], "1 to 75 tokens"),
        ("boat " * 101, ["boat"], "longer than 500"),
    ):
        with pytest.raises(ValueError, match=line):
            actions.decompose(picked, caption, nouns)


def test_two_methods_stand_side_by_side_each_with_its_own_settings(trained, picked):
    actions = Actions(trained)
    view = actions.compare(picked, ["boat", "sea"], "code", "maskclip", *LOOK)
    assert view.index("<h3>code</h3>") < view.index("<h3>maskclip</h3>")
    assert "the two agree on" in view
    same = actions.compare(picked, ["boat", "sea"], "naclip", "naclip", *LOOK)
    assert "the two agree on 100%" in same
    with pytest.raises(ValueError, match="choose two methods of code"):
        actions.compare(picked, ["boat"], "code", "magic", *LOOK)


def test_only_another_host_is_warned_about(monkeypatch):
    class Page:
        def block_thread(self):
            pass

    monkeypatch.setattr("codeseg.stages.browser.page.build", lambda *_: Page())
    monkeypatch.setattr(
        "codeseg.stages.browser.serve.serve", lambda page, host, port: f"http://{host}:{port}/"
    )
    alone = CliRunner().invoke(app, ["app", "--clip", "storybook", "--device", "cpu"])
    assert alone.exit_code == 0, alone.output
    assert "open http://127.0.0.1:7860/" in alone.output and "warning" not in alone.output
    open_to_all = CliRunner().invoke(
        app, ["app", "--clip", "storybook", "--device", "cpu", "--host", "0.0.0.0"]
    )
    assert open_to_all.output.count("warning: --host 0.0.0.0") == 1


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
