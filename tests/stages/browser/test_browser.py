"""The page in a real Chromium: pick, type, click, see the masks change, move a slider, hover.

Skipped where there is no Chromium with its driver; the same logic is tested without in
test_app.py and test_app_guard.py.
"""

import base64
import io
import shutil
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from codeseg.model.inference.segmenter import Segmenter
from tests.helpers.app_server import Served

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--window-size=1240,1000"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on PATH"),
]


class Browser:
    """A Chromium window and the few things that these tests do in it."""

    def __init__(self, profile):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        self.window = webdriver.Chrome(options=options, service=Service(DRIVER))

    def one(self, selector):
        """The first element that a CSS selector finds, once it is there."""
        return self.until(lambda: self.window.find_elements("css selector", selector), selector)[0]

    def until(self, found, what, seconds=120):
        """Wait until a function returns something true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            result = found()
            if result:
                return result
            time.sleep(0.1)
        raise AssertionError(f"never seen: {what}")

    def click(self, selector):
        self.window.execute_script("arguments[0].click()", self.one(selector))

    def source(self, selector):
        """What an image shows, as its data: URL."""
        script = "return document.querySelector(arguments[0])?.src"
        return self.window.execute_script(script, selector)

    def changed(self, selector, before):
        return self.until(
            lambda: (now := self.source(selector)) and now != before and now, f"{selector} changes"
        )

    def pixels(self, selector):
        content = self.source(selector).split("base64,")[1]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))

    def texts(self, selector):
        """What elements say; read in one step, because the page renders them anew at any time."""
        found = "[...document.querySelectorAll(arguments[0])]"
        script = f"return {found}.map(part => part.textContent.trim())"
        return self.window.execute_script(script, selector)


@pytest.fixture(scope="module")
def served():
    served = Served.start(Segmenter.open(clip="storybook"))
    yield served
    served.page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.window.quit()


@pytest.fixture
def runs(served, monkeypatch):
    """A list that grows by one whenever the network runs."""
    clip, trunk, runs = served.segmenter.clip, served.segmenter.clip.trunk, []
    monkeypatch.setattr(clip, "trunk", lambda *sent: (runs.append(1), trunk(*sent))[1])
    return runs


@pytest.fixture
def page(served, browser):
    browser.window.get(served.address)
    browser.one("#examples [data-example='1']")
    return browser


PAINTED, LABELS = "#view img.painted", "#view img.labels"


def type_word(page, word):
    box = page.one("#words input")
    box.send_keys(word)
    box.send_keys("\ue007")  # Enter
    page.until(lambda: page.texts("#words .token") and page.texts("#words .token")[-1], word)


def test_type_click_see_the_masks_change_and_the_opacity_without_the_network(page, runs):
    page.click("#examples [data-example='1']")
    plain = page.changed(PAINTED, None)
    page.click("#segment")
    painted = page.changed(PAINTED, plain)
    assert runs
    keys = page.texts("#view .key")
    assert [key.split()[0] for key in keys] == ["sun", "boat", "sky", "grass", "sea", "background"]

    page.one("#words input").send_keys("\ue003")  # Backspace takes the last chip away
    page.click("#segment")
    fewer = page.changed(PAINTED, painted)
    assert "sea" not in " ".join(page.texts("#view .key"))
    type_word(page, "sea")
    page.click("#segment")
    assert page.changed(PAINTED, fewer) == painted

    done, labels = len(runs), page.source(LABELS)
    page.one("#opacity input[type=range]").send_keys("\ue010")  # End: opacity 1
    bold = page.changed(PAINTED, painted)
    page.one("#threshold input[type=range]").send_keys("\ue011")  # Home: threshold 0
    page.changed(PAINTED, bold)
    assert page.changed(LABELS, labels)
    page.click("#background input")
    page.until(lambda: "background" not in " ".join(page.texts("#view .key")), "no background")
    assert len(runs) == done


def test_hovering_a_word_dims_the_rest_of_the_picture(page):
    from selenium.webdriver import ActionChains

    page.click("#examples [data-example='1']")
    plain = page.changed(PAINTED, None)
    page.click("#segment")
    page.changed(PAINTED, plain)
    label = page.pixels(LABELS)
    k = int(np.bincount(label.ravel()).argmax())
    key = page.one(f"#view .key[data-k='{k}']")
    ActionChains(page.window).move_to_element(key).perform()
    dimmed = page.until(
        lambda: page.window.execute_script(
            "const c = document.querySelector('#view canvas.dim');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return c.width === arguments[0] && d.filter((v, i) => i % 4 === 3 && v > 0).length",
            label.shape[1],
        ),
        "dimmed pixels",
    )
    assert dimmed == (label != k).sum()
    ActionChains(page.window).move_to_element(page.one(PAINTED)).perform()
    middle = label[label.shape[0] // 2, label.shape[1] // 2]
    name = page.texts(f"#view .key[data-k='{middle}']")[0]
    page.until(lambda: page.texts("#view .tip:not([hidden])") == [name], f"tip {name}")


def test_a_chosen_file_shows_and_a_wrong_one_says_why(page, tmp_path):
    Image.new("RGB", (60, 40), (10, 200, 30)).save(tmp_path / "green.png")
    (tmp_path / "wrong.png").write_bytes(b"no picture")
    (tmp_path / "large.png").write_bytes(b"0" * 20_000_001)
    page.one("#drop input").send_keys(str(tmp_path / "green.png"))
    page.changed(PAINTED, None)
    assert (page.pixels(PAINTED) == (10, 200, 30)).all()
    for name, line in (("wrong", "cannot be read as an image"), ("large", "more than 20 MB")):
        page.one("#drop input").send_keys(str(tmp_path / f"{name}.png"))
        page.until(lambda line=line: line in "".join(page.texts(".alert")), line)
    assert page.source(PAINTED)
    page.click("#segment")
    page.until(lambda: "at least one word" in "".join(page.texts(".alert")), "no words")


def test_a_word_is_shown_as_typed_and_the_zip_holds_its_mask(page):
    page.click("#examples [data-example='1']")
    plain = page.changed(PAINTED, None)
    word = "<b>${1+1}</b> {{x}} `"
    type_word(page, word)
    page.click("#segment")
    page.changed(PAINTED, plain)
    assert any(key.startswith(word) for key in page.texts("#view .key"))
    page.click("#save")
    link = page.one("#link a[download]").get_attribute("href")
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(link.split("base64,")[1]))) as archive:
        assert len([name for name in archive.namelist() if "mask-" in name]) == 6


def test_two_methods_and_the_caption_tab(page):
    page.click("#examples [data-example='1']")
    page.changed(PAINTED, None)
    tabs = page.window.find_elements("css selector", "button[role=tab]")
    page.window.execute_script("arguments[0].click()", tabs[2])
    page.click("#compare")
    page.until(lambda: len(page.texts("#pair img.painted")) == 2, "two pictures")
    assert page.texts("#pair h3") == ["maskclip", "naclip"]
    page.window.execute_script("arguments[0].click()", tabs[1])
    page.until(lambda: "--run RUN" in "".join(page.texts("#figure")), "how to get a trained run")


def test_the_page_loads_nothing_from_elsewhere(page, served):
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    names = page.window.execute_script(script)
    assert len(names) > 5
    assert all(name.startswith((served.address, "data:")) for name in names), names
