import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from codeseg.stages.cli import app
from codeseg.stages.pages import figures
from codeseg.stages.pages.report_parts import names_apart
from codeseg.stages.report import Section, write_report
from tests.helpers.toy_benchmark import toy


@pytest.fixture
def folder(tmp_path):
    """Two methods on a toy benchmark, a run's metrics, a ledger and audit findings."""
    manifest = toy(tmp_path / "data", raw=np.tile([[0, 1, 2]], (6, 8)))
    for method, value in (("weak", 0), ("strong", 1)):
        out = tmp_path / "demo/evaluation/toy" / method
        (out / "labels").mkdir(parents=True)
        guess = np.tile([[0, value, 2 * value]], (6, 8)).astype(np.uint8)
        Image.fromarray(guess).save(out / "labels" / "a.png")
        done = CliRunner().invoke(
            app,
            ["score", str(manifest), "--data", str(manifest.parent), "--predictions", str(out),
             "--out", str(out)],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        scores = json.loads((out / "scores.json").read_text())
        scores |= {"manifest": "../../../../data/toy.toml", "data": "../../../../data"}
        scores["settings"] = {"method": method, "window": 448, "checkpoint": "step-000100"}
        (out / "scores.json").write_text(json.dumps(scores))
    run = tmp_path / "demo/runs/code"
    run.mkdir(parents=True)
    metrics = {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "loss_kg": [1.0, None, 0.5]}
    pq.write_table(pa.table(metrics), run / "metrics.parquet")
    ledger = tmp_path / "demo/data/ledger/pairs"
    ledger.mkdir(parents=True)
    record = {"rows_in": 10, "rows_out": 7, "rejected": {"http_404": 3}}
    (ledger / "00000.json").write_text(json.dumps(record))
    audit = {"checks": {"pairs_rows": {"verdict": "pass", "sentence": "all <there>"}}}
    (tmp_path / "demo/audit.json").write_text(json.dumps(audit))
    return tmp_path / "demo"


def test_the_page_shows_all_there_is_and_needs_no_network(folder):
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text()
    for text in ("strong", "weak", "100.00", "step-000100", "http_404 3", "all &lt;there&gt;"):
        assert text in page, text
    assert page.count("ground truth") >= 1 and page.count("data:image/png;base64,") >= 4
    assert "<polyline" in page and "window" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "http" not in page.replace(
        "http_", ""
    )


def test_pictures_segmented_by_free_words_are_on_the_page(folder, tmp_path):
    from codeseg.pipeline.storybook.scenes import draw_scene

    draw_scene(3, 0).image.save(tmp_path / "my photo.png")
    words = ["--text", "a very <red> car", "--text", "green grass"]
    out = ["--out", str(folder / "segments")]
    done = CliRunner().invoke(app, ["segment", str(tmp_path / "my photo.png"), *words, *out])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text()
    assert "a very &lt;red&gt; car" in page and "my photo.png" in page


def test_the_curve_over_thresholds_is_computed_once_for_the_same_scores(tmp_path):
    manifest = toy(tmp_path / "data", raw=np.tile([[0, 1, 2]], (6, 8)), background="true")
    out = tmp_path / "demo/toy"
    words = ["--benchmark", manifest, "--data", manifest.parent, "--method", "maskclip"]
    words += ["--clip", "storybook", "--pretrained", "storybook"]
    done = CliRunner().invoke(app, ["evaluate", *map(str, words), "--out", str(out)])
    assert done.exit_code == 0, done.output

    def report():
        done = CliRunner().invoke(app, ["report", str(tmp_path / "demo")])
        assert done.exit_code == 0, done.output
        return "curve over thresholds" in done.output, (tmp_path / "demo/report.html").read_text()

    computed, page = report()
    assert computed and "toy: threshold" in page and "<polyline" in page
    assert report() == (False, page)
    for path, content in (
        (out / "scores.json", (out / "scores.json").read_text() + "\n"),
        (out / "threshold.json", "{"),
    ):
        path.write_text(content)
        assert report() == (True, page)


def test_evaluations_of_the_same_name_are_told_apart():
    runs = [Path(f"runs/{run}/evaluations/voc/code") for run in ("a", "b")]
    assert names_apart(runs) == ["a/code", "b/code"]
    assert names_apart([*runs, Path("clip")]) == ["a/code", "b/code", "clip"]
    assert names_apart([Path("runs/code"), Path("code")]) == ["runs/code", "code"]
    deep = [Path("x/1/run"), Path("x/2/run"), Path("y/1/run")]
    assert names_apart(deep) == ["x/1/run", "x/2/run", "y/1/run"]


def test_segments_written_by_something_else_are_named(folder):
    (folder / "segments.json").write_text('{"images": [{"folder": 3}]}')
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert isinstance(done.exception, ValueError) and "segments.json" in str(done.exception)


def test_an_empty_folder_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(done.exception, ValueError) and "nothing to report" in str(done.exception)


def test_what_users_wrote_is_escaped(tmp_path):
    bars = figures.bars(["<b>"], {"<i>": [1.0]}, "%")
    table = figures.table(["<b>"], [["<i>"]])
    write_report(tmp_path / "r.html", [Section("<u>", bars + table, "<s>")], title="<q>")
    page = (tmp_path / "r.html").read_text()
    for tag in ("<b>", "<u>", "<s>", "<q>"):
        assert tag not in page.replace("<b></b>", "")
    assert "&lt;u&gt;" in page


def test_bars_lengths_are_proportional_and_absent_classes_have_none():
    chart = figures.bars(["a", "b", "c"], {"m": [10.0, 20.0, None]}, "%")
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert len(widths) == 2 and widths[1] == pytest.approx(2 * widths[0])


def test_lines_leave_out_what_is_not_finite():
    chart = figures.lines({"m": ([1, 2, 3], [1.0, float("nan"), 3.0])}, "step", "loss")
    points = re.search(r'points="([^"]*)"', chart)
    assert points and len(points[1].split()) == 2
