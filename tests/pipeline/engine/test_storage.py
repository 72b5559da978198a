"""Storage: whole or not at all, the same face for a disk and an object store."""

import hashlib
import os
import stat
import subprocess
import sys
import textwrap

import pyarrow as pa
import pytest

from codeseg.pipeline.engine.storage import Storage


def test_a_written_file_reads_back_with_its_size_and_hash(tmp_path):
    root = Storage.open(tmp_path / "new" / "root")
    info = root.write_atomic("pairs/00000.parquet", b"content")
    assert info.bytes == 7
    assert info.sha256 == hashlib.sha256(b"content").hexdigest()
    assert root.read_bytes("pairs/00000.parquet") == b"content"
    assert root.size("pairs/00000.parquet") == 7
    assert root.exists("pairs")


def test_a_streamed_file_has_the_hash_of_its_bytes(tmp_path):
    root = Storage.open(tmp_path)
    table = pa.table({"key": [str(i) for i in range(5000)]})

    def write(sink):
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)

    info = root.write_atomic("t.arrow", write)
    assert info.sha256 == hashlib.sha256((tmp_path / "t.arrow").read_bytes()).hexdigest()
    assert pa.ipc.open_file(root.open_input("t.arrow")).read_all().equals(table)


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path):
    root = Storage.open(tmp_path)
    root.write_atomic("t/a", b"old")

    def write(sink):
        sink.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        root.write_atomic("t/a", write)
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["a"]
    assert root.read_bytes("t/a") == b"old"


def test_a_killed_write_is_not_listed_and_is_cleaned_up(tmp_path):
    script = """
        import sys, time
        from codeseg.pipeline.engine.storage import Storage
        def write(sink):
            sink.write(b"x" * 1000); sink.flush(); print("half", flush=True); time.sleep(60)
        Storage.open(sys.argv[1]).write_atomic("t/a", write)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"half\n"
    root = Storage.open(tmp_path)
    child.kill()
    child.wait()
    child.stdout.close()
    assert len(os.listdir(tmp_path / "t")) == 1 and root.names("t") == []
    root.claim("t", "next")
    root.release("t", "next")
    assert os.listdir(tmp_path / "t") == []


def test_another_programs_unfinished_file_is_left_alone(tmp_path):
    (tmp_path / ".syncthing.00000.parquet.tmp").touch()
    Storage.open(tmp_path).claim("", "next")
    assert sorted(os.listdir(tmp_path)) == [".next.writing", ".syncthing.00000.parquet.tmp"]


def test_a_former_owner_can_finish_no_file_whenever_it_wakes_up(tmp_path):
    root = Storage.open(tmp_path)
    root.claim("t", "first")
    former, owner = root.written_by("first"), root.written_by("second")
    former.write_atomic("t/a", b"first's")

    def sleepy(sink):
        sink.write(b"late")
        root.claim("t", "second")
        owner.write_atomic("t/a", b"second's")

    for write in (sleepy, b"later", b"in a folder of its own again"):
        with pytest.raises(FileNotFoundError):
            former.write_atomic("t/a", write)
        root.release("t", "first")
        assert root.names("t") == ["a"] and root.read_bytes("t/a") == b"second's"


def test_names_are_sorted_and_a_missing_folder_is_empty(tmp_path):
    root = Storage.open(tmp_path)
    for name in ("00002.parquet", "00000.parquet", "note.txt"):
        root.write_atomic(f"pairs/{name}", b"")
    assert root.names("pairs", ".parquet") == ["00000.parquet", "00002.parquet"]
    assert root.names("nouns") == []


def test_a_missing_file_is_named_with_its_root(tmp_path):
    root = Storage.open(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*no file nouns/00000"):
        root.read_bytes("nouns/00000.parquet")
    root.delete("nouns/00000.parquet")  # deleting nothing is no error


def test_free_space_is_told_before_the_folder_exists(tmp_path):
    assert Storage.open(tmp_path / "not" / "yet").free_bytes() > 0


def test_an_unknown_scheme_is_one_clear_line():
    with pytest.raises(ValueError, match="ftp://host/x is not a folder"):
        Storage.open("ftp://host/x")


def test_a_file_system_that_refuses_to_sync_folders_works(tmp_path, monkeypatch):
    honest = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Storage.open(tmp_path).write_atomic("a/b", b"x")
    assert (tmp_path / "a/b").read_bytes() == b"x"
