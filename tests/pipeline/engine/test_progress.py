"""Progress: rows of running shards are shown before the shard is done."""

from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.progress import (
    ShardRows,
    StageProgress,
    read_heartbeat,
)
from codeseg.pipeline.engine.storage import Storage


def test_the_rows_of_running_shards_count_before_they_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr("codeseg.pipeline.engine.progress.HEARTBEAT_SECONDS", 0)
    root = Storage.open(tmp_path)
    progress = StageProgress(root, "features", {0: 100, 1: 50})
    worker = ShardRows()
    worker.count(7)  # outside a stage
    worker.begin(root, "features", 1)
    worker.count(20)
    worker.count(10, total=60)
    progress._write()
    beat = read_heartbeat(root, "features")
    assert (beat.rows_running, beat.rows, beat.rows_done) == (30, 160, 0)
    assert beat.line().startswith("30 of 160 rows, ") and "left" in beat.line()
    progress.done(ShardRecord("features", 1, "i", "s", "o", {}, 60, 55, {"x": 5}, 0, 0.0, {}))
    progress._write()  # the note is still there
    beat = read_heartbeat(root, "features")
    assert (beat.rows_running, beat.rows, beat.rows_done) == (0, 160, 60)
    worker.end()
    assert root.names("ledger/features/notes") == []
