"""The page in a real Chromium, at a desk and on a phone: every click is one at a place on screen.

Skipped where there is no Chromium with its driver; what the clicks do is tested without one in
test_page.py and test_serve.py.
"""

import shutil
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from codeseg.model.inference.segmenter import Segmenter
from codeseg.stages.browser.serve import MAX_BYTES
from tests.helpers.app_server import Served

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
)
ENTER = "\ue007"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on PATH"),
]


class Browser:
    """A Chromium window and the few things that these tests do in it."""

    def __init__(self, folder):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        self.folder = folder
        self.window = webdriver.Chrome(options=options, service=Service(DRIVER))

    def size(self, width, height):
        """Show the page as on a screen of so many pixels; a window itself is never below 500."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def ask(self, script, *given):
        return self.window.execute_script(script, *given)

    def until(self, found, what, seconds=120):
        """Wait until a function returns something true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            result = found()
            if result:
                return result
            time.sleep(0.1)
        raise AssertionError(f"never seen: {what}")

    def one(self, selector):
        """The first element that a CSS selector finds, once it is there."""
        return self.until(lambda: self.window.find_elements("css selector", selector), selector)[0]

    def click(self, element):
        """Click at the middle of an element: what lies there on the screen must be the element."""
        from selenium.webdriver import ActionChains

        element = self.one(element) if isinstance(element, str) else element
        middle = (
            "const box = arguments[0].getBoundingClientRect();"
            "const x = Math.round(box.x + box.width / 2), y = Math.round(box.y + box.height / 2);"
            "const there = document.elementFromPoint(x, y);"
            "return [x, y, arguments[0].contains(there), there?.outerHTML.slice(0, 200)]"
        )
        place = None
        while self.ask(middle, element) != place:  # once more if the page scrolls by itself
            self.ask("arguments[0].scrollIntoView({block: 'center'})", element)
            place = self.ask(middle, element)
            time.sleep(0.5)
        x, y, its_own, there = place
        assert its_own, f"at {x}, {y} lies {there}"
        hand = ActionChains(self.window, duration=50)
        hand.w3c_actions.pointer_action.move_to_location(x, y).click()
        hand.perform()

    def texts(self, selector):
        """What elements say; read in one step, because the page renders them anew at any time."""
        found = "[...document.querySelectorAll(arguments[0])]"
        return self.ask(f"return {found}.map(part => part.textContent.trim())", selector)

    def sources(self, selector):
        """Addresses of the images that are there and have arrived."""
        found = "[...document.querySelectorAll(arguments[0])].filter(i => i.naturalWidth)"
        return self.ask(f"return {found}.map(part => part.src)", selector)

    def legend(self, part="view"):
        return [name.rpartition(" ")[0] for name in self.texts(f"#{part} .legend button")]

    def pick_the_kite(self):
        before = self.sources("#picture img")
        self.click(self.window.find_elements("css selector", "#examples .gallery-item")[1])
        self.until(lambda: (now := self.sources("#picture img")) and now != before, "the kite")

    def type(self, selector, text):
        box = self.one(selector)
        self.click(box)
        box.send_keys(text)

    def clear(self, selector):
        from selenium.webdriver import Keys

        self.type(selector, Keys.CONTROL + "a")
        self.one(selector).send_keys(Keys.DELETE)


@pytest.fixture(scope="module")
def served():
    served = Served.start(Segmenter.open(clip="storybook"))
    yield served
    served.page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.window.quit()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(served, browser, request):
    browser.size(*request.param)
    browser.window.get(served.address)
    browser.until(lambda: len(browser.sources("#examples img")) > 1, "examples")
    return browser


WORDS = "[placeholder^='dog, red car']"


def test_two_words_with_enter_after_each_then_the_button_show_masks(page):
    page.pick_the_kite()
    page.clear(WORDS)
    page.type(WORDS, "sun" + ENTER)
    page.until(lambda: page.legend() == ["sun"], "sun alone")
    page.type(WORDS, ", sea" + ENTER)
    page.until(lambda: page.legend() == ["sun", "sea"], "both words by Enter")
    before = page.sources("#view img.mask")
    page.clear(WORDS)
    page.type(WORDS, "boat, sea")
    page.click("#segment")
    page.until(lambda: page.legend() == ["boat", "sea"], "the button's words")
    page.until(lambda: len(page.sources("#view img.mask")) == 2, "two masks")
    assert page.sources("#view img.mask") != before
    assert all("%" in name for name in page.texts("#view .legend button"))


def test_the_result_is_on_the_screen(page):
    page.pick_the_kite()
    page.click("#segment")
    page.until(lambda: page.sources("#view img.mask"), "masks")
    shown = "const box = document.querySelector('#view img').getBoundingClientRect();"
    page.until(
        lambda: page.ask(f"{shown} return box.top >= -1 && box.top + 200 <= innerHeight"),
        "the picture in view",
    )
    assert page.ask("return document.documentElement.scrollWidth <= innerWidth"), "cut at the side"


def test_a_chosen_file_shows_and_a_wrong_one_says_why(page, tmp_path):
    Image.new("RGB", (60, 40), (10, 200, 30)).save(tmp_path / "green.png")
    (tmp_path / "wrong.png").write_bytes(b"no picture")
    (tmp_path / "large.png").write_bytes(b"0" * (MAX_BYTES + 1))
    page.one("#picture input[type=file]").send_keys(str(tmp_path / "green.png"))
    page.until(lambda: page.sources("#picture img"), "the picture")
    page.click("#segment")
    page.until(lambda: "name the things to find" in "".join(page.texts(".toast-body")), "no words")
    page.type(WORDS, "<b>grass<i> ${1+1} {{x}}" + ENTER)
    page.until(lambda: page.legend() == ["<b>grass<i> ${1+1} {{x}}"], "the word as typed")
    for name, line in (("wrong", "cannot be read as an image"), ("large", "maximum")):
        page.window.refresh()
        page.one("#picture input[type=file]").send_keys(str(tmp_path / f"{name}.png"))
        if name == "wrong":
            page.until(lambda: page.ask("return !!document.querySelector('#picture img')"), name)
            page.type(WORDS, "grass" + ENTER)
        page.until(lambda line=line: line in "".join(page.texts(".toast-body")), line)


def test_the_download_holds_a_mask_a_word(page):
    page.pick_the_kite()
    page.click("#segment")
    page.until(lambda: page.one("#save").is_enabled(), "the download")
    packed = page.folder / "segments.zip"
    packed.unlink(missing_ok=True)
    page.click("#save")
    page.until(packed.exists, "segments.zip")
    with zipfile.ZipFile(packed) as archive:
        names = [name for name in archive.namelist() if "mask-" in name]
        assert len(names) == 4
        label = np.asarray(Image.open(archive.open("segments/label.png")))
    assert label.shape == (560, 560) and label.max() <= 4


def test_two_methods_stand_left_and_right_and_the_caption_says_what_it_needs(page):
    page.pick_the_kite()
    tabs = page.window.find_elements("css selector", "button[role=tab]")
    assert [tab.text for tab in tabs] == ["Segments", "Compare", "Caption"]
    page.click(tabs[1])
    page.click("#compare")
    page.until(lambda: page.legend("left") and page.legend("right"), "two pictures")
    assert "Left: maskclip" in page.texts("#left")[0]
    assert page.texts("#right")[0].startswith("Right: ")
    places = page.ask(
        "return ['left', 'right'].map(side => {"
        "const box = document.querySelector(`#${side} img`).getBoundingClientRect();"
        "return [box.left, box.top, box.right] })"
    )
    (left, top, right), (left2, top2, right2) = places
    wide = page.ask("return innerWidth") > 1000
    assert right <= left2 and abs(top - top2) < 2 if wide else top < top2 and left == left2
    assert max(right, right2) <= page.ask("return innerWidth")
    page.click(page.window.find_elements("css selector", "button[role=tab]")[2])
    page.until(lambda: "codeseg app --run RUN" in "".join(page.texts("#caption")), "what it needs")


def test_the_page_loads_nothing_from_elsewhere(page, served):
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    names = page.ask(script)
    assert len(names) > 5
    assert all(name.startswith((served.address, "data:", "blob:")) for name in names), names
