"""The end of an offline stage: what comes next, or what to do about nothing or failure."""

import pytest
import typer

from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.shards import StageReport, read_shard
from codeseg.pipeline.engine.stage import FEATURES, NOUNS, PAIRS, REGIONS
from codeseg.pipeline.engine.storage import Storage
from codeseg.stages.options import conclude


def commit(root, table, rows_out, rejected):
    record = ShardRecord(table, 0, "i", "s", "o", {}, 9, rows_out, rejected, 0, 0.0, {})
    Ledger(root).commit(record)
    return record


@pytest.mark.parametrize("stage", [PAIRS, NOUNS, FEATURES, REGIONS])
def test_every_stage_names_the_next_command(tmp_path, capsys, stage):
    root = Storage.open(tmp_path)
    record = commit(root, stage.table, 9, {})
    conclude(root, stage, [StageReport(stage.table, [record])])
    assert f"next: codeseg {stage.next.split()[0]} {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("stage", [PAIRS, NOUNS, FEATURES, REGIONS])
def test_an_empty_table_is_exit_1_with_reasons_and_what_to_do(tmp_path, capsys, stage):
    root = Storage.open(tmp_path)
    commit(root, stage.table, 0, {"dns": 8, "timeout": 1})
    with pytest.raises(typer.Exit) as caught:
        conclude(root, stage, [StageReport(stage.table)])
    assert caught.value.exit_code == 1
    said = capsys.readouterr().err
    assert "was kept (dns 8, timeout 1): " + stage.empty in said and "next:" not in said


def test_a_table_that_nothing_went_into_points_to_the_stage_before(tmp_path, capsys):
    root = Storage.open(tmp_path)
    commit(root, "nouns", 0, {})
    with pytest.raises(typer.Exit):
        conclude(root, NOUNS, [StageReport("nouns")])
    assert f"the previous stage kept none: codeseg status {tmp_path}" in capsys.readouterr().err


def test_failed_shards_are_exit_1(tmp_path, capsys):
    root = Storage.open(tmp_path)
    commit(root, "nouns", 9, {})
    with pytest.raises(typer.Exit) as caught:
        conclude(root, NOUNS, [StageReport("nouns", failed={3: "no tagger"})])
    assert caught.value.exit_code == 1 and "1 shards failed" in capsys.readouterr().err


def test_shards_whose_upstream_is_still_at_work_are_counted(tmp_path, capsys):
    root = Storage.open(tmp_path)
    for shard in range(3):
        pairs = ShardRecord("pairs", shard, "i", "s", f"p{shard}", {}, 9, 9, {}, 0, 0.0, {})
        Ledger(root).commit(pairs)
    record = commit(root, "nouns", 9, {})
    conclude(root, NOUNS, [StageReport("nouns", [record])])
    assert "2 shards of nouns are still missing" in capsys.readouterr().out


def test_a_file_that_is_deleted_under_a_running_stage_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"pairs/00002\.parquet is gone; run `codeseg download"):
        read_shard(Storage.open(tmp_path), PAIRS, 2, ["key"])
