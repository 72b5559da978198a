"""The features stage on a store that fails: retried, or said in one line and done next time."""

import itertools
import subprocess
import sys

import pytest

from bench.make_nouns import make_nouns
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage
from tests.pipeline.engine.test_object_store import ObjectStore, store
from tests.pipeline.features.test_worker import WISHES, run

__all__ = ["store"]  # the fixture

FILES = ("vocabulary/nouns.arrow", "features/00000.arrow", "features/00001.arrow")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The bytes that a local disk gets."""
    root = tmp_path_factory.mktemp("local")
    make_nouns(root)
    run(root)
    return contents(root)


def contents(root):
    storage = Storage.open(root)
    return {path: storage.read_bytes(path) for path in FILES if storage.exists(path)}


def first_of_each(faults):
    """Every object's first request of each method fails, by one fault after the other."""
    kinds, seen = itertools.cycle(faults), set()

    def fault(method, path):
        if (method, path) in seen:
            return None
        seen.add((method, path))
        return next(kinds)

    return fault


def test_faults_that_pass_change_no_byte(store: ObjectStore, expected):
    make_nouns(store.uri)
    store.fault = first_of_each([503, "close", 500, "cut"])
    run(store.uri)
    store.fault = lambda method, path: None
    assert contents(store.uri) == expected


def test_an_answer_after_the_time_out_is_asked_for_again(store: ObjectStore, expected):
    make_nouns(store.uri)
    stalled = []

    def stall(method, path):
        if path.endswith("features/00000.arrow") and method not in stalled:
            stalled.append(method)
            return "stall"

    store.fault = stall
    run(store.uri)
    assert "PUT" in stalled
    assert contents(store.uri) == expected


@pytest.mark.parametrize("fault", ["cut", "close", 503])
def test_a_store_that_stays_broken_leaves_the_shard_to_the_next_run(
    store: ObjectStore, expected, fault
):
    make_nouns(store.uri)
    broken = "pairs/00001.parquet" if fault == "cut" else "features/00001.arrow"
    store.fault = lambda method, path: fault if path.endswith(broken) else None
    with pytest.raises(OSError, match=r".+"):
        run(store.uri)
    store.fault = lambda method, path: None
    assert list(Ledger(Storage.open(store.uri)).records("features")) == [0]
    run(store.uri)
    assert contents(store.uri) == expected


def test_an_upload_that_stopped_in_its_middle_is_done_again(store: ObjectStore, expected):
    """What a killed worker leaves: a short object in place and no record."""
    make_nouns(store.uri)
    run(store.uri)
    root = Storage.open(store.uri)
    Ledger(root).retract("features", 1)
    root.write_atomic("features/00001.arrow", expected["features/00001.arrow"][:100])
    run(store.uri)
    assert contents(store.uri) == expected


@pytest.mark.slow
def test_the_command_on_a_bucket(store: ObjectStore, expected):
    """Broken: one line and exit 1. Well: the bytes of a local disk, vocabulary included."""
    make_nouns(store.uri)

    def codeseg_features():
        words = ["--clip", WISHES["clip"], "--pretrained", WISHES["pretrained"]]
        words += ["--batch-size", str(WISHES["batch_size"]), "--workers", "1", "--cpus", "1"]
        command = [sys.executable, "-m", "codeseg", "features", store.uri, *words]
        return subprocess.run(command, capture_output=True, text=True)

    store.fault = lambda method, path: 503
    broken = codeseg_features()
    assert broken.returncode == 1
    assert len(broken.stderr.splitlines()) == 1 and "503" in broken.stderr
    store.fault = lambda method, path: None
    well = codeseg_features()
    assert well.returncode == 0, well.stderr
    assert contents(store.uri) == expected
