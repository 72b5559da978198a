"""The audit's findings on a page: failures first, passes folded, figures in words."""

import re

import pytest

from codeseg.pipeline.audit.questions import Finding, check_names, questions
from codeseg.stages.pages.checks import checks_section, in_words
from tests.helpers.markup import Markup


def finding(check, verdict, **figures):
    return Finding(check, f"{check} is well.", verdict, figures, [f"{check}-key"], 0.1)


def test_every_check_has_words_for_its_figures():
    for name in check_names():
        told = re.findall(r"\{(\w+)%?\}", questions()[name].figures)
        assert told, name
        select = questions()[name].sql.rsplit("verdict(", 1)[1]
        assert [key for key in told if f"AS {key}" not in select] == [], name


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (finding("pairs_success", "pass", success=0.5971, pictures=597, urls=1000, left_out=0),
         "success rate 59.7 %: 597 pictures from 1,000 URLs; "
         "lines of the list that were no rows: 0"),
        (finding("pairs_success", "warn", success=0.5, pictures=1, urls=2, left_out=9),
         "success rate 50 %: 1 picture from 2 URLs; lines of the list that were no rows: 9"),
        (finding("pairs_success", "skip", **{"no rows in": "pairs"}), "no rows in: pairs"),
        (finding("pairs_success", "fail", error="Out of <memory>"), "error: Out of <memory>"),
        (finding("of_another_version", "pass", rows=3, share=None), "rows: 3, share: –"),
        (finding("noun_frequent", "pass", most_frequent="{share%}", share=0.1),
         "most frequent: {share%}, in 10 % of the captions"),
    ],
)  # fmt: skip
def test_figures_are_said_in_words(found, words):
    assert in_words(found) == words


def test_what_failed_comes_first_and_what_passed_is_folded():
    verdicts = {"keys_unique": "pass", "noun_spans": "fail", "leakage_near": "skip",
                "pairs_hosts": "warn"}  # fmt: skip
    section = checks_section([finding(check, verdict) for check, verdict in verdicts.items()])
    shown, *folded = section.html.split("<details>")
    assert shown.index("noun_spans") < shown.index("pairs_hosts")
    assert "noun_spans-key" in shown and "keys_unique" not in shown
    assert ["leakage_near" in part for part in folded] == [True, False]
    assert "keys_unique is well." in folded[1] and "keys_unique-key" not in folded[1]
    assert Markup(section.html).text.startswith("1 fail1 warn1 skip1 pass")
