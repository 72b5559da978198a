"""Other people's text in every place of both pages: it stays text, and the pages stay readable."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from codeseg.stages.cli import app
from tests.helpers.audit_data import Spoils, make_root
from tests.helpers.markup import CHROMIUM, DRIVER, Window, check_ours
from tests.helpers.toy_benchmark import toy

ATTACK = (
    "\"'><img src=x onerror=document.title='fell'></script></style></title></textarea>"
    "<script>document.title='fell'</script><svg onload=document.title='fell'>{0}{x}$title${x}"
    "\u202ejavascript:alert(1)&lt;\x00\x1b[31m\\"
)
HALF = "half a pair \ud800"  # JSON may hold it, UTF-8 may not
LONG = "W" * 3000


def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.fixture(scope="module")
def audit_page(tmp_path_factory):
    """A root whose captions, URLs, errors, nouns and vocabulary are attacks."""

    def pairs(rows):
        for i, row in enumerate(rows):
            row["caption"] = f"{ATTACK} {LONG if i % 9 == 0 else ''} {row['caption']}"
            row["url"] = f"https://{ATTACK.replace('/', '')}{i % 3}/{i}.jpg"
            row["error"] = row["error"] and ATTACK

    def nouns(rows):
        for i, row in enumerate(rows):
            row["nouns"][0]["text"] = ATTACK if i % 2 else LONG
            row["rejected"] = f"too_few_nouns: {ATTACK}" if i % 5 == 0 else None

    folder = tmp_path_factory.mktemp("audit")
    root = make_root(folder / "a root <b> & co", Spoils(pairs=pairs, nouns=nouns))
    classes = ["--benchmark", _benchmark(folder / "benchmark")]
    command("audit", root, *classes, "--report", folder / "audit.html", "--json", folder / "a.json")
    return folder / "audit.html"


@pytest.fixture(scope="module")
def report_page(tmp_path_factory, audit_page):
    """A folder whose scores, settings, names, ledger, metrics and findings are attacks."""
    folder = tmp_path_factory.mktemp("report")
    manifest = _benchmark(folder / "benchmark")
    home = folder / "home"
    for k, name in enumerate(("<img src=x onerror=alert(1)>", LONG[:200])):
        out = home / "evaluation" / name
        (out / "labels").mkdir(parents=True)
        Image.fromarray(np.tile([[0, 1, k]], (6, 8)).astype(np.uint8)).save(out / "labels/a.png")
        data = ("--data", manifest.parent, "--predictions", out, "--out", out)
        command("score", manifest, *data)
        scores = json.loads((out / "scores.json").read_text())
        scores |= {"manifest": str(manifest), "data": str(manifest.parent), "method": ATTACK}
        scores["settings"] = {ATTACK: ATTACK, "method": f"{ATTACK}+scg", "clip": HALF}
        scores["settings"] |= {"checkpoint": ATTACK, "window": [ATTACK], "stride": {LONG: 1}}
        scores["failed"] = {ATTACK: ATTACK}
        pair = {"value": 1.0, "low": 0.5, "high": float("nan")}
        scores["against"] = {"difference": pair, "predictions": ATTACK, "protocol": ATTACK, "p": 1}
        (out / "scores.json").write_text(json.dumps(scores))
    segments = home / "segments"
    (segments / "one").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(segments / "one/overlay.png")
    row = {"folder": "one", "image": f"photos/{ATTACK}.jpg", "segments": [{"text": ATTACK}]}
    (segments / "segments.json").write_text(json.dumps({"method": ATTACK, "images": [row]}))
    for name in ("one", "<svg onload=alert(2)>"):
        (home / "runs" / name).mkdir(parents=True)
        metrics = {"step": [1, 2], "loss": [2.0, 1.0], f"loss_{ATTACK}": [1.0, None]}
        pq.write_table(pa.table(metrics), home / "runs" / name / "metrics.parquet")
    ledger = home / "<data>" / "ledger" / "pairs"
    ledger.mkdir(parents=True)
    record = {"rows_in": 10, "rows_out": 7, "rejected": {ATTACK: 3}}
    (ledger / "00000.json").write_text(json.dumps(record))
    finding = {"sentence": ATTACK, "verdict": "fail", "figures": {ATTACK: ATTACK, "half": HALF}}
    checks = {ATTACK: finding | {"keys": [ATTACK, LONG], "seconds": 0}}
    (home / "audit.json").write_text(json.dumps({"checks": checks}))
    shutil.copy(audit_page.parent / "a.json", home / "runs" / "audit.json")
    command("report", home, "--title", ATTACK, "--out", folder / "report.html")
    return folder / "report.html"


def _benchmark(folder):
    manifest = toy(folder, raw=np.tile([[0, 1, 2]], (6, 8)))
    names = json.dumps(["c0", ATTACK, LONG]).replace("\\u0000", "").replace("\\u001b", "")
    content = manifest.read_text().replace('["c0", "c1", "c2"]', names.replace("\x00", ""))
    manifest.write_text(content.replace('title = "Toy"', "title = '<u>Toy</u>'"))
    return manifest


@pytest.mark.parametrize("page", ["audit_page", "report_page"])
def test_other_peoples_text_stays_text(page, request):
    found = check_ours(request.getfixturevalue(page).read_text(encoding="utf-8"))
    assert found.text.count("<script>document.title='fell'</script>") > 5
    assert "{0}{x}$title${x}" in found.text


def test_text_of_every_source_is_shown(audit_page, report_page):
    audit = check_ours(audit_page.read_text(encoding="utf-8")).text
    for place in ("a root <b> & co", f"too_few_nouns: {ATTACK[:9]}", "toy.toml: \"'><img"):
        assert place in audit, place
    report = check_ours(report_page.read_text(encoding="utf-8")).text
    for place in ("<u>Toy</u>", "half a pair ?", "<data>", "<svg onload=alert(2)>", "SCG"):
        assert place in report, place


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on PATH")
@pytest.mark.parametrize("page", ["audit_page", "report_page"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_runs_no_foreign_script_and_the_body_does_not_scroll_sideways(
    page, width, request, tmp_path
):
    path = request.getfixturevalue(page)
    with Window(tmp_path, width) as window:
        window.driver.get(path.as_uri())
        assert window.run("return document.title") != "fell"
        assert window.run("return document.documentElement.scrollWidth") <= width
        refused = [m["message"] for m in window.driver.get_log("browser")]
        assert not refused  # nothing was even tried: no script, no load from elsewhere
        picture = window.driver.find_element("css selector", "figure button")
        window.run("document.querySelector('figure button').scrollIntoView({block: 'center'})")
        picture.click()
        large = "return document.querySelector('dialog img').getBoundingClientRect().width"
        assert window.run(large) > 1.5 * picture.size["width"]
        window.driver.find_element("css selector", "dialog").click()
        assert not window.run("return document.querySelector('dialog').open")
        head = window.run(
            "const h = [...document.querySelectorAll('#s0 th, section:last-of-type th')].at(-1);"
            "h.click(); h.click(); return h.className"
        )
        assert head in ("up", "down")
