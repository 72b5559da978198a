"""The stream from an object store (moto on loopback): the same batches, honest errors."""

import itertools
from pathlib import Path

import pytest

from bench.make_features import make_features
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.batches import FeatureStream, StreamBatch
from tests.pipeline.engine.test_object_store import ObjectStore, store
from tests.pipeline.stream.test_batches import assert_equal

__all__ = ["store"]  # the fixture


def upload(root: Path, remote: Storage) -> None:
    for path in sorted(root.rglob("*.*")):
        remote.write_atomic(str(path.relative_to(root)), path.read_bytes())


def take(uri: str | Path, count: int, **options) -> list[StreamBatch]:
    return list(itertools.islice(iter(FeatureStream(uri, batch_size=9, **options)), count))


def test_an_object_store_gives_the_batches_of_a_local_folder(tmp_path, store: ObjectStore):
    make_features(tmp_path, block_rows=4)
    upload(tmp_path, Storage.open(store.uri))
    expected = take(tmp_path, 20)
    for ours, theirs in zip(take(store.uri, 20), expected, strict=True):
        assert_equal(ours, theirs)


def test_each_shard_is_opened_once_however_many_blocks_it_has(tmp_path, store: ObjectStore):
    make_features(tmp_path, shards=2, block_rows=4)
    upload(tmp_path, Storage.open(store.uri))
    opened = []
    store.fault = lambda method, path: opened.append(path) if method == "HEAD" else None
    take(store.uri, 3)
    features = [path for path in opened if "/features/" in path and path.endswith(".arrow")]
    assert sorted(Path(path).name for path in features) == ["00000.arrow", "00001.arrow"]


def test_a_store_that_does_not_answer_is_not_a_corrupt_file(tmp_path, store: ObjectStore):
    make_features(tmp_path, shards=1)
    upload(tmp_path, Storage.open(store.uri))
    arrow = "features/00000.arrow"
    stream = FeatureStream(store.uri, batch_size=9)
    store.fault = lambda method, path: 403 if path.endswith(arrow) else None
    with pytest.raises(OSError, match=f"{arrow} cannot be read now"):
        next(iter(stream))
    with pytest.raises(OSError):  # even where corrupt shards may be skipped
        FeatureStream(store.uri, batch_size=9, skip_corrupt=True)
