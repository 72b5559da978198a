"""What the audit says when there is little, something broken or something foreign to look at."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.audit.questions import check_names
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.engine.storage import Storage
from codeseg.stages.cli import app
from tests.helpers.audit_data import SHARDS, make_root
from tests.helpers.markup import check_ours


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("sound") / "root")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "root"))


def verdicts(root: str | Path, **options: object) -> dict[str, str]:
    with Audit(Storage.open(root), AuditOptions(**options)) as audit:
        return {finding.check: finding.verdict for finding in map(audit.check, check_names())}


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_that_is_no_root_is_refused_in_one_line(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "elsewhere"
    if made:
        (folder / "photos").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"elsewhere is not a dataset root.*codeseg download"):
        Audit(Storage.open(folder), AuditOptions())


def test_half_a_dataset_skips_what_cannot_be_asked(root: Path) -> None:
    for stage in ("features", "vocabulary"):
        shutil.rmtree(root / stage)
        shutil.rmtree(root / "ledger" / stage)
    found = verdicts(root)
    skipped = {name for name, verdict in found.items() if verdict == "skip"}
    assert {"feature_finite", "feature_links", "vocabulary_entries"} <= skipped
    assert set(found.values()) == {"pass", "skip"}


def test_a_stage_still_running_is_said_and_its_unfinished_file_left_alone(root: Path) -> None:
    (root / "ledger/nouns/00003.json").unlink()  # as between the file and its record
    for stage in ("features", "vocabulary"):
        shutil.rmtree(root / stage)
        shutil.rmtree(root / "ledger" / stage)
    (root / "nouns/.00002.parquet~ab.writing").write_bytes(b"half")
    with Audit(Storage.open(root), AuditOptions()) as audit:
        found = {finding.check: finding for finding in map(audit.check, check_names())}
        rows = audit.query("SELECT count(DISTINCT shard_of(key)) AS shards FROM nouns")
    assert rows.to_pylist() == [{"shards": SHARDS - 1}]
    assert found["ledger_complete"].keys == ["nouns/00003"]
    assert found["ledger_files"].keys == ["nouns/00003.parquet: extra: not in the ledger"]
    unsound = [name for name, f in found.items() if f.verdict in ("warn", "fail")]
    assert unsound == ["ledger_complete", "ledger_files"]


def test_a_broken_page_inside_a_file_fails_its_checks_only(root: Path) -> None:
    file = root / "nouns/00001.parquet"
    content = bytearray(file.read_bytes())
    content[200:1200] = bytes(1000)  # the footer stays whole
    file.write_bytes(content)
    with Audit(Storage.open(root), AuditOptions(hashes=True)) as audit:
        files = audit.check("ledger_files")
        spans = audit.check("noun_spans")
        assert audit.check("pairs_success").verdict == "pass"
    assert files.keys == ["nouns/00001.parquet: changed bytes"]
    assert spans.verdict in ("fail", "pass")
    if spans.verdict == "fail":
        assert "\n" not in str(spans.figures.get("error", ""))


def test_a_root_with_an_odd_name_is_read_all_the_same(sound: Path, tmp_path: Path) -> None:
    for name in ("it's", "part [1-2] {a}*"):
        assert verdicts(shutil.copytree(sound, tmp_path / name)) == verdicts(sound)


def test_a_damaged_run_is_named(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"metrics.parquet is damaged"):
        Audit(Storage.open(sound), AuditOptions(run=tmp_path))


def test_a_broken_record_is_named(root: Path) -> None:
    (root / "ledger/nouns/00001.json").write_text("{")
    with pytest.raises(ValueError, match=r"ledger/nouns/00001.json is not a ledger file"):
        Audit(Storage.open(root), AuditOptions())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-on", "nonsense"], "no such check; there are ledger_balance"),
        (["--limit", "nonsense=1"], "no such threshold"),
        (["--limit", "near_bits=x"], "write NAME=NUMBER"),
        (["--benchmark", "nonsense"], "nonsense"),
        (["--benchmark", "voc", "--data", "a", "--data", "b"], "one data folder per benchmark"),
        (["--data", "a"], "one data folder per benchmark"),
        (["--benchmark", "voc", "--data", "nowhere"], "nowhere"),
        (["--run", "nowhere"], "nowhere has no metrics.parquet"),
        (["--memory", "lots"], "memory"),
        (["--sql", "DROP VIEW pairs"], "the audit only reads"),
        (["--sql", "SELECT * FROM nowhere"], "nowhere does not exist"),
        (["--sql", "SELECT * FROM '/etc/passwd'"], "does not exist"),
        (["--sql", "SELECT * FROM read_csv('/etc/passwd')"], "disabled"),
    ],
)
def test_wrong_use_is_one_line(sound: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["audit", str(sound), *arguments])
    assert isinstance(result.exception, ValueError | FileNotFoundError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_shell_answers_until_its_input_ends_and_survives_mistakes(sound: Path) -> None:
    typed = "SELECT count(*)\nAS n FROM pairs;\nnonsense;\nDELETE FROM nouns;\nSELECT 41 + 1"
    result = CliRunner().invoke(app, ["audit", str(sound), "--shell"], input=typed)
    assert result.exit_code == 0, result.output
    assert re.search(r"\b400\b", result.output) and re.search(r"\b42\b", result.output)
    assert result.output.count("error:") == 2


def test_a_gate_that_could_not_be_asked_is_not_passed(sound: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, ["audit", str(sound), "--fail-on", "any"]).exit_code == 0
    assert run.invoke(app, ["audit", str(sound), "--fail-on", "leakage_near"]).exit_code == 1


def test_sql_rows_are_written_as_json(sound: Path, tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    sql = "SELECT stage, count(*) AS n FROM ledger GROUP BY 1 ORDER BY 1"
    arguments = ["audit", str(sound), "--sql", sql, "--json", str(target)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads(target.read_text())[0] == {"stage": "features", "n": 4}


@pytest.mark.slow
def test_report_stands_alone(sound: Path, tmp_path: Path) -> None:
    page = tmp_path / "audit.html"
    result = CliRunner().invoke(app, ["audit", str(sound), "--report", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count("<svg") > 8 and text.count("data:image/webp;base64,") > 20
    assert text.count("<tr") > 60
    check_ours(text)


@pytest.mark.slow
def test_a_root_on_an_object_store_gives_the_same_findings(sound: Path, bucket: str) -> None:
    store = Storage.open(bucket)
    for path in sorted(p for p in sound.rglob("*") if p.is_file()):
        store.write_atomic(path.relative_to(sound).as_posix(), path.read_bytes())
    assert verdicts(bucket, hashes=True) == verdicts(sound, hashes=True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty folder of an S3 server on loopback, a process of its own as in life."""
    import boto3
    from botocore.exceptions import EndpointConnectionError

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "moto.server", "-p", address.split(":")[1]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1")
        for _ in range(200):  # until it answers: 20 s at most
            try:
                client.create_bucket(Bucket="audited")
                break
            except EndpointConnectionError:
                time.sleep(0.1)
        yield f"s3://audited/root?endpoint_override={address}&scheme=http&region=us-east-1"
    finally:
        server.kill()
        server.wait()
