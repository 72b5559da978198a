"""Ledger: what is current, missing, stale, and why."""

import json
from dataclasses import asdict, fields, replace
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, fingerprint
from codeseg.pipeline.engine.overview import read_overview
from codeseg.pipeline.engine.progress import read_heartbeat
from codeseg.pipeline.engine.stage import NOUNS, state
from codeseg.pipeline.engine.storage import Storage


def record(shard, **changes):
    base = ShardRecord(
        stage="nouns",
        shard=shard,
        input=f"in{shard}",
        settings="s",
        output="ab" * 32,
        files={f"nouns/{shard:05d}.parquet": {"bytes": 10, "sha256": "ab" * 32}},
        rows_in=10,
        rows_out=8,
        rejected={"no_nouns": 2},
        bytes=10,
        seconds=0.5,
        versions={"spacy": "3.8"},
    )
    return replace(base, **changes)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Storage.open(tmp_path))


def test_records_come_back_as_committed_in_shard_order(ledger):
    for shard in (11, 2, 0):
        ledger.commit(record(shard))
    assert list(ledger.records("nouns").items()) == [(s, record(s)) for s in (0, 2, 11)]
    assert ledger.records("features") == {}


def test_settings_are_no_record(ledger):
    ledger.write_settings("nouns", {"min_nouns": 2})
    assert ledger.records("nouns") == {}
    assert ledger.read_settings("nouns") == {"min_nouns": 2}
    assert ledger.read_settings("features") is None


def nouns(root, inputs):
    return state(Storage.open(root), NOUNS, settings="s", inputs=inputs)


def test_state_tells_current_missing_and_stale_apart(ledger, tmp_path):
    for shard in range(4):
        Storage.open(tmp_path).write_atomic(f"nouns/{shard:05d}.parquet", bytes(10))
        ledger.commit(record(shard))
    ledger.commit(record(2, settings="old"))
    ledger.commit(record(3, settings="old", input="old"))
    result = nouns(tmp_path, {0: "in0", 1: "other", 2: "in2", 3: "in3", 4: "in4"})
    assert result.current == [0]
    assert result.missing == [4]
    assert result.stale == {
        1: "its input changed",
        2: "its settings changed",
        3: "its input changed and its settings changed",
    }
    assert result.pending == [1, 2, 3, 4]


def test_a_shard_whose_file_is_gone_or_cut_is_done_again(ledger, tmp_path):
    for shard in range(3):
        Storage.open(tmp_path).write_atomic(f"nouns/{shard:05d}.parquet", bytes(10))
        ledger.commit(record(shard))
    (tmp_path / "nouns/00000.parquet").unlink()
    (tmp_path / "nouns/00002.parquet").write_bytes(bytes(9))
    ledger.commit(record(3, files={}))
    result = nouns(tmp_path, {i: f"in{i}" for i in range(4)})
    assert result.current == [1]
    assert result.stale == dict.fromkeys([0, 2, 3], "its file is gone or damaged")


def test_a_retracted_shard_is_missing(ledger, tmp_path):
    ledger.commit(record(0))
    ledger.retract("nouns", 0)
    ledger.retract("nouns", 0)
    assert nouns(tmp_path, {0: "in0"}).missing == [0]


def test_fingerprints_ignore_key_order_and_see_every_change():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    values = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": [1]}, {}]
    assert len({fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stage": "nouns"}', b"\xff\xfe"])
def test_a_broken_record_is_named(ledger, tmp_path, content):
    ledger.commit(record(0))
    (tmp_path / "ledger/nouns/00000.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"ledger/nouns/00000\.json is not a ledger file"):
        ledger.records("nouns")


def test_a_ledger_is_read_by_one_listing_and_one_read_a_record(ledger, monkeypatch):
    for shard in range(50):
        ledger.commit(record(shard))
    read, read_bytes = [], Storage.read_bytes
    monkeypatch.setattr(Storage, "read_bytes", lambda *a: read.append(a[1]) or read_bytes(*a))
    assert len(ledger.records("nouns")) == 50
    assert sorted(read) == [f"ledger/nouns/{shard:05d}.json" for shard in range(50)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.sampled_from([f.name for f in fields(ShardRecord)]), VALUES)
def test_a_record_of_any_wrong_type_is_one_line_and_never_done(name, value):
    good = asdict(record(3))
    with TemporaryDirectory() as folder:
        root = Storage.open(folder)
        text = json.dumps({**good, name: value})
        root.write_atomic("ledger/nouns/00003.json", text.encode())
        try:
            found = Ledger(root).record("nouns", 3)
        except ValueError as error:
            assert "ledger/nouns/00003.json is not a ledger file" in str(error)
        else:
            assert asdict(found) == json.loads(text), "only a value of the right type is taken"
            state(root, NOUNS, settings="s", inputs={3: "in3"})  # and nothing trips over it


@pytest.mark.parametrize("rows", [-1, 2**63])
def test_a_count_that_no_table_can_hold_is_refused(ledger, rows):
    ledger.commit(record(0, rows_in=rows))
    with pytest.raises(ValueError, match="is not a ledger file"):
        ledger.records("nouns")


def test_a_file_whose_name_only_looks_like_a_number_is_no_record(ledger, tmp_path):
    ledger.commit(record(0))
    (tmp_path / "ledger/nouns/\u00b2.json").write_text("{}")
    assert list(ledger.records("nouns")) == [0]


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "nouns/../../x"])
def test_a_record_that_names_a_file_outside_the_root_is_refused(ledger, tmp_path, path):
    ledger.commit(replace(record(0), files={path: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(ValueError, match="is not a ledger file"):
        ledger.records("nouns")


def test_a_record_of_another_shard_is_refused(ledger, tmp_path):
    ledger.commit(record(0))
    folder = tmp_path / "ledger/nouns"
    (folder / "00000.json").rename(folder / "00001.json")
    with pytest.raises(ValueError, match=r"00001\.json is not a ledger file"):
        ledger.records("nouns")


@given(VALUES)
@pytest.mark.slow
def test_progress_and_settings_of_any_content_stop_no_status(value):
    with TemporaryDirectory() as folder:
        root = Storage.open(folder)
        Ledger(root).commit(record(3))
        for name in ("progress", "settings"):
            root.write_atomic(f"ledger/nouns/{name}.json", json.dumps(value).encode())
        beat = read_heartbeat(root, "nouns")
        assert beat is None or isinstance(beat.alive, bool)
        try:
            read_overview(root)
        except ValueError as error:
            assert "\n" not in str(error) and "delete it" in str(error)
