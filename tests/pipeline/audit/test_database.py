"""The audit finds what is wrong with a dataset, finds nothing else, and changes nothing."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.audit.questions import check_names, questions
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.engine.storage import Storage
from codeseg.stages.cli import app
from tests.helpers.audit_data import Rows, Spoils, make_root

NOT_PERFECT = {"noun_coverage": "pass", "leakage_exact": "skip", "leakage_near": "skip",
               "metrics_finite": "skip"}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("sound") / "root")


def verdicts(root: Path, **options: object) -> dict[str, str]:
    with Audit(Storage.open(root), AuditOptions(**options)) as audit:
        return {finding.check: finding.verdict for finding in map(audit.check, check_names())}


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


@pytest.mark.parametrize("tokens", ["fp16", "int8"])
def test_a_sound_dataset_passes_every_check(tmp_path: Path, tokens: str) -> None:
    found = verdicts(make_root(tmp_path / "root", tokens=tokens), hashes=True)
    assert {name: v for name, v in found.items() if v != "pass"} == {
        name: v for name, v in NOT_PERFECT.items() if v != "pass" and name in found
    }


def share(rows: Rows, first: int, *others: int) -> None:
    """Give rows another one's picture, and its URL."""
    for other in others:
        kept = ("url", "jpg", "sha256", "width", "height", "original_width", "original_height")
        rows[other] |= {name: rows[first][name] for name in kept}


def test_captions_of_one_picture_are_told_from_pictures_that_are_there_twice(
    tmp_path: Path,
) -> None:
    def spoil(rows: Rows) -> None:
        share(rows, 20, 21, 22)  # three captions, one URL
        rows[22]["url"] = rows[22]["url"].replace("https://host2", "HTTPS://Host2") + "#part"
        share(rows, 24, 25)  # the same caption again
        rows[25]["caption"] = rows[24]["caption"]
        share(rows, 26, 27)
        rows[27]["url"] = "https://elsewhere.org/a.jpg"  # the same picture elsewhere
        share(rows, 30, 31)
        rows[30]["url"], rows[31]["url"] = "a.tar#x", "a.tar#y"  # two samples of a tar
        rows[32]["url"] = rows[33]["url"] = "https://h.org/changes.jpg"  # which gave two pictures

    root = make_root(tmp_path / "root", Spoils(pairs=spoil))
    with Audit(Storage.open(root), AuditOptions()) as opened:
        finding = opened.check("duplicates_exact")
        shown = opened.figures(questions()["show_pictures_captions"])
        repeated = opened.figures(questions()["show_pictures_repeated"])
        near = opened.query("SELECT count(*) AS n FROM near_pictures").to_pylist()
    assert finding.verdict == "warn"
    assert finding.keys == [f"00000{row:04d} ×2" for row in (24, 26, 30)]
    assert finding.figures == {
        "pictures": 340 - 2, "groups": 3, "repeats": 3, "largest": 2, "captions": 2,
    }  # fmt: skip
    assert shown == [{"key": "000000020", "note": "3 captions"}]
    assert [row["key"] for row in repeated] == [f"00000{row:04d}" for row in (24, 26, 30)]
    assert near == [{"n": 0}]


def test_every_question_says_what_it_proves() -> None:
    assert len(check_names()) > 30
    for question in questions().values():
        assert question.sentence.endswith(".") and len(question.sentence) > 15


def test_planted_failure_decides_the_exit_code(tmp_path: Path) -> None:
    def plant(rows: list[dict[str, object]]) -> None:
        rows[7]["noun_ids"] = [1, 2]  # in no vocabulary

    root = make_root(tmp_path / "root", Spoils(features=plant))
    runner = CliRunner()
    assert runner.invoke(app, ["audit", str(root)]).exit_code == 0
    report = tmp_path / "audit.json"
    result = runner.invoke(
        app, ["audit", str(root), "--fail-on", "feature_links", "--json", str(report)]
    )
    assert result.exit_code == 1, result.output
    found = json.loads(report.read_text())["checks"]
    assert found["feature_links"]["keys"] == ["000000008"]
    assert [n for n, f in found.items() if f["verdict"] == "fail"] == ["feature_links"]


def test_sql_answers_and_writes_nothing(sound: Path, tmp_path: Path) -> None:
    before = snapshot(sound)
    with Audit(Storage.open(sound), AuditOptions()) as audit:
        rows = audit.query("SELECT status, count(*) AS n FROM pairs GROUP BY 1 ORDER BY 1")
        assert rows.to_pylist() == [{"status": "failed", "n": 60}, {"status": "success", "n": 340}]
        target = tmp_path / "stolen.csv"
        for statement in (
            f"COPY pairs TO '{target}'",
            f"COPY (SELECT 1) TO '{sound}/pairs/00000.parquet'",
            "CREATE TABLE t AS SELECT 1",
            "INSERT INTO pairs SELECT * FROM pairs",
            "DELETE FROM pairs",
            f"ATTACH '{target}'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET memory_limit = '8GB'",
            "RESET enable_external_access",
            "EXPLAIN ANALYZE SELECT 1",
            f"EXPORT DATABASE '{target}'",
            "PRAGMA version",
            "SELECT 1; SELECT 2",
            "WITH x AS (INSERT INTO thresholds VALUES ('a', 1, 'b') RETURNING *) FROM x",
            "WITH x AS (DELETE FROM thresholds RETURNING *) FROM x",
            "COMMIT",
            "CALL enable_logging()",
            f"FROM query('COPY pairs TO ''{target}''')",
            f"SELECT * FROM read_text('{sound}/ledger/pairs/00000.json')",
            "SELECT * FROM read_text('/etc/passwd')",
            "SELECT * FROM '/etc/passwd'",
            "SELECT * FROM glob('/*')",
            "SELECT nonsense",
            "SELEC 1",
            "",
        ):
            with pytest.raises(ValueError) as caught:
                audit.query(statement)
            assert "\n" not in str(caught.value)
        assert audit.query("PIVOT pairs ON status USING count(*)").num_rows == 400
        assert audit.query("FROM thresholds WHERE name = 'a'").num_rows == 0
        assert not target.exists()
    assert snapshot(sound) == before


def test_sql_gives_every_value_of_every_type_and_column(sound: Path, tmp_path: Path) -> None:
    """Python's dates end in 9999 and lack infinity; a row's columns may share a name."""
    question = (
        """SELECT DATE '99999-01-01' AS "a ""b", 1 AS n, 2 AS n, ['-infinity'::TIMESTAMP] AS s"""
    )
    with Audit(Storage.open(sound), AuditOptions()) as audit:
        rows = audit.query(question)
        assert list(rows.to_pylist()[0].values()) == ["99999-01-01", 1, 2, "[-infinity]"]
        assert rows.column_names[0] == 'a "b'
        assert audit.query("FROM test_all_types()").to_pylist()
        ordered = audit.query("SELECT key, current_date AS day FROM pairs ORDER BY key DESC")
    assert ordered["key"].to_pylist() == sorted(ordered["key"].to_pylist(), reverse=True)
    file = tmp_path / "rows.json"
    done = CliRunner().invoke(app, ["audit", str(sound), "--sql", question, "--json", str(file)])
    assert done.exit_code == 0 and "99999-01-01" in done.output and "99999" in file.read_text()


def test_the_documented_checks_are_the_real_ones_and_the_queries_run(sound: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "audit.md").read_text()
    section = page.split("## The checks")[1].split("## The views")[0]
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, flags=re.MULTILINE)
    checks = {name: questions()[name].sentence for name in check_names()}
    assert dict(listed) == checks
    queries = re.findall(r"```sql\n(.*?)```", page, flags=re.DOTALL)
    assert len(queries) > 10
    with Audit(Storage.open(sound), AuditOptions()) as audit:
        for query in queries:
            audit.query(query)
