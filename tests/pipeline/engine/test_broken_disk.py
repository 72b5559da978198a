"""A disk that answers EIO or ENOSPC in the middle of a shard: said in one line, done next time."""

import errno
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.make_nouns import make_nouns
from codeseg.pipeline.engine import lock, shards, storage
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.lock import StageLock
from codeseg.pipeline.engine.shards import _RayWorker
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.nouns.tagger import NounWorker, resolve_tagger

TABLE, RECORD = "nouns/00000.parquet", "ledger/nouns/00000.json"


class BrokenDisk:
    """Fails an operation on files of a name, so many times."""

    def __init__(self, monkeypatch):
        self.hits = Counter()
        self.wish = ("", "", 0, 0)
        write, fsync, replace = storage._HashingFile.write, os.fsync, Path.replace

        def broken_write(file, data):
            self._maybe_fail("write", file._file.name)
            return write(file, data)

        def broken_fsync(descriptor):
            self._maybe_fail("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def broken_replace(path, target):
            self._maybe_fail("rename", str(target))
            return replace(path, target)

        monkeypatch.setattr(storage._HashingFile, "write", broken_write)
        monkeypatch.setattr(os, "fsync", broken_fsync)
        monkeypatch.setattr(Path, "replace", broken_replace)

    def _maybe_fail(self, operation, path):
        wanted, name, number, times = self.wish
        if operation == wanted and Path(name).name in path and self.hits[operation] < times:
            self.hits[operation] += 1
            raise OSError(number, os.strerror(number), path)


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(shards, "BACKOFF_SECONDS", 0.0)
    return BrokenDisk(monkeypatch)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    assert attempt(prepare(root)) == ""
    return outcome(root)


def prepare(root):
    make_nouns(root, shards=1)
    Ledger(Storage.open(root)).retract("nouns", 0)
    return Storage.open(root)


def attempt(root):
    """What the command would show of the shard, after a run by itself."""
    with StageLock(root, "nouns") as held:
        settings = asdict(resolve_tagger())
        worker = _RayWorker("nouns", NounWorker, root.uri, settings, held.owner.token)
        return worker({"shard": [0], "input": ["i"]})["error"][0]


def outcome(folder):
    record = asdict(Ledger(Storage.open(folder)).record("nouns", 0))
    del record["seconds"], record["owner"]
    return record, (folder / TABLE).read_bytes()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", [TABLE, RECORD])
@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
@pytest.mark.slow
def test_a_fault_that_stays_is_one_line_and_the_next_run_ends_the_same(
    tmp_path, disk, expected, operation, name, number
):
    root = prepare(tmp_path)
    disk.wish = (operation, name, number, 1000)
    said = attempt(root)
    assert os.strerror(number) in said and "\n" not in said
    assert disk.hits[operation] == (shards.ATTEMPTS if number == errno.EIO else 1)
    assert Ledger(root).record("nouns", 0) is None
    assert not list(tmp_path.rglob(f"*{storage.UNFINISHED}"))
    disk.wish = ("", "", 0, 0)
    assert attempt(root) == ""
    assert outcome(tmp_path) == expected


@pytest.mark.parametrize("name", [TABLE, RECORD])
@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
def test_a_fault_that_passes_changes_no_byte(tmp_path, disk, expected, operation, name):
    root = prepare(tmp_path)
    disk.wish = (operation, name, errno.EIO, 1)
    assert attempt(root) == "" and disk.hits[operation] == 1
    assert outcome(tmp_path) == expected


def test_a_lock_that_could_not_be_written_is_nobodys(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.0)
    root = Storage.open(tmp_path)
    disk.wish = ("fsync", "000001.json", errno.EIO, 1)
    with pytest.raises(OSError, match="Input/output error"):
        StageLock(root, "nouns").__enter__()
    assert root.names("ledger/nouns/lock") == []
    with StageLock(root, "nouns") as mine:
        assert mine.held
