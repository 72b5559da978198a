import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from codeseg.model.pictures.overlay import OPACITY
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.stages.cli import app
from codeseg.stages.pages.evaluations import find_evaluations, names_apart
from tests.helpers.markup import check_ours
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
    found = {"sentence": "all <there>", "verdict": "pass", "figures": {"rows": 10}, "keys": []}
    audit = {"checks": {"pairs_rows": found | {"seconds": 0.1}}}
    (tmp_path / "demo/audit.json").write_text(json.dumps(audit))
    return tmp_path / "demo"


def test_the_page_shows_all_there_is_and_needs_no_network(folder):
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text()
    found = check_ours(page)
    for text in (
        "strong",
        "weak",
        "100.00",
        "step-000100",
        "http_404 3",
        "all <there>",
        "rows: 10",
    ):
        assert text in found.text, text
    assert found.text.count("ground truth") >= 1 and page.count("data:image/webp;base64,") >= 4
    assert "<polyline" in page and "window" in page
    assert "http" not in page.replace("http_", "").replace("http-equiv", "")


@pytest.mark.parametrize("side", ["stored", "upright"])
def test_a_turned_picture_lies_on_the_page_as_it_was_scored(folder, tmp_path, side):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = np.tile([[0, 1, 2]], (6, 8))
    stored = raw if side == "stored" else np.rot90(raw)
    black = np.zeros((*stored.shape, 3), np.uint8)
    Image.fromarray(black).save(tmp_path / "data/images/a.png", exif=exif)
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert set(embedded_sizes(folder / "report.html")) == {raw.shape[::-1]}


def embedded_sizes(page):
    """(width, height) of every picture in a page."""
    found = re.findall(r"data:image/webp;base64,([^\"]+)", page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(content))).size for content in found]


def test_pictures_segmented_by_free_words_are_on_the_page(folder, tmp_path):
    from codeseg.pipeline.storybook.scenes import draw_scene

    draw_scene(3, 0).image.save(tmp_path / "my photo.png")
    words = ["--text", "a very <red> car, green grass", "--clip", "storybook"]
    out = ["--out", str(folder / "segments")]
    done = CliRunner().invoke(app, ["segment", str(tmp_path / "my photo.png"), *words, *out])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    text = check_ours((folder / "report.html").read_text()).text
    assert "a very <red> car" in text and "my photo.png" in text


def test_evaluations_of_the_same_name_are_told_apart():
    runs = [Path(f"runs/{run}/evaluations/voc/code") for run in ("a", "b")]
    assert names_apart(runs) == ["a", "b"]
    assert names_apart([Path("demo/code"), Path("demo/clip")]) == ["code", "clip"]
    assert names_apart([Path("runs/code"), Path("code")]) == ["runs", "code"]
    assert names_apart([Path("runs/code")]) == ["code"]
    deep = [Path("x/1/run"), Path("x/2/run"), Path("y/1/run")]
    assert names_apart(deep) == ["x/1", "x/2", "y/1"]


def test_segments_written_by_something_else_are_named(folder):
    (folder / "segments.json").write_text('{"images": [{"folder": 3}]}')
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert isinstance(done.exception, ValueError) and "segments.json" in str(done.exception)


def test_an_empty_folder_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(done.exception, ValueError) and "nothing to report" in str(done.exception)


def change(folder, method, **changes):
    """Change what a score of the fixture recorded."""
    path = folder / "evaluation/toy" / method / "scores.json"
    scores = json.loads(path.read_text())
    settings = scores["settings"] | changes.pop("settings", {})
    path.write_text(json.dumps(scores | changes | {"settings": settings}))


def test_methods_have_their_names_and_the_best_of_equals_is_bold(folder):
    change(folder, "weak", settings={"method": "naclip+scg"})
    change(folder, "strong", settings={"method": "naclip+scg"})
    (group,) = find_evaluations(folder)
    assert [e.name for e in group] == ["NACLIP + SCG (weak)", "NACLIP + SCG (strong)"]
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    page = (folder / "report.html").read_text()
    assert page.count('<tr class="best">') == 1
    assert "strong" in page.split('<tr class="best">')[1].split("</tr>")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"protocol": "plain"}},
        {"settings": {"protocol_sha256": "another"}},
        {"settings": {"window": 224}},
        {"images": "b"},
    ],
)
def test_another_protocol_or_other_images_are_never_in_one_comparison(folder, changes):
    if "images" in changes:
        path = folder / "evaluation/toy/weak/images.parquet"
        table = pq.read_table(path)
        ids = pa.array([changes["images"]])
        pq.write_table(table.set_column(0, "id", ids), path)
        change(folder, "weak", data=None)
    else:
        change(folder, "weak", **changes)
    assert [len(group) for group in find_evaluations(folder)] == [1, 1]
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    page = (folder / "report.html").read_text()
    assert '<tr class="best">' not in page
    assert "Scores of different tables do not compare" in page


def test_intervals_and_paired_differences_are_shown(folder):
    pair = {"value": 50.0, "low": 41.5, "high": 58.25}
    against = {"predictions": "weak", "protocol": "code", "difference": pair, "p": 0.002}
    change(folder, "strong", miou_interval=pair | {"value": 100.0}, against=against)
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    text = check_ours((folder / "report.html").read_text()).text
    assert "100.00 (41.50 to 58.25)" in text
    assert "+50.00 (41.50 to 58.25) against weak, p 0.002; protocol there: code" in text


def test_a_part_of_the_split_is_said_to_be_one(folder):
    text = (folder.parent / "data/toy.toml").read_text()
    (folder.parent / "data/toy.toml").write_text(text.replace("images = 1\n", "images = 1449\n"))
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    page = (folder / "report.html").read_text()
    assert "1 of 1,449 images: does not compare with published scores" in page


def test_classes_that_never_occur_are_left_out(tmp_path):
    manifest = toy(tmp_path / "data", raw=np.tile([[0, 1, 2]], (6, 8)), classes=150)
    out = tmp_path / "scored/labels"
    out.mkdir(parents=True)
    Image.fromarray(np.full((6, 24), 1, np.uint8)).save(out / "a.png")
    words = ["--data", manifest.parent, "--predictions", out, "--out", out.parent]
    done = CliRunner().invoke(app, ["score", str(manifest), *map(str, words)])
    assert done.exit_code == 0, done.output
    path = out.parent / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manifest": str(manifest)}))
    assert CliRunner().invoke(app, ["report", str(out.parent)]).exit_code == 0
    found = check_ours((out.parent / "report.html").read_text())
    assert "c2" in found.text and "c3" not in found.text
    assert "columns: prediction; rows: label" in found.text and "IoU, %" in found.text
    assert "label maps made elsewhere" in found.text


def test_a_class_has_the_benchmarks_color_in_every_picture(folder, monkeypatch):
    painted = []
    monkeypatch.setattr(
        "codeseg.stages.pages.figures.embedded",
        lambda pixels, most: painted.append(np.asarray(pixels)) or "data:image/webp;base64,",
    )
    manifest = folder.parent / "data/toy.toml"
    manifest.write_text(manifest.read_text().replace("[2, 2, 2]", "[200, 100, 50]"))
    assert load_benchmark(manifest).palette[2] == (200, 100, 50)
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    _, truth, weak, strong = (np.asarray(picture) for picture in painted[:4])
    assert tuple(truth[-1, -1]) == tuple(round(OPACITY * c) for c in (200, 100, 50))
    assert (truth == strong).all() and not (truth == weak).all()


def test_the_report_predicts_nothing(folder):
    script = (
        "import sys\nfrom pathlib import Path\nfrom codeseg.stages.report import report\n"
        f"report(Path({str(folder)!r}))\nassert not {{'torch', 'duckdb'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


VERDICT = (
    '{"checks": {"a": {"sentence": "", "verdict": "?", "figures": {}, "keys": [], "seconds": 0}}}'
)


@pytest.mark.parametrize("name", ["scores.json", "audit.json"])
@pytest.mark.parametrize(
    "content", [VERDICT, "[]", '{"benchmark": 3}', '{"checks": {"a": {"b": 1}}}', "{"]
)
def test_a_file_of_something_else_is_named(folder, name, content):
    (folder / name).write_text(content)
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert isinstance(done.exception, ValueError | FileNotFoundError)
    assert name in str(done.exception) and "\n" not in str(done.exception)
