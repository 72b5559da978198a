"""An HTML page -> its elements and its text, and whether it is ours alone: no foreign markup."""

import re
import shutil
from html.parser import HTMLParser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-sync"
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "p", "nav", "a", "main",
    "section", "h2", "h3", "div", "table", "thead", "tbody", "tr", "th", "td", "span", "b", "br",
    "code", "details", "summary", "figure", "button", "img", "figcaption", "svg", "text", "rect",
    "line", "polyline", "circle", "i", "dialog", "script",
}  # fmt: skip


class Markup(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(page)
        self.text = "".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def check_ours(page):
    """Return the page's markup; AssertionError if anything in it is not what we write."""
    found = Markup(page)
    assert {tag for tag, _ in found.elements} <= TAGS
    assert sum(tag == "script" for tag, _ in found.elements) == 1
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            assert re.match(r"data:image/webp;base64,|#s\d+$", attributes.get(name, "#s0"))
        style = attributes.get("style", "width:1px")
        assert re.fullmatch(r"(width:\d+px|background:#\w+|border-bottom:[\w #]+|;)+", style), style
    return found


class Window:
    """A Chromium window of some width."""

    def __init__(self, profile, width):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.driver.quit()

    def run(self, script):
        return self.driver.execute_script(script)
