"""status: what the ledger says, quickly, also while a stage runs."""

import json
import time
from collections import Counter
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, fingerprint
from codeseg.pipeline.engine.overview import read_overview
from codeseg.pipeline.engine.progress import Heartbeat
from codeseg.pipeline.engine.storage import Storage
from codeseg.stages.cli import app, load_command
from codeseg.stages.status import as_json, matrix


def record(stage, shard, made_from, settings="s"):
    return ShardRecord(
        stage, shard, made_from, settings, f"{stage}{shard}",
        {f"{stage}/{shard}": {"bytes": 1, "sha256": ""}}, 100, 90, {"dns": 6, "timeout": 4}, 1000,
        2.0, {},
    )  # fmt: skip


def commit_chain(root, shards):
    ledger = Ledger(root)
    for i in range(shards):
        for stage in ("urls", "pairs", "nouns", "features"):
            root.write_atomic(f"{stage}/{i}", b"x")
        ledger.commit(record("urls", i, "list"))
        ledger.commit(record("pairs", i, f"urls{i}"))
        ledger.commit(record("nouns", i, f"pairs{i}"))
        ledger.commit(record("features", i, fingerprint(f"nouns{i}+pairs{i}")))
    return ledger


def by_stage(root):
    return {view.stage: view for view in read_overview(root)}


def test_a_consistent_chain_is_current(tmp_path):
    root = Storage.open(tmp_path)
    commit_chain(root, 3)
    views = by_stage(root)
    for stage in ("pairs", "nouns", "features"):
        assert (views[stage].current, views[stage].stale) == ([0, 1, 2], {})
    assert views["regions"].missing == 3
    assert views["pairs"].rejected == {"dns": 18, "timeout": 12}
    assert views["pairs"].success == pytest.approx(0.9)


def test_a_changed_shard_makes_just_its_descendants_stale(tmp_path):
    root = Storage.open(tmp_path)
    ledger = commit_chain(root, 3)
    ledger.commit(replace(record("pairs", 1, "urls1"), output="retried"))
    views = by_stage(root)
    assert views["pairs"].stale == {}
    assert views["nouns"].stale == {1: "its input changed"}
    assert views["features"].stale == {1: "its input changed"}
    assert matrix(views["nouns"]) == "█░█"


def test_other_settings_than_the_stages_last_are_stale(tmp_path):
    root = Storage.open(tmp_path)
    ledger = commit_chain(root, 3)
    ledger.write_settings("nouns", {"fingerprint": "t"})
    ledger.commit(record("nouns", 2, "pairs2", settings="t"))
    views = by_stage(root)
    assert views["nouns"].stale == dict.fromkeys([0, 1], "its settings changed")


def test_a_running_stage_shows_its_rate_and_a_dead_one_does_not(tmp_path):
    root = Storage.open(tmp_path)
    commit_chain(root, 1)
    now = time.time()
    beat = Heartbeat("pairs", now - 10, now, shards=4, shards_done=1, rows=400, rows_done=100)
    beat.notes = {"00002": "paused 30 s: the network seems down, probing"}
    root.write_atomic("ledger/pairs/progress.json", json.dumps(asdict(beat)).encode())
    view = by_stage(root)["pairs"]
    assert view.beat.rows_per_second == pytest.approx(10)
    assert view.beat.eta_seconds == pytest.approx(30) and "00002" in view.beat.notes
    assert as_json(view)["eta_seconds"] == view.beat.eta_seconds
    beat.updated = now - 3600
    root.write_atomic("ledger/pairs/progress.json", json.dumps(asdict(beat)).encode())
    assert by_stage(root)["pairs"].beat is None


def test_the_command_prints_a_matrix_and_writes_json(tmp_path):
    commit_chain(Storage.open(tmp_path / "root"), 2)
    target = tmp_path / "status.json"
    result = CliRunner().invoke(app, ["status", str(tmp_path / "root"), "--json", str(target)])
    assert result.exit_code == 0, result.output
    assert "pairs rejected: dns 12, timeout 8" in result.output
    found = {view["stage"]: view for view in json.loads(target.read_text())}
    assert found["nouns"]["current"] == [0, 1] and found["regions"]["missing"] == 2


def test_a_folder_that_is_no_root_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="is not a dataset root: it has no ledger"):
        read_overview(Storage.open(tmp_path))


def test_each_record_is_read_once(tmp_path, monkeypatch):
    root = Storage.open(tmp_path)
    commit_chain(root, 20)
    read, read_bytes = Counter(), Storage.read_bytes
    monkeypatch.setattr(Storage, "read_bytes", lambda *a: read.update([a[1]]) or read_bytes(*a))
    load_command("status").main([str(tmp_path)], standalone_mode=False)
    records = {path: times for path, times in read.items() if path.endswith("0.json")}
    assert len(records) >= 6 and set(records.values()) == {1}
