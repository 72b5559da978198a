"""A ShardWorker that waits until its node is released and says where it works: for node removal."""

import time
from uuid import uuid4

from codeseg.pipeline.engine.stage import PAIRS, commit
from codeseg.pipeline.engine.storage import Storage


class WaitingWorker:
    MEMORY = 100_000_000

    def __init__(self, root_uri, settings):
        import ray

        self.root = Storage.open(root_uri)
        self.node = ray.get_runtime_context().get_node_id()

    def process(self, shard, input):
        self.root.write_atomic(f"started/{uuid4().hex}", self.node.encode())
        while not self.root.exists(f"released/{self.node}"):
            time.sleep(0.05)
        return commit(
            self.root, PAIRS, shard, input, "s", lambda sink: sink.write(str(shard).encode()),
            rows_in=1, rejected={}, start=0.0, versions={},
        )  # fmt: skip
