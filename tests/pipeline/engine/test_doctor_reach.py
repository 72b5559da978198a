"""doctor: an object store (moto on loopback) and a Ray cluster (the tests' own), really asked."""

import json
import socket

import pytest
from pyarrow.fs import FileSelector, FileType

from codeseg.pipeline.engine.doctor_reach import check_access, check_ray
from codeseg.pipeline.engine.storage import Storage
from tests.pipeline.engine.test_object_store import ObjectStore, store

__all__ = ["store"]  # a fixture


def test_a_bucket_that_takes_and_gives_is_ok_and_left_as_it_was(store: ObjectStore):
    root = Storage.open(store.uri)
    root.write_atomic("pairs/00000.parquet", b"content")
    assert check_access(store.uri).state == "ok"
    everything = FileSelector(f"{store.bucket}/root", recursive=True)
    left = [
        f.base_name for f in root._filesystem.get_file_info(everything) if f.type == FileType.File
    ]
    assert left == ["00000.parquet"]


def test_a_bucket_that_is_not_there_is_missing_in_one_line(store: ObjectStore):
    uri = store.uri.replace(store.bucket, "no-such-bucket").replace("allow_bucket_creation", "x")
    finding = check_access(uri.replace("&x=true", ""))
    assert finding.state == "missing" and finding.mend
    assert "bucket" in finding.found.lower() and "\n" not in finding.found


def test_a_store_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        uri = f"s3://bucket/root?endpoint_override={host}&scheme=http&region=us-east-1"
        finding = check_access(uri, seconds=4)
    assert finding.state == "missing" and finding.found == "no answer in 4 s"


def test_a_ray_address_where_nobody_listens_is_missing_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    finding = check_ray(f"127.0.0.1:{port}", seconds=1e6)
    assert finding.state == "missing" and "refused" in finding.found.lower()


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_of_the_same_versions_is_ok_and_of_others_missing():
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    address = ray.get_runtime_context().gcs_address
    finding = check_ray(address)
    assert finding.state == "ok", finding
    assert f"Ray {ray.__version__}" in finding.found and "nodes: 1," in finding.found

    true = _internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    other = json.dumps({**json.loads(true), "ray_version": "1.2.3"}).encode()
    try:
        _internal_kv_put(
            CLUSTER_METADATA_KEY, other, overwrite=True, namespace=KV_NAMESPACE_CLUSTER
        )
        finding = check_ray(address)
    finally:
        _internal_kv_put(CLUSTER_METADATA_KEY, true, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
    assert finding.state == "missing" and "1.2.3" in finding.found and "\n" not in finding.found
