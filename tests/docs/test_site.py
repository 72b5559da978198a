"""The site builds without a broken link or anchor, and needs nothing from elsewhere to be read."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.helpers.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


class Loaded(HTMLParser):
    """What a browser loads by itself to show a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(values.get("src"))
        if tag == "link" and values.get("rel") != "canonical":
            self.addresses.append(values.get("href"))


def test_no_page_loads_anything_from_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        far = [a for a in loaded.addresses if a and re.match(r"(https?:)?//", a)]
        assert not far, f"{page.name}: {far}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style.name


def test_formulas_are_mathml(site):
    method = (site / "method.html").read_text()
    assert method.count("<math") > 15
    assert "arithmatex" not in method and "\\frac" not in method


def test_a_formula_that_would_show_as_text_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/hooks")
    from mathml import mathml

    assert "<mfrac>" in mathml(r"\frac{1}{2}", "block")
    with pytest.raises(ValueError, match="nosuchthing"):
        mathml(r"\nosuchthing x", "inline")


def test_every_command_and_every_message_has_its_place(site):
    commands = (site / "commands.html").read_text()
    assert all(f'id="codeseg-{name}"' in commands for name in ("download", "train", "segment"))
    index = (site / "search/search_index.json").read_text()
    assert "success-floor" in index and "troubleshooting.html#" in index


@pytest.mark.slow
def test_search_finds_a_word_in_pages_opened_from_disk(site):
    if (program := shutil.which("chromium")) is None:
        pytest.skip("no Chromium on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    with webdriver.Chrome(options, Service(shutil.which("chromedriver"))) as browser:
        browser.set_window_size(1280, 900)  # wide enough for the field itself to be seen
        browser.get((site / "index.html").as_uri())
        box = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
        WebDriverWait(browser, 120).until(lambda _: box.is_displayed())
        ActionChains(browser).move_to_element(box).click().send_keys("interrupt").perform()
        found = WebDriverWait(browser, 120).until(
            lambda b: b.find_elements(By.CSS_SELECTOR, "a.md-search-result__link")
        )
        assert all(link.get_attribute("href").startswith("file://") for link in found)
