"""Charts and tables: what they draw is what the numbers say."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from codeseg.stages.pages import figures
from codeseg.stages.pages.html import Html, fill, join, readable
from tests.helpers.markup import Markup

ROOT = Path(__file__).resolve().parents[3]


def test_only_html_and_numbers_pass_unescaped():
    assert fill("<b>{} {:.1f} {}</b>", "<i>", 2.25, fill("<i>{x}</i>", x="&")) == (
        "<b>&lt;i&gt; 2.2 <i>&amp;</i></b>"
    )
    assert fill("{}", ["<i>"]) == "[&#x27;&lt;i&gt;&#x27;]"
    assert join([Html("<b>"), Html("</b>")], "<") == "<b>&lt;</b>"


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [
        (1200, False, "1,200"), (0.59734, True, "59.7 %"), (12345.678, False, "1.235e+04"),
        (["a", 2], False, "a · 2"), (None, False, "–"), (True, False, "True"),
        ("x" * 500, False, f"{'x' * 400}… (500 letters)"),
    ],
)  # fmt: skip
def test_values_are_said_as_people_read_them(value, share, text):
    assert readable(value, share) == text


def test_bars_lengths_are_proportional_and_absent_classes_have_none():
    chart = figures.bars(["a", "b", "c"], {"m": [10.0, 20.0, None]}, "IoU, %")
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert len(widths) == 2 and widths[1] == pytest.approx(2 * widths[0])
    assert "IoU, %" in Markup(chart).text


def test_lines_leave_out_what_is_not_finite():
    chart = figures.plot({"m": ([1, 2, 3], [1.0, float("nan"), 3.0])}, "step", "loss")
    points = re.search(r'points="([^"]*)"', chart)
    assert points and len(points[1].split()) == 2
    assert {"step", "loss"} <= set(Markup(chart).texts)
    assert "No numbers" in figures.plot({"m": ([1], [float("inf")])}, "step", "loss")


def test_a_power_law_is_a_straight_line_on_logarithmic_axes():
    xs = [1, 10, 100, 1000]
    chart = figures.plot({"m": (xs, [1 / x for x in xs])}, "rank", "captions", log=True)
    points = re.search(r'points="([^"]*)"', chart)[1].split()
    steps = np.diff([[float(c) for c in point.split(",")] for point in points], axis=0)
    assert np.allclose(steps, steps[0], atol=0.2)
    assert {"1", "10", "1,000", "0.01"} <= set(Markup(chart).texts)


def test_columns_stand_from_zero():
    chart = figures.plot({"n": ([0, 1, 2], [5, 10, 0])}, "words", "captions", columns=True)
    boxes = [
        tuple(map(float, b))
        for b in re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)" fill="#0072b2"', chart)
    ]
    assert len({y + height for y, height in boxes}) == 1
    assert boxes[1][1] == pytest.approx(2 * boxes[0][1], abs=0.2) and boxes[2][1] == 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 97), (-3, 4), (0.1, 0.15), (0, 1e9), (5, 5)])
def test_ticks_are_few_and_inside(low, high):
    found = figures.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 <= value <= high + 1e-6 for value in found)


def test_a_confusion_matrix_names_the_classes_that_occur_and_no_others():
    matrix = np.zeros((40, 40), np.int64)
    matrix[3, 3], matrix[3, 7] = 30, 10
    chart = figures.heat_map(matrix, [f"c{k}" for k in range(40)])
    text = Markup(chart).text
    assert set(re.findall(r"c\d+", text)) == {"c3", "c7"}
    assert "c3 as c3: 75 %" in text and "c3 as c7: 25 %" in text


def test_numbers_stand_right_and_the_best_row_is_marked():
    table = figures.table(["name", "n"], [["a", 1200], ["b", "59.7 %"]], best=1)
    assert table.count('class="number"') == 2 and "1,200" in table
    assert table.count('class="best"') == 1 and "b" in table.split('class="best"')[1]


def test_markup_is_filled_in_by_one_function():
    for path in sorted((ROOT / "stages/pages").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
                assert not [part for part in parts if re.search(r"<[/\w]", part)], where
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if called in ("Html", "escape") and path.name != "html.py":
                assert called == "Html" and not node.args, where
